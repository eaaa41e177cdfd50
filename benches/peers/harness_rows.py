"""Asks lm-evaluation-harness and `frugal eval --tasks` the same 200 rows of seven tasks, and compares sample by sample.

Usage: FRUGAL_DATA=DIR python benches/peers/harness_rows.py [--rows 200] [--written 20] [--frugal target/release/frugal]

The task files are the harness's own; its data sets come from a hub, so the rows are made in their form: questions, answers
and passages of XQuAD, sentences of Gutenberg books, problems of GSM8K, with the eight examples that its task file gives.
The models: SmolLM2-135M-Instruct, the same with a start token in front of every text, the random Gemma of fixtures/harness,
and Gemma 3 270M (`frugal models fetch gemma3-270m`), whose texts begin with a start token. Fails where a prompt or a score differs, or a log-likelihood by more than 1e-3 nats and 1e-4 of its size; how many
are more than 1e-3 nats away is told, with how far each side is there from the same model in double precision. Of a greedy text the scores must be equal, and the number of equal texts is told.

No two rows of winogrande are one text: where a context with its continuation is that of another row, cut elsewhere, lm-eval 0.4.13
answers the one from the logits of the other, tens of nats off what it says of the row alone.

Writes benches/results/harness_rows.json. Needs what scripts/golden/harness_tasks.py needs.
"""

import argparse
import copy
import gzip
import importlib.metadata as md
import json
import os
import random
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts/golden"))
import harness_tasks as tiny  # noqa: E402, I001  (sets threads and offline mode before torch loads)
import real  # noqa: E402
import torch  # noqa: E402
import yaml  # noqa: E402
from lm_eval import simple_evaluate  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402
from lm_eval.tasks._yaml_loader import load_yaml  # noqa: E402
from tokenizers import processors  # noqa: E402
import transformers as hf  # noqa: E402

DATA = Path(os.environ["FRUGAL_DATA"])
BOUND, OF_SIZE = 1e-3, 1e-4
FILES = {
    "arc_easy": "arc/arc_easy.yaml",
    "openbookqa": "openbookqa/openbookqa.yaml",
    "hellaswag": "hellaswag/hellaswag.yaml",
    "winogrande": "winogrande/default.yaml",
    "lambada_openai": "lambada/lambada_openai.yaml",
    "triviaqa": "triviaqa/default.yaml",
    "gsm8k_cot": "gsm8k/gsm8k-cot.yaml",
}
WRITTEN = ("triviaqa", "gsm8k_cot")
# Sampling of the task file is said again: the harness warns where temperature is 0 and nothing is drawn.
CHANGES = {"triviaqa": {"generation_kwargs": {"until": ["\n", ".", ","], "do_sample": False, "temperature": 0.0, "max_gen_toks": 32}},
           "gsm8k_cot": {"generation_kwargs": {"until": ["Q:", "</s>", "<|im_end|>"], "do_sample": False, "max_gen_toks": 128}}}


def questions():
    """Question, answer, three answers of other questions of the same article, the sentence of the answer."""
    found = []
    for article in json.loads((DATA / "xquad-en/xquad.en.json").read_text())["data"]:
        answers = sorted({q["answers"][0]["text"] for p in article["paragraphs"] for q in p["qas"]})
        for paragraph in article["paragraphs"]:
            for question in paragraph["qas"]:
                answer = question["answers"][0]
                others = [a for a in answers if a not in answer["text"] and answer["text"] not in a]
                if len(others) >= 3:
                    found.append((question["question"].strip(), answer["text"], others, paragraph["context"], answer["answer_start"]))
    return found


def sentences():
    text = ""
    for name in ("Alice-s-Adventures-in-Wonderland_11", "Pride-and-Prejudice_1342"):
        text += gzip.decompress((DATA / f"gutenberg/{name}.txt.gz").read_bytes()).decode(errors="ignore")
    text = re.sub(r"\s+", " ", text)
    return [s for s in re.split(r"(?<=[.!?]) ", text) if 40 <= len(s) <= 160]


