"""Combinations of two LoRA adapters by peft's add_weighted_adapter, with the logits they give.

Usage: python scripts/golden/combine.py      writes fixtures/combine/
"""

import shutil

import peft
import torch
import transformers as hf
from common import FIXTURES, generator, header, token_ids, write_golden

SEED = 20311
OUT = FIXTURES / "combine"
# name: (combination_type, weights, further arguments)
COMBINATIONS = {
    "linear": ("linear", [0.7, 0.4], {}),
    "linear-negative": ("linear", [1.0, -0.5], {}),
    "cat": ("cat", [0.7, 0.4], {}),
    "svd": ("svd", [0.7, 0.4], {"svd_rank": 3}),
    "ties": ("ties", [0.7, 0.4], {"density": 0.5}),
    "ties-svd": ("ties_svd", [0.7, 0.4], {"density": 0.5, "svd_rank": 5}),
    "magnitude-prune": ("magnitude_prune", [0.7, 0.4], {"density": 0.3}),
}


def main():
    shutil.rmtree(OUT, ignore_errors=True)
    model = hf.LlamaForCausalLM.from_pretrained(FIXTURES / "models" / "llama", dtype=torch.float32).eval()
    config = lambda alpha: peft.LoraConfig(
        task_type="CAUSAL_LM", r=4, lora_alpha=alpha, target_modules=["q_proj", "v_proj", "down_proj"]
    )
    wrapped = peft.get_peft_model(model, config(8), adapter_name="one")
    wrapped.add_adapter("two", config(12))
    rng = generator(SEED)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=rng) * 0.15)
    for name in ("one", "two"):
        wrapped.save_pretrained(OUT, selected_adapters=[name])
    ids = token_ids(SEED, [9], model.config.vocab_size)[0]
    tensors, cases = {"input_ids": ids[0]}, {}
    for name, (kind, weights, extra) in COMBINATIONS.items():
        wrapped.add_weighted_adapter(["one", "two"], weights, name, combination_type=kind, **extra)
        wrapped.set_adapter(name)
        with torch.no_grad():
            tensors[f"{name}.logits"] = wrapped(input_ids=ids).logits[0]
        cases[name] = {"combination_type": kind, "weights": weights, **extra}
    for card in OUT.rglob("README.md"):
        card.unlink()
    write_golden(OUT, tensors, header(SEED, {"NAME.logits": "[tokens, vocab]"}, model="fixtures/models/llama", cases=cases))


if __name__ == "__main__":
    main()
