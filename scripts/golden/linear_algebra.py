"""Singular value and QR decompositions by numpy.

Usage: python scripts/golden/linear_algebra.py      writes fixtures/linear_algebra/

Each left singular vector has its element of largest magnitude positive, as in `adapt/svd.rs`.
"""

import common
import numpy as np
import torch
from common import FIXTURES, generator, header, write_golden

SEED = 20251
SHAPES = {"tall": (13, 7), "wide": (6, 17), "square": (24, 24), "graded": (20, 12)}


def matrix(name, shape, g):
    m = torch.randn(shape, generator=g, dtype=torch.float64).numpy()
    if name == "graded":
        # Columns over eight orders of magnitude.
        m = m * np.logspace(0, -8, shape[1])
    return m.astype(np.float32)


def main():
    g, tensors = generator(SEED), {}
    for name, shape in SHAPES.items():
        m = matrix(name, shape, g)
        u, s, vt = np.linalg.svd(m.astype(np.float64), full_matrices=False)
        signs = np.sign(u[np.abs(u).argmax(0), np.arange(u.shape[1])])
        q, r = np.linalg.qr(m.astype(np.float64))
        for key, value in (("m", m), ("u", u * signs), ("s", s), ("vt", vt * signs[:, None]), ("q", q), ("r", r)):
            tensors[f"{name}.{key}"] = torch.from_numpy(np.ascontiguousarray(value, dtype=np.float32))
    keys = {"NAME.m": "[rows, cols]", "NAME.{u,s,vt}": "thin decomposition in float64", "NAME.{q,r}": "thin, LAPACK's signs"}
    write_golden(FIXTURES / "linear_algebra", tensors, header(SEED, keys))


if __name__ == "__main__":
    main()
