"""Rankings of a BEIR folder by `frugal`, beside sentence-transformers, and every measure beside trec_eval.

Usage: FRUGAL_DATA=DIR python benches/peers/retrieval_quality.py [--frugal target/release/frugal] [--data scifact]

Indexes the collection with minilm-l6, ranks its test queries by words, by vectors and by both, and measures the three runs with
`frugal eval --task retrieval` and with pytrec_eval, which is trec_eval: no measure of a run may differ by more than 1e-6. The same files
are ranked by sentence-transformers with the same model; its ndcg@10 and that of our vectors may differ by 0.003. BM25 has Lucene's
constants (k1 0.9, b 0.4); Pyserini's published ndcg@10 for SciFact is 0.679, from which ours may be 0.005 away.

Writes benches/results/retrieval_quality.json. Needs `pip install sentence-transformers pytrec-eval-terrier`.
"""

import argparse
import gzip
import importlib.metadata as md
import json
import os
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pytrec_eval
from sentence_transformers import SentenceTransformer

ROOT = Path(__file__).resolve().parents[2]
MODEL = Path.home() / ".cache/frugal/models/minilm-l6"
PYSERINI = {"scifact": 0.679}
# Our names and trec_eval's.
NAMES = {"ndcg@10": "ndcg_cut_10", "map": "map", "mrr": "recip_rank", "recall@10": "recall_10", "recall@100": "recall_100", "P@10": "P_10", "success@1": "success_1", "Rprec": "Rprec"}
DEPTH = 1000


def lines(path):
    data = path.read_bytes()
    data = gzip.decompress(data) if path.suffix == ".gz" else data
    return [json.loads(line) for line in data.decode().splitlines()]


def judgements(path):
    found = {}
    for line in path.read_text().splitlines()[1:]:
        query, document, grade = line.split("\t")
        found.setdefault(query, {})[document] = int(grade)
    return found


def run_of(path):
    found = {}
    for line in path.read_text().splitlines():
        query, _, document, _, score, _ = line.split()
        found.setdefault(query, {})[document] = float(score)
    return found


def measured(run, qrels):
    judge = pytrec_eval.RelevanceEvaluator(qrels, set(NAMES.values()) | {"ndcg_cut.10", "recall.10,100", "P.10", "success.1"})
    each = judge.evaluate(run)
    return {ours: float(np.mean([each.get(q, {}).get(theirs, 0.0) for q in qrels])) for ours, theirs in NAMES.items()}


def main():
    options = argparse.ArgumentParser()
    options.add_argument("--frugal", default=str(ROOT / "target/release/frugal"))
    options.add_argument("--data", default="scifact")
    options.add_argument("--index", help="an index of the folder that is there already")
    options = options.parse_args()
    data = Path(os.environ["FRUGAL_DATA"]) / options.data
    qrels_file = next(p for p in (data / "qrels-test.tsv", data / "qrels/test.tsv") if p.exists())
    qrels = judgements(qrels_file)
    result = {"data": options.data, "queries": len(qrels), "versions": {n: md.version(n) for n in ("sentence-transformers", "pytrec-eval-terrier", "torch")}, "runs": {}}
    with tempfile.TemporaryDirectory() as scratch:
        index = options.index or f"{scratch}/index"
        if not options.index:
            subprocess.run([options.frugal, "index", "--data", data, "--out", index, "--model", "minilm-l6", "--quiet"], check=True)
        for mode in ("bm25", "dense", "hybrid"):
            file = Path(scratch) / f"{mode}.trec"
            asked = [options.frugal, "eval", "--task", "retrieval", "--data", data, "--qrels", qrels_file, "--index", index, "--mode", mode, "--depth", str(DEPTH), "--write-run", file, "--json"]
            for name in NAMES:
                asked += ["--measure", name]
            said = json.loads(subprocess.run(list(map(str, asked)), check=True, stdout=subprocess.PIPE).stdout)
            ours = {name: said["runs"][0]["means"][name] for name in NAMES}
            theirs = measured(run_of(file), qrels)
            off = {name: abs(ours[name] - theirs[name]) for name in NAMES}
            result["runs"][mode] = {"frugal": ours, "trec_eval": theirs, "largest_difference": max(off.values())}
            print(mode, {k: round(v, 4) for k, v in ours.items()}, f"off by {max(off.values()):.1e}", flush=True)
    documents, queries = lines(next(data.glob("corpus.jsonl*"))), {q["_id"]: q["text"] for q in lines(next(data.glob("queries.jsonl*")))}
    model = SentenceTransformer(str(MODEL), device="cpu")
    texts = [f"{d.get('title', '')} {d['text']}".strip() for d in documents]
    vectors = model.encode(texts, batch_size=32, normalize_embeddings=True, show_progress_bar=False)
    asked = model.encode([queries[q] for q in qrels], normalize_embeddings=True, show_progress_bar=False)
    scores = asked @ vectors.T
    run = {}
    for query, row in zip(qrels, scores, strict=True):
        best = np.argsort(-row, kind="stable")[:DEPTH]
        run[query] = {documents[i]["_id"]: float(row[i]) for i in best}
    result["runs"]["sentence-transformers"] = {"trec_eval": measured(run, qrels)}
    print("sentence-transformers", result["runs"]["sentence-transformers"])
    (ROOT / "benches/results/retrieval_quality.json").write_text(json.dumps(result, indent=1) + "\n")
    ndcg = {name: found["trec_eval"]["ndcg@10"] for name, found in result["runs"].items()}
    assert all(found.get("largest_difference", 0) <= 1e-6 for found in result["runs"].values()), "a measure is not that of trec_eval"
    assert abs(ndcg["dense"] - ndcg["sentence-transformers"]) <= 0.003, ndcg
    assert ndcg["hybrid"] >= max(ndcg["bm25"], ndcg["dense"]), ndcg
    if options.data in PYSERINI:
        assert abs(ndcg["bm25"] - PYSERINI[options.data]) <= 0.005, ndcg


if __name__ == "__main__":
    main()
