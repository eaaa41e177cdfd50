#!/usr/bin/env python3
"""Trains ten steps on a device and on the CPU and compares the losses.

    scripts/check_device.py vulkan                             # builds the program with that feature
    scripts/check_device.py webgpu --program target/release/frugal
    scripts/check_device.py vulkan --model smollm2-135m --tolerance 1e-3

The job is that of `frugal tune` without arguments (LoRA on the built-in model, SMS spam) with few rows to evaluate. It passes where
every loss is within the tolerance, relative, of the CPU's, and so are those of validation and test. A software driver does:
llvmpipe, of Mesa 26 for `vulkan`, also of earlier ones for `webgpu` over OpenGL (docs/devices.md).
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def build(device):
    command = ["cargo", "build", "--release", "-p", "frugal-cli", "--features", device]
    subprocess.run(command, cwd=ROOT, check=True)
    found = subprocess.run(["cargo", "metadata", "--format-version=1", "--no-deps"], cwd=ROOT, check=True, stdout=subprocess.PIPE)
    return Path(json.loads(found.stdout)["target_directory"]) / "release/frugal"


def losses(program, device, args, folder):
    command = [program, "tune", "--device", device, "--out", folder, "--max-steps", args.steps, "--set", "train.logging_steps=1",
               "--set", "data.max_eval_rows=32", "--method", args.method]
    command += ["--model", args.model] if args.model else []
    subprocess.run([str(word) for word in command], check=True, stdout=subprocess.DEVNULL)
    entries = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [(f"step {e['step']}: {key}", e[key]) for e in entries for key in ("loss", "eval_loss") if key in e]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("device")
    parser.add_argument("--program", type=Path, help="built with the device's feature (default: build it)")
    parser.add_argument("--model", help="default: the built-in one")
    parser.add_argument("--method", default="lora")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--tolerance", type=float, default=1e-3)
    args = parser.parse_args()
    program = args.program or build(args.device)
    with tempfile.TemporaryDirectory() as folder:
        sides = [losses(program, device, args, Path(folder) / side) for side, device in (("cpu", "cpu"), ("device", args.device))]
    if [name for name, _ in sides[0]] != [name for name, _ in sides[1]]:
        sys.exit(f"the two runs did not log the same: {sides}")
    if sum(name.endswith(": loss") for name, _ in sides[0]) != args.steps:
        sys.exit(f"the runs did not log {args.steps} losses: {sides[0]}")
    worst = 0.0
    for (name, cpu), (_, other) in zip(*sides):
        apart = abs(other - cpu) / abs(cpu)
        # A loss that is no number is never near.
        worst = max(worst, apart if apart == apart else float("inf"))
        print(f"{name} {cpu:.6f} on the CPU, {other:.6f} on {args.device}, {apart:.1e} apart")
    print(f"largest difference {worst:.1e}, allowed {args.tolerance:.0e}")
    sys.exit(worst > args.tolerance)


if __name__ == "__main__":
    main()
