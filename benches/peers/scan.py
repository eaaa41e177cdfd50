"""The selective scan beside PyTorch on the processor, in turn, at lengths from 1k to 16k tokens.

Usage: python benches/peers/scan.py [--pairs 3] [--lengths 1024 2048 ...] [--out benches/results/scan.json]

Frugal's side is the example `scan` (crates/frugal-kernels/examples/scan.rs), whose inputs this script repeats; both have two threads.
PyTorch has no operation for it. Its side is the recurrence as `selective_scan_ref` of state-spaces/mamba and the slow path of
transformers have it, a loop over tokens with all decays formed first, and beside it the same in chunks, by logarithms of decays
within a chunk as a cumulative sum (`chunked`), which needs less memory; the faster of the two counts. Both sides compute the same first: the
sums of the magnitudes of results and gradients must agree. Lengths at which PyTorch's forward pass alone would need more than
`--memory` are left out for it.
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
CHANNELS, STATES, CHUNK = 1536, 16, 16


def peer(length, step, seconds, form):
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

    def loop(x, delta, a, b, c):
        decay = torch.exp(delta[:, :, None] * a)
        new = delta[:, :, None] * b[:, None, :] * x[:, :, None]
        h, ys = torch.zeros(CHANNELS, STATES), []
        for t in range(length):
            h = decay[t] * h + new[t]
            ys.append(h @ c[t])
        return torch.stack(ys)

    def chunked(x, delta, a, b, c):
        h, ys = torch.zeros(CHANNELS, STATES), []
        for start in range(0, length, CHUNK):
            part = slice(start, start + CHUNK)
            step_, count = delta[part], len(delta[part])
            total = torch.cumsum(step_, 0)
            # Decays from each earlier token to each later one; none from later ones.
            gaps = total[:, None] - total[None, :]
            seen = torch.ones(count, count, dtype=torch.bool).tril()
            gaps = gaps.masked_fill(~seen[:, :, None], math.inf)
            new = step_ * x[part]
            pairs = torch.einsum("tsen,tn,sn,se->te", torch.exp(gaps[..., None] * a), c[part], b[part], new)
            carried = torch.exp(total[:, :, None] * a)
            ys.append(pairs + torch.einsum("ten,en,tn->te", carried, h, c[part]))
            last = torch.exp((total[-1] - total)[:, :, None] * a)
            h = carried[-1] * h + torch.einsum("sen,sn,se->en", last, b[part], new)
        return torch.cat(ys)

    scan = {"loop": loop, "chunked": chunked}[form]

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


def theirs(length, mode, seconds, form):
    command = [sys.executable, __file__, "--peer", form, str(length), mode, str(seconds)]
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
        form, length, mode, seconds = sys.argv[2:]
        return peer(int(length), mode == "step", float(seconds), form)
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
            # Decays and new inputs of all tokens, and what backward keeps and forms; of pairs within a chunk.
            numbers = {"loop": length * CHANNELS * STATES, "chunked": length * CHUNK * CHANNELS * STATES}
            kept = {"loop": 2, "chunked": 0} if mode == "forward" else {"loop": 6, "chunked": 3}
            forms = [form for form in numbers if 4 * numbers[form] * kept[form] <= args.memory * 2**30]
            pairs = []
            for _ in range(args.pairs):
                own = ours(program, length, mode, args.seconds)
                others = {form: theirs(length, mode, args.seconds, form) for form in forms}
                for form, other in others.items():
                    check(f"{mode} of {length}, {form}", own, other)
                pairs.append((own["seconds"], {form: other["seconds"] for form, other in others.items()}))
            own = statistics.median(own for own, _ in pairs)
            first = first or own / length
            row = {"length": length, "frugal_ms": 1e3 * own, "per_token_against_shortest": own / length / first}
            for form in forms:
                row[f"torch_{form}_ms"] = 1e3 * statistics.median(other[form] for _, other in pairs)
            if forms:
                row["ratio"] = statistics.median(min(other.values()) / own for own, other in pairs)
            rows.append(row)
            print(json.dumps(row), file=sys.stderr)
        result[mode] = rows
    what = f"selective scan, {CHANNELS} channels, {STATES} states, one sequence, two threads, f32"
    args.out.write_text(json.dumps({"what": what, "pairs": args.pairs, **result}, indent=2) + "\n")


if __name__ == "__main__":
    main()
