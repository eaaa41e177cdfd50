"""Steps of optimizers and losses of objectives, by PyTorch, lion-pytorch and transformers.

Usage: python scripts/golden/training.py      writes fixtures/training/
"""

import json
from importlib.metadata import version

from common import ROOT, torch
from lion_pytorch import Lion
from transformers import AutoModelForSequenceClassification

SEED = 20261
OUT = ROOT / "fixtures" / "training"
STEPS = 4
LABELS = 3


def values(*shape):
    return torch.randn(*shape).mul(100).round().div(100)


def steps(make):
    """Values of a matrix after each of some steps with given gradients."""
    start, gradients = values(2, 3), [values(2, 3) for _ in range(STEPS)]
    gradients[1][0, 1] = 0.0
    parameter = torch.nn.Parameter(start.clone())
    optimizer, after = make([parameter]), []
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
        after.append(parameter.detach().flatten().tolist())
    return {"start": start.flatten().tolist(), "gradients": [g.flatten().tolist() for g in gradients], "after": after}


def optimizers():
    sgd = lambda **settings: lambda p: torch.optim.SGD(p, lr=0.1, **settings)
    cases = [
        ("sgd", {"momentum": 0.0}, 0.0, sgd()),
        ("sgd", {}, 0.0, sgd(momentum=0.9)),
        ("sgd", {"momentum": 0.8, "nesterov": True}, 0.1, sgd(momentum=0.8, nesterov=True, weight_decay=0.1)),
        ("sgd", {"momentum": 0.9, "dampening": 0.3}, 0.1, sgd(momentum=0.9, dampening=0.3, weight_decay=0.1)),
        ("lion", {}, 0.0, lambda p: Lion(p, lr=0.1)),
        ("lion", {"beta1": 0.95, "beta2": 0.98}, 0.1, lambda p: Lion(p, lr=0.1, betas=(0.95, 0.98), weight_decay=0.1)),
    ]
    return [
        {"name": name, "settings": settings, "lr": 0.1, "weight_decay": decay, **steps(make)}
        for name, settings, decay, make in cases
    ]


def loss_of(problem, logits, labels, weights):
    if problem == "weighted":
        return torch.nn.functional.cross_entropy(logits, labels, weight=weights)
    if problem == "weighted, smoothed":
        return torch.nn.functional.cross_entropy(logits, labels, weight=weights, label_smoothing=0.1)
    return torch.nn.functional.binary_cross_entropy_with_logits(logits, labels, pos_weight=weights)


def objective(model_name, problem, problem_type, outputs, labels, weights=None):
    """Losses and gradient norms of some steps of full fine-tuning; the first by transformers itself."""
    model = AutoModelForSequenceClassification.from_pretrained(
        ROOT / "fixtures" / "models" / model_name, num_labels=outputs, problem_type=problem_type, dtype=torch.float32
    ).eval()
    model.config.pad_token_id = 0
    head = {name: p for name, p in model.named_parameters() if name.split(".")[0] in ("score", "classifier")}
    with torch.no_grad():
        for parameter in head.values():
            parameter.copy_(0.1 * values(*parameter.shape))
    ids = [torch.randint(1, 60, (length,)).tolist() for length in (5, 3, 8, 4)]
    start = {name: p.detach().flatten().tolist() for name, p in head.items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.001, weight_decay=0.0)
    found = []
    for _ in range(3):
        alone = [model(torch.tensor([i]), labels=labels[n : n + 1]) for n, i in enumerate(ids)]
        logits = torch.cat([a.logits for a in alone])
        if weights is None:
            # Each example has as many targets, so that the mean of means is the mean.
            loss = torch.stack([a.loss for a in alone]).mean()
        else:
            loss = loss_of(problem, logits, labels, weights)
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        found.append([loss.item(), norm.item()])
    return {
        "model": model_name,
        "problem": problem,
        "problem_type": problem_type,
        "input_ids": ids,
        "labels": labels.tolist(),
        "weights": None if weights is None else weights.tolist(),
        "head": start,
        "steps": found,
    }


def objectives():
    several = torch.tensor([[1.0, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]])
    classes, weights = torch.tensor([0, 2, 1, 2]), torch.tensor([0.5, 2.0, 1.25])
    for model in ("bert", "llama"):
        yield objective(model, "one number", "regression", 1, values(4))
        yield objective(model, "several numbers", "regression", LABELS, values(4, LABELS))
        yield objective(model, "several labels", "multi_label_classification", LABELS, several)
    yield objective("bert", "several labels, weighted", "multi_label_classification", LABELS, several, weights)
    yield objective("bert", "weighted", "single_label_classification", LABELS, classes, weights)
    yield objective("bert", "weighted, smoothed", "single_label_classification", LABELS, classes, weights)


def main():
    torch.manual_seed(SEED)
    OUT.mkdir(parents=True, exist_ok=True)
    packages = ("torch", "transformers", "lion-pytorch")
    header = {"generator": "scripts/golden/training.py", "seed": SEED, "versions": {p: version(p) for p in packages}}
    for name, cases in [("optimizers", optimizers()), ("objectives", list(objectives()))]:
        text = json.dumps({"header": header, "cases": cases}, separators=(",", ":"))
        (OUT / f"{name}.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
