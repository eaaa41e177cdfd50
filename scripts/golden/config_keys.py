"""Every key of transformers' configuration classes, and what the model computes when one is changed.

Usage: python scripts/golden/config_keys.py [NAME ...]   writes fixtures/configs/MODEL_TYPE.json

Each file lists the keys of the class with their defaults, and one case for each key away from its
default: the change to config.json, and the last token's logits (hidden state for encoders) that
transformers computes with the weights of fixtures/models/NAME; or that it refuses the change
(`error`), or that its tensors then have other shapes (`shapes`).
"""

import copy
import dataclasses
import json
import sys

import torch
import transformers as hf
from common import FIXTURES
from models import MODELS
from safetensors.torch import load_file

# Folders under fixtures/models, without the variants of one type.
NAMES = [name for name in MODELS if "-" not in name]
ROPES = {
    "partial": {"rope_type": "default", "rope_theta": 300.0, "partial_rotary_factor": 0.5},
    "linear": {"rope_type": "linear", "rope_theta": 300.0, "factor": 3.0},
    "dynamic": {"rope_type": "dynamic", "rope_theta": 300.0, "factor": 3.0},
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 300.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
    "yarn": {
        "rope_type": "yarn",
        "rope_theta": 300.0,
        "factor": 4.0,
        "original_max_position_embeddings": 16,
    },
    "yarn without factor": {
        "rope_type": "yarn",
        "rope_theta": 300.0,
        "factor": None,
        "original_max_position_embeddings": 16,
    },
    "yarn with equal mscales": {
        "rope_type": "yarn",
        "rope_theta": 300.0,
        "factor": 4.0,
        "original_max_position_embeddings": 16,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
    },
    "yarn with mscale": {
        "rope_type": "yarn",
        "rope_theta": 300.0,
        "factor": 4.0,
        "original_max_position_embeddings": 16,
        "mscale": 0.707,
        "mscale_all_dim": 1.0,
    },
    "yarn untruncated": {
        "rope_type": "yarn",
        "rope_theta": 300.0,
        "factor": 4.0,
        "original_max_position_embeddings": 16,
        "truncate": False,
        "beta_fast": 8,
        "beta_slow": 2,
        "attention_factor": 1.3,
    },
    "longrope": {
        "rope_type": "longrope",
        "rope_theta": 300.0,
        "factor": 4.0,
        "original_max_position_embeddings": 16,
        "short_factor": "1.5",
        "long_factor": "2.5",
    },
    "longrope beyond": {
        "rope_type": "longrope",
        "rope_theta": 300.0,
        "factor": 4.0,
        "original_max_position_embeddings": 4,
        "short_factor": "1.5",
        "long_factor": "2.5",
    },
}


# Keys that the library reads of any configuration, though no class has them.
OF_ALL = {
    "is_causal": {"is_causal": False},
    "rope_scaling that is empty": {"rope_scaling": {}},
    "original length beside the blocks": {"original_max_position_embeddings": 48},
}


def other(name, key, default, config):
    """A value away from the default, of the kind that the class takes."""
    special = {
        "hidden_act": "gelu_new",
        "hidden_activation": "silu",
        "activation_function": "relu",
        "layer_types": ["full_attention"] * config.get("num_hidden_layers", 2),
        "sliding_window": 3,
        "n_inner": 40,
        "head_dim": 6,
        "num_key_value_heads": 1,
        "pad_token_id": 5,
        "final_logit_softcapping": 2.0,
        "attn_logit_softcapping": 0.5,
        "query_pre_attn_scalar": 3,
        "use_bidirectional_attention": True,
        "summary_activation": "tanh",
        "classifier_dropout": 0.3,
        "quantization_config": None,
    }
    if key in special:
        return special[key]
    value = config.get(key, default)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value * 3 + 0.25 if value < 0.5 else value / 2
    if value is None:
        return 0.25
    return None


