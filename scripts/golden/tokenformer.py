"""A tiny TokenFormer with reference hidden states, logits, loss and gradients, computed from the paper's formulas in PyTorch.

Usage: python scripts/golden/tokenformer.py      writes fixtures/models/tokenformer/

transformers has no such class. Wang et al., TokenFormer, arXiv 2410.23168: token-parameter attention (equations 3 to 8, 16), non-parametric
layer norms in blocks, a parametric one behind them, a part of each head rotated. Sizes are all different, so that none can stand in for
another. `variants.safetensors` has the logits of the same weights under other settings.
"""

import json
import math
import shutil

import torch
import torch.nn.functional as F
from common import FIXTURES, generator, header, token_ids, write_golden
from safetensors.torch import load_file, save_file

SEED = 20241
LENGTHS = (11, 7)
CONFIG = dict(
    architectures=["TokenFormerForCausalLM"],
    model_type="tokenformer",
    vocab_size=64,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    qkv_slot_num=16,
    proj_slot_num=24,
    ffn_slot_num=40,
    norm_activation_type="l2_norm_gelu",
    norm="layernorm_nonparam",
    final_norm="layernorm",
    partial_rotary_factor=0.5,
    max_position_embeddings=64,
    tie_word_embeddings=True,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
    dtype="float32",
)
DEFAULTS = dict(
    qkv_zoom_dim=None,
    proj_zoom_dim=None,
    ffn_zoom_dim=None,
    pattention_eps=1e-5,
    layer_norm_eps=1e-5,
    rope_theta=10000.0,
    num_key_value_heads=4,
)
# What is written out in the second spelling of the same model.
SPELT = {**DEFAULTS, "qkv_zoom_dim": 16, "proj_zoom_dim": 24, "ffn_zoom_dim": 40}
VARIANTS = {
    "gelu_l2_norm": {"norm_activation_type": "gelu_l2_norm"},
    "softmax": {"norm_activation_type": "softmax"},
    "zoom": {"qkv_zoom_dim": 9, "proj_zoom_dim": 50, "ffn_zoom_dim": 13},
    "softmax and zoom": {"norm_activation_type": "softmax", "ffn_zoom_dim": 13},
    "eps": {"pattention_eps": 0.7},
    "layer_norm_eps": {"layer_norm_eps": 0.3},
    "plain final norm": {"final_norm": "layernorm_nonparam"},
    "final norm as in blocks": {"final_norm": None},
    "all rotated": {"partial_rotary_factor": 1.0},
    "theta": {"rope_theta": 300.0},
}


def weights():
    g = generator(SEED)
    d = CONFIG["hidden_size"]
    made = {"model.embed_tokens.weight": 0.5 * torch.randn(CONFIG["vocab_size"], d, generator=g)}
    for layer in range(CONFIG["num_hidden_layers"]):
        maps = [(f"self_attn.{name}", "qkv_slot_num") for name in ("query", "key", "value")]
        maps += [("self_attn.proj", "proj_slot_num"), ("mlp", "ffn_slot_num")]
        for name, tokens in maps:
            for kind in ("key", "value"):
                tensor = 0.3 * torch.randn(CONFIG[tokens], d, generator=g)
                made[f"model.layers.{layer}.{name}.{kind}_param_tokens.weight"] = tensor
    made["model.norm.weight"] = 1.0 + 0.2 * torch.randn(d, generator=g)
    made["model.norm.bias"] = 0.2 * torch.randn(d, generator=g)
    return made


def pattention(c, w, path, size, x):
    scores = x @ w[f"{path}.key_param_tokens.weight"].T
    scale = c[f"{size}_zoom_dim"] or c[f"{size}_slot_num"]
    kind = c["norm_activation_type"]
    if kind == "softmax":
        parts = scores.exp() / scores.exp().sum(-1, keepdim=True) * scale
    else:
        parts = F.gelu(scores) if kind == "gelu_l2_norm" else scores
        parts = parts / (parts.norm(dim=-1, keepdim=True) + c["pattention_eps"]) * math.sqrt(scale)
        parts = parts if kind == "gelu_l2_norm" else F.gelu(parts)
    return parts @ w[f"{path}.value_param_tokens.weight"]


def norm(c, w, kind, x):
    gain, bias = (w["model.norm.weight"], w["model.norm.bias"]) if kind == "layernorm" else (None, None)
    return F.layer_norm(x, (x.shape[-1],), gain, bias, c["layer_norm_eps"])


