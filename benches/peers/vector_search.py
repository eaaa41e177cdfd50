"""Exact search over 100,000 vectors of 384 numbers by Frugal and by Faiss's flat index, in turn.

Usage: python benches/peers/vector_search.py [--rows 100000] [--pairs 5] [--out benches/results/vector_search.json]

Inner product of random vectors of length 1, the 10 nearest of 256 queries, one at a time and 64 at a time, two threads on both
sides. Both must find the same vectors, but for those whose scores differ by less than 1e-6. The best round of each process counts.
Needs `faiss-cpu` and `numpy`.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import built

ROOT = Path(__file__).resolve().parents[2]
DIMENSION, QUERIES, K, ROUNDS = 384, 256, 10, 5
BATCHES = [1, 64]


def read(folder):
    import numpy

    vectors, queries = (numpy.fromfile(folder / f"{name}.f32", dtype="<f4").reshape(-1, DIMENSION) for name in ("vectors", "queries"))
    return vectors, queries


def peer(folder):
    import faiss
    import numpy

    faiss.omp_set_num_threads(2)
    vectors, queries = read(folder)
    index = faiss.IndexFlatIP(DIMENSION)
    index.add(vectors)
    index.search(queries[:1], K)
    seconds, found = {}, None
    for batch in BATCHES:
        rounds = []
        for _ in range(ROUNDS):
            start = time.perf_counter()
            found = [index.search(queries[i : i + batch], K)[1] for i in range(0, len(queries), batch)]
            rounds.append(time.perf_counter() - start)
        seconds[str(batch)] = rounds
    numpy.concatenate(found).astype("<u4").tofile(folder / "faiss.u32")
    return seconds


def compare(folder):
    """Vectors that one side alone found must be as near as those that the other found in their place."""
    import numpy

    vectors, queries = read(folder)
    ours, theirs = (numpy.fromfile(folder / f"{name}.u32", dtype="<u4").reshape(-1, K) for name in ("found", "faiss"))
    assert ours.shape == theirs.shape == (len(queries), K), (ours.shape, theirs.shape)
    scores = [numpy.einsum("qd,qkd->qk", queries.astype("f8"), vectors[side].astype("f8")) for side in (ours, theirs)]
    worst = float(numpy.abs(scores[0] - scores[1]).max())
    assert worst < 1e-6, worst
    return {"same_places": float((ours == theirs).mean()), "largest_difference_of_scores": worst}


def run(command):
    environment = os.environ | {"RAYON_NUM_THREADS": "2", "OMP_NUM_THREADS": "2"}
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment, text=True).stdout
    return json.loads(output)


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--rows", type=int, default=100_000)
    arguments.add_argument("--pairs", type=int, default=5)
    arguments.add_argument("--ours", default=None, help="the example program, if it is built already")
    arguments.add_argument("--out", type=Path, default=ROOT / "benches/results/vector_search.json")
    arguments.add_argument("--peer", type=Path, default=None)
    arguments = arguments.parse_args()
    if arguments.peer:
        print(json.dumps(peer(arguments.peer)))
        return
    import faiss
    import numpy

    program = arguments.ours or built.example("vector_search")
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        random = numpy.random.default_rng(0)
        for name, rows in (("vectors", arguments.rows), ("queries", QUERIES)):
            numbers = random.standard_normal((rows, DIMENSION), dtype=numpy.float32)
            numbers /= numpy.linalg.norm(numbers, axis=1, keepdims=True)
            numbers.astype("<f4").tofile(folder / f"{name}.f32")
        command = [program, str(folder), str(DIMENSION), str(K), str(ROUNDS)]
        run(command)  # writes the file
        ours, theirs = [], []
        for _ in range(arguments.pairs):
            ours.append(run(command))
            theirs.append(run([sys.executable, __file__, "--peer", str(folder)]))
        answers = compare(folder)
    rate = lambda runs, batch: QUERIES / statistics.median(min(r[batch]) for r in runs)
    rates = {str(b): {"frugal": rate(ours, str(b)), "faiss": rate(theirs, str(b))} for b in BATCHES}
    result = {
        "what": f"exact search over {arguments.rows} x {DIMENSION}, queries a second by batch",
        "faiss": faiss.__version__,
        "rates": rates,
        "ratios": {batch: r["frugal"] / r["faiss"] for batch, r in rates.items()},
        "opening_seconds": statistics.median(r["opening"] for r in ours),
        "peak_memory_to_vectors": max(r["peak"] for r in ours) / (arguments.rows * DIMENSION * 4),
        "answers": answers,
        "runs": {"frugal": ours, "faiss": theirs},
    }
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps({k: v for k, v in result.items() if k != "runs"}, indent=2))


if __name__ == "__main__":
    main()
