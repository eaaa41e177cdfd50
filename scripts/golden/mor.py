"""Mixture-of-Recursions, stated again in PyTorch from the paper (arXiv 2507.10524) and what its official code does.

Usage: python scripts/golden/mor.py        writes fixtures/models/mor and fixtures/mor/NAME

Sequences are computed one by one, tokens are chosen with masks and index lists, and gradients are those of autograd. Losses of
routers are means over the tokens of both sequences.
"""

import json
import math

import torch
import torch.nn.functional as F
from common import FIXTURES, generator, header, token_ids, write_golden
from safetensors.torch import save_file

SEED = 25071
SMALL = dict(
    hidden_size=16, intermediate_size=24, num_hidden_layers=8, num_attention_heads=2, num_key_value_heads=1, vocab_size=48
)
USUAL = dict(
    hidden_size=32, intermediate_size=48, num_hidden_layers=6, num_attention_heads=4, num_key_value_heads=2, vocab_size=64
)
CASES = {
    "expert": SMALL | dict(num_recursion=3, router_z_loss_coef=0.01, mor_aux_loss_coef=0.5),
    "expert-tanh-mlp": SMALL
    | dict(
        num_recursion=2, router_type="mlp", router_func="tanh", router_alpha=0.7, sampling="aux_router", router_temperature=2.0,
        capacity_factors=[0.8, 0.35], mor_aux_loss_coef=1.0, tie_word_embeddings=False,
    ),
    "expert-kv": SMALL | dict(num_recursion=3, kv_sharing=True, router_gating="none"),
    "token": SMALL | dict(num_recursion=3, mor_type="token_choice", router_z_loss_coef=0.1),
    "token-free-kv": SMALL
    | dict(num_recursion=3, mor_type="token_choice", router_func="sigmoid", balancing="loss_free", kv_sharing=True, sharing="cycle",
           num_hidden_layers=6),
    "recursive": SMALL
    | dict(num_recursion=3, mor_type="none", sharing="middle_sequence", share_layer_norm=False, layer_rounding="floor",
           attention_bias=True, mlp_bias=True),
    "recursive-kv": SMALL | dict(num_recursion=2, mor_type="none", sharing="cycle", kv_sharing=True, num_hidden_layers=5),
}
DEFAULTS = dict(
    sharing="middle_cycle", share_layer_norm=True, layer_rounding="ceil", mor_type="expert_choice", kv_sharing=False,
    router_type="linear", router_temperature=1.0, router_gating="weighted", capacity_factors=None, sampling="aux_loss",
    router_threshold=0.5, balancing="loss", tie_word_embeddings=True, attention_bias=False, mlp_bias=False, rms_norm_eps=1e-5,
)


