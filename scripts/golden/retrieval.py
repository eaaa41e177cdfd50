"""A BM25 run on Cranfield and the measures that trec_eval gives it.

Usage: FRUGAL_DATA=data python scripts/golden/retrieval.py      writes fixtures/retrieval/

Reads `cranfield/{cran.all.1400,cran.qry,cranqrel}` in FRUGAL_DATA. The collection itself is not copied: the files hold
the ranking (bm25s, Lucene's form, k1 0.9, b 0.4, Snowball's Porter stemmer) and the values of pytrec_eval.
"""

import gzip
import importlib.metadata as md
import json
import os
import re
from pathlib import Path

import bm25s
import numpy as np
import pytrec_eval
import Stemmer
from scipy.stats import permutation_test

OUT = Path(__file__).parents[2] / "fixtures" / "retrieval"
DATA = Path(os.environ["FRUGAL_DATA"]) / "cranfield"
DEPTH = 50
CUTS = [1, 3, 5, 10, 20, 30, 50]
CUT = ["ndcg_cut", "map_cut", "recall", "P", "success"]
PLAIN = ["ndcg", "map", "recip_rank", "Rprec"]
NAMES = [f"{m}.{','.join(map(str, CUTS))}" for m in CUT] + PLAIN


def records(path, fields):
    """Records of SMART's format: `.I` and fields of one letter."""
    found, field = [], None
    for line in path.read_text(encoding="latin-1").splitlines():
        line = line.rstrip()
        if line.startswith(".I "):
            found.append({"id": str(int(line[3:])), **{f: "" for f in fields}})
            field = None
        elif re.fullmatch(r"\.[A-Z]", line):
            field = line[1]
        elif field in fields:
            found[-1][field] += line + " "
    return found


def judgements():
    qrels = {}
    for line in (DATA / "cranqrel").read_text().splitlines():
        query, document, grade = line.split()
        qrels.setdefault(query, {})[document] = int(grade)
    return qrels


def bm25(documents, queries, stemmer):
    tokenize = lambda texts: bm25s.tokenize(texts, stopwords="en", stemmer=stemmer, show_progress=False)
    index = bm25s.BM25(method="lucene", k1=0.9, b=0.4)
    index.index(tokenize([d["T"] + d["W"] for d in documents]), show_progress=False)
    places, scores = index.retrieve(tokenize([q["W"] for q in queries]), k=DEPTH, show_progress=False)
    # Rounded, so that some scores are equal. The judgements number the queries by their order.
    return {
        str(i + 1): {documents[p]["id"]: round(float(s), 3) for p, s in zip(row, points)}
        for i, (row, points) in enumerate(zip(places, scores))
    }


def ordered(ranking):
    """Documents in trec_eval's order."""
    return sorted(ranking, key=lambda d: (np.float32(ranking[d]), d.encode()), reverse=True)


def evaluated(qrels, run, **options):
    scores = pytrec_eval.RelevanceEvaluator(qrels, set(NAMES), **options).evaluate(run)
    measures = sorted(next(iter(scores.values())))
    return {"measures": measures, "queries": {q: [v[m] for m in measures] for q, v in sorted(scores.items())}}


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    documents, queries = records(DATA / "cran.all.1400", "TW"), records(DATA / "cran.qry", "W")
    qrels = judgements()
    run = bm25(documents, queries, Stemmer.Stemmer("porter"))
    without = bm25(documents, queries, None)
    # A query that found nothing, so that averages over all queries differ.
    del run["7"]
    for name, ranking in [("bm25", run), ("bm25-unstemmed", without)]:
        lines = [
            f"{q} Q0 {d} {i + 1} {ranking[q][d]} {name}\n" for q in sorted(ranking) for i, d in enumerate(ordered(ranking[q]))
        ]
        with open(OUT / f"{name}.run.gz", "wb") as file:
            file.write(gzip.compress("".join(lines).encode(), mtime=0))
    deep = {q: {d: ranking[d] for d in ordered(ranking)[:10]} for q, ranking in run.items()}
    cases = {
        "default": evaluated(qrels, run),
        "level 3": evaluated(qrels, run, relevance_level=3),
        "judged only": evaluated(qrels, run, judged_docs_only_flag=True),
        "depth 10": evaluated(qrels, deep),
        "unstemmed": evaluated(qrels, without),
    }
    rng = np.random.default_rng(7)
    tests = []
    for count in [5, 12, 16, 225]:
        a, b = rng.random(count).round(2), (rng.random(count) + 0.1).round(2)
        mean = lambda x, y: np.mean(y - x)
        found = permutation_test((a, b), mean, permutation_type="samples", n_resamples=200_000, rng=1)
        tests.append({"first": a.tolist(), "second": b.tolist(), "difference": found.statistic, "p": found.pvalue})
    # Holm's correction, as `p.adjust(p, "holm")` of R gives it.
    holm = {"p": [0.01, 0.02, 0.03, 0.005, 0.9], "corrected": [0.04, 0.06, 0.06, 0.025, 0.9]}
    names = ("pytrec_eval-terrier", "bm25s", "PyStemmer", "numpy", "scipy")
    head = {"generator": "scripts/golden/retrieval.py", "versions": {n: md.version(n) for n in names}}
    golden = {**head, "cases": cases, "permutation": tests, "holm": holm}
    with open(OUT / "golden.json.gz", "wb") as file:
        file.write(gzip.compress(json.dumps(golden).encode(), mtime=0))


main()
