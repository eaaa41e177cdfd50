"""MoLA (arXiv 2402.08562) in plain PyTorch: routed experts of the layers of one block, and the balance of their load.

Usage: python scripts/golden/mola.py      writes fixtures/methods/mola.json
"""

import json

import torch
from common import FIXTURES, generator, header
from torch.nn import functional as F

SEED, TOKENS, D, EXPERTS, R, TOP_K, ALPHA = 5, 7, 16, 4, 3, 2, 6.0


def layer(random):
    """What one adapted layer adds to its output, and its choices and probabilities."""
    draw = lambda *shape: torch.randn(shape, generator=random)
    x, router = draw(TOKENS, D), draw(EXPERTS, D)
    a, b = draw(EXPERTS, R, D), draw(EXPERTS, D, R)
    probabilities = F.softmax(x @ router.T, dim=-1)
    weights, chosen = torch.topk(probabilities, TOP_K, dim=-1)
    weights = weights / weights.sum(-1, keepdim=True)
    y = torch.zeros(TOKENS, D)
    for token in range(TOKENS):
        for weight, expert in zip(weights[token], chosen[token]):
            y[token] += weight * (ALPHA / R) * (b[expert] @ (a[expert] @ x[token]))
    return {"x": x, "router": router, "a": a.reshape(EXPERTS * R, D), "b": torch.cat(list(b), dim=1), "y": y}, probabilities, chosen


def balance(probabilities, chosen):
    """N Σ f P over all these tokens."""
    probabilities, chosen = torch.cat(probabilities), torch.cat(chosen)
    share = torch.bincount(chosen.flatten(), minlength=EXPERTS) / chosen.numel()
    return (EXPERTS * (share * probabilities.mean(0)).sum()).item()


def main():
    random = generator(SEED)
    layers, probabilities, chosen = zip(*[layer(random) for _ in range(2)])
    tensors = [{name: value.flatten().tolist() for name, value in one.items()} for one in layers]
    keys = {"layers": "input, router [experts, d], A [experts r, d], B [d, experts r] and what is added",
            "block": "the balance term over both layers together", "layer": "the sum of those of each layer"}
    golden = header(SEED, keys, tokens=TOKENS, d=D, experts=EXPERTS, r=R, top_k=TOP_K, lora_alpha=ALPHA) | {
        "layers": tensors, "block": balance(probabilities, chosen),
        "layer": sum(balance([p], [c]) for p, c in zip(probabilities, chosen))}
    folder = FIXTURES / "methods"
    folder.mkdir(exist_ok=True)
    (folder / "mola.json").write_text(json.dumps(golden, indent=1) + "\n")


main()
