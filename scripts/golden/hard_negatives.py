"""Writes fixtures/retrieval/hard_negatives.json: what mine_hard_negatives of sentence-transformers
chooses of given scores, for several options.

    python scripts/golden/hard_negatives.py

Vectors are random and small, the model and the cross-encoder are tables, so that the choice alone is
what is compared.
"""

import json
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from sentence_transformers.util import mine_hard_negatives

QUERIES, DOCUMENTS, WIDTH = 6, 60, 6
rng = np.random.default_rng(7)


def unit(count):
    vectors = rng.normal(size=(count, WIDTH)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


documents, queries = unit(DOCUMENTS), unit(QUERIES)
scores = queries.astype(np.float64) @ documents.astype(np.float64).T
cross = rng.uniform(size=(QUERIES, DOCUMENTS))
# Positives are near but not always first; the last query has two.
positives = [[int(np.argsort(-scores[q])[q % 4])] for q in range(QUERIES)]
positives[-1].append(int(np.argsort(-scores[-1])[9]))
for q, found in enumerate(positives):
    cross[q, found] = 0.7


class Model:
    device = torch.device("cpu")

    def encode_document(self, texts, **_):
        return documents[[int(t[1:]) for t in texts]]

    def encode_query(self, texts, **_):
        return queries[[int(t[1:]) for t in texts]]

    def similarity(self, a, b):
        return torch.as_tensor(a).double() @ torch.as_tensor(b).double().T

    def similarity_pairwise(self, a, b):
        return (torch.as_tensor(a).double() * torch.as_tensor(b).double()).sum(1)


class CrossEncoder:
    def predict(self, pairs, **_):
        return torch.tensor([cross[int(q[1:]), int(d[1:])] for q, d in pairs], dtype=torch.float64)


CASES = [
    (False, {}),
    (False, {"num_negatives": 5}),
    (False, {"range_min": 4, "range_max": 12, "num_negatives": 8}),
    (False, {"range_min": 10}),
    (False, {"max_score": 0.6}),
    (False, {"min_score": 0.55, "num_negatives": 4}),
    (False, {"absolute_margin": 0.1}),
    (False, {"relative_margin": 0.05}),
    (False, {"relative_margin": 0.2, "absolute_margin": 0.05, "max_score": 0.5, "min_score": 0.3}),
    (False, {"absolute_margin": 0.0, "range_min": 3, "range_max": 20, "num_negatives": 6}),
    (False, {"range_max": 1000, "num_negatives": 100}),
    (True, {"relative_margin": 0.05}),
    (True, {"absolute_margin": 0.3, "range_min": 2, "num_negatives": 4}),
    (True, {"max_score": 0.5, "min_score": 0.2}),
    (True, {"min_score": 0.6, "num_negatives": 4}),
]


def triplets(rescored, options):
    pairs = [(q, p) for q, found in enumerate(positives) for p in found]
    data = Dataset.from_dict(
        {"anchor": [f"q{q}" for q, _ in pairs], "positive": [f"d{p}" for _, p in pairs]}
    )
    found = mine_hard_negatives(
        data,
        Model(),
        corpus=[f"d{i}" for i in range(DOCUMENTS)],
        cross_encoder=CrossEncoder() if rescored else None,
        output_format="triplet",
        verbose=False,
        **options,
    )
    return [[int(row[c][1:]) for c in ("anchor", "positive", "negative")] for row in found]


written = {
    "scores": scores.tolist(),
    "cross_encoder_scores": cross.tolist(),
    "positives": positives,
    "cases": [
        {"cross_encoder": rescored, "options": options, "triplets": triplets(rescored, options)}
        for rescored, options in CASES
    ],
}
path = Path(__file__).parents[2] / "fixtures/retrieval/hard_negatives.json"
path.parent.mkdir(parents=True, exist_ok=True)
path.write_text(json.dumps(written) + "\n")
print(path, [len(case["triplets"]) for case in written["cases"]])
