"""Indexing and searching by BM25 with Frugal and with bm25s, in turn.

Usage: FRUGAL_DATA=DIR python benches/peers/bm25.py [--copies 4] [--pairs 5] [--out benches/results/bm25.json]

The documents of DIR/scifact, each `--copies` times with one word more that tells the copies apart, and its queries, cut into words
by the same rule beforehand (lower case, letters and digits), so that both sides have the same terms. Times contain splitting at
blanks on both sides. Frugal's index is the one on disk that `frugal index` makes, flushed and crash-safe; in memory are
`Bm25Index` and its weights. bm25s is used as its authors do for speed, with numba where that is installed. Both sides must find
documents of the same scores. Needs `bm25s` and `numpy`.
"""

import argparse
import gzip
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import built

ROOT = Path(__file__).resolve().parents[2]
K, ROUNDS, K1, B = 10, 5, 0.9, 0.4


def words(text):
    return " ".join(re.findall(r"[a-z0-9]+", text.lower()))


def texts(copies):
    folder = Path(os.environ["FRUGAL_DATA"]) / "scifact"
    with gzip.open(folder / "corpus.jsonl.gz", "rt", encoding="utf-8") as file:
        records = [json.loads(line) for line in file]
    documents = [words(f"{r['title']} {r['text']}") for r in records]
    documents = [f"{document} copy{copy}" for copy in range(copies) for document in documents]
    queries = [words(json.loads(line)["text"]) for line in (folder / "queries.jsonl").read_text(encoding="utf-8").splitlines()]
    return documents, queries


def peer(folder):
    import bm25s

    try:
        import numba  # noqa: F401

        backend = "numba"
    except ImportError:
        backend = "numpy"
    documents, queries = ((folder / f"{name}.txt").read_text(encoding="utf-8").splitlines() for name in ("documents", "queries"))
    split = lambda lines, ids: bm25s.tokenize(lines, lower=False, token_pattern=r"\S+", stopwords=None, stemmer=None, return_ids=ids, show_progress=False)
    start = time.perf_counter()
    index = bm25s.BM25(method="lucene", k1=K1, b=B, backend=backend)
    index.index(split(documents, True), show_progress=False)
    indexing = time.perf_counter() - start
    search = lambda: index.retrieve(split(queries, False), k=K, show_progress=False, n_threads=2)
    search()
    rounds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        found, scores = search()
        rounds.append(time.perf_counter() - start)
    lines = [f"{q}\t{d}\t{s}" for q in range(len(queries)) for d, s in zip(found[q], scores[q])]
    (folder / "bm25s.tsv").write_text("\n".join(lines) + "\n")
    return {"indexing": indexing, "queries": rounds, "backend": backend, "version": bm25s.__version__}


def ranking(path):
    found = {}
    for line in path.read_text().splitlines():
        query, document, score = line.split("\t")
        found.setdefault(int(query), []).append((int(document), float(score)))
    return found


def compare(folder, file):
    """Copies tie, so that scores are compared, place by place."""
    ours, theirs = ranking(folder / file), ranking(folder / "bm25s.tsv")
    worst, places = 0.0, 0
    for query, found in theirs.items():
        # bm25s fills up with documents of score 0, which share no word with the query.
        found = [score for _, score in found if score > 0]
        # The factor k1 + 1 of the first formula is in ours; Lucene and bm25s leave it out.
        own = [score / (K1 + 1) for _, score in ours.get(query, [])]
        assert len(own) == len(found), (query, len(own), len(found))
        worst = max([worst, *(abs(a - b) / b for a, b in zip(own, found))])
        places += len(found)
    assert worst < 1e-4, worst
    return {"places": places, "largest_relative_difference_of_scores": worst}


def run(command):
    environment = os.environ | {"RAYON_NUM_THREADS": "2", "OMP_NUM_THREADS": "2", "NUMBA_NUM_THREADS": "2"}
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment, text=True).stdout
    return json.loads(output.splitlines()[-1])


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--copies", type=int, default=4)
    arguments.add_argument("--pairs", type=int, default=5)
    arguments.add_argument("--ours", default=None, help="the example program, if it is built already")
    arguments.add_argument("--out", type=Path, default=ROOT / "benches/results/bm25.json")
    arguments.add_argument("--peer", type=Path, default=None)
    arguments = arguments.parse_args()
    if arguments.peer:
        print(json.dumps(peer(arguments.peer)))
        return
    program = arguments.ours or built.example("bm25_speed")
    documents, queries = texts(arguments.copies)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        (folder / "documents.txt").write_text("\n".join(documents) + "\n")
        (folder / "queries.txt").write_text("\n".join(queries) + "\n")
        ours, theirs = [], []
        for _ in range(arguments.pairs):
            ours.append(run([program, str(folder), str(K), str(ROUNDS)]))
            theirs.append(run([sys.executable, __file__, "--peer", str(folder)]))
        answers = {side: compare(folder, file) for side, file in (("frugal", "found.tsv"), ("frugal in memory", "found_in_memory.tsv"))}
    median = lambda runs, of: statistics.median(of(r) for r in runs)
    sides = {"frugal": (ours, "indexing", "queries"), "frugal in memory": (ours, "memory_indexing", "memory_queries"), "bm25s": (theirs, "indexing", "queries")}
    rates = {
        side: {
            "documents_a_second": len(documents) / median(runs, lambda r: r[indexing]),
            "queries_a_second": len(queries) / median(runs, lambda r: min(r[asked])),
        }
        for side, (runs, indexing, asked) in sides.items()
    }
    result = {
        "what": f"BM25 over {len(documents)} documents, {len(queries)} queries, the {K} best",
        "bm25s": {"version": theirs[0]["version"], "backend": theirs[0]["backend"]},
        "rates": rates,
        "ratios": {side: {name: rates[side][name] / rates["bm25s"][name] for name in rates["bm25s"]} for side in ("frugal", "frugal in memory")},
        "answers": answers,
        "runs": {"frugal": ours, "bm25s": theirs},
    }
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps({k: v for k, v in result.items() if k != "runs"}, indent=2))


if __name__ == "__main__":
    main()
