"""PERK's writing of a context and its meta-gradients, on the small Llama of fixtures/harness, in double precision.

Usage: python scripts/golden/perk.py

Writes fixtures/perk/golden.safetensors: five segments, two questions, a LoRA of rank 2 on
every linear layer, a network of token weights, a learning rate for each tensor and step. PyTorch differentiates the
unrolled AdamW steps by itself (`create_graph=True`); where a step is not retained, its gradient is detached.
"""

from common import FIXTURES, generator, header, write_golden

import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM
from transformers.models.llama.modeling_llama import LlamaRMSNorm

# Of a seed for which no gradient of the first step is near 0: there the step's derivative, ε / (|g| + ε)², magnifies rounding.
SEED, R, STEPS, SCALE = 35, 2, 4, 1.5
BETA1, BETA2, EPS, DECAY = 0.9, 0.95, 1e-8, 0.01
IGNORE = -100
# Tokens, and how many of them are only read.
SEGMENTS = [(9, 3), (6, 3), (7, 2), (9, 3), (5, 1)]
QUESTIONS = [(8, 6), (7, 4)]


def sequences(lengths, seed):
    g = generator(seed)
    return [torch.randint(3, 293, (n,), generator=g) for n, _ in lengths]


def logits_and_hidden(model, weights, ids):
    out = torch.func.functional_call(model, weights, (ids[None],), {"output_hidden_states": True})
    return out.logits[0], out.hidden_states[-1][0]


def adapted(model, base, fast):
    """The model's weights with `SCALE · B A` in them."""
    weights = dict(base)
    for path in sorted({name.rsplit(".lora_", 1)[0] for name in fast}):
        a, b = fast[f"{path}.lora_A.weight"], fast[f"{path}.lora_B.weight"]
        weights[f"{path}.weight"] = base[f"{path}.weight"] + SCALE * b @ a
    return weights


def token_weights(net, hidden):
    x = F.gelu(hidden @ net["fc1.weight"].T + net["fc1.bias"])
    return F.softplus(x @ net["fc2.weight"].T + net["fc2.bias"], beta=3).squeeze(-1)


def cross_entropy(logits, ids, masked):
    labels = ids.clone()
    labels[:masked] = IGNORE
    return F.cross_entropy(logits[:-1], labels[1:], reduction="none", ignore_index=IGNORE)


def inner_loss(model, base, fast, net, segments):
    weights = adapted(model, base, fast)
    total, longest = 0.0, max(n for n, _ in SEGMENTS)
    for ids, (_, masked) in zip(segments, SEGMENTS, strict=True):
        logits, hidden = logits_and_hidden(model, weights, ids)
        losses = cross_entropy(logits, ids, masked)
        total = total + (losses * token_weights(net, hidden)[1:]).sum()
    return total / (len(segments) * (longest - 1))


def outer_loss(model, base, fast, questions):
    weights = adapted(model, base, fast)
    losses = [
        cross_entropy(logits_and_hidden(model, weights, ids)[0], ids, masked)
        for ids, (_, masked) in zip(questions, QUESTIONS, strict=True)
    ]
    return torch.cat(losses).sum() / sum(n - masked for n, masked in QUESTIONS)


def unrolled(model, base, fast, net, rates, segments, retained):
    moments = {k: (torch.zeros_like(v), torch.zeros_like(v)) for k, v in fast.items()}
    losses, first = [], None
    for n in range(1, STEPS + 1):
        loss = inner_loss(model, base, fast, net, segments)
        keep = n > STEPS - retained
        gradients = torch.autograd.grad(loss, list(fast.values()), create_graph=keep, retain_graph=True)
        losses.append(loss.detach())
        first = first or {k: g.detach() for k, g in zip(fast, gradients, strict=True)}
        stepped = {}
        for (name, value), gradient in zip(fast.items(), gradients, strict=True):
            gradient = gradient if keep else gradient.detach()
            m = BETA1 * moments[name][0] + (1 - BETA1) * gradient
            v = BETA2 * moments[name][1] + (1 - BETA2) * gradient**2
            moments[name] = (m, v)
            rate = rates[name][n - 1]
            update = m / (1 - BETA1**n) / (v.sqrt() / (1 - BETA2**n) ** 0.5 + EPS)
            stepped[name] = value * (1 - rate * DECAY) - rate * update
        fast = stepped
    return fast, torch.stack(losses), first


