"""Asks lm-evaluation-harness the questions of `frugal eval --tasks sst2,gsm8k`, for comparison sample by sample.

Usage: FRUGAL_DATA=DIR python scripts/golden/harness.py [--sst2 200] [--gsm8k 20] [--shots 2]

Writes fixtures/real/smollm2-harness/{sst2,gsm8k,perplexity}.json: for each record the hash of its prompt and what
PyTorch answers (log-likelihoods, or the greedy text). Tasks, prompts, filters and scores are those of the harness
itself; only the data files and the choice of the first records as examples are given to it.

Needs `lm-eval==0.4.13` and its `datasets`, beside scripts/golden/requirements.txt.
"""

import argparse
import hashlib
import importlib.metadata as md
import json
import os
import tempfile
from pathlib import Path

import real  # noqa: I001  (sets threads and offline mode before torch loads)
import torch
import yaml
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

import lm_eval

OUT = Path("fixtures/real/smollm2-harness")
TASKS = Path(lm_eval.__file__).parent / "tasks"
DATA = Path(os.environ["FRUGAL_DATA"])
TEXT = (
    "The keeper of the lighthouse had two lamps and a ledger. In the ledger he wrote the hour at which each ship went by, "
    "and whether it answered. Most did not.\n\nOn the last page there was room for one line more, and he left it empty.\n"
)


def sst2(folder):
    """The harness's task on the local files, whose sentence column has another name."""
    rows = [line.split("\t", 1) for line in (DATA / "sst2/dev.tsv").read_text().splitlines()[1:]]
    file = folder / "sst2.jsonl"
    file.write_text("".join(json.dumps({"label": int(label), "sentence": text}) + "\n" for label, text in rows))
    task = yaml.safe_load((TASKS / "glue/sst2/default.yaml").read_text())
    task |= {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": {"validation": str(file)}}}
    task.pop("training_split")
    task.pop("tag")
    return task


def gsm8k():
    task = yaml.safe_load((TASKS / "gsm8k/gsm8k.yaml").read_text())
    files = {"train": str(DATA / "gsm8k/train.jsonl"), "test": str(DATA / "gsm8k/test.jsonl")}
    task |= {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": files}}
    task["fewshot_config"] = {"sampler": "first_n"}
    task.pop("tag")
    return task


def perplexity(folder):
    file = folder / "text.jsonl"
    file.write_text(json.dumps({"text": TEXT}) + "\n")
    return {
        "task": "perplexity",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(file)}},
        "test_split": "test",
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": m} for m in ("word_perplexity", "byte_perplexity", "bits_per_byte")],
    }


def sha(text):
    return hashlib.sha256(text.encode()).hexdigest()


def write(name, found, limit, shots):
    samples = []
    for sample in found["samples"][name]:
        if any(s["doc_id"] == sample["doc_id"] for s in samples):
            continue  # another filter over the same answer
        contexts = [sample["arguments"][i][0] for i in range(len(sample["arguments"]))]
        samples.append({"doc_id": sample["doc_id"], "prompt_sha256": sha(contexts[0]), "resps": [r[0] for r in sample["resps"]]})
    scores = {k: v for k, v in found["results"][name].items() if "," in k}
    versions = {n: md.version(n) for n in ("lm_eval", "torch", "transformers")}
    header = {"generator": "scripts/golden/harness.py", "versions": versions, "source": real.SOURCE["smollm2-135m"]}
    body = {"header": header, "limit": limit, "num_fewshot": shots, "scores": scores, "samples": samples}
    if name == "perplexity":
        body["text"] = TEXT
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / f"{name}.json").write_text(json.dumps(body, separators=(",", ":")) + "\n")
    print(name, scores)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--sst2", type=int, default=200)
    parser.add_argument("--gsm8k", type=int, default=20)
    parser.add_argument("--shots", type=int, default=2)
    args = parser.parse_args()
    torch.manual_seed(0)
    model = HFLM(pretrained=real.smollm2(), tokenizer=real.smollm2_tokenizer(), batch_size=1, max_length=2048)
    with tempfile.TemporaryDirectory() as folder:
        plan = [(perplexity(Path(folder)), 0, 0), (sst2(Path(folder)), args.sst2, 0), (gsm8k(), args.gsm8k, args.shots)]
        for task, limit, shots in plan:
            if task["task"] != "perplexity" and limit == 0:
                continue
            found = simple_evaluate(
                model, tasks=[task], num_fewshot=shots, limit=limit or None, log_samples=True, task_manager=TaskManager(),
                bootstrap_iters=0,
            )
            write(task["task"], found, limit, shots)


if __name__ == "__main__":
    main()
