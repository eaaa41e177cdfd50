"""ID3 (arXiv 2408.14470) and the selections that it is compared with, in plain PyTorch: which elements are trained after each step.

Usage: python scripts/golden/id3.py      writes fixtures/methods/id3.json
"""

import json

import torch
from common import FIXTURES, generator, header

SEED, BUDGET, STEPS, EXP, EPS = 11, 10, 4, 1.0, 0.1
SHAPES = {"q_proj": (4, 4), "k_proj": (4, 4)}


def run(weights, gradients, criterion, schedule):
    """Flat indices over all tensors that are unmasked in each step, sorted."""
    theta = torch.cat([weights[name].flatten() for name in SHAPES])
    mask, found = torch.zeros(theta.numel(), dtype=torch.bool), []
    share, left = divmod(BUDGET, STEPS)
    for step in range(STEPS):
        gradient = torch.cat([gradients[step][name].flatten() for name in SHAPES])
        score = -theta.abs() if criterion == "pafi" else gradient.abs() / (theta.abs() + EPS) ** EXP
        if schedule == "repeat":
            mask[:] = False
        count = {"incremental": share + (step < left), "static": BUDGET if step == 0 else 0, "repeat": BUDGET}[schedule]
        score[mask] = -torch.inf
        mask[torch.topk(score, count).indices] = True
        found.append(mask.nonzero().flatten().tolist())
    return found


def main():
    random = generator(SEED)
    weights = {name: torch.randn(shape, generator=random) for name, shape in SHAPES.items()}
    gradients = [{name: torch.randn(shape, generator=random) for name, shape in SHAPES.items()} for _ in range(STEPS)]
    flat = lambda tensors: {name: value.flatten().tolist() for name, value in tensors.items()}
    arms = {f"{criterion} {schedule}": run(weights, gradients, criterion, schedule)
            for criterion in ("d3", "pafi") for schedule in ("incremental", "static", "repeat")}
    keys = {"weights": "of two layers", "gradients": "of each step", "arms": "by criterion and schedule, the flat indices over both "
            "layers, one after the other, that are trained in each step"}
    golden = header(SEED, keys, budget=BUDGET, steps=STEPS, exp=EXP, eps=EPS) | {
        "weights": flat(weights), "gradients": [flat(step) for step in gradients], "arms": arms}
    folder = FIXTURES / "methods"
    folder.mkdir(exist_ok=True)
    (folder / "id3.json").write_text(json.dumps(golden, indent=1) + "\n")


main()
