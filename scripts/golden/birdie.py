"""Tiny Gated SSMs and Hawks with reference hidden states, logits, loss and gradients, computed from the formulas in PyTorch, step by step.

Usage: python scripts/golden/birdie.py      writes fixtures/models/{gated_ssm,hawk}/

transformers has neither class. Blouir et al., Birdie, arXiv 2411.01030, section 3 and appendix A; De et al., Griffin, arXiv 2402.19427, section
2. The folders' models read from left to right; `variants.safetensors` has the logits of the same weights under other settings, among them those
that read a prefix in both directions: in every second block the last `reverse_size` channels run backwards over what is in front of the first
GEN token, and have no memory from there on.
"""

import json
import math
import shutil

import torch
import torch.nn.functional as F
from common import FIXTURES, generator, header, token_ids, write_golden
from safetensors.torch import load_file, save_file

SEED = 20242
LENGTHS = (11, 7)
GEN = 9
COMMON = dict(
    vocab_size=64,
    hidden_size=32,
    num_hidden_layers=4,
    tie_word_embeddings=True,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
    dtype="float32",
)
CONFIGS = {
    "gated_ssm": dict(
        COMMON, architectures=["GatedSsmForCausalLM"], model_type="gated_ssm", state_size=24
    ),
    "hawk": dict(
        COMMON,
        architectures=["HawkForCausalLM"],
        model_type="hawk",
        intermediate_size=40,
        lru_width=18,
        num_gate_blocks=3,
        conv1d_width=3,
    ),
}
DEFAULTS = dict(reverse_size=0, gen_token_id=None, rms_norm_eps=1e-6)
OWN = {
    "gated_ssm": dict(hidden_act="gelu", use_bias=False),
    "hawk": dict(hidden_activation="gelu_pytorch_tanh", w_init_variance_scale=0.01),
}
VARIANTS = {
    "gated_ssm": {
        "prefix": {"reverse_size": 12, "gen_token_id": GEN},
        "prefix, few channels": {"reverse_size": 3, "gen_token_id": GEN},
        "reverse channels without a prefix": {"reverse_size": 12},
        "act": {"hidden_act": "silu"},
        "eps": {"rms_norm_eps": 0.3},
    },
    "hawk": {
        "prefix": {"reverse_size": 9, "gen_token_id": GEN},
        "prefix, few channels": {"reverse_size": 4, "gen_token_id": GEN},
        "reverse channels without a prefix": {"reverse_size": 9},
        "act": {"hidden_activation": "silu"},
        "eps": {"rms_norm_eps": 0.3},
    },
}
ACTS = {
    "gelu": F.gelu,
    "silu": F.silu,
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
}


def norm(c, gain, x):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + c["rms_norm_eps"]) * gain


def recurrence(c, layer, a, b, prefix):
    """States of both directions, token by token."""
    tokens, width = a.shape
    back = c["reverse_size"] if layer % 2 else 0
    forth, rows = width - back, [None] * tokens
    state = torch.zeros(forth)
    for t in range(tokens):
        state = a[t, :forth] * state + b[t, :forth]
        rows[t] = state
    state = torch.zeros(back)
    for t in reversed(range(tokens)):
        state = b[t, forth:] if t >= prefix else a[t, forth:] * state + b[t, forth:]
        rows[t] = torch.cat((rows[t], state))
    return torch.stack(rows)


def gated_ssm(c, w, path, layer, x, prefix):
    path = f"{path}.mixer"
    f, i, z, o = (x @ w[f"{path}.{n}_proj.weight"].T for n in "fizo")
    h = recurrence(c, layer, f.sigmoid(), i.sigmoid() * z, prefix)
    return (ACTS[c["hidden_act"]](o) * h) @ w[f"{path}.out_proj.weight"].T


def linear(w, path, x):
    return x @ w[f"{path}.weight"].T + w[f"{path}.bias"]


