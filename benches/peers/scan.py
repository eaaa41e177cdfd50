"""The selective scan beside PyTorch on the processor, in turn, at lengths from 1k to 16k tokens.

Usage: python benches/peers/scan.py [--pairs 3] [--lengths 1024 2048 ...] [--out benches/results/scan.json]

Frugal's side is the example `scan` (crates/frugal-kernels/examples/scan.rs), whose inputs this script repeats; both have two threads.
PyTorch has no operation for it. Its side is the recurrence as `selective_scan_ref` of state-spaces/mamba and the slow path of
transformers have it, a loop over tokens with all decays formed first, which are taken apart at once: indexing them token by token, as
those do, makes a backward pass that grows with the square of the length. Both sides compute the same first: the sums of the magnitudes
of results and gradients must agree. Lengths at which PyTorch would need more than `--memory` are left out for it.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from pathlib import Path

import built

ROOT = Path(__file__).resolve().parents[2]
CHANNELS, STATES = 1536, 16


def peer(length, step, seconds):
    import numpy
    import torch
    import torch.nn.functional as F

    torch.set_num_threads(2)

    def wave(*shape, seed, scale, shift=0.0):
        k = numpy.arange(math.prod(shape), dtype=numpy.float64)
        return torch.from_numpy((scale * numpy.sin(0.37 * k + seed) + shift).astype(numpy.float32)).view(*shape)

    a = -(torch.arange(CHANNELS * STATES) % STATES + 1).float().view(CHANNELS, STATES)
    inputs = [
        wave(length, CHANNELS, seed=1, scale=1.0),
        wave(length, CHANNELS, seed=2, scale=1.5, shift=-3.0),
        a,
        wave(length, STATES, seed=3, scale=1.0),
        wave(length, STATES, seed=4, scale=1.0),
        wave(length, CHANNELS, seed=5, scale=2.0),
    ]
    weights = wave(length, CHANNELS, seed=6, scale=1.0)

    def scan(x, delta, a, b, c):
        decay = torch.exp(delta[:, :, None] * a)
        new = delta[:, :, None] * b[:, None, :] * x[:, :, None]
        h, ys = torch.zeros(CHANNELS, STATES), []
        for decay_, new_, c_ in zip(decay.unbind(), new.unbind(), c.unbind()):
            h = decay_ * h + new_
            ys.append(h @ c_)
        return torch.stack(ys)

    def run():
        x, delta, a, b, c, z = inputs
        y = (scan(x, F.softplus(delta), a, b, c) + x) * F.silu(z)
        if not step:
            return [y]
        for tensor in inputs:
            tensor.grad = None
        (y * weights).sum().backward()
        return [y.detach(), *(tensor.grad for tensor in inputs)]

    if step:
        for tensor in inputs:
            tensor.requires_grad_(True)
    with torch.set_grad_enabled(step):
        sums = [t.double().abs().sum().item() for t in run()]
        times, until = [], time.perf_counter() + seconds
        while len(times) < 2 or time.perf_counter() < until:
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
    print(json.dumps({"seconds": statistics.median(times), "sums": sums}))


def theirs(length, mode, seconds):
    command = [sys.executable, __file__, "--peer", str(length), mode, str(seconds)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def ours(program, length, mode, seconds):
    out = subprocess.run([program, str(length), mode, str(seconds)], check=True, stdout=subprocess.PIPE, text=True).stdout
    found, sums = out.split()
    return {"seconds": float(found), "sums": [float(v) for v in sums.split(",")]}


def check(what, own, other):
    for i, (a, b) in enumerate(zip(own["sums"], other["sums"], strict=True)):
        if abs(a - b) > 1e-3 * abs(b):
            sys.exit(f"{what}: the two sides do not compute the same: result {i} sums to {a} and {b}")


def main():
    if sys.argv[1:2] == ["--peer"]:
        length, mode, seconds = sys.argv[2:]
        return peer(int(length), mode == "step", float(seconds))
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 2048, 4096, 8192, 16384])
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--memory", type=float, default=8.0, help="GiB that PyTorch may take")
    parser.add_argument("--program", help="the built example `scan` (default: build it)")
    parser.add_argument("--out", type=Path, default=ROOT / "benches/results/scan.json")
    args = parser.parse_args()
    program = args.program or built.example("scan")
    result = {}
    for mode in ("forward", "step"):
        rows, first = [], None
        for length in args.lengths:
            # Decays and new inputs of all tokens, and what backward keeps and forms.
            needed = 4 * length * CHANNELS * STATES * (2 if mode == "forward" else 6)
            pairs = []
            for _ in range(args.pairs):
                own, other = ours(program, length, mode, args.seconds), None
                if needed <= args.memory * 2**30:
                    other = theirs(length, mode, args.seconds)
                    check(f"{mode} of {length}", own, other)
                pairs.append((own["seconds"], other and other["seconds"]))
            own = statistics.median(own for own, _ in pairs)
            first = first or own / length
            row = {"length": length, "frugal_ms": 1e3 * own, "per_token_against_shortest": own / length / first}
            if pairs[0][1] is not None:
                row["torch_ms"] = 1e3 * statistics.median(other for _, other in pairs)
                row["ratio"] = statistics.median(other / own for own, other in pairs)
            rows.append(row)
            print(json.dumps(row), file=sys.stderr)
        result[mode] = rows
    what = f"selective scan, {CHANNELS} channels, {STATES} states, one sequence, two threads, f32"
    args.out.write_text(json.dumps({"what": what, "pairs": args.pairs, **result}, indent=2) + "\n")


if __name__ == "__main__":
    main()
