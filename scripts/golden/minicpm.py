"""Tiny MiniCPM models with reference hidden states, logits, loss, gradients and training steps, stated again in PyTorch from the paper.

Usage: python scripts/golden/minicpm.py      writes fixtures/models/minicpm/ and fixtures/models/minicpm_moe/

transformers has no such class; the code beside the published checkpoints follows table 7 of Hu et al., MiniCPM, arXiv 2404.06395: embeddings
times `scale_emb`, branches times `scale_depth / sqrt(blocks)`, the head reads `h / (width / dim_model_base)`, matrices of blocks learn at
`dim_model_base / width` times the rate. Sizes are all different, so that none can stand in for another. `variants.safetensors` has the logits of the
same weights under other settings, `steps.safetensors` the weights after steps of `torch.optim.AdamW` with one group for each rate.
"""

import json
import math
import shutil

import torch
import torch.nn.functional as F
from common import FIXTURES, generator, header, token_ids, write_golden
from safetensors.torch import load_file, save_file

SEED = 24040
LENGTHS = (11, 7)
CONFIG = dict(
    architectures=["MiniCPMForCausalLM"],
    model_type="minicpm",
    vocab_size=64,
    hidden_size=48,
    intermediate_size=40,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=2,
    hidden_act="silu",
    initializer_range=0.1,
    max_position_embeddings=64,
    rms_norm_eps=1e-5,
    scale_emb=12,
    scale_depth=1.4,
    dim_model_base=16,
    tie_word_embeddings=True,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
    dtype="float32",
)
DEFAULTS = dict(rope_theta=10000.0, attention_bias=False, num_experts=0)
# What is written out in the second spelling of the same model.
SPELT = {**DEFAULTS, "rope_scaling": None, "pretraining_tp": 1, "attention_dropout": 0.0, "use_cache": True}
EXPERTS = dict(num_experts=4, num_experts_per_tok=2)
VARIANTS = {
    "scale_emb": {"scale_emb": 3.5},
    "scale_depth": {"scale_depth": 4.0},
    "dim_model_base": {"dim_model_base": 30},
    "rms_norm_eps": {"rms_norm_eps": 0.3},
    "theta": {"rope_theta": 300.0},
}
# lr, betas, eps, weight decay, norm that gradients are clipped to.
ADAMW = dict(lr=0.01, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
CLIP = 1.0
STEPS = 3


def weights(c):
    g = generator(SEED)
    d, ff, dim = c["hidden_size"], c["intermediate_size"], c["hidden_size"] // c["num_attention_heads"]
    kv = c["num_key_value_heads"] * dim
    spread = c["initializer_range"] / math.sqrt(d / c["dim_model_base"])

    def draw(rows, columns, std):
        return std * torch.randn(rows, columns, generator=g)

    made = {"model.embed_tokens.weight": draw(c["vocab_size"], d, c["initializer_range"])}
    for layer in range(c["num_hidden_layers"]):
        path = f"model.layers.{layer}"
        for name in ("input_layernorm", "post_attention_layernorm"):
            made[f"{path}.{name}.weight"] = 1.0 + 0.2 * torch.randn(d, generator=g)
        for name, rows in (("q_proj", d), ("k_proj", kv), ("v_proj", kv), ("o_proj", d)):
            made[f"{path}.self_attn.{name}.weight"] = draw(rows, d, 3 * spread)
        if c["num_experts"]:
            made[f"{path}.mlp.gate.weight"] = draw(c["num_experts"], d, 3 * spread)
            for e in range(c["num_experts"]):
                for name, size in (("w1", (ff, d)), ("w3", (ff, d)), ("w2", (d, ff))):
                    made[f"{path}.mlp.experts.{e}.{name}.weight"] = draw(*size, 3 * spread)
        else:
            for name, size in (("gate_proj", (ff, d)), ("up_proj", (ff, d)), ("down_proj", (d, ff))):
                made[f"{path}.mlp.{name}.weight"] = draw(*size, 3 * spread)
    made["model.norm.weight"] = 1.0 + 0.2 * torch.randn(d, generator=g)
    return made


def norm(c, gain, x):
    return gain * x / (x.pow(2).mean(-1, keepdim=True) + c["rms_norm_eps"]).sqrt()


def rotated(c, x):
    """Heads [tokens, heads, width], their halves turned against each other."""
    width = x.shape[-1]
    inverse = c["rope_theta"] ** (-torch.arange(0, width, 2).float() / width)
    angles = torch.arange(len(x)).float()[:, None] * inverse
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    a, b = x[..., : width // 2], x[..., width // 2 :]
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


def attention(c, w, path, x):
    tokens, heads, groups = len(x), c["num_attention_heads"], c["num_key_value_heads"]
    q = (x @ w[f"{path}.q_proj.weight"].T).view(tokens, heads, -1)
    k, v = ((x @ w[f"{path}.{name}.weight"].T).view(tokens, groups, -1) for name in ("k_proj", "v_proj"))
    q, k = rotated(c, q), rotated(c, k)
    k, v = (part.repeat_interleave(heads // groups, 1) for part in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q, k) / math.sqrt(q.shape[-1])
    later = torch.ones(tokens, tokens).triu(1).bool()
    mixed = torch.einsum("hqk,khd->qhd", scores.masked_fill(later, -math.inf).softmax(-1), v)
    return mixed.reshape(tokens, -1) @ w[f"{path}.o_proj.weight"].T


def gated(gate, up, down, x):
    return (F.silu(x @ gate.T) * (x @ up.T)) @ down.T


def feed_forward(c, w, path, x):
    if not c["num_experts"]:
        return gated(*(w[f"{path}.{name}.weight"] for name in ("gate_proj", "up_proj", "down_proj")), x)
    shares = (x @ w[f"{path}.gate.weight"].T).softmax(-1)
    best, chosen = shares.topk(c["num_experts_per_tok"], -1)
    best = best / best.sum(-1, keepdim=True)
    every = torch.stack(
        [gated(*(w[f"{path}.experts.{e}.{name}.weight"] for name in ("w1", "w3", "w2")), x) for e in range(c["num_experts"])], 1
    )
    return (best[..., None] * every.gather(1, chosen[..., None].expand(-1, -1, x.shape[-1]))).sum(1)


def forward(c, w, ids):
    """Outputs of blocks, what is behind the last norm, logits."""
    x, blocks = c["scale_emb"] * w["model.embed_tokens.weight"][ids], []
    branch = c["scale_depth"] / math.sqrt(c["num_hidden_layers"])
    for layer in range(c["num_hidden_layers"]):
        path = f"model.layers.{layer}"
        x = x + branch * attention(c, w, f"{path}.self_attn", norm(c, w[f"{path}.input_layernorm.weight"], x))
        x = x + branch * feed_forward(c, w, f"{path}.mlp", norm(c, w[f"{path}.post_attention_layernorm.weight"], x))
        blocks.append(x)
    hidden = norm(c, w["model.norm.weight"], x)
    ratio = c["hidden_size"] / c["dim_model_base"]
    return blocks, hidden, (hidden / ratio) @ w["model.embed_tokens.weight"].T


def mean_loss(c, w, all_ids):
    losses = [F.cross_entropy(forward(c, w, ids)[2][:-1], ids[1:], reduction="sum") for ids in all_ids]
    return sum(losses) / sum(len(ids) - 1 for ids in all_ids)


def steps(c, given, all_ids):
    """The weights after steps with matrices of blocks at a rate of their own; vectors do not decay."""
    w = {name: tensor.detach().clone().requires_grad_() for name, tensor in given.items()}
    matrices = [t for n, t in w.items() if t.ndim == 2 and ".layers." in n]
    tables = [t for n, t in w.items() if t.ndim == 2 and ".layers." not in n]
    vectors = [t for t in w.values() if t.ndim == 1]
    groups = [
        {"params": matrices, "lr": ADAMW["lr"] * c["dim_model_base"] / c["hidden_size"]},
        {"params": tables},
        {"params": vectors, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, **ADAMW)
    for _ in range(STEPS):
        optimizer.zero_grad()
        mean_loss(c, w, all_ids).backward()
        torch.nn.utils.clip_grad_norm_(list(w.values()), CLIP)
        optimizer.step()
    return w


def write_config(folder, name, config):
    (folder / f"{name}.json").write_text(json.dumps(dict(sorted(config.items())), indent=2) + "\n")


def write_model(name, changes):
    folder = FIXTURES / "models" / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_config(folder, "config", {**CONFIG, **changes})
    write_config(folder, "config_legacy", {**CONFIG, **SPELT, **changes})
    c = {**DEFAULTS, **CONFIG, **changes}
    save_file(weights(c), folder / "model.safetensors", metadata={"format": "pt"})
    w = load_file(folder / "model.safetensors")
    all_ids = [ids[0] for ids in token_ids(SEED + 1, LENGTHS, CONFIG["vocab_size"])]

    golden = {}
    for s, ids in enumerate(all_ids):
        blocks, hidden, logits = forward(c, w, ids)
        golden[f"seq{s}.input_ids"] = ids
        for i, block in enumerate(blocks):
            golden[f"seq{s}.block.{i}"] = block
        golden[f"seq{s}.last_hidden_state"] = hidden
        golden[f"seq{s}.logits"] = logits
    keys = {
        "seqS.input_ids": "[tokens] i64, each sequence was run by itself, no padding",
        "seqS.block.L": "[tokens, hidden] output of block L (before the final norm)",
        "seqS.last_hidden_state": "[tokens, hidden] after the final norm, not divided",
        "seqS.logits": "[tokens, vocab]",
    }
    write_golden(folder, golden, header(SEED, keys, computed_in="float32, by the formulas"))
    return folder, c, w, all_ids, golden


def main():
    write_model("minicpm_moe", EXPERTS)
    folder, c, w, all_ids, golden = write_model("minicpm", {})
    variants, plain = {}, golden["seq0.logits"]
    for name, change in VARIANTS.items():
        variants[name] = forward({**c, **change}, w, all_ids[0])[2]
        if (variants[name] - plain).abs().max() < 1e-2:
            raise SystemExit(f"{name} changes nothing")
    keys = {"NAME": "[tokens, vocab] logits of seq0 with the changes of NAME"}
    write_golden(folder, variants, header(SEED, keys, changes=VARIANTS), "variants")

    for tensor in w.values():
        tensor.requires_grad_()
    loss = mean_loss(c, w, all_ids)
    loss.backward()
    gradients = {"loss": loss.view(1)} | {f"grad.{name}": tensor.grad for name, tensor in w.items()}
    keys = {
        "loss": "[1] mean over the next tokens of both sequences of golden.safetensors",
        "grad.NAME": "its gradient by the weight NAME",
    }
    write_golden(folder, gradients, header(SEED, keys), "gradients")

    trained = steps(c, w, all_ids)
    keys = {"NAME": f"the weight NAME after {STEPS} steps on both sequences"}
    write_golden(folder, trained, header(SEED, keys, adamw=ADAMW, clip=CLIP, steps=STEPS), "steps")
    size = sum(f.stat().st_size for f in folder.iterdir())
    print(f"{size / 1e3:.1f} kB, loss {loss.item():.6f}, std of logits {plain.std():.3f}")
    print({k: f"{v.norm().item():.1e}" for k, v in gradients.items()})


if __name__ == "__main__":
    main()