def rg_lru(c, w, path, layer, x, prefix):
    def gate(name):
        weight, bias = w[f"{path}.{name}_weight"], w[f"{path}.{name}_bias"]
        parts = x.split(weight.shape[1], -1)
        return torch.cat([p @ m + b for p, m, b in zip(parts, weight, bias)], -1).sigmoid()

    i, r = gate("input_gate"), gate("recurrent_gate")
    log = -8.0 * r * F.softplus(w[f"{path}.recurrent_param"])
    scale = (1 - (2 * log).exp()).sqrt()
    # All of the input goes in where nothing is remembered.
    back = c["reverse_size"] if layer % 2 else 0
    forth = x.shape[1] - back
    first = torch.zeros_like(scale, dtype=torch.bool)
    first[0, :forth] = True
    first[prefix:, forth:] = True
    return recurrence(c, layer, log.exp(), torch.where(first, 1.0, scale) * i * x, prefix)


def hawk_mix(c, w, path, layer, x, prefix):
    act = ACTS[c["hidden_activation"]]
    y, x = act(linear(w, f"{path}.linear_y", x)), linear(w, f"{path}.linear_x", x)
    taps = w[f"{path}.conv_1d.weight"]
    x = F.conv1d(F.pad(x.T, (taps.shape[-1] - 1, 0)), taps, w[f"{path}.conv_1d.bias"], groups=x.shape[1]).T
    return linear(w, f"{path}.linear_out", rg_lru(c, w, f"{path}.rg_lru", layer, x, prefix) * y)


def forward(c, w, ids):
    """Outputs of blocks, what is behind the last norm, logits."""
    is_hawk = c["model_type"] == "hawk"
    body = "model" if is_hawk else "backbone"
    table = w["model.embed_tokens.weight" if is_hawk else "backbone.embeddings.weight"]
    found = (ids == c["gen_token_id"]).nonzero() if c["gen_token_id"] is not None else []
    prefix = int(found[0]) if len(found) else 0
    x, blocks = table[ids], []
    for layer in range(c["num_hidden_layers"]):
        path = f"{body}.layers.{layer}"
        if is_hawk:
            y = norm(c, w[f"{path}.temporal_pre_norm.weight"], x)
            x = x + hawk_mix(c, w, f"{path}.temporal_block", layer, y, prefix)
            y = norm(c, w[f"{path}.channel_pre_norm.weight"], x)
            act, mlp = ACTS[c["hidden_activation"]], f"{path}.mlp_block"
            y = act(linear(w, f"{mlp}.gate_proj", y)) * linear(w, f"{mlp}.up_proj", y)
            x = x + linear(w, f"{mlp}.down_proj", y)
        else:
            y = norm(c, w[f"{path}.norm.weight"], x)
            x = x + gated_ssm(c, w, path, layer, y, prefix)
        blocks.append(x)
    hidden = norm(c, w["model.final_norm.weight" if is_hawk else "backbone.norm_f.weight"], x)
    return blocks, hidden, hidden @ table.T


