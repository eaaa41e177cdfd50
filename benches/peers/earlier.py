"""The LoRA step, generation and embedding by two builds of Frugal, in turn.

Usage: python benches/peers/earlier.py EARLIER [--now DIRECTORY] [--pairs 7] [--out benches/results/earlier.json]

EARLIER is the folder of the built examples of another version: `cargo build --release --workspace --examples` in a checkout of
it, then `target/release/examples`. A ratio is the speed of the present build over that of the earlier one, the median of the
pairs; above 1 the present one is faster. Which side goes first changes from pair to pair. Losses and tokens must be the same on both sides.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import built
import encoder
import generate

ROOT = Path(__file__).resolve().parents[2]


def run(command):
    result = subprocess.run([str(word) for word in command], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(result.stdout.splitlines()[-1])


def lora_step(folder, _):
    found = run([folder / "lora_step", "smollm2-135m", 5, "quantize=none", "activations=exact", "memory=balanced"])
    return {"lora_step": found["tokens"] / statistics.median(found["seconds"][1:])}, found["losses"]


def generation(folder, _):
    found = run([folder / "generation", generate.MODEL, generate.PROMPT, generate.PREFILL, generate.DECODE])
    return {"prefill": statistics.median(found["prefill"]), "decode": statistics.median(found["decode"])}, found["tokens"]


def embedding(folder, sentences):
    found = run([folder / "embed", encoder.MODEL, sentences])
    return {"embedding": encoder.SENTENCES / statistics.median(found["seconds"][1:])}, found["first"]


def difference(a, b):
    return max(abs(x - y) for x, y in zip(a, b, strict=True))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("earlier", type=Path)
    parser.add_argument("--now", type=Path, help="the built examples of this version (default: build them)")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--out", type=Path, default=ROOT / "benches/results/earlier.json")
    args = parser.parse_args()
    now = args.now or Path([built.example(name) for name in ("lora_step", "generation", "embed")][0]).parent
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as sentences:
        sentences.write("\n".join(encoder.sentences()) + "\n")
        sentences.flush()
        pairs, differences = [], {}
        for i in range(args.pairs):
            rates = {}
            for work in (lora_step, generation, embedding):
                sides = [("earlier", args.earlier), ("now", now)]
                found = {side: work(folder, sentences.name) for side, folder in (sides if i % 2 else sides[::-1])}
                apart = difference(found["earlier"][1], found["now"][1])
                differences[work.__name__] = max(apart, differences.get(work.__name__, 0.0))
                for key in found["now"][0]:
                    rates[key] = {side: found[side][0][key] for side in found}
            pairs.append(rates)
            print(json.dumps(rates), file=sys.stderr)
    ratios = {key: statistics.median(p[key]["now"] / p[key]["earlier"] for p in pairs) for key in pairs[0]}
    result = {"what": "speed of the present build over an earlier one", "ratios": ratios, "largest_differences": differences, "pairs": pairs}
    args.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps({key: value for key, value in result.items() if key != "pairs"}))


if __name__ == "__main__":
    main()
