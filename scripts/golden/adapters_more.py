"""More adapters written by peft for the tiny models: the methods of its later versions.

Usage: python scripts/golden/adapters_more.py [NAME ...]      writes fixtures/adapters/NAME/
"""

import sys

import adapters
import peft
import torch
from adapters import bert, llama, lora
from peft.tuners.lora.config import BdLoraConfig, KasaConfig

torch.set_num_threads(1)

LLAMA = ["q_proj", "down_proj"]
BERT = ["query", "value"]

# As in adapters.py.
MORE = {
    "llama-hira": llama(
        peft.HiraConfig(r=4, target_modules=LLAMA), "weights times a factor", spread=1.0),
    "bert-hira-seqcls": bert(peft.HiraConfig(r=4, target_modules=BERT), "with biases", spread=1.0),
    "llama-gralora": llama(peft.GraloraConfig(r=4, alpha=8, target_modules=LLAMA), "two blocks along each side"),
    "llama-gralora-hybrid": llama(
        peft.GraloraConfig(r=8, hybrid_r=2, gralora_k=4, alpha=10, target_modules=["q_proj", "v_proj"]),
        "four blocks, and a low-rank change of the whole", spread=0.6),
    "bert-gralora-seqcls": bert(peft.GraloraConfig(r=4, alpha=8, target_modules=BERT), "with biases"),
    "llama-delora": llama(
        peft.DeloraConfig(r=4, target_modules=LLAMA, rank_pattern={"down_proj": 2}, lambda_pattern={"q_proj": 9}),
        "rank and strength by pattern"),
    "bert-delora-seqcls": bert(peft.DeloraConfig(r=4, target_modules=BERT), "with biases", spread=0.6),
    "llama-waveft": llama(
        peft.WaveFTConfig(n_frequency=60, target_modules=LLAMA, n_frequency_pattern={"q_proj": 40}), "Haar's wavelet"),
    "llama-waveft-db2": llama(
        peft.WaveFTConfig(n_frequency=50, target_modules=LLAMA, wavelet_family="db2", random_loc_seed=3,
                          proportional_parameters=True),
        "longer filters, coefficients by size"),
    "llama-waveft-direct": llama(
        peft.WaveFTConfig(n_frequency=50, scaling=4.0, target_modules=LLAMA, use_idwt=False), "elements of the weight", spread=1.0),
    "bert-waveft-seqcls": bert(peft.WaveFTConfig(n_frequency=60, target_modules=BERT), "with biases"),
    "llama-glora": llama(peft.GloraConfig(r=3, target_modules=LLAMA), "layers without bias"),
    "bert-glora-seqcls": bert(peft.GloraConfig(r=3, target_modules=BERT), "low-rank parts and numbers"),
    "bert-glora-vector-seqcls": bert(
        peft.GloraConfig(r=3, target_modules=BERT, config_A_B="vector", config_C="vector", config_D_E="vector"), "vectors"),
    "bert-glora-constant-seqcls": bert(
        peft.GloraConfig(r=3, target_modules=BERT, config_A_B="constant", config_C="none", config_D_E="none"),
        "numbers, and parts left out", spread=1.0),
    "llama-peanut": llama(peft.PeanutConfig(r=4, target_modules=LLAMA, act_fn="gelu"), "without inner layers", spread=0.6),
    "llama-peanut-deep": llama(
        peft.PeanutConfig(r=4, depth=2, scaling=2.0, act_fn="silu", target_modules=["q_proj", "v_proj"]), "two inner pairs", spread=0.6),
    "bert-peanut-seqcls": bert(peft.PeanutConfig(r=4, depth=1, target_modules=BERT), "with biases", spread=0.8),
    "llama-deft": llama(peft.DeftConfig(r=4, alpha=8.0, target_modules=LLAMA), "with a scale"),
    "llama-deft-para": llama(peft.DeftConfig(r=4, para=True, target_modules=LLAMA), "only taken out"),
    "bert-deft-seqcls": bert(peft.DeftConfig(r=4, target_modules=BERT), "with biases"),
    "llama-beft": llama(peft.BeftConfig(target_modules=["v_proj", "o_proj"]), "layers without bias"),
    "bert-beft-seqcls": bert(peft.BeftConfig(target_modules=["value"]), "on top of biases", spread=2.0),
    "llama-kasa": llama(
        lora(LLAMA, kasa_config=KasaConfig(), rank_pattern={"down_proj": 3}), "the smallest singular triples are taken out"),
    "bert-kasa-seqcls": bert(lora(BERT, kasa_config=KasaConfig(beta=0.01), use_rslora=True), "with biases"),
    "llama-bdlora": llama(
        lora(["q_proj", "down_proj", "o_proj"],
             use_bdlora=BdLoraConfig(target_modules_bd_a=["down_proj"], target_modules_bd_b=["q_"], nblocks=2, match_strict=False)),
        "blocks in A, blocks in B, and neither"),
    "bert-bdlora-seqcls": bert(
        lora(BERT, use_bdlora=BdLoraConfig(target_modules_bd_a=["query"], target_modules_bd_b=["value"], nblocks=4)), "with biases"),
    "llama-mica": llama(lora(LLAMA, init_lora_weights="mica"), "only A is trained"),
    "bert-mica-seqcls": bert(lora(BERT, init_lora_weights="mica"), "with biases", spread=2.0),
    "llama-tinylora": llama(
        peft.TinyLoraConfig(r=2, u=8, target_modules=LLAMA, weight_tying=0.5), "two layers share their numbers", spread=0.6),
    "bert-tinylora-seqcls": bert(peft.TinyLoraConfig(r=3, u=5, target_modules=BERT), "every layer by itself", spread=2.0),
    "llama-randlora": llama(
        peft.RandLoraConfig(r=10, randlora_alpha=1, target_modules=["q_proj", "v_proj", "down_proj"]),
        "layers of different sides, the last basis without all its rows"),
    "llama-randlora-sparse": llama(
        peft.RandLoraConfig(r=8, randlora_alpha=1, target_modules=["up_proj"], sparse=True), "bases of -1, 0 and 1"),
    "bert-randlora-seqcls": bert(peft.RandLoraConfig(r=8, randlora_alpha=2, target_modules=BERT), "with biases"),
    "llama-osf": llama(peft.OSFConfig(target_modules=["q_proj", "v_proj"], effective_rank=12), "layers of different sides"),
    "bert-osf-seqcls": bert(peft.OSFConfig(target_modules=["query"], effective_rank=0.9), "a share of the directions"),
    "llama-supertuning": llama(peft.SupertuningConfig(sparsity=0.95, target_modules=LLAMA), "the largest elements"),
    "llama-supertuning-low-rank": llama(
        peft.SupertuningConfig(sparsity=0.95, select_top=False, r=2, lora_alpha=4.0, target_modules=LLAMA),
        "the smallest, and a low-rank change"),
    "bert-supertuning-seqcls": bert(peft.SupertuningConfig(sparsity=0.9, target_modules=BERT), "with biases"),
}

if __name__ == "__main__":
    adapters.ADAPTERS = MORE
    adapters.BITFIT = None
    adapters.main(sys.argv[1:] or list(MORE))
