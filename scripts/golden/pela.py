"""PELA (arXiv 2310.10700) in plain PyTorch: factors of weights and the terms of its loss.

Usage: python scripts/golden/pela.py      writes fixtures/methods/pela.json
"""

import json

import torch
from common import FIXTURES, generator, header
from torch.nn import functional as F

SEED, RATIO, EPS = 17, 1.7, 1e-3


def layer(random, d_in, d_out):
    """The original, its best approximation in balanced factors, and the perturbation term."""
    weight = torch.randn(d_out, d_in, generator=random)
    rank = int(d_in * d_out / (RATIO * (d_in + d_out)))
    u, s, vt = torch.linalg.svd(weight, full_matrices=False)
    root = s[:rank].sqrt()
    first = torch.nn.Linear(d_in, rank, bias=False)
    second = torch.nn.Linear(rank, d_out, bias=False)
    first.weight.data, second.weight.data = root[:, None] * vt[:rank], u[:, :rank] * root
    product = second(first(torch.eye(d_in))).T
    difference = torch.linalg.vector_norm((product - weight).flatten(), ord=float("inf"))
    return {"d_in": d_in, "d_out": d_out, "rank": rank, "weight": weight.flatten().tolist(), "product": product.flatten().tolist(),
            "balance": s[:rank].tolist(), "perturbation": F.mse_loss(difference, torch.tensor(EPS)).item()}


def main():
    random = generator(SEED)
    layers = [layer(random, *sides) for sides in ((9, 6), (5, 12), (8, 8))]
    student, teacher = (torch.randn(4, 6, generator=random) for _ in range(2))
    head = torch.randn(10, 6, generator=random)
    features = {"student": student.flatten().tolist(), "teacher": teacher.flatten().tolist(), "mse": F.mse_loss(student, teacher).item(),
                "cosine": (1 - F.cosine_similarity(student, teacher)).mean().item(), "head": head.flatten().tolist(),
                "logits": F.mse_loss(student @ head.T, teacher @ head.T).item()}
    keys = {"layers": "weights [d_out, d_in], the product of their factors, the singular values kept, the perturbation term",
            "features": "[4, 6] of student and teacher, their distances, and that of their logits over head [10, 6]"}
    golden = header(SEED, keys, ratio=RATIO, eps=EPS) | {"layers": layers, "features": features}
    folder = FIXTURES / "methods"
    folder.mkdir(exist_ok=True)
    (folder / "pela.json").write_text(json.dumps(golden, indent=1) + "\n")


main()
