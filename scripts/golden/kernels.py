"""Values and gradients of PyTorch's operations.

Usage: python scripts/golden/kernels.py      writes fixtures/kernels/

Each case has inputs NAME.x0, NAME.x1, ..., its result NAME.y, weights NAME.w, and the gradients NAME.g0, ... of the sum of the result
times the weights; constants of a case are inputs without a gradient.
"""

import torch
import torch.nn.functional as F
from common import FIXTURES, generator, header, write_golden

SEED = 20261
EPS, HEADS, KV_HEADS, HEAD_DIM, SCALE = 1e-5, 4, 2, 16, 0.3
G = generator(SEED)
TENSORS = {}


def draw(*shape, scale=1.0):
    return torch.randn(shape, generator=G) * scale


def case(name, inputs, op, constants=()):
    """`op` of all inputs and constants; the gradients of the inputs only."""
    tracked = [x.clone().requires_grad_(True) for x in inputs]
    y = op(*tracked, *constants)
    weights = draw(*y.shape)
    (y * weights).sum().backward()
    for i, x in enumerate([*inputs, *constants]):
        TENSORS[f"{name}.x{i}"] = x
    for i, x in enumerate(tracked):
        TENSORS[f"{name}.g{i}"] = x.grad
    TENSORS[f"{name}.y"], TENSORS[f"{name}.w"] = y, weights


def rms_norm(x, gain):
    return F.rms_norm(x, (x.shape[1],), gain.view(-1), EPS)


def layer_norm(x, gain, bias):
    return F.layer_norm(x, (x.shape[1],), gain.view(-1), bias.view(-1), EPS)


