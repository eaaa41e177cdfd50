"""IncreLoRA (arXiv 2308.12043) in plain PyTorch: learning rates of its parameter groups, importance, regulariser.

Usage: python scripts/golden/increlora.py      writes fixtures/methods/increlora.json
"""

import json

import torch
from common import FIXTURES, generator, header

SEED, TOTAL, WARMUP = 31, 60, 6
#: Steps at which groups of components begin: the first of the run, then two rounds of growth.
BEGINS = (0, 12, 24)


def rates():
    """Each group rises from 0 over WARMUP steps since its beginning and falls to 0 over the steps that are left."""
    groups = [torch.nn.Parameter(torch.zeros(1)) for _ in BEGINS]
    optimizer = torch.optim.AdamW([{"params": [group]} for group in groups], lr=1.0)

    def clock(begin):
        def factor(step):
            passed = max(step - begin, 0)
            if passed < WARMUP:
                return passed / WARMUP
            return max(TOTAL - step, 0) / (TOTAL - begin - WARMUP)

        return factor

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, [clock(begin) for begin in BEGINS])
    found = []
    for _ in range(TOTAL):
        found.append(schedule.get_last_lr())
        optimizer.step()
        schedule.step()
    return found


def importance():
    """Scores of two layers over three steps, from the gradient at the scaled change."""
    random = generator(SEED)
    draw = lambda *shape: torch.randn(shape, generator=random)
    layers, alpha, beta = [], 2.0, 0.85
    for d_in, d_out, active, reserve in ((3, 4, 1, 1), (5, 2, 2, 1)):
        e = torch.cat([draw(active, 1), torch.full((reserve, 1), 1e-5)])
        layers.append({"a": draw(active + reserve, d_in), "e": e, "b": draw(d_out, active + reserve), "active": active,
                       "mean": 0.0, "uncertainty": 0.0, "steps": []})
    for _ in range(3):
        for layer in layers:
            delta = (layer["b"] @ (layer["e"] * layer["a"]) * (alpha / (layer["active"] + 1e-5))).requires_grad_()
            x, target = draw(6, delta.shape[1]), draw(6, delta.shape[0])
            ((x @ delta.T - target) ** 2).mean().backward()
            s = ((delta * delta.grad).abs().sum() / delta.numel() ** 0.5).item()
            layer["mean"] = beta * layer["mean"] + (1 - beta) * s
            layer["uncertainty"] = beta * layer["uncertainty"] + (1 - beta) * abs(s - layer["mean"])
            layer["steps"].append({"gradient": delta.grad.flatten().tolist(), "sensitivity": s,
                                   "score": layer["mean"] * layer["uncertainty"]})
    eye = lambda m: torch.linalg.norm(m @ m.T - torch.eye(m.shape[0]))
    regulariser = torch.stack([eye(m) for layer in layers for m in (layer["a"], layer["b"].T)]).mean().item()
    for layer in layers:
        layer["d_in"], layer["d_out"] = layer["a"].shape[1], layer["b"].shape[0]
        for name in "aeb":
            layer[name] = layer[name].tolist()
        del layer["mean"], layer["uncertainty"]
    return {"lora_alpha": alpha, "layers": layers, "regulariser": regulariser}


def main():
    keys = {"rates": "for each step the learning rate of each group, over the base rate",
            "importance": "factors of layers, and per step the gradient at the change, its sensitivity and the score"}
    golden = header(SEED, keys, total=TOTAL, warmup=WARMUP, begins=BEGINS) | {"rates": rates(), "importance": importance()}
    folder = FIXTURES / "methods"
    folder.mkdir(exist_ok=True)
    (folder / "increlora.json").write_text(json.dumps(golden, indent=1) + "\n")


main()
