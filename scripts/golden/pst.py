"""Magnitude and movement pruning, which PST (arXiv 2205.11005) is compared with, in plain PyTorch.

Usage: python scripts/golden/pst.py      writes fixtures/methods/pst.json
"""

import json

import torch
from common import FIXTURES, generator, header

SEED, SPARSITY = 23, 0.5


class Mask(torch.autograd.Function):
    """Zero at the smallest half of the scores, one elsewhere; its gradient passes straight through."""

    @staticmethod
    def forward(ctx, scores):
        mask = torch.ones_like(scores)
        mask.view(-1)[scores.flatten().argsort(stable=True)[: int(SPARSITY * scores.numel())]] = 0
        return mask

    @staticmethod
    def backward(ctx, gradient):
        return gradient


def main():
    random = generator(SEED)
    weight, start, movement, upstream = (torch.randn(2, 3, generator=random) for _ in range(4))
    scores = {}
    for kind in ("magnitude", "movement"):
        change, learned = start.clone().requires_grad_(), movement.clone().requires_grad_()
        total = weight + change
        # Movement pruning (Sanh et al., arXiv 2005.07683) trains a score per weight; magnitude pruning's mask is a constant.
        mask = Mask.apply(learned) if kind == "movement" else Mask.apply(total.detach().abs())
        masked = mask * total
        (masked * upstream).sum().backward()
        scores[kind] = {"masked": masked.flatten().tolist(), "change": change.grad.flatten().tolist()}
        if kind == "movement":
            scores[kind]["movement"] = learned.grad.flatten().tolist()
    flat = {"weight": weight, "change": start, "movement": movement, "upstream": upstream}
    keys = {"weight": "[2, 3]", "change": "what is added to it", "movement": "scores", "upstream": "gradient at the masked weight",
            "scores": "by kind, the masked weight and the gradients of change and scores"}
    golden = header(SEED, keys, sparsity=SPARSITY) | {name: value.flatten().tolist() for name, value in flat.items()}
    folder = FIXTURES / "methods"
    folder.mkdir(exist_ok=True)
    (folder / "pst.json").write_text(json.dumps(golden | {"scores": scores}, indent=1) + "\n")


main()
