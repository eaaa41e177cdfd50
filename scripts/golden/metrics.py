"""Classification metrics by scikit-learn, statistics by NumPy and SciPy, over random and degenerate cases.

Usage: python scripts/golden/metrics.py      writes fixtures/metrics/
"""

import json
import warnings
from pathlib import Path

import numpy as np
import scipy
import sklearn
from scipy.stats import binomtest, pearsonr, spearmanr
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    f1_score,
    matthews_corrcoef,
    mean_absolute_error,
    mean_squared_error,
    precision_recall_fscore_support,
)

SEED = 20241
OUT = Path(__file__).parents[2] / "fixtures" / "metrics"


def random_case(rng, classes, count, skill):
    """Predictions that are right with probability `skill`, classes of uneven size."""
    weights = rng.dirichlet(np.full(classes, 0.7))
    gold = rng.choice(classes, size=count, p=weights)
    guess = rng.integers(classes, size=count)
    return gold, np.where(rng.random(count) < skill, gold, guess), classes


def cases(rng):
    for classes, count, skill in [(2, 1, 0.5), (2, 40, 0.8), (2, 872, 0.9), (3, 25, 0.3), (5, 300, 0.6), (17, 1000, 0.5)]:
        yield f"random, {classes} classes, {count} examples", *random_case(rng, classes, count, skill)
    yield "all right", np.array([0, 1, 2, 1]), np.array([0, 1, 2, 1]), 3
    yield "all wrong", np.array([0, 1, 0, 1]), np.array([1, 0, 1, 0]), 2
    yield "only one class predicted", np.array([0, 1, 0, 0, 1]), np.array([0, 0, 0, 0, 0]), 2
    yield "only one class present", np.array([1, 1, 1]), np.array([1, 1, 1]), 2
    yield "a class that is neither present nor predicted", np.array([0, 2, 2, 0]), np.array([0, 2, 0, 0]), 4
    yield "a class that is predicted but not present", np.array([0, 0, 1]), np.array([0, 2, 1]), 3
    yield "a single label", np.array([0, 0]), np.array([0, 0]), 1


def expected(gold, predicted, classes):
    labels = list(range(classes))
    precision, recall, f1, support = precision_recall_fscore_support(
        gold, predicted, labels=labels, zero_division=0
    )
    macro = precision_recall_fscore_support(gold, predicted, labels=labels, zero_division=0, average="macro")
    return {
        "gold": gold.tolist(),
        "predicted": predicted.tolist(),
        "classes": classes,
        "accuracy": accuracy_score(gold, predicted),
        "macro_f1": macro[2],
        "matthews_correlation": matthews_corrcoef(gold, predicted),
        "precision": precision.tolist(),
        "recall": recall.tolist(),
        "f1": f1.tolist(),
        "support": [int(n) for n in support],
        "confusion": confusion_matrix(gold, predicted, labels=labels).tolist(),
    }


def statistics(rng):
    samples = [rng.normal(size=n).round(4).tolist() for n in (1, 2, 7, 100)] + [[3.0, 3.0, 3.0], [-1.0, 5.0]]
    quantiles = [0.0, 0.1, 0.25, 0.5, 0.95, 1.0]
    proportions = [(0, 10), (3, 10), (10, 10), (785, 872), (1, 1)]
    interval = lambda k, n: binomtest(k, n).proportion_ci(confidence_level=0.95, method="wilson")
    return {
        "samples": [
            {"values": s, "mean": np.mean(s), "median": np.median(s), "q": quantiles, "quantiles": np.quantile(s, quantiles).tolist()}
            for s in samples
        ],
        "wilson": [{"correct": k, "total": n, "low": interval(k, n).low, "high": interval(k, n).high} for k, n in proportions],
    }


def multi_label(rng):
    # A single label would be read as a class of yes and one of no.
    shapes = [(7, 3), (200, 5)]
    cases = [(rng.random(shape) < 0.4, rng.random(shape) < 0.5) for shape in shapes]
    empty = np.zeros((3, 2), dtype=bool)
    cases += [(empty, empty), (empty, ~empty), (np.array([[1, 0, 0], [1, 1, 0]], dtype=bool), np.array([[1, 0, 0], [0, 1, 0]], dtype=bool))]
    for gold, predicted in cases:
        precision, recall, f1, support = precision_recall_fscore_support(gold, predicted, average=None, zero_division=0)
        score = lambda average: f1_score(gold, predicted, average=average, zero_division=0)
        yield {
            "gold": gold.tolist(),
            "predicted": predicted.tolist(),
            "micro_f1": score("micro"),
            "macro_f1": score("macro"),
            "subset_accuracy": accuracy_score(gold, predicted),
            "precision": precision.tolist(),
            "recall": recall.tolist(),
            "f1": f1.tolist(),
            "support": [int(n) for n in support],
        }


def regression(rng):
    cases = [(rng.normal(size=(n, k)), n) for n, k in [(2, 1), (50, 1), (50, 3)]]
    cases = [(gold, gold * 0.5 + rng.normal(size=gold.shape)) for gold, _ in cases]
    # Ties in the ranks, on both sides.
    cases.append((rng.integers(4, size=(40, 1)).astype(float), rng.integers(3, size=(40, 1)).astype(float)))
    for gold, predicted in cases:
        columns = list(zip(gold.T, predicted.T))
        yield {
            "outputs": gold.shape[1],
            "gold": gold.flatten().tolist(),
            "predicted": predicted.flatten().tolist(),
            "mse": mean_squared_error(gold, predicted),
            "mae": mean_absolute_error(gold, predicted),
            "pearson": float(np.mean([pearsonr(g, p).statistic for g, p in columns])),
            "spearman": float(np.mean([spearmanr(g, p).statistic for g, p in columns])),
        }


def main():
    warnings.simplefilter("ignore")
    rng = np.random.default_rng(SEED)
    header = {
        "generator": "scripts/golden/metrics.py",
        "seed": SEED,
        "versions": {"scikit-learn": sklearn.__version__, "numpy": np.__version__, "scipy": scipy.__version__},
    }
    OUT.mkdir(parents=True, exist_ok=True)
    classification = [{"name": name, **expected(*case)} for name, *case in cases(rng)]
    for name, body in [("classification", {"cases": classification}), ("statistics", statistics(rng)), ("multi_label", {"cases": list(multi_label(rng))}), ("regression", {"cases": list(regression(rng))})]:
        text = json.dumps({"header": header, **body}, separators=(",", ":"))
        (OUT / f"{name}.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
