"""Steps of optimizers that remember less than Adam, by PyTorch and the authors' packages.

Usage: python scripts/golden/memory_optimizers.py      writes fixtures/training/memory_optimizers.json

`galore-torch`, `apollo-torch`, `fira` and `adam-mini` are installed with `pip install --no-deps`.
"""

import json
from importlib.metadata import version

from common import ROOT, torch
from adam_mini import Adam_mini
from apollo_torch.apollo import AdamW as APOLLO_AdamW
from fira import FiraAdamW
from galore_torch import GaLoreAdamW

SEED = 20262
OUT = ROOT / "fixtures" / "training"
STEPS, LR = 6, 0.1
WIDE, TALL, VECTOR, SQUARE = [4, 6], [6, 4], [5], [4, 4]
MLP, NORM, BIAS, QUERY = "model.layers.0.mlp.up_proj.weight", "model.norm.weight", "model.layers.0.mlp.up_proj.bias", "model.layers.0.self_attn.q_proj.weight"


def values(*shape):
    return torch.randn(*shape).mul(100).round().div(100)


def steps(make, shape):
    """Values of a parameter after each of some steps with given gradients."""
    start, gradients = values(*shape), [values(*shape) for _ in range(STEPS)]
    parameter = torch.nn.Parameter(start.clone())
    optimizer, after = make(parameter), []
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
        after.append(parameter.detach().flatten().tolist())
    return {"shape": shape, "start": start.flatten().tolist(), "gradients": [g.flatten().tolist() for g in gradients], "after": after}


svd = torch.linalg.svd


def signed_svd(matrix, full_matrices=False):
    """With signs by a rule: moments outlive the directions that they were made in, whose signs LAPACK chooses freely."""
    u, s, vh = svd(matrix, full_matrices=full_matrices)
    signs = torch.gather(u, 0, u.abs().argmax(0, keepdim=True)).sign()
    return u * signs, s, vh * signs.T


def projected(cls, settings, decay, **more):
    group = {"rank": settings["rank"], "update_proj_gap": settings["update_proj_gap"], "proj_type": "std", **more}
    return lambda p: cls([{"params": [p], **group}], lr=LR, eps=1e-8, weight_decay=decay, no_deprecation_warning=True)


def cases():
    low = {"rank": 2, "update_proj_gap": 4}
    for shape in (WIDE, TALL):
        for decay in (0.0, 0.1):
            scaled = {**low, "scale": 0.5}
            yield "galore", scaled, MLP, decay, shape, projected(GaLoreAdamW, low, decay, scale=0.5)
            yield "fira", scaled, MLP, decay, shape, projected(FiraAdamW, low, decay, alpha=0.5)
            for kind in ("channel", "tensor"):
                settings = {**scaled, "scale_type": kind, "proj": "svd"}
                yield "apollo", settings, MLP, decay, shape, projected(APOLLO_AdamW, low, decay, scale=0.5, proj="svd", scale_type=kind)
    for shape, name in ((WIDE, MLP), (TALL, MLP), (VECTOR, NORM)):
        for settings in ({}, {"beta2_decay": -0.5, "d": 2.0}):
            yield "adafactor", settings, name, 0.1, shape, lambda p, s=settings: torch.optim.Adafactor([p], lr=LR, weight_decay=0.1, **s)
    for shape, name in ((TALL, MLP), (SQUARE, QUERY), (VECTOR, NORM), (VECTOR, BIAS)):
        make = lambda p, n=name: Adam_mini([(n, p)], lr=LR, weight_decay=0.1, dim=4, n_heads=2, n_kv_heads=2, verbose=False)
        yield "adam_mini", {"head_dim": 2}, name, 0.0 if shape is VECTOR else 0.1, shape, make
    # PyTorch iterates in bf16.
    for shape in (WIDE, TALL):
        for adjust in ("original", "match_rms_adamw"):
            make = lambda p, a=adjust: torch.optim.Muon([p], lr=LR, weight_decay=0.1, adjust_lr_fn=a)
            yield "muon", {"adjust_lr_fn": adjust}, MLP, 0.1, shape, make


def main():
    torch.manual_seed(SEED)
    torch.linalg.svd = signed_svd
    found = [
        {"name": name, "settings": settings, "parameter": parameter, "lr": LR, "weight_decay": decay, **steps(make, shape)}
        for name, settings, parameter, decay, shape, make in cases()
    ]
    packages = ("torch", "galore-torch", "apollo-torch", "fira", "adam-mini")
    header = {"generator": "scripts/golden/memory_optimizers.py", "seed": SEED, "versions": {p: version(p) for p in packages}}
    text = json.dumps({"header": header, "cases": found}, separators=(",", ":"))
    (OUT / "memory_optimizers.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
