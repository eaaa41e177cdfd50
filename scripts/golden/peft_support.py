"""What peft reads of adapters on GPT-2's transposed maps and on the experts of a mixture.

Usage: python scripts/golden/peft_support.py      writes fixtures/peft_support.json
"""

import copy
import json
import tempfile
from pathlib import Path

import adapters
import adapters_more
import common
import peft
import torch
import transformers as hf
from common import FIXTURES, generator, versions
from safetensors.torch import save_file

PATTERNS = ("rank_pattern", "alpha_pattern", "n_frequency_pattern", "block_size_pattern")


def kind(config):
    variants = {"DORA": "use_dora", "KASA": "kasa_config", "BDLORA": "use_bdlora", "VELORA": "velora_config",
                "MONTECLORA": "monteclora_config", "ALORA": "alora_invocation_tokens"}
    found = [name for name, field in variants.items() if getattr(config, field, None)]
    start = getattr(config, "init_lora_weights", None)
    found += [start.upper()] if start in ("mica", "eva") else []
    return "+".join([config.peft_type.value, *found])


def configs():
    """One configuration of adapters.py for each type that acts on linear maps."""
    found = {"ADALORA": peft.AdaLoraConfig(init_r=4, target_r=2, total_step=10, tinit=1, tfinal=1)}
    for _, _, config, *_ in [*adapters.ADAPTERS.values(), *adapters_more.MORE.values()]:
        prompt = isinstance(config, peft.PromptLearningConfig)
        if not prompt and config.peft_type.value not in ("LN_TUNING", "TRAINABLE_TOKENS", "ADAPTION_PROMPT"):
            if not getattr(config, "use_qalora", False) and getattr(config, "modules_to_save", None) in (None, ["classifier", "score"]):
                found.setdefault(kind(config), config)
    return found


def for_targets(config, targets):
    config = copy.deepcopy(config)
    config.target_modules, config.task_type = set(targets), "CAUSAL_LM"
    for field in PATTERNS:
        if getattr(config, field, None):
            setattr(config, field, {})
    for field, value in {"group_size": 16, "vector_length": 8, "exclude_modules": None, "layers_to_transform": None,
                         "feedforward_modules": []}.items():
        if hasattr(config, field):
            setattr(config, field, value)
    if config.peft_type.value == "OSF":
        config.effective_rank = None
    if getattr(config, "use_bdlora", None):
        config.use_bdlora.target_modules_bd_a, config.use_bdlora.target_modules_bd_b = None, list(targets)
    if config.peft_type.value == "MISS":
        config.r = 8
    return config


def on_conv1d(config):
    config = for_targets(config, ["c_attn"])
    if hasattr(config, "fan_in_fan_out"):
        config.fan_in_fan_out = True
    model = hf.GPT2LMHeadModel.from_pretrained(FIXTURES / "models" / "gpt2", dtype=torch.float32)
    try:
        model = peft.get_peft_model(model, config)
    except (TypeError, ValueError, NotImplementedError, AttributeError):
        return False
    # Some types pass over what they do not know.
    return any(p.requires_grad for p in model.parameters())


def mixtral():
    return hf.MixtralForCausalLM.from_pretrained(FIXTURES / "models" / "mixtral", dtype=torch.float32).eval()


@torch.no_grad()
def logits(model):
    return model(input_ids=torch.tensor([[5, 9, 33, 17, 40, 21]])).logits


def wraps_experts(config):
    """Whether peft finds anything to adapt in the experts."""
    try:
        model = peft.get_peft_model(mixtral(), for_targets(config, ["q_proj", "w1", "w2", "w3"]))
    except (TypeError, ValueError, AttributeError, RuntimeError, IndexError):
        return False
    return any("expert" in name for name, p in model.named_parameters() if p.requires_grad)


def reads_lora(maps, dora=False):
    """Whether peft reads a LoRA whose tensors are called by expert, and all of it."""
    g, tensors, r = generator(7), {}, 2
    sides = {"w1": (32, 48), "w3": (32, 48), "w2": (48, 32)}
    for layer in range(2):
        if "q_proj" in maps:
            path = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
            tensors[f"{path}.lora_A.weight"] = torch.randn(r, 32, generator=g)
            tensors[f"{path}.lora_B.weight"] = torch.randn(32, r, generator=g)
        for expert in range(4):
            for name in maps:
                if name == "q_proj":
                    continue
                path = f"base_model.model.model.layers.{layer}.block_sparse_moe.experts.{expert}.{name}"
                d_in, d_out = sides[name]
                tensors[f"{path}.lora_A.weight"] = torch.randn(r, d_in, generator=g)
                tensors[f"{path}.lora_B.weight"] = torch.randn(d_out, r, generator=g)
                if dora:
                    tensors[f"{path}.lora_magnitude_vector"] = torch.rand(d_out, generator=g) + 0.5
    folder = Path(tempfile.mkdtemp())
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=r, lora_alpha=4, target_modules=list(maps), use_dora=dora)
    config.save_pretrained(folder)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    try:
        model = peft.PeftModel.from_pretrained(mixtral(), folder).eval()
        found = logits(model)
    except (TypeError, ValueError, RuntimeError, KeyError, IndexError) as error:
        print(maps, type(error).__name__, str(error)[:100])
        return False
    merged = dict(mixtral().state_dict())
    for key, a in tensors.items():
        if ".lora_A." not in key:
            continue
        change = tensors[key.replace("lora_A", "lora_B")] @ a * 2
        if "q_proj" in key:
            merged[key.removeprefix("base_model.model.").replace("lora_A.weight", "weight")] += change
            continue
        _, _, _, _, layer, _, _, expert, name, *_ = key.split(".")
        fused = f"model.layers.{layer}.mlp.experts." + ("down_proj" if name == "w2" else "gate_up_proj")
        rows = slice(48, None) if name == "w3" else slice(0, 48) if name == "w1" else slice(None)
        merged[fused][int(expert), rows] += change
    expected = mixtral()
    expected.load_state_dict(merged)
    difference = (found - logits(expected)).abs().max().item()
    print(maps, f"differs by {difference:.1e}")
    return difference < 1e-3


def main():
    found = configs()
    experts = {name: wraps_experts(config) for name, config in found.items()}
    maps = (["w1", "w2", "w3"], ["w1", "w3"], ["w2"], ["w1"], ["w3"], ["w1", "w2"])
    maps += tuple(["q_proj", *names] for names in maps[:3])
    by_maps = {",".join(names): reads_lora(names) for names in maps}
    experts["LORA"], experts["LORA+DORA"] = by_maps["w1,w2,w3"], reads_lora(["w1", "w2", "w3"], dora=True)
    table = {
        "generator": "scripts/golden/peft_support.py",
        "versions": versions(),
        "conv1d": {name: on_conv1d(config) for name, config in sorted(found.items())},
        "experts": dict(sorted(experts.items())),
        "lora_on_experts": by_maps,
    }
    (FIXTURES / "peft_support.json").write_text(json.dumps(table, indent=2) + "\n")


if __name__ == "__main__":
    main()