def rows(count, written):
    draw = random.Random(11)
    asked = questions()
    draw.shuffle(asked)
    told = sentences()
    made = {name: [] for name in FILES}
    for question, answer, others, passage, start in asked[:count]:
        choices = [answer, *draw.sample(others, 3)]
        draw.shuffle(choices)
        right = "ABCD"[choices.index(answer)]
        table = {"text": choices, "label": list("ABCD")}
        made["arc_easy"].append({"question": question, "choices": table, "answerKey": right})
        made["openbookqa"].append({"question_stem": question, "choices": table, "answerKey": right})
        made["triviaqa"].append({"question": question, "answer": {"aliases": [answer, answer.upper()], "value": answer}})
        made["lambada_openai"].append({"text": passage[: passage.rfind(" ", 0, 300)]})
    texts = set()
    for question, answer, others, passage, start in asked:
        begin = passage.rfind(". ", 0, start) + 2 if ". " in passage[:start] else 0
        end = passage.find(". ", start + len(answer))
        end = end if end > 0 else len(passage)
        if passage[begin:end] in texts or len(texts) == count:
            continue
        texts.add(passage[begin:end])
        options = [answer, draw.choice(others)]
        draw.shuffle(options)
        sentence = passage[begin:start] + "_" + passage[start + len(answer) : end]
        made["winogrande"].append({"sentence": sentence, "option1": options[0], "option2": options[1], "answer": str(options.index(answer) + 1)})
    for index in range(count):
        at = draw.randrange(len(told) - 2)
        endings = [told[at + 1], *draw.sample(told, 3)]
        draw.shuffle(endings)
        made["hellaswag"].append({"ind": index, "activity_label": "Reading", "ctx_a": told[at], "ctx_b": "", "endings": endings, "label": str(endings.index(told[at + 1]))})
    problems = [json.loads(line) for line in (DATA / "gsm8k/test.jsonl").read_text().splitlines()]
    made["gsm8k_cot"] = problems[:written]
    return made


def saved(read, tokenizer, folder):
    """What was read of GGUF is marked as quantized, and not saved: the same weights in a model without the mark."""
    keys = {k: v for k, v in read.config.to_dict().items() if k not in ("quantization_config", "dtype")}
    model = type(read)(type(read.config)(**keys))
    model.load_state_dict(read.state_dict())
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def gemma(folder):
    """Folder of Gemma 3 270M, as transformers reads its GGUF file."""
    file = next((real.PARENT / "gemma3-270m").glob("*.gguf"))
    read = hf.AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    saved(read, hf.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name), folder)
    return folder


def models(folder, numbers):
    """Name, folder and what the harness runs."""
    plain = folder / "smollm2"
    model = saved(real.smollm2(), real.smollm2_tokenizer(), plain)
    started = folder / "smollm2-start"
    model.save_pretrained(started)
    other = hf.AutoTokenizer.from_pretrained(plain)
    start = "<|im_start|>"
    other.bos_token = start
    other.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A", pair=f"{start} $A {start} $B", special_tokens=[(start, other.convert_tokens_to_ids(start))])
    other.save_pretrained(started)
    places = {"smollm2-135m": lambda: plain, "smollm2-135m with a start token": lambda: started,
              "random gemma3_text": lambda: ROOT / "fixtures/harness/gemma3_text", "gemma3-270m": lambda: gemma(folder / "gemma3")}
    for number, (name, place) in enumerate(places.items()):
        if number not in numbers:
            continue
        path = place()
        loaded = hf.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        yield name, path, HFLM(pretrained=loaded, tokenizer=hf.AutoTokenizer.from_pretrained(path), batch_size=8, max_length=2048)


