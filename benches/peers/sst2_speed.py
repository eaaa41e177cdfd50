"""Training a classifier on SST-2: examples per second of Frugal and of transformers + peft, in turn.

Usage: FRUGAL_DATA=DIR python benches/peers/sst2_speed.py [--pairs 5] [--rows 160] [--out benches/results/sst2_speed.json]

Both sides follow the recipe of `sst2_peft.py`: SmolLM2-135M, LoRA r 8 on all linear maps, steps of 16 examples. peft pads each batch
to its longest example; Frugal's batches are packed, with as many examples to a step.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import built

ROOT = Path(__file__).resolve().parents[2]
BATCH = 16


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--rows", type=int, default=160)
    parser.add_argument("--program", help="the built program `frugal` (default: build it)")
    parser.add_argument("--out", type=Path, default=ROOT / "benches/results/sst2_speed.json")
    args = parser.parse_args()
    ours = [args.program or built.binary("frugal")]
    data = Path(os.environ["FRUGAL_DATA"]) / "sst2"
    pairs = []
    for _ in range(args.pairs):
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "run"
            command = [*ours, "tune", "--model", "smollm2-135m", "--data", data / "train.tsv", "--eval-data", data / "dev.tsv",
                       "--max-train-rows", args.rows, "--max-eval-rows", BATCH, "--method", "lora", "--r", 8, "--lora-alpha", 16,
                       "--batch-size", BATCH, "--lr", "5e-4", "--warmup-ratio", "0.06", "--set", "evaluate_base=false",
                       "--set", "train.load_best_model_at_end=false", "--out", out, "--json", "--quiet"]
            found = subprocess.run([str(word) for word in command], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
            costs = json.loads(found.stdout)["costs"]
            peer = Path(folder) / "peft.json"
            command = [sys.executable, ROOT / "benches/peers/sst2_peft.py", "--rows", args.rows, "--dev-rows", BATCH, "--out", peer]
            subprocess.run([str(word) for word in command], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
            other = json.loads(peer.read_text())
        pairs.append({"frugal_examples_per_second": args.rows / costs["train_seconds"],
                      "peft_examples_per_second": args.rows / other["train_seconds"],
                      "frugal_peak_mib": costs["peak_memory_bytes"] / 2**20, "peft_peak_mib": other["peak_rss_mib"],
                      "padding_share": 1 - other["train_tokens"] / other["train_tokens_with_padding"]})
        print(json.dumps(pairs[-1]), file=sys.stderr)
    speed = statistics.median(p["frugal_examples_per_second"] / p["peft_examples_per_second"] for p in pairs)
    memory = statistics.median(p["frugal_peak_mib"] / p["peft_peak_mib"] for p in pairs)
    result = {"what": f"SmolLM2-135M, LoRA, {args.rows} examples of SST-2 in steps of {BATCH}", "speed_ratio": speed,
              "memory_ratio": memory, "pairs": pairs}
    args.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps({k: v for k, v in result.items() if k != "pairs"}))


if __name__ == "__main__":
    main()
