"""Residuals of LoftQ by numpy for the weight of the test in crates/frugal/src/model/loftq.rs: prints the constants that stand
there. Rounding is 4-bit NormalFloat in groups of 64, decompositions are exact."""

import numpy as np

LEVELS = np.array(
    [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
        -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
        0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ]
)  # fmt: skip
ROWS, COLS, RANK = 96, 128, 8


def nf4(w):
    groups = w.reshape(-1, 64)
    scale = np.abs(groups).max(axis=1, keepdims=True)
    nearest = np.abs((groups / scale)[..., None] - LEVELS).argmin(axis=-1)
    return (LEVELS[nearest] * scale).reshape(w.shape)


n = np.arange(ROWS * COLS, dtype=np.float64)
w = (np.sin(n * 1.7) * np.cos(n * 0.013) + 0.3 * np.sin(n * n * 0.01)).astype(np.float32).astype(np.float64).reshape(ROWS, COLS)
low = np.zeros_like(w)
print(np.linalg.norm(w - nf4(w)) / np.linalg.norm(w))
for _ in range(5):
    q = nf4(w - low)
    u, s, vt = np.linalg.svd(w - q, full_matrices=False)
    low = u[:, :RANK] * s[:RANK] @ vt[:RANK]
    print(np.linalg.norm(w - q - low) / np.linalg.norm(w))