def main():
    model = AutoModelForCausalLM.from_pretrained(
        FIXTURES / "harness/llama", dtype=torch.float64, attn_implementation="eager"
    ).eval()
    # Its norms would round to single precision.
    LlamaRMSNorm.forward = lambda norm, x: norm.weight * x * torch.rsqrt(x.pow(2).mean(-1, True) + norm.variance_epsilon)
    base = {k: v.detach() for k, v in model.state_dict().items() if k != "lm_head.weight"}
    segments, questions = sequences(SEGMENTS, SEED), sequences(QUESTIONS, SEED + 1)
    g = generator(SEED + 2)
    # All values are those of single precision, so that the other side starts from the same.
    draw = lambda *shape, scale: (torch.randn(*shape, generator=g) * scale).double()
    fast, rates = {}, {}
    for path, layer in model.named_modules():
        if isinstance(layer, torch.nn.Linear) and path != "lm_head":
            fast[f"{path}.lora_A.weight"] = draw(R, layer.in_features, scale=0.3)
            fast[f"{path}.lora_B.weight"] = draw(layer.out_features, R, scale=0.3)
    for i, name in enumerate(fast):
        rates[name] = torch.tensor([0.01 + 0.001 * ((3 * i + n) % 7) for n in range(STEPS + 1)]).double()
    d = model.config.hidden_size
    net = {
        "fc1.weight": draw(128, d, scale=0.3),
        "fc1.bias": draw(128, scale=0.3),
        "fc2.weight": draw(1, 128, scale=0.1),
        "fc2.bias": draw(1, scale=0.1),
    }
    tensors = {}
    as_f32 = lambda group, values: tensors.update({f"{group}.{k}": v.detach().float() for k, v in values.items()})
    as_f32("start", fast)
    as_f32("net", net)
    as_f32("rates", rates)
    tensors["segments"], tensors["questions"] = torch.cat(segments).int(), torch.cat(questions).int()
    fresh = net | {"fc2.weight": torch.zeros(1, 128).double(), "fc2.bias": torch.zeros(1).double()}
    with torch.no_grad():
        tensors["fresh_inner_loss"] = inner_loss(model, base, fast, fresh, segments).float()[None]
    for retained in (0, 2, STEPS):
        leaves = [{k: v.clone().requires_grad_() for k, v in part.items()} for part in (fast, net, rates)]
        last, losses, first = unrolled(model, base, *leaves[:2], leaves[2], segments, retained)
        loss = outer_loss(model, base, last, questions)
        flat = [(part, k, v) for part, values in zip(("start", "net", "rates"), leaves) for k, v in values.items()]
        gradients = torch.autograd.grad(loss, [v for _, _, v in flat], allow_unused=True)
        for (part, name, value), gradient in zip(flat, gradients, strict=True):
            gradient = torch.zeros_like(value) if gradient is None else gradient
            tensors[f"gradient{retained}.{part}.{name}"] = gradient.float()
        if retained == STEPS:
            as_f32("adapted", last)
            as_f32("first", first)
            tensors["inner_losses"], tensors["outer_loss"] = losses.float(), loss.detach().float()[None]
    keys = {
        "segments, questions": "tokens of all sequences; their lengths and how many tokens are only read are in this file",
        "start, net, rates": "adapter, token weights and learning rates before learning",
        "first": "gradient of the inner loss by the adapter before the first step",
        "adapted, inner_losses": "after all steps, and before each",
        "fresh_inner_loss": "before the first step with the last layer of the token weights at 0",
        "outer_loss, gradientT": "loss of the answers, and its gradient with T retained steps",
    }
    head = header(SEED, keys, r=R, scale=SCALE, steps=STEPS, segments=SEGMENTS, questions=QUESTIONS)
    write_golden(FIXTURES / "perk", tensors, head)
    print("inner losses", [round(x, 5) for x in losses.tolist()], "outer", loss.item())


if __name__ == "__main__":
    main()
