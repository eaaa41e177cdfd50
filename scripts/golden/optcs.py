"""Conformal selection with trained scores by NumPy and scikit-learn, every leave-one-out by a refit.

Usage: python scripts/golden/optcs.py        writes fixtures/measure/optcs.json

Feature k, row by row: sin(0.9 k + 0.01 k²); an item is good where feature 0 times feature 1 plus
feature 2 exceeds 0.1.
"""

import json
from pathlib import Path

import numpy as np
import sklearn
from sklearn.kernel_ridge import KernelRidge

OUT = Path(__file__).parents[2] / "fixtures" / "measure"
CALIBRATION, TEST, WIDTH, Q = 24, 10, 3, 0.15


def items():
    k = np.arange((CALIBRATION + TEST) * WIDTH, dtype=np.float64)
    rows = np.sin(0.9 * k + 0.01 * k * k).reshape(-1, WIDTH)
    return rows, rows[:, 0] * rows[:, 1] + rows[:, 2] > 0.1


def scaled(train, rows):
    mean, spread = train.mean(axis=0), train.std(axis=0)
    return (rows - mean) / np.where(spread > 0, spread, 1)


def weights(good):
    many, few = good.sum(), (~good).sum()
    if many == 0 or few == 0:
        return np.ones(len(good))
    return np.where(good, max(few / many, 1), max(many / few, 1))


def ridge(train, good, weight, asked, penalty):
    a = np.hstack([np.ones((len(train), 1)), train])
    system = a.T @ (a * weight[:, None]) + penalty * np.diag([0.0] + [1.0] * train.shape[1])
    beta = np.linalg.solve(system, a.T @ (weight * good))
    return np.hstack([np.ones((len(asked), 1)), asked]) @ beta


def kernel(train, good, weight, asked, penalty):
    gamma = 1 / train.shape[1]
    value = lambda a, b: np.exp(-gamma * ((a[:, None] - b[None]) ** 2).sum(-1)) + 1
    model = KernelRidge(alpha=penalty, kernel="precomputed")
    model.fit(value(train, train), good.astype(float), sample_weight=weight)
    return model.predict(value(asked, train))


def leave_one_out(learner, rows, good, penalty):
    """Scale and class weights are those of all rows, which no order of them changes."""
    x, weight = scaled(rows, rows), weights(good)
    keep = lambda i: np.arange(len(x)) != i
    return np.array([learner(x[keep(i)], good[keep(i)], weight[keep(i)], x[i : i + 1], penalty)[0] for i in range(len(x))])


def bh(p, q):
    order = np.argsort(p, kind="stable")
    fits = [k + 1 for k in range(len(p)) if p[order[k]] <= q * (k + 1) / len(p) * (1 + 1e-12)]
    return max(fits, default=0)


def per_item(learner, known, good, new, penalty):
    """A model for each new item, trained on the known items and on it as not good."""
    n, m = len(known), len(new)
    p_values, auxiliary = [], []
    for j in range(m):
        rows, labels = np.vstack([known, new[j]]), np.append(good, False)
        scores = leave_one_out(learner, rows, labels, penalty)
        failures, own = scores[:-1][~good], scores[-1]
        p_values.append((1 + (failures >= own).sum()) / (n + 1))
        others = [l for l in range(m) if l != j]
        x = scaled(rows, rows)
        predicted = learner(x, labels, weights(labels), scaled(rows, new[others]), penalty)
        aux = [((failures >= v).sum() + (own >= v)) / (n + 1) for v in predicted] + [0.0]
        auxiliary.append(bh(np.array(aux), Q))
    candidates = [j for j in range(m) if p_values[j] <= Q * auxiliary[j] / m * (1 + 1e-12)]
    fits = [r for r in range(1, m + 1) if sum(auxiliary[j] <= r for j in candidates) >= r]
    selected = [j for j in candidates if fits and auxiliary[j] <= max(fits)]
    return {"p_values": p_values, "auxiliary": auxiliary, "candidates": candidates, "selected_dtm": selected}


def main():
    rows, good = items()
    known, new, labels = rows[:CALIBRATION], rows[CALIBRATION:], good[:CALIBRATION]
    cases = []
    for name, learner in (("ridge", ridge), ("kernel", kernel)):
        for penalty in (0.3, 3.0):
            joined = np.append(labels, np.zeros(TEST, dtype=bool))
            cases.append(
                {
                    "learner": name,
                    "penalty": penalty,
                    "leave_one_out": leave_one_out(learner, rows, joined, penalty).tolist(),
                    "per_item": per_item(learner, known, labels, new, penalty),
                }
            )
    header = {"generator": "scripts/golden/optcs.py", "versions": {"numpy": np.__version__, "scikit-learn": sklearn.__version__}}
    out = {"header": header, "calibration": CALIBRATION, "test": TEST, "width": WIDTH, "q": Q, "cases": cases}
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "optcs.json").write_text(json.dumps(out, indent=1) + "\n")


if __name__ == "__main__":
    main()
