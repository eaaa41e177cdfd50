"""More adapters written by peft for the tiny models: the methods of its later versions.

Usage: python scripts/golden/adapters_more.py [NAME ...]      writes fixtures/adapters/NAME/
"""

import sys

import adapters
import peft
import torch
from adapters import bert, llama, lora
from common import FIXTURES, generator
from peft.tuners.lora.config import BdLoraConfig, EvaConfig, KasaConfig, MontecloraConfig, VeloraConfig
from peft.tuners.lora.monteclora import MontecloraSampler
from peft.tuners.multitask_prompt_tuning.model import MultitaskPromptEmbedding
from peft.tuners.poly.router import PolyRouter
from peft.tuners.pvera.layer import PveraLayer

torch.set_num_threads(1)

LLAMA = ["q_proj", "down_proj"]
BERT = ["query", "value"]



def noise_generator(name, seed=0):
    """PyTorch's generator for the noise of a place, seeded by FNV-1a of the pass's seed and the layer's path."""
    value = 0x811C9DC5
    for byte in f"{seed}:{name.removeprefix('base_model.model.')}".encode():
        value = (value ^ byte) * 0x01000193 & 0xFFFFFFFF
    return generator(value)


def fixed_noise(model):
    """Samples as in training, but from a generator that follows from the layer's path."""
    for name, module in model.named_modules():
        if isinstance(module, PveraLayer):
            module._reparametrize = lambda mu, logvar, adapter, name=name: mu + torch.exp(0.5 * logvar) * torch.randn(
                max(mu.numel(), 16), generator=noise_generator(name))[: mu.numel()].view_as(mu)
        if isinstance(module, PolyRouter):
            module.forward = lambda task_ids, input_ids, m=module, name=name.split(".poly_router")[0]: sampled(m, name)


def training(model):
    """Gradients of the adapted layers as in training; nothing is dropped."""
    for module in model.modules():
        if hasattr(module, "lora_A"):
            module.training = True


def fixed_samples(model):
    """MonteCLoRA in training, with numbers of our own generator."""
    training(model)
    for name, module in model.named_modules():
        if isinstance(module, MontecloraSampler):
            module.sampler.get = lambda m=module, name=name.split(".lora_monteclora")[0]: drawn(m, name)


def drawn(sampler, name):
    n, d_in, r = sampler.num_samples, sampler.in_features, sampler.out_features
    numbers = torch.randn(n * d_in * r + r * r + n, generator=noise_generator(name))
    squares = numbers[n * d_in * r :][: r * r].view(r, r).square().sum(1)
    return {"z_mvn": numbers[: n * d_in * r].view(n, d_in, r), "z_wishart": torch.diag(squares), "z_dirichlet": numbers[-n:]}


def sampled(router, name):
    """What PolyRouter gives in training, with uniform numbers of our own generator."""
    eps = torch.finfo(torch.float32).eps
    u = torch.rand(router.module_logits.shape[1], generator=noise_generator(name)).clamp(eps, 1 - eps)
    relaxed = torch.sigmoid(router.module_logits[0] + u.log() - (-u).log1p()).view(1, router.n_splits, router.n_skills)
    return relaxed / (relaxed.sum(dim=-1, keepdim=True) + 1e-12)


def first_task():
    """Every example is of the first task where none is named: a model's forward here gets tokens only."""
    prompt, router = MultitaskPromptEmbedding.forward, PolyRouter.forward
    MultitaskPromptEmbedding.forward = lambda self, indices, task_ids: prompt(
        self, indices, torch.zeros(len(indices), dtype=torch.long) if task_ids is None else task_ids)
    PolyRouter.forward = lambda self, task_ids, input_ids: router(
        self, torch.zeros(len(input_ids), dtype=torch.long) if task_ids is None else task_ids, input_ids)


