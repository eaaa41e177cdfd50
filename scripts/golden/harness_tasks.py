"""Runs task files of lm-evaluation-harness on tiny random models, for comparison sample by sample.

Usage: python scripts/golden/harness_tasks.py [NAME ...]      writes fixtures/harness/

The task files are the harness's own (MIT licence) without what does not matter here; their rows are made up, in the form
that the data sets of the hub have. For each task and model the header keeps what the harness asked, what the model
answered and what it scored. One model puts a start token in front of every text, the other has none.

CoQA and ReCoRD are not among them: their Python needs `transformers` 4.

Needs `lm-eval==0.4.13` and its `datasets`, beside scripts/golden/requirements.txt.
"""

import importlib.metadata as md
import json
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

import common  # noqa: I001  (sets threads and offline mode before torch loads)
import torch
import transformers as hf
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
import lm_eval
from lm_eval import evaluator, simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

os.environ["HF_DATASETS_CACHE"] = tempfile.mkdtemp()
os.environ["HF_ALLOW_CODE_EVAL"] = "0"
# What the harness says of the machine takes longer than its answers.
evaluator.add_env_info = lambda results: None
OUT = common.ROOT / "fixtures/harness"
TASKS = Path(lm_eval.__file__).parent / "tasks"
SEED = 20260
WORDS = " the, and. of: is? The answer (A) B C D 1 2 12 yes no True False Question Answer"