@torch.no_grad()
def run(name, cls, config, ids):
    folder = FIXTURES / "models" / name
    config._attn_implementation = "eager"
    shapes = {k: tuple(v.shape) for k, v in cls(config).state_dict().items()}
    plain = {k: tuple(v.shape) for k, v in cls(cls.config_class.from_pretrained(folder)).state_dict().items()}
    changed = [k for k in plain if shapes.get(k) != plain[k]] + [k for k in shapes if k not in plain]
    changed = [k for k in changed if not k.endswith(("inv_freq", ".attn.bias"))]
    if changed:
        return {"shapes": sorted(changed)[0]}
    model = cls.from_pretrained(
        folder, config=config, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    out = model(input_ids=ids, attention_mask=torch.ones_like(ids))
    last = getattr(out, "logits", None)
    if last is None or model.config.model_type in ("bert", "roberta"):
        body = getattr(model, model.base_model_prefix, model)
        last = body(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
    return {"last": [round(v, 6) for v in last[0, -1, :16].tolist()]}


def plain(value):
    """Numbers that JSON has no form for, which transformers writes as objects."""
    if isinstance(value, dict):
        return float(value["__float__"]) if "__float__" in value else {k: plain(v) for k, v in value.items()}
    return [plain(v) for v in value] if isinstance(value, list) else value


def case(name, cls, raw, ids, changes, title):
    entry = {"name": title, "changes": changes}
    try:
        # The class moves and renames settings in place.
        config = cls.config_class.from_dict(plain(copy.deepcopy({**raw, **changes})))
        entry.update(run(name, cls, config, ids))
    except Exception as error:  # what the reference refuses
        entry["error"] = f"{type(error).__name__}: {error}".splitlines()[0][:160]
    return entry


def one_line_a_case(result):
    """JSON that can be read, and of which a change shows as one line."""
    head = json.dumps({k: v for k, v in result.items() if k != "cases"})
    cases = ",\n".join(json.dumps(case) for case in result["cases"])
    return f'{head[:-1]}, "cases": [\n{cases}\n]}}\n'


def main(names):
    out = FIXTURES / "configs"
    out.mkdir(exist_ok=True)
    for name in names or NAMES:
        _, cls, _, _ = MODELS[name]
        folder = FIXTURES / "models" / name
        raw = json.loads((folder / "config.json").read_text())
        ids = load_file(folder / "golden.safetensors")["seq0.input_ids"][None]
        keys = {}
        for field in dataclasses.fields(cls.config_class):
            default = field.default if field.default is not dataclasses.MISSING else None
            keys[field.name] = default if isinstance(default, (int, float, str, bool)) else None
        cases = [case(name, cls, raw, ids, {}, "as it is")]
        for key, default in keys.items():
            if key in ("rope_parameters", "dtype", "transformers_version", "architectures", "problem_type"):
                continue
            if name.startswith("mamba") and key == "rescale_prenorm_residual":
                # A key of fresh weights, by which transformers 5 divides those that it reads as well.
                continue
            value = other(name, key, default, raw)
            if value is None or value == raw.get(key, default):
                continue
            cases.append(case(name, cls, raw, ids, {key: value}, key))
        if "rope_parameters" in keys:
            rotated = raw.get("qk_rope_head_dim") or raw.get("head_dim") or 8
            for title, rope in ROPES.items():
                rope = {
                    k: [float(v)] * (rotated // 2) if isinstance(v, str) and k.endswith("_factor") else v
                    for k, v in rope.items()
                }
                changes = {"rope_parameters": rope}
                if name == "gemma3_text":
                    local = raw["rope_parameters"]["sliding_attention"]
                    changes = {"rope_parameters": {"full_attention": rope, "sliding_attention": local}}
                if "original_max_position_embeddings" in keys:
                    # The class has it beside these settings, and goes by that one.
                    original = rope.get("original_max_position_embeddings", 64)
                    changes["original_max_position_embeddings"] = original
                cases.append(case(name, cls, raw, ids, changes, f"rope: {title}"))
        for title, changes in OF_ALL.items():
            if raw["model_type"] in ("bert", "roberta") or ("rope" in title or "length" in title) and "rope_parameters" not in keys:
                continue
            if title != "is_causal":
                yarn = {**ROPES["yarn with mscale"], "mscale": 0.8}
                nested = {"full_attention": yarn, "sliding_attention": {"rope_type": "default", "rope_theta": 100.0}}
                changes = {**changes, "rope_parameters": nested if name == "gemma3_text" else yarn}
            cases.append(case(name, cls, raw, ids, changes, title))
        result = {"transformers": hf.__version__, "model": name, "keys": keys, "cases": cases}
        (out / f"{raw['model_type']}.json").write_text(one_line_a_case(result))
        counts = {k: sum(k in c for c in cases) for k in ("last", "shapes", "error")}
        print(f"{name:14} {len(keys)} keys, {counts}")


if __name__ == "__main__":
    main(sys.argv[1:])