def rotated(c, x):
    """Heads [tokens, heads, width], of which the first part is turned, its halves against each other."""
    width = int(x.shape[-1] * c["partial_rotary_factor"])
    inverse = c["rope_theta"] ** (-torch.arange(0, width, 2).float() / width)
    angles = torch.arange(len(x)).float()[:, None] * inverse
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    a, b, rest = x[..., : width // 2], x[..., width // 2 : width], x[..., width:]
    return torch.cat((a * cos - b * sin, b * cos + a * sin, rest), -1)


def attention(c, w, path, x):
    tokens, heads = len(x), c["num_attention_heads"]
    q, k, v = (
        pattention(c, w, f"{path}.{name}", "qkv", x).view(tokens, heads, -1) for name in ("query", "key", "value")
    )
    q, k = rotated(c, q), rotated(c, k)
    scores = torch.einsum("qhd,khd->hqk", q, k) / math.sqrt(q.shape[-1])
    later = torch.ones(tokens, tokens).triu(1).bool()
    mixed = torch.einsum("hqk,khd->qhd", scores.masked_fill(later, -math.inf).softmax(-1), v)
    return pattention(c, w, f"{path}.proj", "proj", mixed.reshape(tokens, -1))


def forward(c, w, ids):
    """Outputs of blocks, what is behind the last norm, logits."""
    x, blocks = w["model.embed_tokens.weight"][ids], []
    for layer in range(c["num_hidden_layers"]):
        path = f"model.layers.{layer}"
        x = x + attention(c, w, f"{path}.self_attn", norm(c, w, c["norm"], x))
        x = x + pattention(c, w, f"{path}.mlp", "ffn", norm(c, w, c["norm"], x))
        blocks.append(x)
    hidden = norm(c, w, c["final_norm"] or c["norm"], x)
    return blocks, hidden, hidden @ w["model.embed_tokens.weight"].T


def write_config(folder, name, config):
    (folder / f"{name}.json").write_text(json.dumps(dict(sorted(config.items())), indent=2) + "\n")


def main():
    folder = FIXTURES / "models" / "tokenformer"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_config(folder, "config", CONFIG)
    write_config(folder, "config_legacy", {**CONFIG, **SPELT})
    save_file(weights(), folder / "model.safetensors", metadata={"format": "pt"})
    w = load_file(folder / "model.safetensors")
    c = {**DEFAULTS, **CONFIG}
    all_ids = [ids[0] for ids in token_ids(SEED + 1, LENGTHS, CONFIG["vocab_size"])]

    golden, variants = {}, {}
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
        "seqS.last_hidden_state": "[tokens, hidden] after the final norm",
        "seqS.logits": "[tokens, vocab]",
    }
    write_golden(folder, golden, header(SEED, keys, computed_in="float32, by the formulas"))

    plain = golden["seq0.logits"]
    changes = {}
    for name, change in VARIANTS.items():
        variants[name] = forward({**c, **change}, w, all_ids[0])[2]
        changes[name] = change
        if (variants[name] - plain).abs().max() < 1e-2:
            raise SystemExit(f"{name} changes nothing")
    keys = {"NAME": "[tokens, vocab] logits of seq0 with the changes of NAME"}
    write_golden(folder, variants, header(SEED, keys, changes=changes), "variants")

    for tensor in w.values():
        tensor.requires_grad_()
    losses = [F.cross_entropy(forward(c, w, ids)[2][:-1], ids[1:], reduction="sum") for ids in all_ids]
    loss = sum(losses) / sum(len(ids) - 1 for ids in all_ids)
    loss.backward()
    gradients = {"loss": loss.view(1)} | {f"grad.{name}": tensor.grad for name, tensor in w.items()}
    keys = {
        "loss": "[1] mean over the next tokens of both sequences of golden.safetensors",
        "grad.NAME": "its gradient by the weight NAME",
    }
    write_golden(folder, gradients, header(SEED, keys), "gradients")
    size = sum(f.stat().st_size for f in folder.iterdir())
    print(f"{size / 1e3:.1f} kB, loss {loss.item():.6f}, std of hidden {golden['seq0.last_hidden_state'].std():.3f}")
    print({k: f"{v.norm().item():.1e}" for k, v in gradients.items()})


if __name__ == "__main__":
    main()
