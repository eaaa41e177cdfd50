"""Peak memory and time of contrastive batches, whole and in parts (GradCache).

Usage: FRUGAL_DATA=DIR python benches/gradcache_memory.py [--batches 32,64,128,192] [--part 16] [--steps 3] [--frugal target/release/frugal]

Pairs are questions and passages of XQuAD, one of each passage; the model is minilm-l6 with the LoRA of `tune --task embedding`.
A batch of `part` examples, in one, says what a part has to take. Losses of whole batches and of the same in parts are compared.

Writes benches/results/gradcache_memory.json: peak MiB of each process, the median seconds of a step, losses.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ["FRUGAL_DATA"])


def write_pairs(path):
    articles = json.loads((DATA / "xquad-en/xquad.en.json").read_text())["data"]
    pairs = [(p["qas"][0]["question"].strip(), p["context"]) for a in articles for p in a["paragraphs"]]
    path.write_text("".join(json.dumps({"anchor": question, "positive": text}) + "\n" for question, text in pairs))


def measured(program, folder, batch, part, steps):
    out = folder / f"{batch}-{part}"
    command = [program, "tune", "--task", "embedding", "--data", str(folder / "pairs.jsonl"), "--model", "minilm-l6", "--out", str(out),
               "--max-steps", str(steps), "--logging-steps", "1", "--max-length", "128", "--quiet",
               "--set", f"train.batch_size={batch}", "--set", "train.objective.name=info_nce"]
    if part:
        command += ["--set", f"train.objective.mini_batch_size={part}"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)}\n{said.decode()}")
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "loss" in line]
    ends = [line["elapsed_seconds"] for line in lines]
    seconds = [end - begin for begin, end in zip([0.0, *ends], ends)]
    return {"batch": batch, "part": part, "peak_mib": round(usage.ru_maxrss / 1024, 1), "step_seconds": round(statistics.median(seconds), 3),
            "losses": [line["loss"] for line in lines]}


def main():
    options = argparse.ArgumentParser()
    options.add_argument("--batches", default="32,64,128,192")
    options.add_argument("--part", type=int, default=16)
    options.add_argument("--steps", type=int, default=3)
    options.add_argument("--frugal", default=str(ROOT / "target/release/frugal"))
    options = options.parse_args()
    runs, worst = [], 0.0
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_pairs(folder / "pairs.jsonl")
        runs.append(measured(options.frugal, folder, options.part, None, options.steps))
        print(runs[-1], flush=True)
        for batch in map(int, options.batches.split(",")):
            whole, parts = (measured(options.frugal, folder, batch, part, options.steps) for part in (None, options.part))
            off = max(abs(a - b) for a, b in zip(whole["losses"], parts["losses"], strict=True))
            worst = max(worst, off)
            runs += [whole, parts]
            print(whole, parts, f"losses differ by {off:.1e}", flush=True)
    body = {"model": "minilm-l6", "tokens_of_a_text": 128, "runs": runs, "losses_differ_by": worst}
    (ROOT / "benches/results/gradcache_memory.json").write_text(json.dumps(body, indent=1) + "\n")
    sys.exit(worst > 1e-5)


if __name__ == "__main__":
    main()
