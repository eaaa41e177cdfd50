"""Scores and aggregates of lm-evaluation-harness, for the evaluation tasks.

Usage: python scripts/golden/eval.py      writes fixtures/measure/eval.json

Needs `lm-eval==0.4.13` and scikit-learn, beside scripts/golden/requirements.txt.
"""

import importlib.metadata as md
import json
import math
import re
from fractions import Fraction
from pathlib import Path

import numpy as np
from lm_eval.api import metrics as m
from sklearn.metrics import matthews_corrcoef

SEED = 20250
OUT = Path(__file__).parents[2] / "fixtures" / "measure"
GSM8K = {"name": "exact_match", "ignore_case": True, "regexes_to_ignore": [",", "\\$", "(?s).*#### ", "\\.$"]}
PLAIN = {"name": "exact_match"}
LOOSE = {"name": "exact_match", "ignore_case": True, "ignore_punctuation": True}
ANSWERS = [
    (GSM8K, "1,234", "So it is\n3 + 4 = 7\n#### 1234"),
    (GSM8K, "$18.", "half of it\n#### 18"),
    (GSM8K, "[invalid]", "#### 5"),
    (GSM8K, "7.0", "#### 7"),
    (PLAIN, "Paris", "Paris"),
    (PLAIN, "paris", "Paris"),
    (LOOSE, "paris.", "Paris"),
    (LOOSE, "it's", "ITS"),
    (LOOSE, "a b", "a  b"),
]


def exact_match(metric, answer, target):
    options = {k: v for k, v in metric.items() if k != "name"}
    return float(m.exact_match_hf_evaluate(predictions=[answer], references=[target], **options)["exact_match"])


def choices(rng):
    for texts in (["negative", "positive"], ["a", "an apple", "é", "naïve"], ["x", "yy", "zzz"]):
        for _ in range(4):
            lls = (-rng.exponential(4.0, len(texts))).round(3)
            gold = int(rng.integers(len(texts)))
            right = lambda lengths: float(np.argmax(lls / np.array(lengths, dtype=float)) == gold)
            yield {
                "texts": texts,
                "log_likelihoods": lls.tolist(),
                "gold": gold,
                "acc": float(np.argmax(lls) == gold),
                "acc_norm": right([len(t) for t in texts]),
                "acc_bytes": right([len(t.encode()) for t in texts]),
            }


def pass_at_k():
    for n, c, k in [(1, 0, 1), (1, 1, 1), (10, 0, 5), (10, 3, 1), (10, 3, 5), (10, 6, 5), (64, 7, 8), (64, 1, 64), (200, 11, 100)]:
        score = 1 - Fraction(math.comb(n - c, k), math.comb(n, k))
        yield {"n": n, "c": c, "k": k, "score": float(score)}


def texts(rng):
    for documents in (["one two  three", "four"], [" padded ", "naïve café\nnew line", ""], ["a"]):
        lls = (-rng.exponential(20.0, len(documents))).round(3).tolist()
        words = [len(re.split(r"\s+", d)) for d in documents]
        sizes = [len(d.encode("utf-8")) for d in documents]
        yield {
            "texts": documents,
            "log_likelihoods": lls,
            "word_perplexity": m.weighted_perplexity(list(zip(lls, words))),
            "byte_perplexity": m.weighted_perplexity(list(zip(lls, sizes))),
            "bits_per_byte": m.bits_per_byte(list(zip(lls, sizes))),
        }


def main():
    rng = np.random.default_rng(SEED)
    values = [rng.integers(0, 2, n).astype(float).tolist() for n in (5, 200)] + [rng.normal(size=30).round(4).tolist()]
    gold = rng.integers(0, 2, 300)
    predicted = np.where(rng.random(300) < 0.7, gold, 1 - gold)
    draws = rng.integers(0, 300, (4000, 300))
    header = {"generator": "scripts/golden/eval.py", "seed": SEED, "versions": {"lm_eval": md.version("lm_eval"), "numpy": np.__version__}}
    body = {
        "header": header,
        "exact_match": [{"metric": k, "answer": a, "target": t, "score": exact_match(k, a, t)} for k, a, t in ANSWERS],
        "choices": list(choices(rng)),
        "means": [{"values": v, "mean": m.mean(v), "stderr": m.mean_stderr(v)} for v in values],
        "pass_at_k": list(pass_at_k()),
        "texts": list(texts(rng)),
        "mcc": {
            "pairs": [[int(g), int(p)] for g, p in zip(gold, predicted)],
            "value": matthews_corrcoef(gold, predicted),
            "stderr": float(np.std([matthews_corrcoef(gold[d], predicted[d]) for d in draws], ddof=1)),
        },
    }
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "eval.json").write_text(json.dumps(body, separators=(",", ":"), ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
