"""Steps of SPAM, Stable-SPAM and LORO, balanced factors and layers of SLTrain, by the authors' code and by PyTorch.

Usage: python scripts/golden/pretraining_memory.py DIR      writes fixtures/training/pretraining_memory.json

`DIR` holds `SPAM.py` of github.com/TianjinYellow/SPAM-Optimizer (`galore_torch/`), and `stablespam.py`, `LORO.py` and
`splora_model.py` of github.com/OptimAI-Lab/Memory_Efficient_Pretraining (`para_eff_pt/*/`). What their code does not do as
the papers say is stated here anew: the reset of Stable-SPAM, the step of LORO on the manifold.
"""

import importlib.util
import json
import math
import sys
import warnings
from pathlib import Path

from common import ROOT, torch

SEED, STEPS, LR = 20263, 12, 0.1
OUT = ROOT / "fixtures" / "training"
MLP = "model.layers.0.mlp.up_proj.weight"
SHAPES = [[3, 4], [5]]


def module(name):
    spec = importlib.util.spec_from_file_location(name, Path(sys.argv[1]) / f"{name}.py")
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def values(*shape):
    return torch.randn(*shape).mul(100).round().div(100)


def spiky(*shape):
    """Gradients of which some entries are far above the others."""
    drawn = values(*shape)
    return drawn + (torch.rand(*shape) < 0.15) * values(*shape) * 20


def flat(tensor):
    return tensor.detach().flatten().tolist()


def case(name, settings, decay, shape, make):
    start, gradients = values(*shape), [spiky(*shape) for _ in range(STEPS)]
    parameter = torch.nn.Parameter(start.clone())
    step, after = make(parameter), []
    for gradient in gradients:
        parameter.grad = gradient.clone()
        step()
        after.append(flat(parameter))
    return {
        "name": name, "settings": settings, "parameter": MLP, "shape": shape, "lr": LR, "weight_decay": decay,
        "start": flat(start), "gradients": [flat(g) for g in gradients], "after": after,
    }


def spam(cls, delta_t, warmup_steps, threshold, clip_after, decay):
    def make(parameter):
        optimizer = cls(
            [parameter], lr=LR, eps=1e-8, weight_decay=decay, no_deprecation_warning=True, warmup_steps=warmup_steps,
            threshold=threshold, DeltaT=delta_t, grad_accu_steps=clip_after,
        )
        return optimizer.step
    return make


def stable_spam_with_resets(parameter, gap, gamma1, gamma2, gamma3, decay):
    """As the algorithm of the paper: at every gap-th update the moments begin anew, the means of the clippings go on."""
    beta1, beta2, eps = 0.9, 0.999, 1e-8
    m, v = torch.zeros_like(parameter.data), torch.zeros_like(parameter.data)
    state = {"t": 0, "since": 0, "max": 0.0, "mn": 0.0, "vn": 0.0, "m": m, "v": v}

    def step():
        s, p, g = state, parameter.data, parameter.grad.clone()
        s["t"] += 1
        s["since"] += 1
        p.mul_(1 - LR * decay)
        largest = g.abs().max()
        s["max"] = gamma3 * s["max"] + (1 - gamma3) * largest
        limit = s["max"] / (1 - gamma3 ** s["t"])
        g = torch.where(g.abs() > limit, g / largest * limit, g)
        norm = g.norm()
        s["mn"] = gamma1 * s["mn"] + (1 - gamma1) * norm
        s["vn"] = gamma2 * s["vn"] + (1 - gamma2) * norm**2
        wanted = s["mn"] / (1 - gamma1 ** s["t"]) / ((s["vn"] / (1 - gamma2 ** s["t"])).sqrt() + eps)
        g = g / norm * wanted
        if s["t"] % gap == 0:
            s["m"], s["v"], s["since"] = torch.zeros_like(p), torch.zeros_like(p), 1
        s["m"] = beta1 * s["m"] + (1 - beta1) * g
        s["v"] = beta2 * s["v"] + (1 - beta2) * g * g
        m = s["m"] / (1 - beta1 ** s["since"])
        v = s["v"] / (1 - beta2 ** s["since"])
        p.sub_(LR * m / (v.sqrt() + eps))

    return step