def tokenizer(bos):
    """Bytes, and some words of two to six bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {piece: i for i, piece in enumerate(["<eos>", *(["<bos>"] if bos else []), *alphabet])}
    merges = []
    for word in ("Ġthe", "Ġand", "Ġof", "Ġis", "ĠThe", "Ġanswer", "Question", "Answer", "ĠA", "ĠB", "Ġyes", "Ġno"):
        done = word[0]
        for c in word[1:]:
            if (done, c) not in merges:
                merges.append((done, c))
            done += c
            vocab.setdefault(done, len(vocab))
    made = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    specials = {"eos_token": "<eos>"}
    if bos:
        made.post_processor = processors.TemplateProcessing(
            single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[("<bos>", vocab["<bos>"])])
        specials["bos_token"] = "<bos>"
    return hf.PreTrainedTokenizerFast(tokenizer_object=made, **specials)


def model(name):
    torch.manual_seed(SEED)
    tok = tokenizer(name == "gemma3_text")
    shared = dict(
        vocab_size=len(tok), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, max_position_embeddings=4096, initializer_range=0.3, tie_word_embeddings=True,
        eos_token_id=tok.eos_token_id, bos_token_id=tok.bos_token_id, pad_token_id=tok.eos_token_id)
    if name == "gemma3_text":
        made = hf.Gemma3ForCausalLM(hf.Gemma3TextConfig(**shared, sliding_window=64, layer_types=["sliding_attention", "full_attention"]))
    else:
        made = hf.LlamaForCausalLM(hf.LlamaConfig(**shared))
    made = made.eval()
    folder = OUT / name
    shutil.rmtree(folder, ignore_errors=True)
    made.save_pretrained(folder)
    tok.save_pretrained(folder)
    return HFLM(pretrained=made, tokenizer=tok, batch_size=1, max_length=4096)


# File, rows that are measured, further keys of the task, rows for examples and their number.
CHOICES = {"text": ["2", "3", "1"], "label": ["A", "B", "C"]}
QA = [{"question": "1+2?", "choices": CHOICES, "answerKey": "B"}, {"question": "Which is wet?", "choices": {"text": ["a stone", "the sea", "sand"], "label": ["1", "2", "3"]}, "answerKey": "2"}]
PASSAGE = "The keeper of the lighthouse had two lamps. He was the last of them."
GEN = {"max_gen_toks": 12}
TABLE = {
    "arc_easy": ("arc/arc_easy.yaml", QA),
    "openbookqa": ("openbookqa/openbookqa.yaml", [{"question_stem": q["question"], **{k: q[k] for k in ("choices", "answerKey")}} for q in QA]),
    "piqa": ("piqa/piqa.yaml", [{"goal": "open a jar", "sol1": "turn the lid", "sol2": "turn the table", "label": 0}, {"goal": "dry a cup", "sol1": "water", "sol2": "a towel", "label": 1}]),
    "hellaswag": ("hellaswag/hellaswag.yaml", [
        {"ind": 1, "activity_label": "Sailing", "ctx_a": "A man is in a boat.", "ctx_b": "he", "endings": ["rows [step] on.", "flies  off.", "sings [title] Song", "is a boat."], "label": "2"},
        {"ind": 2, "activity_label": "Baking [x]", "ctx_a": "Eggs are mixed.", "ctx_b": "", "endings": ["then flour.", "no.", "milk is the.", "and"], "label": "0"}]),
    "winogrande": ("winogrande/default.yaml", [
        {"sentence": "The cup did not fit the box because _ was too big.", "option1": "the cup", "option2": "the box", "answer": "1"},
        {"sentence": "Ann thanked Eve because _ had helped.", "option1": "Ann", "option2": "Eve", "answer": "2"}],
        {"fewshot_config": {"sampler": "first_n"}}, [{"sentence": "It is _ or not.", "option1": "so", "option2": "no", "answer": "2"}], 1),
    "copa": ("super_glue/copa/default.yaml", [
        {"premise": "The man fell.", "choice1": "He was tired.", "choice2": "The floor was wet.", "question": "cause", "label": 1},
        {"premise": "It rained.", "choice1": "The sea is.", "choice2": "The grass grew.", "question": "effect", "label": 0}]),
    "cb": ("super_glue/cb/default.yaml", [{"premise": PASSAGE, "hypothesis": h, "label": i % 3} for i, h in enumerate(("he had lamps", "he had no lamp", "it rained", "he slept"))]),
    "boolq": ("super_glue/boolq/default.yaml", [{"passage": PASSAGE, "question": "were there lamps", "label": 1}, {"passage": PASSAGE, "question": "was it the first", "label": 0}]),
    "mrpc": ("glue/mrpc/default.yaml", [{"sentence1": "It is.", "sentence2": s, "label": i % 2} for i, s in enumerate(("It is so.", "No.", "It was.", "Of the sea."))]),
    "mnli": ("glue/mnli/default.yaml", [{"premise": PASSAGE, "hypothesis": " He had lamps. ", "label": 0}, {"premise": "Rain.", "hypothesis": "No rain", "label": 2}]),
    "cola": ("glue/cola/default.yaml", [{"sentence": s, "label": i % 2} for i, s in enumerate(("It is.", "Is the.", "The sea is.", "And of."))]),
    "race": ("race/race.yaml", [{"article": PASSAGE, "problems": str([
        {"question": "He had  _  .", "answer": "A", "options": ["two lamps", "a cat", "no", "the sea"]},
        {"question": "Who?", "answer": "B", "options": ["x", "the keeper", "y", "z"]},
        {"question": "What's lit?", "answer": "D", "options": ["a", "b's", "c", "the lamp"]}])}]),
    "logiqa": ("logiqa/logiqa.yaml", [{"context": PASSAGE, "question": "Which?", "options": ["one", "two", "of the", "and"], "label": "b"}]),
    "medmcqa": ("medmcqa/medmcqa.yaml", [{"question": "Q?", "opa": "the", "opb": "and", "opc": "of", "opd": "is", "cop": 2}]),
    "mathqa": ("mathqa/mathqa.yaml", [{"Problem": "1 + 1 ?", "options": "a ) 2 , b ) 3 1/2 , c ) 4 , d ) 5 , e ) none of these", "correct": "c"}]),
    "toxigen": ("toxigen/toxigen.yaml", [{"text": "be kind", "toxicity_ai": 1.0, "toxicity_human": 1.5}, {"text": "no", "toxicity_ai": 4.0, "toxicity_human": 2.0}]),
    "webqs": ("webqs/webqs.yaml", [{"question": "Who?", "answers": ["the keeper", "keeper", "the"]}, {"question": "What?", "answers": ["sea"]}]),
    "sciq": ("sciq/sciq.yaml", [{"support": PASSAGE, "question": "What?", "distractor1": "a cat", "distractor2": "of", "distractor3": "and", "correct_answer": "lamps"}]),
    "crows_pairs_english": ("crows_pairs/crows_pairs_english.yaml", [{"sent_more": "The sea is of the.", "sent_less": "And is.", "bias_type": "age"}, {"sent_more": "A", "sent_less": "The answer is 12.", "bias_type": "gender"}]),
    "truthfulqa_mc1": ("truthfulqa/truthfulqa_mc1.yaml", [{"question": "What is it?", "mc1_targets": {"choices": ["A lamp.", "No.", "The sea."], "labels": [1, 0, 0]}}]),
    "truthfulqa_mc2": ("truthfulqa/truthfulqa_mc2.yaml", [{"question": "What is it?", "mc2_targets": {"choices": ["A lamp.", "No.", "The sea.", "Of."], "labels": [1, 1, 0, 0]}}]),
    "mmlu_anatomy": ("mmlu/default/mmlu_anatomy.yaml", [{"question": " Where? ", "choices": ["the", "and", "of", "is"], "answer": 3}, {"question": "Why?", "choices": ["1", "2", "12", "no"], "answer": 0}],
        {}, [{"question": "When?", "choices": ["a", "b", "c", "d"], "answer": 1}, {"question": "Who?", "choices": ["e", "f", "g", "h"], "answer": 2}], 2),
    "lambada_openai": ("lambada/lambada_openai.yaml", [{"text": "The keeper of the lighthouse had two lamps"}, {"text": "It is the answer"}, {"text": "yes no"}]),
    "arithmetic_1dc": ("arithmetic/arithmetic_1dc.yaml", [{"context": "Q: What is 1 + 2?\n\nA:", "completion": " 3"}]),
    "wikitext": ("wikitext/wikitext.yaml", [{"page": " = Lamps = \n The keeper 's \" lamp \" ( of  the sea ) , and 3 @.@ 5 @-@ m \n It is ' so ' . \n"}, {"page": "The answer"}]),
    "gsm8k_cot": ("gsm8k/gsm8k-cot.yaml", [{"question": "1+2?", "answer": "so\n#### 3"}, {"question": "What is 6+6?", "answer": "6+6=12\n#### 12"}]),
    "triviaqa": ("triviaqa/default.yaml", [{"question": "Who?", "answer": {"aliases": ["the keeper", "OUTPUT"]}}, {"question": "What's \"it\"", "answer": {"aliases": ["it's", "a \"lamp\""]}}], {"generation_kwargs": {"until": ["\n"], "do_sample": False, "temperature": 0.0}}),
    "nq_open": ("nq_open/nq_open.yaml", [{"question": "who", "answer": ["The Keeper", "OUTPUT"]}, {"question": "what", "answer": ["sea"]}], {"generation_kwargs": {"until": ["\n"], "do_sample": False, "temperature": 0.0}}),
    "drop": ("drop/default.yaml", [
        {"query_id": "a", "passage": PASSAGE, "question": "How many?", "answer": {"number": "2", "spans": [], "date": {"day": "", "month": "", "year": ""}},
         "validated_answers": {"number": ["2", ""], "spans": [[], ["OUTPUT", "two lamps"]], "date": [{"day": "", "month": "", "year": ""}] * 2}},
        {"query_id": "b", "passage": PASSAGE, "question": "When?", "answer": {"number": "", "spans": [], "date": {"day": "3", "month": "May", "year": "1901"}},
         "validated_answers": {"number": [""], "spans": [["of the sea"]], "date": [{"day": "", "month": "", "year": ""}]}}],
        {"generation_kwargs": {"until": ["\n"]}}),
    "mmlu_pro_math": ("mmlu_pro/mmlu_pro_math.yaml", [{"question": "1+1?", "options": ["2", " 3", "4"], "answer": "A", "cot_content": "", "category": "math"}, {"question": "Law?", "options": ["a", "b"], "answer": "B", "cot_content": "", "category": "law"}],
        {}, [{"question": "2+2?", "options": ["4", "5"], "answer": "A", "cot_content": "A: Let's think step by step. It is 4. The answer is (A).", "category": "math"}], 1),
    "hendrycks_math_algebra": ("hendrycks_math/hendrycks_math_algebra.yaml", [{"problem": "1/2?", "solution": "So $\\boxed{\\frac{1}{2}}$."}, {"problem": "x?", "solution": "It is $\\boxed{OUTPUT}$"}]),
    "bbh_cot": ("bbh/cot_fewshot/boolean_expressions.yaml", [{"input": "True and False is", "target": "False"}]),
}
# Tasks that the model without a start token is asked too.
WITHOUT_START = {"arc_easy", "hellaswag", "winogrande", "crows_pairs_english", "lambada_openai", "wikitext", "mmlu_anatomy", "gsm8k_cot", "truthfulqa_mc2", "cb"}
GENERATES = {"gsm8k_cot", "triviaqa", "nq_open", "drop", "mmlu_pro_math", "hendrycks_math_algebra", "bbh_cot"}
DROPPED = ("tag", "group", "metadata", "should_decontaminate", "doc_to_decontamination_query", "dataset_kwargs", "task_alias")


class Function(str):
    """The name of a Python function, which a file keeps as it is."""


yaml.SafeDumper.add_representer(Function, lambda dumper, name: dumper.represent_scalar("!function", str(name)))


def plain(path):
    """The keys of a task file over those that it includes, with the names of functions."""
    loader = type("Loader", (yaml.SafeLoader,), {})
    loader.add_constructor("!function", lambda loader, node: Function(loader.construct_scalar(node)))
    keys = yaml.load(path.read_text(), Loader=loader)
    include = keys.pop("include", None)
    return (plain(path.parent / include) if include else {}) | keys


def write_rows(folder, splits):
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in splits.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def replaced(rows, text):
    return json.loads(json.dumps(rows).replace("OUTPUT", json.dumps(text)[1:-1]))


def evaluate(name, lm, folder):
    file, rows, *more = TABLE[name]
    changes, shots, count = (*more, {}, [], 0)[:3] if len(more) < 3 else more
    path = TASKS / file
    keys = {k: v for k, v in (plain(path) | changes).items() if k not in DROPPED} | {"task": name}
    config = {k: v for k, v in (load_yaml(path) | changes).items() if k not in DROPPED} | {"task": name}
    test = config.get("test_split") or config["validation_split"]
    few = config.get("fewshot_split") or config.get("training_split") or config.get("validation_split") or test
    splits = {test: rows} | ({few: shots} if shots else {})
    # The harness opens every split, also those that it does not use.
    named = [config.get(f"{part}_split") for part in ("training", "validation", "test", "fewshot")]
    files = {split: str(folder / name / f"{split if split in splits else test}.jsonl") for split in [*splits, *filter(None, named)]}
    local = {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": files}}
    # Examples that the file itself gives.
    own = config.get("fewshot_config") or {}
    count = count or (config.get("num_fewshot") or 0 if "samples" in own else 0)

    def run():
        write_rows(folder / name, splits)
        generation = {"gen_kwargs": GEN} if name in GENERATES else {}
        return simple_evaluate(
            lm, tasks=[dict(config) | local], num_fewshot=count or None, log_samples=True, task_manager=TaskManager(), bootstrap_iters=0, **generation)

    found = run()
    if "OUTPUT" in json.dumps(rows):
        texts = [s["resps"][0][0] for s in found["samples"][name]]
        text = re.sub(r"\s+", " ", texts[[("OUTPUT" in json.dumps(row)) for row in rows].index(True)].split("\n")[0]).strip()
        splits[test] = replaced(rows, text)
        found = run()
    (OUT / "tasks").mkdir(parents=True, exist_ok=True)
    head = f"# lm-evaluation-harness {md.version('lm_eval')}, lm_eval/tasks/{file}; MIT licence, EleutherAI.\n"
    (OUT / "tasks" / f"{name}.yaml").write_text(head + yaml.dump(keys, sort_keys=False, allow_unicode=True, Dumper=yaml.SafeDumper))
    write_rows(OUT / "rows" / name, splits)
    samples, seen = [], set()
    for sample in found["samples"][name]:
        if sample["doc_id"] not in seen:
            seen.add(sample["doc_id"])
            samples.append({"doc_id": sample["doc_id"], "arguments": [list(a[:2]) if not isinstance(a[-1], dict) else [a[0]] for a in sample["arguments"]], "resps": [r[0] for r in sample["resps"]]})
    scores = {k: float(v) for k, v in found["results"][name].items() if "," in k and "stderr" not in k}
    return {"num_fewshot": count, "gen_kwargs": "max_gen_toks=12" if name in GENERATES else None, "scores": scores, "samples": samples}


def main():
    wanted = sys.argv[1:] or list(TABLE)
    names = ("lm_eval", "torch", "transformers", "tokenizers")
    body = {"header": {"generator": "scripts/golden/harness_tasks.py", "seed": SEED, "versions": {n: md.version(n) for n in names}}}
    for name in ("gemma3_text", "llama"):
        lm = model(name)
        body[name] = {}
        with tempfile.TemporaryDirectory() as folder:
            for task in wanted:
                if name == "llama" and task not in WITHOUT_START:
                    continue
                body[name][task] = evaluate(task, lm, Path(folder))
                print(name, task, body[name][task]["scores"])
            (OUT / "golden.json").write_text(json.dumps(body, indent=1) + "\n")


if __name__ == "__main__":
    main()
