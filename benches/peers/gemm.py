"""The rate of single-precision matrix products here, in PyTorch and in OpenBLAS, in turn: what each would allow a step at most.

Usage: python benches/peers/gemm.py [--pairs 5] [--out benches/results/gemm.json]

Shapes of SmolLM2's maps over 1,024 tokens, and a large square. OpenBLAS is numpy's; it does not know every processor, so it is also
run as for another kind with AVX-512 (`OPENBLAS_CORETYPE=SkylakeX`). Medians on all sides; ours is what
`frugal doctor` says.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import built

ROOT = Path(__file__).resolve().parents[2]
SHAPES = [(1024, 576, 576), (1024, 576, 1536), (1024, 1536, 576), (2048, 2048, 2048)]
SIDES = {"pytorch": {}, "openblas": {}, "openblas_avx512": {"OPENBLAS_CORETYPE": "SkylakeX"}}


def rate(product, m, k, n):
    """GFLOP/s: the median of twenty products."""
    seconds = []
    for _ in range(22):
        start = time.perf_counter()
        product()
        seconds.append(time.perf_counter() - start)
    return 2e-9 * m * k * n / statistics.median(seconds[2:])


def peer(side):
    rates = {}
    for m, k, n in SHAPES:
        if side == "pytorch":
            import torch

            torch.set_num_threads(2)
            a, b = torch.rand(m, k), torch.rand(n, k).T
        else:
            import numpy

            a, b = (numpy.random.rand(*shape).astype("float32") for shape in ((m, k), (n, k)))
            b = b.T
        rates[f"{m}x{k}x{n}"] = rate(lambda: a @ b, m, k, n)
    return rates


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--pairs", type=int, default=5)
    arguments.add_argument("--doctor", default=None)
    arguments.add_argument("--out", type=Path, default=ROOT / "benches/results/gemm.json")
    arguments.add_argument("--peer", default=None)
    arguments = arguments.parse_args()
    if arguments.peer:
        print(json.dumps(peer(arguments.peer)))
        return
    doctor = arguments.doctor or built.binary("frugal")
    found = {side: [] for side in [*SIDES, "frugal"]}
    for _ in range(arguments.pairs):
        output = subprocess.run([doctor, "doctor", "--json"], check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout
        found["frugal"].append({"doctor": json.loads(output)["gemm_gflops_sustained"]})
        for side, more in SIDES.items():
            environment = os.environ | {"OPENBLAS_NUM_THREADS": "2"} | more
            command = [sys.executable, __file__, "--peer", side]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment).stdout
            found[side].append(json.loads(output))
    medians = {side: {shape: round(statistics.median(run[shape] for run in runs), 1) for shape in runs[0]} for side, runs in found.items()}
    result = {"what": "matrix products in f32 on two threads, GFLOP/s", "medians": medians, "runs": found}
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(medians, indent=2))


if __name__ == "__main__":
    main()
