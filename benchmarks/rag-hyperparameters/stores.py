"""Chroma and Faiss as stores, on the vectors of the study.

    frugal bench rag --suite rag-hyperparameters --data-dir DATA --out runs/rag
    python benchmarks/rag-hyperparameters/stores.py runs/rag/peers [--out stores.json] [--repeats 5]
    python benchmarks/rag-hyperparameters/stores.py runs/rag/peers --grow 20000

The study leaves `vectors.npy`, `queries.npy` and `exact.json` (the exact answers of its own store).
Arms: Faiss flat (exact), Faiss HNSW with two ef, Chroma as it comes (HNSW, squared L2) and with the
cosine. Vectors are of unit length, so that all three distances give one order. `--grow N` adds random
unit vectors around the real ones until there are N, where the exact answers are Faiss flat's.
Threads: two. Latency is one query at a time, after a warm-up, in the order of the queries.
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np

THREADS, WARM_UP = 2, 5


def timed(search, queries, k, repeats):
    for query in queries[:WARM_UP]:
        search(query, k)
    seconds, found = [], []
    for _ in range(repeats):
        found = []
        for query in queries:
            start = time.perf_counter()
            answer = search(query, k)
            seconds.append(time.perf_counter() - start)
            found.append([int(i) for i in answer])
    return seconds, found


def faiss_flat(vectors):
    import faiss

    faiss.omp_set_num_threads(THREADS)
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    return lambda query, k: index.search(query[None], k)[1][0]


def faiss_hnsw(ef):
    def build(vectors):
        import faiss

        faiss.omp_set_num_threads(THREADS)
        index = faiss.IndexHNSWFlat(vectors.shape[1], 16, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = 128
        index.add(vectors)
        index.hnsw.efSearch = ef
        return lambda query, k: index.search(query[None], k)[1][0]

    return build


def chroma(space):
    def build(vectors):
        import chromadb

        folder = tempfile.mkdtemp(prefix="chroma")
        settings = chromadb.config.Settings(anonymized_telemetry=False)
        client = chromadb.PersistentClient(folder, settings=settings)
        options = {"metadata": {"hnsw:space": space}} if space else {}
        collection = client.create_collection("passages", embedding_function=None, **options)
        for start in range(0, len(vectors), 2000):
            rows = vectors[start:start + 2000]
            collection.add(ids=[str(start + i) for i in range(len(rows))], embeddings=rows)
        return lambda query, k: collection.query(
            query_embeddings=query[None], n_results=k, include=["distances"]
        )["ids"][0]

    return build


ARMS = {
    "faiss flat": faiss_flat,
    "faiss hnsw ef 16": faiss_hnsw(16),
    "faiss hnsw ef 64": faiss_hnsw(64),
    "chroma": chroma(None),
    "chroma cosine": chroma("cosine"),
}


def grown(vectors, count):
    if count <= len(vectors):
        return vectors
    rng = np.random.default_rng(0)
    base = vectors[rng.integers(0, len(vectors), count - len(vectors))]
    noise = rng.normal(size=base.shape).astype(np.float32) / np.sqrt(base.shape[1])
    more = base + noise
    more /= np.linalg.norm(more, axis=1, keepdims=True)
    return np.ascontiguousarray(np.concatenate([vectors, more]))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--grow", type=int, default=0)
    args = parser.parse_args()
    about = json.loads((args.folder / "exact.json").read_text())
    vectors = np.load(args.folder / "vectors.npy").astype(np.float32)
    queries = np.load(args.folder / "queries.npy").astype(np.float32)
    k, exact = about["k"], about["exact"]
    own = len(vectors)
    vectors = grown(vectors, args.grow)
    if len(vectors) > own:
        flat = faiss_flat(vectors)
        exact = [[int(i) for i in flat(query, k)] for query in queries]
    results = []
    for name, build in ARMS.items():
        start = time.perf_counter()
        search = build(vectors)
        built = time.perf_counter() - start
        seconds, found = timed(search, queries, k, args.repeats)
        hits = sum(len(set(a) & set(b)) for a, b in zip(found, exact))
        ordered = sorted(seconds)
        results.append({
            "store": name,
            "recall_at_k": hits / sum(len(e) for e in exact),
            "build_seconds": built,
            "p50_ms": 1e3 * statistics.median(ordered),
            "p95_ms": 1e3 * ordered[int(0.95 * (len(ordered) - 1))],
        })
        print("{store:18} recall@k {recall_at_k:.4f}  p50 {p50_ms:.3f} ms  p95 {p95_ms:.3f} ms  built in {build_seconds:.2f} s".format(**results[-1]))
    if args.out:
        args.out.write_text(json.dumps({
            "arm": about["arm"], "k": k, "vectors": len(vectors), "dimension": int(vectors.shape[1]),
            "queries": len(queries), "threads": THREADS,
            "versions": {name: version(name) for name in ("faiss-cpu", "chromadb", "numpy")},
            "machine": platform.machine(), "stores": results,
        }, indent=1) + "\n")


if __name__ == "__main__":
    main()
