"""What peft's LoRA-GA, CorDA and EVA start from, for the tiny Llama and one sequence or two.

Usage: python scripts/golden/data_starts.py      writes fixtures/data_starts/
"""

import adapters
import peft
import torch
import transformers as hf
from adapters import LENGTHS, SEED, base, lora
from common import FIXTURES, header, token_ids, write_golden
from peft.tuners.lora.config import CordaConfig, EvaConfig, LoraGAConfig
from peft.tuners.lora.corda import preprocess_corda
from peft.tuners.lora.loraga import preprocess_loraga

TARGETS = ["q_proj", "k_proj", "down_proj"]
IDS = token_ids(SEED + 1, LENGTHS, 64)


def model():
    return base(FIXTURES / "models" / "llama", hf.LlamaForCausalLM)


def factors(name, adapted, with_b=True):
    found = {}
    for path, module in adapted.base_model.model.named_modules():
        if hasattr(module, "lora_A"):
            found[f"{name}.{path}.A"] = module.lora_A["default"].weight.detach().clone()
            if with_b:
                found[f"{name}.{path}.B"] = module.lora_B["default"].weight.detach().clone()
    return found


def lora_ga(name, **fields):
    config = lora(TARGETS, r=3, alpha=6, init_lora_weights="lora_ga", lora_ga_config=LoraGAConfig(**fields))
    plain = model()

    def step():
        ids = IDS[0]
        logits = plain(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]
        torch.nn.functional.cross_entropy(logits[:-1], ids[0, 1:]).backward()

    preprocess_loraga(plain, config, step)
    return factors(name, peft.get_peft_model(plain, config))


def corda(name, method):
    config = lora(TARGETS, r=3, alpha=6, init_lora_weights="corda", corda_config=CordaConfig(corda_method=method))
    plain = model()

    def run():
        for ids in IDS:
            plain(input_ids=ids, attention_mask=torch.ones_like(ids))

    preprocess_corda(plain, config, run)
    return factors(name, peft.get_peft_model(plain, config))


def eva(name, targets, **fields):
    config = lora(targets, r=3, alpha=6, init_lora_weights="eva", eva_config=EvaConfig(rho=1.6, **fields))
    adapted = peft.get_peft_model(model(), config)
    batch = {"input_ids": IDS[0], "attention_mask": torch.ones_like(IDS[0])}
    peft.tuners.lora.eva.initialize_lora_eva_weights(adapted, [batch], show_progress_bar=False)
    saved = adapted.peft_config["default"]
    print(name, saved.rank_pattern, saved.alpha_pattern, saved.target_modules)
    return factors(name, adapted, with_b=False)


def main():
    hf.logging.set_verbosity_error()
    tensors = {f"seq{s}.input_ids": ids[0] for s, ids in enumerate(IDS)}
    for direction in ("ArBr", "A2rBr", "ArB2r"):
        tensors |= lora_ga(f"lora_ga_{direction}", direction=direction)
    for scale in ("weight_svd", "gd_scale", "unit"):
        tensors |= lora_ga(f"lora_ga_{scale}", scale=scale)
    for method in ("ipm", "kpm"):
        tensors |= corda(f"corda_{method}", method)
    tensors |= eva("eva", [*TARGETS, "o_proj"])
    # Of layers that read the same, peft divides the later ones more than once.
    tensors |= eva("eva_whiten", ["q_proj", "down_proj", "o_proj"], whiten=True)
    folder = FIXTURES / "data_starts"
    folder.mkdir(exist_ok=True)
    shapes = {"NAME.PATH.A": "[r, d_in] first values", "NAME.PATH.B": "[d_out, r] first values"}
    write_golden(folder, tensors, header(SEED, shapes, model="fixtures/models/llama", computed_in="float32, eager attention"))


if __name__ == "__main__":
    main()
