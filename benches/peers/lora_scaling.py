"""LoRA steps of Frugal at growing lengths and with each way to keep activations.

Usage: python benches/peers/lora_scaling.py [--steps 3] [--out benches/results/lora_scaling.json]

SmolLM2-135M, r = 8 on all linear maps, float32 base: single sequences of 128 to 4,096 tokens, then 1 to 16 sequences of 256. The
first step warms up; figures are medians of the others. Then 4 x 256 tokens with `memory` low, balanced and fast, five times in turn.
Draws docs/lora_scaling.svg (`pip install matplotlib`).
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

import built

ROOT = Path(__file__).resolve().parents[2]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--program", help="the built example `lora_step` (default: build it)")
    parser.add_argument("--out", type=Path, default=ROOT / "benches/results/lora_scaling.json")
    args = parser.parse_args()
    ours = [args.program or built.example("lora_step")]

    def run(**options):
        command = [*ours, "smollm2-135m", str(args.steps), *(f"{key}={value}" for key, value in options.items())]
        found = json.loads(subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])
        row = {**options, "tokens_per_second": found["tokens"] / statistics.median(found["seconds"][1:]),
               "peak_mib": found["peak_rss_bytes"] / 2**20, "losses": found["losses"]}
        print(json.dumps(row), file=sys.stderr)
        return row

    lengths = [run(batch=1, length=length) for length in [128, 256, 512, 1024, 2048, 4096]]
    batches = [run(batch=batch, length=256) for batch in [1, 2, 4, 8, 16]]
    rounds = [[run(memory=memory) for memory in ["low", "balanced", "fast"]] for _ in range(args.rounds)]
    for low, balanced, fast in rounds:
        if not low["losses"] == balanced["losses"] == fast["losses"]:
            sys.exit("what is kept changes the losses")
    trade = []
    for i, memory in enumerate(["low", "balanced", "fast"]):
        speed = statistics.median(r[i]["tokens_per_second"] / r[2]["tokens_per_second"] for r in rounds)
        trade.append({"memory": memory, "speed_to_fast": speed, "peak_mib": statistics.median(r[i]["peak_mib"] for r in rounds)})
    result = {"what": "LoRA step, SmolLM2-135M, float32", "lengths": lengths, "batches": batches, "memory": trade}
    args.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(trade))
    plot(lengths, batches)


def plot(lengths, batches):
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "frugal"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 2, figsize=(8, 5), layout="constrained")
    for column, (rows, key, label) in enumerate([(lengths, "length", "tokens of one sequence"), (batches, "batch", "sequences of 256 tokens")]):
        x = [row[key] for row in rows]
        for line, (what, unit) in enumerate([("tokens_per_second", "tokens per second"), ("peak_mib", "peak memory (MiB)")]):
            axis = axes[line][column]
            axis.plot(x, [row[what] for row in rows], marker="o")
            axis.set_xscale("log", base=2)
            axis.set_xticks(x, [str(v) for v in x])
            axis.set_ylim(0, 1.1 * max(row[what] for row in rows))
            axis.grid(alpha=0.3)
            axis.set_ylabel(unit)
        # Linear growth is a straight line on linear axes.
        axes[1][column].set_xscale("linear")
        axes[1][column].set_xlim(0, 1.05 * x[-1])
        axes[1][column].set_xlabel(label)
    for axis in axes.flat:
        axis.tick_params(labelsize=8)
    figure.savefig(ROOT / "docs/lora_scaling.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