first_task()

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
    "llama-poly": llama(
        peft.PolyConfig(r=4, n_skills=3, n_splits=2, target_modules=LLAMA), "three skills in two heads", noise=fixed_noise, spread=0.6),
    "bert-poly-seqcls": bert(peft.PolyConfig(r=4, n_skills=2, target_modules=BERT), "with biases", noise=fixed_noise, spread=0.8),
    "llama-pvera": llama(
        peft.PveraConfig(r=8, target_modules=["q_proj", "v_proj", "down_proj"]), "layers of different sides", noise=fixed_noise),
    "llama-pvera-prng": llama(
        peft.PveraConfig(r=6, target_modules="all-linear", save_projection=False, projection_prng_key=11),
        "projections drawn again from their key", noise=fixed_noise),
    "bert-pvera-seqcls": bert(peft.PveraConfig(r=8, target_modules=BERT), "with biases", noise=fixed_noise, spread=0.6),
    "llama-unilora": llama(
        peft.UniLoraConfig(r=4, theta_d_length=100, target_modules=["q_proj", "v_proj", "down_proj"]),
        "places drawn again from their seed", spread=2.0),
    "llama-unilora-saved": llama(
        peft.UniLoraConfig(r=2, theta_d_length=60, proj_seed=7, save_indices=True, target_modules=LLAMA), "places in the file",
        spread=2.0),
    "bert-unilora-seqcls": bert(peft.UniLoraConfig(r=4, theta_d_length=700, target_modules=BERT), "more numbers than places", spread=1.0),
    "llama-multitask-prompt": llama(
        peft.MultitaskPromptTuningConfig(num_virtual_tokens=4, num_ranks=2, num_tasks=1, prompt_tuning_init="RANDOM"),
        "a prompt times a low-rank matrix", spread=1.0),
    "llama-alora": llama(
        lora([*LLAMA, "k_proj"], alora_invocation_tokens=[17, 19], rank_pattern={"k_proj": 2}), "from the fourth token on, in one of two sequences"),
    "llama-alora-last": llama(lora(["v_proj", "o_proj"], alora_invocation_tokens=[47]), "from the last of two occurrences on"),
    "llama-eva": llama(
        lora(LLAMA, init_lora_weights="eva", eva_config=EvaConfig(rho=1.5, whiten=True), rank_pattern={"layers.1.self_attn.q_proj": 6},
             alpha_pattern={"layers.1.self_attn.q_proj": 12}), "ranks that were given out anew"),
    "llama-adaption-prompt": llama(
        peft.AdaptionPromptConfig(adapter_len=5, adapter_layers=2), "both blocks, grouped heads", spread=1.0),
    "llama-adaption-prompt-top": llama(peft.AdaptionPromptConfig(adapter_len=3, adapter_layers=1), "the upper block", spread=1.0),
    "llama-adaption-prompt-bias": (
        "llama-rope-linear", adapters.CAUSAL["llama"], peft.AdaptionPromptConfig(adapter_len=4, adapter_layers=1, task_type=adapters.LM),
        "an output projection with a bias, which is added once more", {"spread": 1.0}),
    "llama-adamss": llama(
        peft.AdamssConfig(r=10, num_subspaces=4, subspace_rank=2, target_modules=["q_proj", "k_proj", "down_proj"]),
        "four groups of outputs in ten directions, found with the seed"),
    "llama-adamss-ranks": llama(
        peft.AdamssConfig(r=14, num_subspaces=3, subspace_rank=3, use_dynamic_rank=True, svd_threshold=0.6, random_seed=4,
                          target_modules=LLAMA), "ranks by singular values, another seed"),
    "bert-adamss-seqcls": bert(peft.AdamssConfig(r=12, target_modules=BERT), "biases are a column of the weight"),
    "llama-velora": llama(
        lora(LLAMA, velora_config=VeloraConfig(num_groups=5, scale=0.7)), "the mean group of each pass, the last group shorter",
        noise=training),
    "llama-velora-random": llama(
        lora(LLAMA, velora_config=VeloraConfig(num_groups=8, init_type="random")), "a random vector, in the file", noise=training),
    "bert-velora-seqcls": bert(lora(BERT, velora_config=VeloraConfig(num_groups=4)), "with biases", noise=training),
    "llama-monteclora": llama(
        lora(LLAMA, monteclora_config=MontecloraConfig(num_samples=3, sample_scaler=0.05)), "three samples", noise=fixed_samples),
    "bert-monteclora-seqcls": bert(
        lora(BERT, monteclora_config=MontecloraConfig(num_samples=2, sample_scaler=0.05)), "with biases", noise=fixed_samples),
    "llama-lily": llama(
        peft.LilyConfig(r=4, stride_A=2, num_B=3, scaling=0.8, target_modules=["q_proj", "k_proj", "down_proj"]),
        "two layers share A, all of a kind three B"),
    "bert-lily-seqcls": bert(peft.LilyConfig(r=4, target_modules=BERT), "every layer its own A"),
    "llama-frod": llama(
        peft.FrodConfig(target_modules=["q_proj", "v_proj", "down_proj"], progressbar=False),
        "weights in a basis that layers of a kind share; more rows than columns, and fewer"),
    "bert-frod-seqcls": bert(peft.FrodConfig(target_modules=BERT, sparse_rate=0.05, progressbar=False), "with biases"),
}

def all_directions():
    """A file whose groups of outputs rounding decided: as many directions as the layer has outputs."""
    config = peft.AdamssConfig(task_type=adapters.LM, target_modules=["k_proj"])
    model_dir = FIXTURES / "models" / "llama"
    config.base_model_name_or_path = str(model_dir)
    folder = FIXTURES / "methods" / "adamss-all-directions"
    model = peft.get_peft_model(adapters.base(model_dir, adapters.CAUSAL["llama"]), config)
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)


if __name__ == "__main__":
    if sys.argv[1:] in ([], ["adamss-all-directions"]):
        all_directions()
    if sys.argv[1:] == ["adamss-all-directions"]:
        sys.exit()
    adapters.ADAPTERS = MORE
    adapters.BITFIT = None
    adapters.main(sys.argv[1:] or list(MORE))
