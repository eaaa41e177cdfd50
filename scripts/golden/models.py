"""Tiny random models, one per architecture, with reference hidden states and logits.

Usage: python scripts/golden/models.py [NAME ...]      writes fixtures/models/NAME/
"""

import json
import shutil
import sys

import common
import torch
import transformers as hf
from common import FIXTURES, generator, header, token_ids, write_golden

SEED = 20240
LENGTHS = (11, 7)
BASE = dict(
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=48,
    vocab_size=64,
    max_position_embeddings=64,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
)
LLAMA3_SCALING = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
ENCODER = dict(
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=48,
    vocab_size=64,
    type_vocab_size=2,
)


def rope(theta, **scaling):
    return {"rope_theta": theta, "rope_type": "default", **scaling}


# name: (config, class, legacy spelling of the config, how the weights are stored)
# `legacy` replaces `rope_parameters` by what transformers 4 wrote; None drops a key.
MODELS = {
    "llama": (
        hf.LlamaConfig(**BASE, tie_word_embeddings=True, rope_parameters=rope(10000.0)),
        hf.LlamaForCausalLM,
        {"rope_theta": 10000.0, "rope_scaling": None},
        {},
    ),
    "llama-rope-llama3": (
        hf.LlamaConfig(
            **BASE, rms_norm_eps=1e-5, rope_parameters=rope(10000.0, **LLAMA3_SCALING)
        ),
        hf.LlamaForCausalLM,
        {"rope_theta": 10000.0, "rope_scaling": LLAMA3_SCALING},
        {},
    ),
    "llama-rope-linear": (
        hf.LlamaConfig(
            **BASE,
            attention_bias=True,
            mlp_bias=True,
            rope_parameters=rope(500.0, rope_type="linear", factor=2.5),
        ),
        hf.LlamaForCausalLM,
        {"rope_theta": 500.0, "rope_scaling": {"type": "linear", "factor": 2.5}},
        {"dtype": torch.float16},
    ),
    "mistral": (
        hf.MistralConfig(**BASE, sliding_window=4, rope_parameters=rope(10000.0)),
        hf.MistralForCausalLM,
        {"rope_theta": 10000.0},
        {"shard": "48KB"},
    ),
    "qwen2": (
        hf.Qwen2Config(**BASE, tie_word_embeddings=True, rope_parameters=rope(1000000.0)),
        hf.Qwen2ForCausalLM,
        {"rope_theta": 1000000.0, "rope_scaling": None, "layer_types": None},
        {"dtype": torch.bfloat16},
    ),
    "qwen3": (
        hf.Qwen3Config(**BASE, head_dim=12, rope_parameters=rope(1000000.0)),
        hf.Qwen3ForCausalLM,
        {"rope_theta": 1000000.0, "rope_scaling": None, "layer_types": None},
        {},
    ),
    "gemma3_text": (
        hf.Gemma3TextConfig(
            **{**BASE, "num_hidden_layers": 3},
            head_dim=12,
            query_pre_attn_scalar=20,
            sliding_window=4,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
            rope_parameters={
                "sliding_attention": rope(100.0),
                "full_attention": rope(10000.0, rope_type="linear", factor=2.0),
            },
        ),
        hf.Gemma3ForCausalLM,
        {
            "rope_theta": 10000.0,
            "rope_local_base_freq": 100.0,
            "rope_scaling": {"rope_type": "linear", "factor": 2.0},
            "layer_types": None,
            "_sliding_window_pattern": None,
            "sliding_window_pattern": 2,
        },
        {},
    ),
    "mixtral": (
        hf.MixtralConfig(
            **BASE, num_local_experts=4, num_experts_per_tok=2, rope_parameters=rope(10000.0)
        ),
        hf.MixtralForCausalLM,
        {"rope_theta": 10000.0},
        {},
    ),
    "deepseek_v3": (
        hf.DeepseekV3Config(
            **{**BASE, "num_key_value_heads": 4},
            q_lora_rank=20,
            kv_lora_rank=12,
            qk_nope_head_dim=8,
            qk_rope_head_dim=4,
            v_head_dim=6,
            first_k_dense_replace=2,
            rope_parameters=rope(10000.0),
        ),
        hf.DeepseekV3ForCausalLM,
        {"rope_theta": 10000.0},
        {},
    ),
    "phi3": (
        hf.Phi3Config(
            **BASE,
            sliding_window=6,
            original_max_position_embeddings=8,
            rope_parameters=rope(
                10000.0,
                rope_type="longrope",
                short_factor=[1.0, 1.1, 1.3, 1.6],
                long_factor=[1.0, 1.5, 3.0, 6.0],
            ),
        ),
        hf.Phi3ForCausalLM,
        {
            "rope_theta": 10000.0,
            "rope_scaling": {
                "type": "longrope",
                "short_factor": [1.0, 1.1, 1.3, 1.6],
                "long_factor": [1.0, 1.5, 3.0, 6.0],
            },
        },
        {},
    ),
    "mamba": (
        hf.MambaConfig(
            hidden_size=32,
            num_hidden_layers=2,
            state_size=6,
            expand=2,
            conv_kernel=3,
            time_step_rank=4,
            use_bias=True,
            vocab_size=64,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        ),
        hf.MambaForCausalLM,
        {},
        {},
    ),
    "mamba2": (
        hf.Mamba2Config(
            hidden_size=32,
            num_hidden_layers=2,
            num_heads=8,
            head_dim=8,
            n_groups=2,
            state_size=6,
            expand=2,
            conv_kernel=4,
            chunk_size=4,
            vocab_size=64,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        ),
        hf.Mamba2ForCausalLM,
        {},
        {},
    ),
    "recurrent_gemma": (
        hf.RecurrentGemmaConfig(
            **{**BASE, "num_hidden_layers": 4, "max_position_embeddings": None},
            lru_width=40,
            conv1d_width=3,
            attention_window_size=5,
            logits_soft_cap=3.0,
        ),
        hf.RecurrentGemmaForCausalLM,
        {"rope_parameters": None, "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
        {},
    ),
    "gpt2": (
        hf.GPT2Config(
            n_embd=32,
            n_layer=2,
            n_head=4,
            n_inner=48,
            vocab_size=64,
            n_positions=64,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        ),
        hf.GPT2LMHeadModel,
        {},
        {},
    ),
    "bert": (
        hf.BertConfig(**ENCODER, max_position_embeddings=24, pad_token_id=0),
        hf.BertModel,
        {},
        {},
    ),
    "roberta": (
        hf.RobertaConfig(
            **{**ENCODER, "type_vocab_size": 1},
            max_position_embeddings=24,
            pad_token_id=1,
            bos_token_id=0,
            eos_token_id=2,
            layer_norm_eps=1e-5,
        ),
        hf.RobertaForMaskedLM,
        {"is_decoder": None, "add_cross_attention": None},
        {},
    ),
}


def randomise(model, seed):
    """Weights large enough that every part of the architecture moves the output."""
    g = generator(seed)
    zero_centred_norm = model.config.model_type.startswith("gemma")
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            noise = torch.randn(p.shape, generator=g)
            is_norm = p.ndim == 1 and name.endswith("weight")
            if is_norm:
                p.copy_(0.2 * noise if zero_centred_norm else 1.0 + 0.2 * noise)
            elif "embed" in name or "wte" in name or "wpe" in name:
                p.copy_(0.5 * noise)
            else:
                p.copy_(0.2 * noise)
        pad = getattr(model.config, "pad_token_id", None)
        # Padding rows of embeddings are zero in real checkpoints.
        for m in model.modules():
            if isinstance(m, torch.nn.Embedding) and m.padding_idx is not None and pad is not None:
                m.weight[m.padding_idx] = 0


def blocks(model):
    """The list of transformer blocks, whatever the class calls it."""
    for module in model.modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == model.config.num_hidden_layers:
            return module
    raise SystemExit(f"no block list in {type(model).__name__}")


@torch.no_grad()
def reference(model):
    """Inputs and outputs of two sequences, each run by itself."""
    tensors, captured = {}, []
    handles = [
        b.register_forward_hook(
            lambda _m, _i, out: captured.append(out[0] if isinstance(out, tuple) else out)
        )
        for b in blocks(model)
    ]
    body = getattr(model, model.base_model_prefix, model)
    last = []
    handles.append(body.register_forward_hook(lambda _m, _i, out: last.append(out[0])))
    for s, ids in enumerate(token_ids(SEED + 1, LENGTHS, model.config.vocab_size)):
        captured.clear(), last.clear()
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        tensors[f"seq{s}.input_ids"] = ids[0]
        if getattr(model.config, "type_vocab_size", 1) == 2:
            # The second half of sequence 1 is a second segment.
            types = torch.zeros_like(ids)
            types[:, ids.shape[1] // 2 :] = s
            inputs["token_type_ids"] = types
            tensors[f"seq{s}.token_type_ids"] = types[0]
        out = model(**inputs)
        for i, h in enumerate(captured):
            tensors[f"seq{s}.block.{i}"] = h[0]
        tensors[f"seq{s}.last_hidden_state"] = last[0][0]
        if getattr(out, "logits", None) is not None:
            tensors[f"seq{s}.logits"] = out.logits[0]
        if getattr(out, "pooler_output", None) is not None:
            tensors[f"seq{s}.pooler_output"] = out.pooler_output[0]
    for h in handles:
        h.remove()
    return tensors


def legacy_config(folder, changes):
    """config.json in the spelling of transformers 4."""
    config = json.loads((folder / "config.json").read_text())
    config.pop("rope_parameters", None)
    config["torch_dtype"] = config.pop("dtype")
    config["transformers_version"] = "4.51.0"
    for key, value in changes.items():
        config.pop(key, None)
        if value is not None or key == "rope_scaling":
            config[key] = value
    text = json.dumps(dict(sorted(config.items())), indent=2) + "\n"
    (folder / "config_legacy.json").write_text(text)


def check_legacy(folder, cls, tensors):
    """transformers itself must read the legacy spelling as the same model."""
    legacy = cls.config_class.from_json_file(folder / "config_legacy.json")
    again = cls.from_pretrained(
        folder, config=legacy, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    other = reference(again)
    worst = max((other[k].float() - tensors[k].float()).abs().max().item() for k in tensors)
    if worst > 0:
        raise SystemExit(f"{folder}: the legacy config gives other numbers, {worst:.2e}")


def main(names):
    for name in names or MODELS:
        config, cls, legacy, store = MODELS[name]
        folder = FIXTURES / "models" / name
        shutil.rmtree(folder, ignore_errors=True)
        torch.manual_seed(SEED)
        config._attn_implementation = "eager"
        model = cls(config).eval()
        randomise(model, SEED)
        dtype = store.get("dtype", torch.float32)
        model.to(dtype)
        model.save_pretrained(folder, max_shard_size=store.get("shard", "1GB"))
        (folder / "generation_config.json").unlink(missing_ok=True)
        # The golden comes from the files, not from the object that wrote them.
        model = cls.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        tensors = reference(model)
        write_golden(
            folder,
            tensors,
            header(
                SEED,
                {
                    "seqS.input_ids": "[tokens] i64, each sequence was run by itself, no padding",
                    "seqS.token_type_ids": "[tokens] i64, bert only",
                    "seqS.block.L": "[tokens, hidden] output of block L (before the final norm)",
                    "seqS.last_hidden_state": "[tokens, hidden] after the final norm",
                    "seqS.logits": "[tokens, vocab], models with a language-model head",
                    "seqS.pooler_output": "[hidden], bert only",
                },
                model_class=cls.__name__,
                stored_dtype=str(dtype).removeprefix("torch."),
                computed_in="float32, eager attention",
            ),
        )
        legacy_config(folder, legacy)
        check_legacy(folder, cls, tensors)
        size = sum(f.stat().st_size for f in folder.iterdir())
        spread = tensors["seq0.last_hidden_state"].std().item()
        print(f"{name:20} {size/1e3:7.1f} kB  std of last_hidden_state {spread:.3f}")


if __name__ == "__main__":
    main(sys.argv[1:])
