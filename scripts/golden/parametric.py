"""Documents' parameters and their translator, restated in PyTorch on the small model of fixtures/harness/llama.

Usage: python scripts/golden/parametric.py

Writes fixtures/parametric.json. `encode`: steps of `torch.optim.AdamW` on a LoRA that peft put on the feed-forward layers, the
loss of each step and the parameters behind the last. `translator`: the three terms of the loss and its gradient with respect to
every weight of the hypernetwork, for both reductions of the divergence. Weights come from a formula that the test repeats.
"""

import common  # noqa: F401  (sets threads and offline mode before torch loads)
import json
from importlib.metadata import version

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

FOLDER = "fixtures/harness/llama"
MODULES = ("gate_proj", "up_proj", "down_proj")
RANK, ALPHA, WIDTH = 2, 32.0, 3
SCALE = ALPHA / RANK


def numbers(count, seed, size):
    return torch.tensor([(((i * 7919 + seed * 104729) % 2003) - 1001) / 1001 * size for i in range(count)], dtype=torch.float32)


def sequence(length, seed, prompt):
    """Ids, and labels as Hugging Face takes them: those of the first `prompt` tokens are left out."""
    ids = [(i * 29 + seed * 31 + 5) % 250 + 3 for i in range(length)]
    return ids, [-100] * prompt + ids[prompt:]


def load():
    return AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32, attn_implementation="eager").eval()


def encode():
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=list(MODULES), lora_dropout=0.0, bias="none")
    model = get_peft_model(load(), config)
    pairs = {n: p for n, p in model.named_parameters() if "lora_" in n}
    for number, (name, parameter) in enumerate(pairs.items()):
        size = 0.2 if "lora_A" in name else 0.0
        parameter.data = numbers(parameter.numel(), number, size).view_as(parameter)
    optimizer = torch.optim.AdamW(pairs.values(), lr=1e-2)
    sequences = [sequence(14, 1, 0), sequence(9, 2, 0), sequence(11, 3, 6)]
    losses = []
    for ids, labels in sequences:
        loss = model(input_ids=torch.tensor([ids]), labels=torch.tensor([labels])).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {
        "sequences": [{"ids": ids, "labels": labels} for ids, labels in sequences],
        "lr": 1e-2,
        "losses": losses,
        "parameters": {n.replace(".default", ""): p.flatten().tolist() for n, p in pairs.items()},
    }


def with_change(model, pairs, ids):
    """Logits with `scale * B A` beside every feed-forward matrix."""
    hooks = []
    for path, (a, b) in pairs.items():
        layer = model.get_submodule(path)
        hooks.append(layer.register_forward_hook(lambda _, x, y, a=a, b=b: y + SCALE * (x[0] @ a.T) @ b.T))
    logits = model(torch.tensor([ids])).logits[0]
    for hook in hooks:
        hook.remove()
    return logits


def translator():
    model = load().requires_grad_(False)
    paths = [f"model.layers.{layer}.mlp.{module}" for layer in range(2) for module in MODULES]
    passage, (ids, labels) = sequence(8, 5, 0)[0], sequence(12, 4, 4)
    embedding = model(torch.tensor([passage]), output_hidden_states=True).hidden_states[-1][0, -1]
    weights, targets = {}, {}
    for number, path in enumerate(paths):
        d_out, d_in = model.get_submodule(path).weight.shape
        shapes = [(WIDTH, 17), (RANK * d_in, WIDTH), (WIDTH, 17), (d_out * RANK, WIDTH)]
        for i, (name, shape) in enumerate(zip(("a.0", "a.1", "b.0", "b.1"), shapes, strict=True)):
            values = numbers(shape[0] * shape[1], 4 * number + i, 0.1).view(shape)
            weights[f"{path}.{name}.weight"] = values.requires_grad_()
        targets[path] = [
            numbers(RANK * d_in, 100 + 2 * number, 0.05).view(RANK, d_in),
            numbers(d_out * RANK, 101 + 2 * number, 0.05).view(d_out, RANK),
        ]
    found = {"passage": passage, "ids": ids, "labels": labels, "embedding": embedding.tolist(), "arms": []}
    for reduction, kl_weight, mse_weight in (("mean", 1.0, 100.0), ("sum", 0.01, 100.0), ("mean", 5.0, 0.0)):
        pairs = {}
        for number, path in enumerate(paths):
            z = torch.cat([embedding, torch.tensor([float(number // 3)])])
            a, b = (
                weights[f"{path}.{side}.1.weight"] @ torch.relu(weights[f"{path}.{side}.0.weight"] @ z) for side in "ab"
            )
            pairs[path] = (a.view(RANK, -1), b.view(-1, RANK))
        student, teacher = with_change(model, pairs, ids), with_change(model, targets, ids)
        lm = F.cross_entropy(student[:-1], torch.tensor(labels[1:]))
        kl = F.kl_div(F.log_softmax(student, -1), F.softmax(teacher, -1), reduction="sum")
        if reduction == "mean":
            kl = kl / len(ids)
        mse = sum(F.mse_loss(x, y) for path in paths for x, y in zip(pairs[path], targets[path], strict=True))
        total = lm + kl_weight * kl + mse_weight * mse
        gradients = torch.autograd.grad(total, list(weights.values()))
        found["arms"].append({
            "kl_reduction": reduction, "kl_weight": kl_weight, "mse_weight": mse_weight,
            "lm": lm.item(), "kl": kl.item(), "mse": mse.item(), "total": total.item(),
            "gradients": {n: g.flatten().tolist() for n, g in zip(weights, gradients, strict=True)},
        })  # fmt: skip
    return found


def rounded(x):
    if isinstance(x, float):
        return float(f"{x:.6g}")
    if isinstance(x, dict):
        return {k: rounded(v) for k, v in x.items()}
    return [rounded(v) for v in x] if isinstance(x, list) else x


versions = {name: version(name) for name in ("torch", "transformers", "peft")}
found = {"generator": "scripts/golden/parametric.py", "versions": versions, "encode": encode(), "translator": translator()}
with open("fixtures/parametric.json", "w") as out:
    json.dump(rounded(found), out)
    out.write("\n")