def rope(x, cos, sin):
    heads = x.view(x.shape[0], -1, HEAD_DIM)
    half = torch.cat((-heads[..., HEAD_DIM // 2:], heads[..., :HEAD_DIM // 2]), dim=-1)
    table = lambda t: torch.cat((t, t), dim=-1).unsqueeze(1)
    return (heads * table(cos) + half * table(sin)).view_as(x)


def attention(lengths, causal=False, window=None, softcap=None):
    """Attention of each sequence by itself; `lengths` are pairs of queries and keys."""

    def one(q, k, v, bias):
        split = lambda t, heads: t.view(t.shape[0], heads, HEAD_DIM).transpose(0, 1)
        q, k, v = split(q, HEADS), split(k, KV_HEADS), split(v, KV_HEADS)
        distance = (torch.arange(q.shape[1]) + k.shape[1] - q.shape[1])[:, None] - torch.arange(k.shape[1])
        hidden = (distance < 0) & causal
        if window:
            hidden = hidden | (distance.abs() >= window)
        mask = torch.zeros(distance.shape).masked_fill(hidden, -torch.inf)
        if bias is not None:
            mask = mask + bias[:, : q.shape[1], : k.shape[1]]
        if softcap is None:
            y = F.scaled_dot_product_attention(q[None], k[None], v[None], attn_mask=mask[None], scale=SCALE, enable_gqa=True)[0]
        else:
            k, v = (t.repeat_interleave(HEADS // KV_HEADS, 0) for t in (k, v))
            scores = softcap * torch.tanh(q @ k.transpose(1, 2) * SCALE / softcap) + mask
            y = scores.softmax(-1) @ v
        return y.transpose(0, 1).reshape(-1, HEADS * HEAD_DIM)

    def op(q, k, v, bias=None):
        # Position biases are `[heads * queries, keys]` there.
        bias = None if bias is None else bias.view(HEADS, -1, bias.shape[1])
        parts = zip(*(t.split([n[side] for n in lengths]) for t, side in ((q, 0), (k, 1), (v, 1))))
        return torch.cat([one(*part, bias) for part in parts])

    queries, keys = (sum(n[side] for n in lengths) for side in (0, 1))
    return [draw(queries, HEADS * HEAD_DIM), draw(keys, KV_HEADS * HEAD_DIM), draw(keys, KV_HEADS * HEAD_DIM)], op


def lora(x, weight, a, b):
    return F.linear(x, weight) + 0.7 * F.linear(F.linear(x, a), b)


def multi_lora(x, weight, a0, b0, a1, b1):
    y = F.linear(x, weight)
    first, second = (F.linear(F.linear(x[rows], a), b) for rows, a, b in ((slice(1, 4), a0, b0), (slice(4, 9), a1, b1)))
    return y + torch.cat((torch.zeros_like(y[:1]), 0.7 * first, -1.3 * second, torch.zeros_like(y[9:])))


def cross_entropy(targets, smoothing=0.0, z_loss=0.0, softcap=None):
    def op(hidden, weight, bias):
        logits = F.linear(hidden, weight, bias.view(-1))
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        loss = F.cross_entropy(logits, targets, ignore_index=-100, reduction="sum", label_smoothing=smoothing)
        square = torch.logsumexp(logits, -1)[targets != -100] ** 2
        return (loss + z_loss * square.sum()).view(1, 1)

    return op


def linear_recurrence(lengths, reverse=False, resets=()):
    def op(a, b, initial):
        out, start = [None] * len(a), 0
        for sequence, length in enumerate(lengths):
            state, rows = initial[sequence], list(range(start, start + length))
            for t in reversed(rows) if reverse else rows:
                state = b[t] if t in resets else a[t] * state + b[t]
                out[t] = state
            start += length
        return torch.stack(out)

    tokens = sum(lengths)
    return [draw(tokens, 70).sigmoid(), draw(tokens, 70), draw(len(lengths), 70)], op


def adamw():
    """Three steps; the gradients are scaled as clipping would."""
    start, gradients = draw(1, 33), [draw(1, 33, scale=0.1) for _ in range(3)]
    parameter = start.clone().requires_grad_(True)
    optimizer = torch.optim.AdamW([parameter], lr=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, foreach=False)
    TENSORS["adamw.x0"] = start
    for i, gradient in enumerate(gradients):
        parameter.grad = gradient * 0.5
        optimizer.step()
        TENSORS[f"adamw.x{i + 1}"], TENSORS[f"adamw.y{i + 1}"] = gradient, parameter.detach().clone()


def main():
    gain, bias = draw(1, 48), draw(1, 48)
    case("rms_norm", [draw(7, 48), gain], rms_norm)
    case("layer_norm", [draw(7, 48), gain, bias], layer_norm)
    both = lambda norm: lambda x, y, *more: torch.cat((x + y, norm(x + y, *more)), 1)
    case("add_rms_norm", [draw(7, 48), draw(7, 48), gain], both(rms_norm))
    case("add_layer_norm", [draw(7, 48), draw(7, 48), gain, bias], both(layer_norm))
    for name, f in (("silu", F.silu), ("gelu", F.gelu), ("gelu_tanh", lambda x: F.gelu(x, approximate="tanh"))):
        case(name, [draw(5, 33, scale=4.0)], f)
    case("swiglu", [draw(5, 33, scale=4.0), draw(5, 33)], lambda gate, up: F.silu(gate) * up)
    case("geglu_tanh", [draw(5, 33, scale=4.0), draw(5, 33)], lambda gate, up: F.gelu(gate, approximate="tanh") * up)
    angles = draw(9, HEAD_DIM // 2, scale=3.0)
    case("rope", [draw(9, 2 * HEAD_DIM)], rope, [angles.cos(), angles.sin()])
    same, longer = [(5, 5), (12, 12)], [(3, 7), (6, 6)]
    case("attention_causal", *attention(same, causal=True))
    case("attention_behind_others", *attention(longer, causal=True))
    case("attention_window", *attention(same, causal=True, window=4))
    case("attention_window_both", *attention(same, window=3))
    case("attention_bidirectional", *attention(same))
    case("attention_cross", *attention([(5, 3), (4, 9)]))
    case("attention_softcap", *attention(same, causal=True, softcap=2.0))
    inputs, op = attention(same)
    case("attention_bias", [*inputs, draw(HEADS * 12, 12)], op)
    x, weight = draw(10, 24), draw(40, 24, scale=0.3)
    pair = lambda r: [draw(r, 24, scale=0.3), draw(40, r, scale=0.3)]
    case("linear", [x, weight, draw(1, 40)], lambda x, weight, bias: F.linear(x, weight, bias.view(-1)))
    case("lora_linear", [x, weight, *pair(4)], lora)
    case("multi_lora_linear", [x, weight, *pair(4), *pair(2)], multi_lora)
    targets = torch.tensor([3, 49, -100, 0, 17, -100, 8])
    TENSORS["cross_entropy.targets"] = targets.int()
    head = [draw(7, 24), draw(50, 24, scale=0.3), draw(1, 50)]
    case("cross_entropy", head, cross_entropy(targets))
    case("cross_entropy_smoothed", head, cross_entropy(targets, smoothing=0.1))
    case("cross_entropy_z_loss", head, cross_entropy(targets, z_loss=0.01))
    case("cross_entropy_softcap", head, cross_entropy(targets, softcap=3.0))
    log_probs = F.linear(head[0], head[1], head[2].view(-1)).log_softmax(-1)
    counted = targets != -100
    chosen = log_probs.gather(1, targets.clamp(min=0)[:, None])[:, 0]
    TENSORS["token_log_probs.y"] = torch.where(counted, chosen, torch.zeros(()))
    adamw()
    case("linear_recurrence", *linear_recurrence((5, 12)))
    case("linear_recurrence_reverse", *linear_recurrence((12, 5), reverse=True, resets=(7, 8, 9, 14)))
    keys = {
        "NAME.x{i}": "inputs, then constants", "NAME.y": "result", "NAME.w": "weights of the result in the loss", "NAME.g{i}": "gradients",
        "cross_entropy.targets": "of all its variants", "token_log_probs.y": "of the inputs of cross_entropy",
        "adamw.x0": "start; x1 to x3 gradients, y1 to y3 parameters after each step, with a factor 0.5 on the gradients",
    }
    write_golden(FIXTURES / "kernels", TENSORS, header(SEED, keys, eps=EPS, heads=[HEADS, KV_HEADS, HEAD_DIM], scale=SCALE))


if __name__ == "__main__":
    main()