def asked_of_harness(lm, task, folder, data):
    path = tiny.TASKS / FILES[task]
    config = {k: v for k, v in (load_yaml(path) | CHANGES.get(task, {})).items() if k not in tiny.DROPPED} | {"task": task}
    keys = {k: v for k, v in (tiny.plain(path) | CHANGES.get(task, {})).items() if k not in tiny.DROPPED} | {"task": task}
    test = config.get("test_split") or config["validation_split"]
    named = {config.get(f"{part}_split") for part in ("training", "validation", "test", "fewshot")} - {None}
    home = folder / task
    tiny.write_rows(home, {split: data for split in named | {test}})
    (folder / f"{task}.yaml").write_text(yaml.dump(keys, sort_keys=False, allow_unicode=True, Dumper=yaml.SafeDumper))
    for function in path.parent.glob("*.py"):
        (folder / function.name).write_text(function.read_text())
    local = {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": {s: str(home / f"{s}.jsonl") for s in named | {test}}}}
    found = simple_evaluate(lm, tasks=[config | local], log_samples=True, task_manager=TaskManager(), bootstrap_iters=0)
    scores = {k: float(v) for k, v in found["results"][task].items() if "," in k and "stderr" not in k}
    samples = {}
    for sample in found["samples"][task]:
        samples.setdefault(sample["doc_id"], sample)
    return scores, samples


def asked_of_frugal(program, model, task, folder):
    out = folder / f"out-{task}"
    run = subprocess.run(
        [program, "eval", "--model", str(model), "--tasks", f"{folder / task}.yaml:{folder / task}", "--out", str(out), "--offline", "--quiet"],
        capture_output=True, text=True)
    if run.returncode:
        raise SystemExit(f"{task}: {run.stderr}")
    found = json.loads((out / "results.json").read_text())["results"][task]
    lines = [json.loads(line) for line in (out / f"samples_{task}.jsonl").read_text().splitlines()]
    samples = {}
    for line in lines:
        samples.setdefault(line["doc_id"], line)
    return {k: float(v) for k, v in found.items() if "," in k and "stderr" not in k}, samples


def in_double(lm, context, continuation):
    """The log-likelihood of a continuation by the same model in double precision."""
    before, tokens = lm._encode_pair(context, continuation)
    model = copy.deepcopy(lm.model).double()
    with torch.no_grad():
        logs = model(torch.tensor([before + tokens])).logits[0].log_softmax(-1)
    return sum(float(logs[len(before) + i - 1, token]) for i, token in enumerate(tokens))


def compared(task, theirs, ours, lm):
    (scores, asked), (own_scores, own) = theirs, ours
    assert set(asked) == set(own), f"{task}: other rows"
    result = {"rows": len(asked), "scores": scores, "frugal": {k: own_scores.get(k) for k in scores}}
    worst, beyond, same = 0.0, [], 0
    for key, sample in asked.items():
        for index, argument in enumerate(sample["arguments"]):
            prompt = own[key]["arguments"][f"gen_args_{index}"]
            assert prompt["arg_0"] == argument[0], f"{task} {key}: {prompt['arg_0']!r} {argument[0]!r}"
        if task in WRITTEN:
            same += own[key]["resps"][0][0] == sample["resps"][0][0]
        else:
            for argument, a, b in zip(sample["arguments"], own[key]["resps"], sample["resps"], strict=True):
                ours_one, theirs_one = float(a[0][0]), float(b[0][0])
                off = abs(ours_one - theirs_one)
                worst = max(worst, off)
                if off > BOUND:
                    exact = in_double(lm, *argument)
                    beyond.append({"nats": exact, "off": theirs_one - exact, "frugal_off": ours_one - exact})
                assert off <= max(BOUND, OF_SIZE * abs(theirs_one)), f"{task} {key}: {ours_one} and {theirs_one}"
    if task in WRITTEN:
        result["same_texts"] = same
    else:
        result["largest_difference_nats"], result["beyond_1e-3_nats"] = worst, len(beyond)
        if beyond:
            result["beyond_beside_double_precision"] = beyond
    for name, value in scores.items():
        off = abs(own_scores[name] - value)
        assert off <= 1e-3 * max(1.0, abs(value)) if name.startswith("perplexity") else off < 1e-9, f"{task} {name}: {value} and {own_scores[name]}"
    return result


def main():
    options = argparse.ArgumentParser()
    options.add_argument("--rows", type=int, default=200)
    options.add_argument("--written", type=int, default=20)
    options.add_argument("--tasks", default=",".join(FILES))
    options.add_argument("--models", type=int, nargs="*", default=[0, 1, 2, 3], help="numbers of the models, in the order above")
    options.add_argument("--frugal", default=str(ROOT / "target/release/frugal"))
    options = options.parse_args()
    data = rows(options.rows, options.written)
    versions = {n: md.version(n) for n in ("lm_eval", "torch", "transformers")}
    file = ROOT / "benches/results/harness_rows.json"
    before = json.loads(file.read_text())["models"] if file.exists() else {}
    body = {"versions": versions, "bound_nats": BOUND, "bound_of_size": OF_SIZE, "models": before}
    failed = []
    with tempfile.TemporaryDirectory() as scratch:
        for name, path, lm in models(Path(scratch), options.models):
            folder = Path(scratch) / name.replace(" ", "-")
            folder.mkdir(exist_ok=True)
            body["models"][name] = {}
            for task in options.tasks.split(","):
                # Words drawn by a random model have no meaning that a task that writes could score.
                if task in WRITTEN and name.startswith("random"):
                    continue
                theirs = asked_of_harness(lm, task, folder, data[task])
                try:
                    found = compared(task, theirs, asked_of_frugal(options.frugal, path, task, folder), lm)
                except AssertionError as error:
                    failed.append(f"{name}: {error}")
                    found = {"failed": str(error)}
                body["models"][name][task] = found
                print(name, task, found, flush=True)
            # What an interrupted run has found of whole models is kept.
            if not failed:
                file.write_text(json.dumps(body, indent=1) + "\n")
    if failed:
        raise SystemExit("\n".join(failed))


if __name__ == "__main__":
    main()