def firsts(c):
    """For every unrolled layer the first one with its weights."""
    steps, layers, ends = c["num_recursion"], c["num_hidden_layers"], 2 if c["sharing"].startswith("middle") else 0
    quotient = (layers - ends) / steps
    base = math.ceil(quotient) if c["layer_rounding"] == "ceil" else math.floor(quotient)
    cycle = c["sharing"].endswith("cycle")
    shared = [(i % base if cycle else i // steps * steps) + ends // 2 for i in range(base * steps)]
    if ends:
        return [0, *shared, base * steps + 1], base
    return shared, base


def draw(c, g):
    d, ff, heads, kv = (c[k] for k in ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"))
    width = d // heads
    first, _ = firsts(c)
    shapes = {"model.embed_tokens.weight": (c["vocab_size"], d)}
    for l, own in enumerate(first):
        p = f"model.layers.{l}"
        if own == l:
            maps = {"self_attn.q_proj": (heads * width, d), "self_attn.k_proj": (kv * width, d), "self_attn.v_proj": (kv * width, d),
                    "self_attn.o_proj": (d, heads * width), "mlp.gate_proj": (ff, d), "mlp.up_proj": (ff, d), "mlp.down_proj": (d, ff)}
            for name, shape in maps.items():
                shapes[f"{p}.{name}.weight"] = shape
                if c["attention_bias"] if "attn" in name else c["mlp_bias"]:
                    shapes[f"{p}.{name}.bias"] = shape[:1]
        if own == l or not c["share_layer_norm"]:
            shapes[f"{p}.input_layernorm.weight"] = shapes[f"{p}.post_attention_layernorm.weight"] = (d,)
    outputs, steps = (1, c["num_recursion"]) if c["mor_type"] == "expert_choice" else (c["num_recursion"], 1)
    kinds = [] if c["mor_type"] == "none" else ["mor_router"]
    if c["mor_type"] == "expert_choice" and c["sampling"] == "aux_router":
        kinds.append("mlp_router")
    for kind in kinds:
        for r in range(steps):
            p = f"model.{kind}.{r}.router"
            if c["router_type"] == "linear":
                shapes[f"{p}.weight"] = (outputs, d)
            else:
                shapes[f"{p}.0.weight"], shapes[f"{p}.2.weight"] = (2 * d, d), (outputs, 2 * d)
    if c["mor_type"] == "token_choice" and c["balancing"] == "loss_free":
        shapes["model.router_bias"] = (c["num_recursion"],)
    shapes["model.norm.weight"] = (d,)
    if not c["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (c["vocab_size"], d)
    weights = {}
    for name, shape in shapes.items():
        values = torch.randn(shape, generator=g)
        scale = 0.5 if "embed" in name else 0.8 if "router" in name else 0.25
        weights[name] = 1 + 0.1 * values if "norm" in name else scale * values
    return weights


def rms(x, weight, eps):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight


def rotate(x, positions):
    """[heads, tokens, width] at these positions."""
    width = x.shape[-1]
    angles = positions[:, None].float() * 10000.0 ** (-torch.arange(0, width, 2).float() / width)
    cos, sin = (torch.cat((t, t), -1) for t in (angles.cos(), angles.sin()))
    low, high = x.chunk(2, -1)
    return x * cos + torch.cat((-high, low), -1) * sin


class Model:
    def __init__(self, c, weights):
        self.c, self.w = DEFAULTS | c, weights
        self.first, self.base = firsts(self.c)

    def linear(self, name, x):
        return F.linear(x, self.w[f"{name}.weight"], self.w.get(f"{name}.bias"))

    def layer(self, l, x, positions, kept):
        """Rows of x stand at these positions and see each other, or what the first layer of these weights kept of all tokens."""
        c, own = self.c, self.first[l]
        heads, kv = c["num_attention_heads"], c["num_key_value_heads"]
        p, norms = f"model.layers.{own}", f"model.layers.{own if c['share_layer_norm'] else l}"
        y = rms(x, self.w[f"{norms}.input_layernorm.weight"], c["rms_norm_eps"])
        split = lambda t, n: t.view(len(t), n, -1).transpose(0, 1)
        q = rotate(split(self.linear(f"{p}.self_attn.q_proj", y), heads), positions)
        if c["kv_sharing"] and own != l:
            k, v, where = kept[own]
        else:
            k = rotate(split(self.linear(f"{p}.self_attn.k_proj", y), kv), positions)
            v, where = split(self.linear(f"{p}.self_attn.v_proj", y), kv), positions
            kept[l] = (k, v, where)
        k, v = (t.repeat_interleave(heads // kv, 0) for t in (k, v))
        scores = q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])
        scores = scores.masked_fill(where[None, :] > positions[:, None], float("-inf"))
        a = (scores.softmax(-1) @ v).transpose(0, 1).reshape(len(x), -1)
        x = x + self.linear(f"{p}.self_attn.o_proj", a)
        y = rms(x, self.w[f"{norms}.post_attention_layernorm.weight"], c["rms_norm_eps"])
        gated = F.silu(self.linear(f"{p}.mlp.gate_proj", y)) * self.linear(f"{p}.mlp.up_proj", y)
        return x + self.linear(f"{p}.mlp.down_proj", gated)

    def scores(self, name, x):
        if self.c["router_type"] == "linear":
            return x @ self.w[f"{name}.router.weight"].T
        return F.gelu(x @ self.w[f"{name}.router.0.weight"].T) @ self.w[f"{name}.router.2.weight"].T

    def step(self, r, x, positions, kept):
        start = (1 if self.c["sharing"].startswith("middle") else 0) + r * self.base
        for l in range(start, start + self.base):
            x = self.layer(l, x, positions, kept)
        return x

    def expert(self, hs, top_k, kepts, terms, counts):
        c, steps = self.c, self.c["num_recursion"]
        func = c.get("router_func", "sigmoid")
        value = torch.sigmoid if func == "sigmoid" else torch.tanh
        alpha = c.get("router_alpha", 0.1)
        active = [torch.arange(len(h)) for h in hs]
        for r in range(steps):
            logits, second, targets = [], [], []
            for s, h in enumerate(hs):
                x = h[active[s]]
                logit = self.scores(f"model.mor_router.{r}", x / c["router_temperature"])
                guide = self.scores(f"model.mlp_router.{r}", x.detach()) if c["sampling"] == "aux_router" else logit
                if top_k:
                    share = c["capacity_factors"]
                    count = int(share[r] * len(h)) if share else len(h) * (steps - r) // steps
                    chosen = torch.zeros(len(x), dtype=torch.bool)
                    chosen[torch.topk(logit[:, 0], max(1, count)).indices] = True
                else:
                    all_of_first = r == 0 and (not c["capacity_factors"] or c["capacity_factors"][0] == 1)
                    chosen = (torch.sigmoid(guide[:, 0]) >= c["router_threshold"]) | all_of_first
                logits.append(logit), second.append(guide), targets.append(chosen.float()[:, None])
                active[s] = active[s][chosen]
                if len(active[s]) == 0:
                    continue
                f = self.step(r, x[chosen], active[s], kepts[s])
                gate = alpha * value(logit[chosen]) if c["router_gating"] == "weighted" else 1.0
                hs[s] = h.index_add(0, active[s], gate * f)
            counts.append([len(a) for a in active])
            guide, target = torch.cat(second), torch.cat(targets)
            if len(guide):
                terms["aux"] = terms.get("aux", 0) + F.binary_cross_entropy_with_logits(guide, target)
                terms["z"] = terms.get("z", 0) + torch.cat(logits).logsumexp(-1).pow(2).mean()
        return hs

    def token(self, hs, kepts, terms, counts):
        c, steps = self.c, self.c["num_recursion"]
        sigmoid = c.get("router_func") == "sigmoid"
        logits = [self.scores("model.mor_router.0", h / c["router_temperature"]) for h in hs]
        value = torch.sigmoid if sigmoid else lambda x: x.softmax(-1)
        probabilities = [value(x) * c.get("router_alpha", 0.1 if sigmoid else 1.0) for x in logits]
        bias = self.w.get("model.router_bias", torch.zeros(steps)).detach()
        depths = [(p + bias).argmax(-1) for p in probabilities]
        outs = []
        for s, h in enumerate(hs):
            x, final = h, h
            for r in range(steps):
                going = torch.where(depths[s] >= r)[0]
                if len(going) == 0:
                    break
                f = self.step(r, x[going], going, kepts[s])
                x = x.index_put((going,), f)
                last = going[depths[s][going] == r]
                weight = probabilities[s][last, r][:, None] if c["router_gating"] == "weighted" else 1.0
                final = final.index_add(0, last, weight * x[last])
            outs.append(final)
        depth, p = torch.cat(depths), torch.cat(probabilities)
        counts += [[int((d >= r).sum()) for d in depths] for r in range(steps)]
        share = torch.bincount(depth, minlength=steps) / len(depth)
        if c["balancing"] == "loss":
            terms["aux"] = steps * (share * p.mean(0)).sum()
        terms["z"] = torch.cat(logits).logsumexp(-1).pow(2).mean()
        return outs

    def __call__(self, ids, top_k):
        c, terms, counts = self.c, {}, []
        hs = [self.w["model.embed_tokens.weight"][row] for row in ids]
        kepts = [{} for _ in ids]
        through = lambda l: [self.layer(l, h, torch.arange(len(h)), kept) for h, kept in zip(hs, kepts)]
        middle = c["sharing"].startswith("middle")
        if middle:
            hs = through(0)
        if c["mor_type"] == "expert_choice":
            hs = self.expert(hs, top_k, kepts, terms, counts)
        elif c["mor_type"] == "token_choice":
            hs = self.token(hs, kepts, terms, counts)
        else:
            for l in range(int(middle), len(self.first) - int(middle)):
                hs = through(l)
        if middle:
            hs = through(len(self.first) - 1)
        head = self.w.get("lm_head.weight", self.w["model.embed_tokens.weight"])
        return [F.linear(rms(h, self.w["model.norm.weight"], c["rms_norm_eps"]), head) for h in hs], terms, counts


def write(folder, c, seed):
    full = DEFAULTS | c
    weights = draw(full, generator(seed))
    ids = [row[0] for row in token_ids(seed + 1, (13, 8), c["vocab_size"])]
    leaves = {name: value.clone().requires_grad_() for name, value in weights.items()}
    model = Model(c, leaves)
    tensors = {f"seq{s}.input_ids": row for s, row in enumerate(ids)}
    with torch.no_grad():
        logits, _, counts = model(ids, False)
    tensors |= {f"seq{s}.logits": x for s, x in enumerate(logits)}
    logits, terms, trained = model(ids, True)
    tensors |= {f"seq{s}.training_logits": x for s, x in enumerate(logits)}
    losses = [F.cross_entropy(x[:-1], row[1:], reduction="sum") for x, row in zip(logits, ids)]
    loss = sum(losses) / sum(len(row) - 1 for row in ids)
    expert = full["mor_type"] == "expert_choice"
    aux, z = terms.get("aux", 0), terms.get("z", 0)
    loss = loss + c.get("mor_aux_loss_coef", 1e-3 if expert else 0.1) * aux + c.get("router_z_loss_coef", 0 if expert else 1e-5) * z
    loss.backward()
    tensors["loss"] = loss.view(1)
    tensors |= {f"grad.{name}": leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
    for name, value in (("counts", counts), ("training_counts", trained)):
        if value:
            tensors[name] = torch.tensor(value)
    folder.mkdir(parents=True, exist_ok=True)
    raw = dict(architectures=["MorForCausalLM"], model_type="mor", bos_token_id=1, eos_token_id=2, pad_token_id=0,
               max_position_embeddings=64, rms_norm_eps=1e-5, hidden_act="silu", tie_word_embeddings=True, dtype="float32") | c
    (folder / "config.json").write_text(json.dumps(raw, indent=2) + "\n")
    keys = {
        "seqS.input_ids": "[tokens] i64, each sequence was run by itself",
        "seqS.logits": "[tokens, vocab] where a token is taken by its own score",
        "seqS.training_logits": "[tokens, vocab] where steps take the highest scores of a sequence",
        "counts, training_counts": "[steps, sequences] i64, tokens that each step took",
        "loss": "[1] mean over the next tokens of both sequences, with the losses of the routers, as in training",
        "grad.NAME": "its gradient by the weight NAME",
    }
    write_golden(folder, tensors, header(seed, keys, stated_from="arXiv 2507.10524"))
    save_file({name: value.contiguous() for name, value in weights.items()}, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)
    print(f"{folder}: loss {loss.item():.6f}, {counts} in use, {trained} in training")


if __name__ == "__main__":
    write(FIXTURES / "models" / "mor", USUAL | dict(num_recursion=2), SEED)
    for i, (name, c) in enumerate(CASES.items()):
        write(FIXTURES / "mor" / name, c, SEED + 10 * (i + 1))
