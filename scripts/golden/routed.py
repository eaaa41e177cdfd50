"""A decoder with a mixture of experts in every block, in plain PyTorch, for rmoe.py and widenet.py.

Weights are drawn by their names, so that configurations share those that they have in common. The loss is the mean over the
next tokens of both sequences, computed in one batch without padding, and what the routers add to it.
"""

import json
import zlib

import torch
import torch.nn.functional as F
from common import FIXTURES, generator, header, token_ids, write_golden
from safetensors.torch import save_file

SEED = 20263
LENGTHS = (11, 7)
SIZES = dict(
    hidden_size=32,
    intermediate_size=32,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=64,
    max_position_embeddings=64,
    rms_norm_eps=1e-6,
    rope_theta=10000.0,
    hidden_act="silu",
    tie_word_embeddings=True,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
)


class Weights(dict):
    """Parameters by name, drawn when they are asked for first."""

    def get(self, name, *shape):
        if name not in self:
            g = generator(SEED + zlib.crc32(f"{name} {shape}".encode()) % 100_000)
            values = torch.randn(shape, generator=g)
            if name.endswith("norm.weight"):
                values = 1 + 0.2 * values
            elif name.endswith(".bias"):
                values = 0.3 * values
            else:
                # Routers that do not hesitate, so that a rounding changes no choice.
                values = values * (2.0 if ".gate." in name else 1.0) / shape[-1] ** 0.5
            self[name] = values.requires_grad_(True)
        assert self[name].shape == shape, name
        return self[name]


def rms_norm(x, gain, eps):
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * gain


def rotate(x, theta):
    """x: [tokens, heads, width]; the pairs are (i, i + width / 2)."""
    tokens, _, width = x.shape
    half = width // 2
    frequency = theta ** (-torch.arange(0, half, dtype=torch.float32) * 2 / width)
    angle = torch.arange(tokens, dtype=torch.float32)[:, None] * frequency
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    a, b = x[..., :half], x[..., half:]
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


class Decoder:
    """`where(layer, part)` is the path of a part; `route(layer, x, state)` gives logits and the next state."""

    def __init__(self, config):
        self.c = config
        self.w = Weights()

    def where(self, layer, part):
        return f"model.layers.{layer}.{part}"

    def linear(self, name, x, out, bias=False):
        weight = self.w.get(f"{name}.weight", out, x.shape[-1])
        return F.linear(x, weight, self.w.get(f"{name}.bias", out) if bias else None)

    def attention(self, layer, x, lengths):
        c = self.c
        heads, kv = c["num_attention_heads"], c["num_key_value_heads"]
        width = c["hidden_size"] // heads
        path = self.where(layer, "self_attn")
        q = self.linear(f"{path}.q_proj", x, heads * width).view(-1, heads, width)
        k = self.linear(f"{path}.k_proj", x, kv * width).view(-1, kv, width)
        v = self.linear(f"{path}.v_proj", x, kv * width).view(-1, kv, width)
        out, start = [], 0
        for length in lengths:
            own = slice(start, start + length)
            qs, ks = rotate(q[own], c["rope_theta"]), rotate(k[own], c["rope_theta"])
            ks, vs = (t.repeat_interleave(heads // kv, 1) for t in (ks, v[own]))
            scores = torch.einsum("qhd,khd->hqk", qs, ks) / width**0.5
            scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), float("-inf"))
            out.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), vs).reshape(length, -1))
            start += length
        return self.linear(f"{path}.o_proj", torch.cat(out), c["hidden_size"])

    def expert(self, path, e, x):
        inner = self.c.get("moe_expert_intermediate_size") or self.c["intermediate_size"]
        path = f"{path}.experts.{e}"
        inside = F.silu(self.linear(f"{path}.w1", x, inner)) * self.linear(f"{path}.w3", x, inner)
        return self.linear(f"{path}.w2", inside, self.c["hidden_size"])

    def normalises(self):
        return True

    def capacity(self, tokens):
        return None

    def moe(self, layer, x, logits, path):
        k, count = self.c["num_experts_per_tok"], self.c["num_local_experts"]
        probabilities = logits.softmax(-1)
        gates, chosen = probabilities.topk(k)
        if self.normalises():
            gates = gates / gates.sum(-1, keepdim=True)
        top = probabilities.topk(min(k + 1, count)).values
        if k < count:
            self.margin = min(self.margin, (top[:, k - 1] - top[:, k]).min().item())
        self.routing.append((logits, probabilities, chosen))
        # Token by token, as the formula reads.
        capacity, taken = self.capacity(len(x)), [0] * count
        rows = []
        for t in range(len(x)):
            y = torch.zeros_like(x[t])
            for gate, e in zip(gates[t], chosen[t].tolist()):
                if capacity is None or taken[e] < capacity:
                    y = y + gate * self.expert(path, e, x[t : t + 1])[0]
                taken[e] += 1
            rows.append(y)
        # Weights of experts that no token goes to exist all the same.
        return torch.stack(rows) + 0 * sum(self.expert(path, e, x[:1]) for e in range(count))

    def run(self, ids, lengths):
        c, d = self.c, self.c["hidden_size"]
        self.routing, self.margin, state, blocks = [], 1.0, None, []
        norm = lambda name, x: rms_norm(x, self.w.get(f"{name}.weight", d), c["rms_norm_eps"])
        x = self.w.get("model.embed_tokens.weight", c["vocab_size"], d)[ids]
        for layer in range(c["num_hidden_layers"]):
            x = x + self.attention(layer, norm(self.norm(layer, "input_layernorm"), x), lengths)
            y = norm(self.norm(layer, "post_attention_layernorm"), x)
            logits, state = self.route(layer, y, state)
            x = x + self.moe(layer, y, logits, self.where(layer, "block_sparse_moe"))
            blocks.append(x)
        hidden = norm("model.norm", x)
        return blocks, hidden, hidden @ self.w["model.embed_tokens.weight"].T

    def norm(self, layer, name):
        return self.where(layer, name)

    def added(self):
        """What the routers add to the loss, over the blocks."""
        count, losses = self.c["num_local_experts"], []
        for logits, probabilities, chosen in self.routing:
            share = F.one_hot(chosen, count).float().mean((0, 1))
            balance = count * (share * probabilities.mean(0)).sum()
            z = logits.logsumexp(-1).pow(2).mean()
            losses.append((balance, z))
        return [torch.stack(terms) for terms in zip(*losses)]