def optimizers():
    SPAM, Stable = module("SPAM").AdamW, module("stablespam").StableSPAM_optimizer
    found = []
    for shape in SHAPES:
        for delta_t, warmup, threshold, after in ((5, 3, 4.0, 2), (7, 0, 0.0, 0), (1000, 150, 2.0, 3)):
            settings = {"delta_t": delta_t, "warmup_steps": warmup, "threshold": threshold, "clip_after": after}
            found.append(case("spam", settings, 0.1, shape, spam(SPAM, **settings, decay=0.1)))
        for total_t in (0, 9):
            gammas = {"gamma1": 0.7, "gamma2": 0.9, "gamma3": 0.8}
            settings = {**gammas, "total_t": total_t, "eta_min": 0.4, "update_proj_gap": 0}
            # Its schedule goes up again after its end, where ours stays.
            steps = (lambda p: Stable([p], lr=LR, weight_decay=0.1, **gammas, total_T=total_t or None, eta_min=0.4, update_proj_gap=0).step)
            made = case("stable_spam", settings, 0.1, shape, steps)
            if total_t:
                made["gradients"], made["after"] = made["gradients"][:10], made["after"][:10]
            found.append(made)
        settings = {**gammas, "update_proj_gap": 5}
        found.append(case("stable_spam", settings, 0.1, shape, lambda p: stable_spam_with_resets(p, 5, 0.7, 0.9, 0.8, 0.1)))
    return found


def adam(gradients):
    """The direction of the last of these gradients, and its count."""
    m, v = torch.zeros_like(gradients[0]), torch.zeros_like(gradients[0])
    for g in gradients:
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
    t = len(gradients)
    return m / ((v / (1 - 0.999**t)).sqrt() + 1e-8), LR / (1 - 0.9**t)


def loro():
    """Two steps near the manifold by the authors' code, and a third on it: the dense tangent step, cut to its rank."""
    m, n, r = 9, 7, 2
    a, b = values(r, n), values(m, r)
    grads = [(values(r, n), values(m, r)) for _ in range(3)]
    A, B = torch.nn.Parameter(a.clone()), torch.nn.Parameter(b.clone())
    optimizer = module("LORO").LORO_optimizer([A, B], lr=LR, update_k=1000)
    near = []
    for ga, gb in grads[:2]:
        A.grad, B.grad = ga.clone(), gb.clone()
        optimizer.step()
        near.append([flat(A), flat(B)])
    A, B = A.detach().double(), B.detach().double()
    d_a, rate = adam([g.double() for g, _ in grads])
    d_b, _ = adam([g.double() for _, g in grads])
    left, right = B @ torch.linalg.inv(B.T @ B), torch.linalg.inv(A @ A.T) @ A
    tangent = left @ d_a + d_b @ right - left @ (B.T @ d_b) @ right
    u, s, vt = torch.linalg.svd(B @ A - rate * tangent)
    moved = u[:, :r] * s[:r] @ vt[:r]
    return {
        "shape": [m, n, r], "lr": LR, "a": flat(a), "b": flat(b), "gradients": [[flat(x), flat(y)] for x, y in grads],
        "near": near, "product": flat(moved), "singular_values": s[:r].tolist(),
    }


def balanced():
    m, n, r = 7, 5, 2
    a, b = values(r, n), values(m, r)
    _, s, _ = torch.linalg.svd((b @ a).double())
    return {"shape": [m, n, r], "a": flat(a), "b": flat(b), "product": flat(b.double() @ a.double()), "singular_values": s[:r].tolist()}


def sltrain():
    """A layer of the authors', its output and all gradients."""
    m, n, r = 4, 6, 2
    layer = module("splora_model").SpLoRaLinear(n, m, r, sp_ratio=0.3, lora_alpha=32, bias=False)
    with torch.no_grad():
        layer.lora_B.copy_(values(m, r))
        layer.lora_A.copy_(values(r, n))
        layer.sparse_value.copy_(values(*layer.sparse_value.shape))
    x = values(3, n).requires_grad_()
    y = layer(x)
    weight = values(3, m)
    (y * weight).sum().backward()
    return {
        "shape": [m, n, r], "alpha": 32, "entries": layer.sparse_index.tolist(), "a": flat(layer.lora_A), "b": flat(layer.lora_B),
        "values": flat(layer.sparse_value), "x": flat(x), "y": flat(y), "weight": flat(weight),
        "gradients": {"a": flat(layer.lora_A.grad), "b": flat(layer.lora_B.grad), "values": flat(layer.sparse_value.grad), "x": flat(x.grad)},
    }


def main():
    warnings.simplefilter("ignore")
    torch.manual_seed(SEED)
    found = {"cases": optimizers(), "loro": loro(), "balanced": balanced(), "sltrain": sltrain()}
    header = {"generator": "scripts/golden/pretraining_memory.py", "seed": SEED, "versions": {"torch": torch.__version__}}
    (OUT / "pretraining_memory.json").write_text(json.dumps({"header": header, **found}, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
