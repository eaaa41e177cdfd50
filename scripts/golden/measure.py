"""Spectra of matrices by NumPy, for the measures of hidden states.

Usage: python scripts/golden/measure.py      writes fixtures/measure/spectrum.json

Element k of a matrix, row by row: sin(0.37 k + 0.003 k²) · (1 + (k mod width) / 7), in float32.
"""

import json
from pathlib import Path

import numpy as np

OUT = Path(__file__).parents[2] / "fixtures" / "measure"


def case(rows, width):
    k = np.arange(rows * width, dtype=np.float64)
    states = (np.sin(0.37 * k + 0.003 * k * k) * (1 + (k % width) / 7)).astype(np.float32).reshape(rows, width).astype(np.float64)
    x = states - states.mean(axis=0)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    singular = np.linalg.svd(x, compute_uv=False)
    shares = singular**2 / np.sum(singular**2)
    shares = shares[shares > 0]
    columns = np.sort(np.linalg.norm(x, axis=0))[::-1][: min(rows, width)]
    return {
        "rows": rows,
        "width": width,
        "matrix_nuclear_norm": float(columns.sum() / rows),
        "nuclear_norm": float(singular.sum() / rows),
        "matrix_entropy": float(-(shares * np.log(shares)).sum() / np.log(width)),
    }


def main():
    header = {"generator": "scripts/golden/measure.py", "versions": {"numpy": np.__version__}}
    cases = [case(*shape) for shape in ((6, 4), (40, 24), (24, 40), (128, 64), (50, 50))]
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "spectrum.json").write_text(json.dumps({"header": header, "cases": cases}, indent=1) + "\n")


if __name__ == "__main__":
    main()
