"""A scaling law fitted by scipy, and optima found by brute force.

Usage: python scripts/golden/scaling_law.py      writes fixtures/measure/scaling_law.json

Losses of 6 sizes with 6 numbers of tokens each (10 to 60 for each parameter) by L = C_N N^-a + C_D D^-b + L_0 with seeded noise, fitted with
`scipy.optimize.curve_fit` as in arXiv 2404.06395; the best size of a budget C = 6 N D by a fine grid over N.
"""

import json

import numpy as np
from common import FIXTURES, header
from scipy.optimize import curve_fit

SEED = 64
TRUTH = dict(c_n=400.0, a=0.29, c_d=2000.0, b=0.23, l_0=1.7)
SIZES = [9e6, 3e7, 7e7, 1.1e8, 2e8, 5e8]
NOISE = 0.003


def law(x, c_n, a, c_d, b, l_0):
    n, d = x
    return c_n * n**-a + c_d * d**-b + l_0


def best_size(c_n, a, c_d, b, compute):
    low, high = 1e3, compute / 6
    for _ in range(8):
        sizes = np.exp(np.linspace(np.log(low), np.log(high), 20001))
        losses = c_n * sizes**-a + c_d * (compute / 6 / sizes) ** -b
        at = int(losses.argmin())
        low, high = sizes[max(at - 1, 0)], sizes[min(at + 1, len(sizes) - 1)]
    return float(np.sqrt(low * high))


def main():
    rng = np.random.default_rng(SEED)
    n = np.repeat(SIZES, 6)
    d = n * np.tile(np.arange(10, 70, 10), 6)
    losses = law((n, d), **TRUTH) + NOISE * rng.standard_normal(len(n))
    fitted, _ = curve_fit(law, (n, d), losses, p0=list(TRUTH.values()), maxfev=1_000_000, xtol=1e-15, ftol=1e-15)
    rest = law((n, d), *fitted) - losses
    budgets = [1e15, 1e18, 1e21]
    brute = [best_size(TRUTH["c_n"], TRUTH["a"], TRUTH["c_d"], TRUTH["b"], c) for c in budgets]
    keys = {
        "runs": "[parameters, tokens, loss] of each run",
        "fitted": "c_n, a, c_d, b, l_0 by curve_fit",
        "squares": "sum of the squared differences of the fit",
        "optima": "[compute, best parameters] of the true law by brute force",
    }
    data = {
        "runs": [list(map(float, row)) for row in zip(n, d, losses)],
        "truth": TRUTH,
        "fitted": [float(v) for v in fitted],
        "squares": float((rest**2).sum()),
        "optima": [[c, found] for c, found in zip(budgets, brute)],
    }
    path = FIXTURES / "measure" / "scaling_law.json"
    path.write_text(json.dumps({**header(SEED, keys), **data}, indent=1) + "\n")
    print(fitted, data["squares"], brute)


if __name__ == "__main__":
    main()