def weights(c):
    g = generator(SEED)
    d, made = c["hidden_size"], {}
    add = lambda name, *shape, scale=0.3, mean=0.0: made.update({name: mean + scale * torch.randn(*shape, generator=g)})
    is_hawk = c["model_type"] == "hawk"
    add("model.embed_tokens.weight" if is_hawk else "backbone.embeddings.weight", c["vocab_size"], d, scale=0.5)
    for layer in range(c["num_hidden_layers"]):
        if not is_hawk:
            path, n = f"backbone.layers.{layer}", c["state_size"]
            add(f"{path}.norm.weight", d, scale=0.2, mean=1.0)
            for name in "fizo":
                add(f"{path}.mixer.{name}_proj.weight", n, d)
            add(f"{path}.mixer.out_proj.weight", d, n)
            continue
        path, n, blocks, ff = f"model.layers.{layer}", c["lru_width"], c["num_gate_blocks"], c["intermediate_size"]
        add(f"{path}.temporal_pre_norm.weight", d, scale=0.2, mean=1.0)
        for name, out, into in (("linear_y", n, d), ("linear_x", n, d), ("linear_out", d, n)):
            add(f"{path}.temporal_block.{name}.weight", out, into)
            add(f"{path}.temporal_block.{name}.bias", out)
        add(f"{path}.temporal_block.conv_1d.weight", n, 1, c["conv1d_width"], scale=0.5)
        add(f"{path}.temporal_block.conv_1d.bias", n)
        lru = f"{path}.temporal_block.rg_lru"
        add(f"{lru}.recurrent_param", n, scale=0.5, mean=-3.0)
        for gate in ("input_gate", "recurrent_gate"):
            add(f"{lru}.{gate}_weight", blocks, n // blocks, n // blocks)
            add(f"{lru}.{gate}_bias", blocks, n // blocks)
        add(f"{path}.channel_pre_norm.weight", d, scale=0.2, mean=1.0)
        for name, out, into in (("gate_proj", ff, d), ("up_proj", ff, d), ("down_proj", d, ff)):
            add(f"{path}.mlp_block.{name}.weight", out, into)
            add(f"{path}.mlp_block.{name}.bias", out)
    add("model.final_norm.weight" if is_hawk else "backbone.norm_f.weight", d, scale=0.2, mean=1.0)
    return made


def write_config(folder, name, config):
    (folder / f"{name}.json").write_text(json.dumps(dict(sorted(config.items())), indent=2) + "\n")


def mean_loss(c, w, all_ids):
    losses = [F.cross_entropy(forward(c, w, ids)[2][:-1], ids[1:], reduction="sum") for ids in all_ids]
    return sum(losses) / sum(len(ids) - 1 for ids in all_ids)


def write(name):
    config = CONFIGS[name]
    folder = FIXTURES / "models" / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_config(folder, "config", config)
    write_config(folder, "config_legacy", {**config, **DEFAULTS, **OWN[name]})
    save_file(weights(config), folder / "model.safetensors", metadata={"format": "pt"})
    w = load_file(folder / "model.safetensors")
    c = {**DEFAULTS, **OWN[name], **config}
    all_ids = [ids[0] for ids in token_ids(SEED + 1, LENGTHS, config["vocab_size"], low=10)]
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
        "seqS.last_hidden_state": "[tokens, hidden] after the final norm",
        "seqS.logits": "[tokens, vocab]",
    }
    write_golden(folder, golden, header(SEED, keys, computed_in="float32, by the formulas"))

    # The GEN token in the middle of both.
    with_gen = [torch.cat((ids[:5], torch.tensor([GEN]), ids[5:])) for ids in all_ids]
    variants, plain = {f"input_ids.{s}": ids for s, ids in enumerate(with_gen)}, forward(c, w, with_gen[0])[2]
    for variant, change in VARIANTS[name].items():
        for s, ids in enumerate(with_gen):
            variants[f"{variant}.{s}"] = forward({**c, **change}, w, ids)[2]
        if (variants[f"{variant}.0"] - plain).abs().max() < 1e-2:
            raise SystemExit(f"{variant} changes nothing")
    keys = {"input_ids.S": "[tokens] i64, with a GEN token", "NAME.S": "[tokens, vocab] logits with the changes of NAME"}
    write_golden(folder, variants, header(SEED, keys, changes=VARIANTS[name]), "variants")

    for tensor in w.values():
        tensor.requires_grad_()
    for file, settings, ids in (("gradients", c, all_ids), ("prefix_gradients", {**c, **VARIANTS[name]["prefix"]}, with_gen)):
        loss = mean_loss(settings, w, ids)
        loss.backward()
        gradients = {"loss": loss.view(1)} | {f"grad.{n}": tensor.grad.clone() for n, tensor in w.items()}
        for tensor in w.values():
            tensor.grad = None
        keys = {
            "loss": "[1] mean over the next tokens of both sequences of golden.safetensors, in prefix_gradients with GEN tokens and prefixes",
            "grad.NAME": "its gradient by the weight NAME",
        }
        write_golden(folder, gradients, header(SEED, keys), file)
        smallest = min((v.norm().item(), n) for n, v in gradients.items())
        print(f"{name}: loss {loss.item():.6f}, smallest gradient {smallest}, std of hidden {golden['seq0.last_hidden_state'].std():.3f}")
    if not math.isfinite(loss.item()):
        raise SystemExit("the loss is not finite")


if __name__ == "__main__":
    for name in CONFIGS:
        write(name)