def loss_of(model, ids, lengths):
    _, _, logits = model.run(ids, lengths)
    start, total = 0, 0
    for length in lengths:
        own = slice(start, start + length - 1)
        total = total + F.cross_entropy(logits[own], ids[start + 1 : start + length], reduction="sum")
        start += length
    return total / (sum(lengths) - len(lengths)) + model.loss(), logits


def gradients(model, ids, lengths):
    loss, logits = loss_of(model, ids, lengths)
    if model.margin < 1e-4:
        raise SystemExit(f"a choice of experts hangs on {model.margin:.1e}: take another SEED")
    names = sorted(model.w)
    grads = torch.autograd.grad(loss, [model.w[name] for name in names], allow_unused=True)
    zero = lambda name, grad: torch.zeros_like(model.w[name]) if grad is None else grad
    return loss, logits, {n: zero(n, g) for n, g in zip(names, grads)}


def write(name, cls, own, variants, note):
    """The model NAME with its golden files, and what its settings change in variants.safetensors."""
    folder = FIXTURES / "models" / name
    folder.mkdir(parents=True, exist_ok=True)
    config = {"architectures": [f"{name.capitalize()}ForCausalLM"], "model_type": name, **SIZES, **own}
    for file in ("config.json", "config_legacy.json"):
        (folder / file).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    sequences = [s[0] for s in token_ids(SEED, LENGTHS, SIZES["vocab_size"])]
    ids, lengths = torch.cat(sequences), [len(s) for s in sequences]
    base, tensors = cls(config), {}
    with torch.no_grad():
        for s, row in enumerate(sequences):
            blocks, hidden, logits = base.run(row, [len(row)])
            tensors[f"seq{s}.input_ids"] = row
            tensors.update({f"seq{s}.block.{i}": block for i, block in enumerate(blocks)})
            tensors[f"seq{s}.last_hidden_state"], tensors[f"seq{s}.logits"] = hidden, logits
    save_file({k: v.detach().clone() for k, v in base.w.items()}, folder / "model.safetensors", metadata={"format": "pt"})
    keys = {
        "seqS.input_ids": "[tokens] i64, each sequence was run by itself",
        "seqS.block.L": "[tokens, hidden] output of block L (before the final norm)",
        "seqS.last_hidden_state": "[tokens, hidden] after the final norm",
        "seqS.logits": "[tokens, vocab]",
    }
    write_golden(folder, tensors, header(SEED, keys, computed_in=note))
    loss, _, grads = gradients(base, ids, lengths)
    keys = {"loss": "[1] with what the routers add, both sequences in one batch", "grad.NAME": "its gradient by the weight NAME"}
    all_of = {"loss": loss.view(1)} | {f"grad.{n}": g for n, g in grads.items()}
    write_golden(folder, all_of, header(SEED, keys, computed_in=note), "gradients")
    print(f"{name}: loss {loss.item():.6f}, smallest margin of a choice {base.margin:.1e}")

    found, cases = {}, {}
    for case, changes in variants.items():
        model = cls({**config, **changes})
        loss, logits, grads = gradients(model, ids, lengths)
        cases[case] = changes
        found[f"{case}.loss"], found[f"{case}.logits"] = loss.view(1), logits
        is_new = lambda n: n not in base.w or base.w[n].shape != model.w[n].shape
        found |= {f"{case}.weight.{n}": model.w[n] for n in model.w if is_new(n)}
        # The rest is as in the model itself.
        of_routers = lambda n: any(part in n for part in ("gate.", "router", "norm", "q_proj", "experts.1.w2"))
        found |= {f"{case}.grad.{n}": g for n, g in grads.items() if of_routers(n)}
        print(f"{name} {case}: loss {loss.item():.6f}, smallest margin {model.margin:.1e}, {len(model.w)} tensors")
    keys = {
        "CASE.loss, CASE.logits": "as in gradients.safetensors, [tokens, vocab] of both sequences in one batch",
        "CASE.weight.NAME": "a weight that the model of config.json has not, or of another shape",
        "CASE.grad.NAME": "a gradient of that loss",
    }
    write_golden(folder, found, header(SEED, keys, computed_in=note, cases=cases), "variants")
