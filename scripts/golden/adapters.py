"""Adapters written by peft for the tiny models, with reference logits.

Usage: python scripts/golden/adapters.py [NAME ...]      writes fixtures/adapters/NAME/

(Not called peft.py: a script of that name would hide the library it imports.)
"""

import json
import shutil
import sys
import tempfile
import warnings

import common
import peft
import torch
import transformers as hf
from common import FIXTURES, generator, header, token_ids, write_golden
from safetensors.torch import load_file, save_file

SEED = 20241
LENGTHS = (11, 7)
CLASSES = (1, 2)
BITFIT = "bert-bitfit-seqcls"
LM, CLS = "CAUSAL_LM", "SEQ_CLS"
CAUSAL = {
    "llama": hf.LlamaForCausalLM,
    "qwen2": hf.Qwen2ForCausalLM,
    "qwen3": hf.Qwen3ForCausalLM,
    "gemma3_text": hf.Gemma3ForCausalLM,
    "gpt2": hf.GPT2LMHeadModel,
}


def lora(targets, task=LM, r=4, alpha=8, **fields):
    return peft.LoraConfig(
        task_type=task, r=r, lora_alpha=alpha, target_modules=targets, lora_dropout=0.0, **fields
    )


def llama(config, purpose, **more):
    config.task_type = LM
    return ("llama", CAUSAL["llama"], config, purpose, more)


def bert(config, purpose, **more):
    config.task_type = CLS
    return ("bert", hf.BertForSequenceClassification, config, purpose, more)


def gpt2(config, purpose, **more):
    config.task_type = LM
    return ("gpt2", CAUSAL["gpt2"], config, purpose, more)


# name: (tiny model, class, peft config, what it is for, options)
# options: spread of the random values (0.3), or {part of a parameter's name: spread}
ADAPTERS = {
    "llama-lora-qv": (
        "llama", CAUSAL["llama"], lora(["q_proj", "v_proj"]), "the usual case"),
    "llama-lora-all-rslora": (
        "llama", CAUSAL["llama"],
        lora("all-linear", use_rslora=True,
             rank_pattern={"layers.1.self_attn.q_proj": 6, "down_proj": 2},
             alpha_pattern={"layers.0.self_attn.k_proj": 3, r"mlp\.(up|gate)_proj": 12}),
        "scale alpha / sqrt(r); rank and alpha by regex on the module path"),
    "llama-lora-bias-b": (
        "llama", CAUSAL["llama"], lora(["q_proj", "down_proj"], lora_bias=True),
        "lora_bias: lora_B has a bias, scaled like B"),
    "llama-lora-embed": (
        "llama", CAUSAL["llama"], lora(["embed_tokens", "o_proj"]),
        "adapter on a tied embedding: input side only, frozen base_layer.weight stored too"),
    "llama-lora-regex": (
        "llama", CAUSAL["llama"], lora(r".*\.layers\.\d+\.self_attn\.(q|o)_proj"),
        "target_modules as one regex on the full path"),
    "llama-lora-layers": (
        "llama", CAUSAL["llama"], lora(["q_proj", "up_proj"], layers_to_transform=[1]),
        "layers_to_transform"),
    "llama-lora-exclude": (
        "llama", CAUSAL["llama"],
        lora(["q_proj", "k_proj", "up_proj"], exclude_modules=["k_proj", "layers.0.mlp.up_proj"]),
        "exclude_modules wins over target_modules"),
    "llama-lora-pattern-order": (
        "llama", CAUSAL["llama"],
        lora(["q_proj", "v_proj"], alpha_pattern={"q_proj": 2, "model.layers.0.self_attn.q_proj": 32}),
        "of several patterns that match, the first in the file counts", {"in_order": ["alpha_pattern"]}),
    "llama-lora-look-around": (
        "llama", CAUSAL["llama"], lora(r"(?!.*layers\.1).*(q_proj|v_proj)"),
        "target_modules as an expression that looks ahead"),
    "llama-lora-high-rank": (
        "llama", CAUSAL["llama"], lora(["k_proj", "embed_tokens"], r=48),
        "a rank above both sides of a map"),
    "llama-dora-high-rank": (
        "llama", CAUSAL["llama"], lora(["k_proj", "down_proj"], r=48, use_dora=True), "the same for DoRA"),
    "llama-lora-saved-norms": (
        "llama", CAUSAL["llama"], lora(["q_proj", "v_proj"], modules_to_save=["norm"]),
        "modules_to_save: every module whose path ends so, input_layernorm too"),
    "llama-lora-saved-tables": (
        "llama-rope-llama3", CAUSAL["llama"], lora(["q_proj"], modules_to_save=["embed_tokens", "lm_head"]),
        "modules_to_save: token table and output head"),
    "gemma3-lora-saved-norms": (
        "gemma3_text", CAUSAL["gemma3_text"], lora(["q_proj"], modules_to_save=["q_norm", "post_attention_layernorm"]),
        "modules_to_save: gains that are stored less one"),
    "gpt2-lora-saved": (
        "gpt2", CAUSAL["gpt2"], lora(["c_attn"], fan_in_fan_out=True, modules_to_save=["wpe", "ln_f", "c_fc"]),
        "modules_to_save: a table, a norm with bias, a transposed map"),
    "llama-ia3-saved-norm": llama(
        peft.IA3Config(modules_to_save=["norm"]), "modules_to_save beside another method"),
    "llama-lora-tokens": (
        "llama", CAUSAL["llama"], lora(["q_proj", "v_proj"], trainable_token_indices=[31, 17, 54]),
        "rows of a tied token table beside LoRA"),
    "llama-lora-tokens-untied": (
        "llama-rope-llama3", CAUSAL["llama"],
        lora(["q_proj"], trainable_token_indices={"embed_tokens": [20, 31, 45], "lm_head": [5, 31]}),
        "rows of the token table and of the output head", {"spread": 1.0}),
    "bert-lora-pooler-seqcls": (
        "bert", hf.BertForSequenceClassification, lora(["query"], CLS, modules_to_save=["pooler"]),
        "modules_to_save: the pooler beside the head"),
    "llama-lora-seqcls": (
        "llama", hf.LlamaForSequenceClassification, lora(["q_proj", "v_proj"], CLS),
        "three classes, head score in modules_to_save, logits of the last token"),
    "llama-prompt": (
        "llama", CAUSAL["llama"],
        peft.PromptTuningConfig(task_type=LM, num_virtual_tokens=5, prompt_tuning_init="RANDOM"),
        "prompt tuning: logits have 5 extra rows in front"),
    "qwen2-lora-bias-only": (
        "qwen2", CAUSAL["qwen2"], lora(["q_proj", "v_proj", "up_proj"], bias="lora_only"),
        "bias lora_only: the trained bias of each target that has one"),
    "qwen2-lora-bias-all": (
        "qwen2", CAUSAL["qwen2"], lora(["q_proj"], bias="all"), "bias all: every bias of the model"),
    "qwen3-lora-all": ("qwen3", CAUSAL["qwen3"], lora("all-linear"), "all-linear, own head_dim"),
    "gemma3-lora-all": ("gemma3_text", CAUSAL["gemma3_text"], lora("all-linear"), "all-linear"),
    "gemma3-prompt": (
        "gemma3_text", CAUSAL["gemma3_text"],
        peft.PromptTuningConfig(task_type=LM, num_virtual_tokens=3, prompt_tuning_init="RANDOM"),
        "prompt rows are not multiplied by sqrt(hidden), word embeddings are"),
    "gpt2-lora-c_attn": (
        "gpt2", CAUSAL["gpt2"], lora(["c_attn"], fan_in_fan_out=True), "fused qkv stored in x out"),
    "gpt2-lora-all": (
        "gpt2", CAUSAL["gpt2"], lora("all-linear", fan_in_fan_out=True), "every Conv1D"),
    "bert-lora-seqcls": (
        "bert", hf.BertForSequenceClassification, lora(["query", "value"], CLS),
        "three classes, head classifier in modules_to_save, on the pooler output"),
    "roberta-lora-seqcls": (
        "roberta", hf.RobertaForSequenceClassification, lora(["query", "dense"], CLS),
        "head of two layers (classifier.dense, classifier.out_proj) in modules_to_save"),
    "llama-ia3": llama(peft.IA3Config(), "targets of peft for this architecture, one of them feed-forward"),
    "gpt2-ia3": gpt2(peft.IA3Config(fan_in_fan_out=True), "fused qkv, biases are scaled too"),
    "bert-ia3-seqcls": bert(peft.IA3Config(), "output.dense is matched by suffix, also in attention"),
    "llama-ln-tuning": llama(peft.LNTuningConfig(), "every norm"),
    "bert-ln-tuning-seqcls": bert(peft.LNTuningConfig(target_modules=["LayerNorm"]), "gains and biases"),
    "llama-dora": llama(lora(["q_proj", "v_proj", "down_proj"], use_dora=True), "magnitudes, scale 2"),
    "llama-dora-rslora": llama(
        lora("all-linear", use_dora=True, use_rslora=True, rank_pattern={"up_proj": 2}), "with rsLoRA's scale and ranks by pattern"),
    "gpt2-dora": gpt2(lora(["c_attn"], use_dora=True, fan_in_fan_out=True), "the bias is not scaled"),
    "bert-dora-seqcls": bert(lora(["query", "value"], use_dora=True), "the bias is not scaled"),
    "llama-vera": llama(
        peft.VeraConfig(r=8, target_modules=["q_proj", "v_proj", "down_proj"]), "shared projections of the largest sides, saved"),
    "llama-vera-prng": llama(
        peft.VeraConfig(r=8, target_modules="all-linear", save_projection=False, projection_prng_key=11),
        "projections drawn again from their key"),
    "bert-vera-seqcls": bert(peft.VeraConfig(r=8, target_modules=["query", "value"]), "with biases"),
    "llama-loha": llama(
        peft.LoHaConfig(r=3, alpha=6, target_modules="all-linear", rank_pattern={"q_proj": 2}, alpha_pattern={"mlp.up_proj": 5}),
        "rank and alpha by pattern", spread=0.6),
    "bert-loha-seqcls": bert(peft.LoHaConfig(r=3, alpha=6, target_modules=["query", "value"]), "with biases", spread=0.6),
    "llama-lokr": llama(
        peft.LoKrConfig(r=2, alpha=4, target_modules="all-linear"), "full w1, factored w2"),
    "llama-lokr-both": llama(
        peft.LoKrConfig(r=1, alpha=2, target_modules=["q_proj", "k_proj", "down_proj"], decompose_both=True, decompose_factor=8,
                        rank_pattern={"k_proj": 16}),
        "factored w1 where it pays, full w2 where the rank is high", spread=0.6),
    "bert-lokr-seqcls": bert(peft.LoKrConfig(r=4, alpha=4, target_modules=["query", "intermediate.dense"]), "with biases"),
    "llama-shira": llama(peft.ShiraConfig(r=2, target_modules=["q_proj", "v_proj", "down_proj"], random_seed=5), "random support"),
    "bert-shira-seqcls": bert(peft.ShiraConfig(r=2, target_modules=["query", "value"], random_seed=5), "with biases"),
    "llama-oft": llama(peft.OFTConfig(oft_block_size=8, target_modules="all-linear"), "Neumann series of five terms", spread=0.1),
    "llama-oft-cayley": llama(
        peft.OFTConfig(oft_block_size=0, r=4, target_modules=["q_proj", "down_proj"], use_cayley_neumann=False),
        "exact Cayley transform, four blocks"),
    "llama-oft-share": llama(
        peft.OFTConfig(oft_block_size=10, target_modules=["q_proj", "down_proj"], block_share=True, num_cayley_neumann_terms=4),
        "one block for all, block size adjusted to 8", spread=0.1),
    "llama-oft-coft": llama(
        peft.OFTConfig(oft_block_size=16, target_modules=["q_proj", "v_proj"], coft=True, eps=0.9), "constrained rotation"),
    "bert-oft-seqcls": bert(peft.OFTConfig(oft_block_size=16, target_modules=["query", "value"]), "with biases", spread=0.3),
    "llama-boft": llama(peft.BOFTConfig(boft_block_size=8, target_modules=["q_proj", "v_proj", "down_proj"]), "one factor"),
    "llama-boft-butterfly": llama(
        peft.BOFTConfig(boft_block_size=4, boft_n_butterfly_factor=3, target_modules=["q_proj", "down_proj"]),
        "three factors with their permutations", butterfly=True),
    "bert-boft-seqcls": bert(peft.BOFTConfig(boft_block_size=0, boft_block_num=4, target_modules=["query", "value"]), "four blocks"),
    "llama-fourierft": llama(
        peft.FourierFTConfig(n_frequency=60, target_modules=["q_proj", "v_proj", "down_proj"], n_frequency_pattern={"v_proj": 40}),
        "frequencies by pattern"),
    "bert-fourierft-seqcls": bert(
        peft.FourierFTConfig(n_frequency=60, scaling=80.0, random_loc_seed=3, target_modules=["query", "value"]), "another seed"),
    "llama-trainable-tokens": llama(
        peft.TrainableTokensConfig(token_indices=[31, 17, 54], target_modules=["embed_tokens"]),
        "rows of the token table, which is the output head too"),
    "llama-trainable-tokens-untied": (
        "llama-rope-llama3", CAUSAL["llama"],
        peft.TrainableTokensConfig(task_type=LM, token_indices=[20, 31, 45], target_modules=["embed_tokens"]),
        "rows of a token table that is not the output head", {"spread": 1.0}),
    "llama-c3a": llama(
        peft.C3AConfig(block_size=8, target_modules=["q_proj", "v_proj", "down_proj"], block_size_pattern={"down_proj": 16}),
        "circulant blocks, size by pattern", spread=3.0),
    "bert-c3a-seqcls": bert(peft.C3AConfig(block_size=16, target_modules=["query", "value"]), "with biases", spread=3.0),
    "llama-miss": llama(
        peft.MissConfig(r=10, target_modules=["q_proj", "v_proj", "down_proj"]), "groups of ten inputs, the last one shorter"),
    "llama-miss-bat": llama(
        peft.MissConfig(r=8, target_modules=["q_proj", "v_proj", "down_proj"], init_weights="bat"), "blocks multiply the weight"),
    "bert-miss-seqcls": bert(
        peft.MissConfig(r=8, mini_r=4, target_modules=["query", "value"], init_weights="mini"), "block repeated along the outputs"),
    "llama-vblora": llama(
        peft.VBLoRAConfig(r=2, num_vectors=12, vector_length=8, topk=3, target_modules=["q_proj", "v_proj", "down_proj"]),
        "mixtures of three of twelve vectors", spread=1.0),
    "bert-vblora-seqcls": bert(
        peft.VBLoRAConfig(r=2, num_vectors=12, vector_length=16, target_modules=["query", "value"]), "with biases", spread=1.0),
    "llama-dora-embed": llama(
        lora(["embed_tokens", "q_proj"], use_dora=True), "lengths of the columns of a table"),
    "llama-pissa": llama(
        lora(["q_proj", "down_proj"], init_lora_weights="pissa"), "converted to a LoRA of twice the rank for the original model"),
    "llama-olora": llama(
        lora(["q_proj", "down_proj"], init_lora_weights="olora"), "converted to a LoRA of twice the rank for the original model"),
    "llama-qalora": llama(
        lora(["q_proj", "v_proj", "down_proj"], use_qalora=True, qalora_group_size=8), "groups of eight inputs", pooled=True),
    "bert-qalora-seqcls": bert(
        lora(["query", "value"], use_qalora=True, qalora_group_size=16, use_rslora=True), "with biases", pooled=True),
    "llama-road": llama(peft.RoadConfig(group_size=16, target_modules=["q_proj", "v_proj", "down_proj"]), "one angle for a pair"),
    "llama-road-2": llama(peft.RoadConfig(variant="road_2", group_size=8, target_modules=["q_proj", "down_proj"]), "one for an element"),
    "llama-road-4": llama(peft.RoadConfig(variant="road_4", group_size=16, target_modules=["q_proj", "down_proj"]), "two for an element"),
    "bert-road-seqcls": bert(peft.RoadConfig(group_size=32, target_modules=["query", "value"]), "outputs with biases"),
    "llama-hra": llama(peft.HRAConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"]), "four reflections"),
    "llama-hra-gs": llama(peft.HRAConfig(r=3, apply_GS=True, target_modules=["q_proj", "v_proj"]), "orthogonalised reflections"),
    "bert-hra-seqcls": bert(peft.HRAConfig(r=4, target_modules=["query", "value"]), "with biases"),
}


def base(folder, cls):
    extra = {}
    if "SequenceClassification" in cls.__name__:
        # Three classes so that a swapped or truncated head shows.
        extra["num_labels"] = 3
    torch.manual_seed(SEED)
    return cls.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", **extra
    ).eval()


def randomise(model, seed, spread):
    """Give every tensor the adapter trains a random value; returns their names."""
    g = generator(seed)
    names = []
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            if p.requires_grad:
                p.copy_(spread * torch.randn(p.shape, generator=g))
                names.append(name)
    return names


@torch.no_grad()
def outputs(model, lengths=LENGTHS):
    tensors = {}
    for s, ids in enumerate(token_ids(SEED + 1, lengths, 64)):
        tensors[f"seq{s}.input_ids"] = ids[0]
        out = model(input_ids=ids, attention_mask=torch.ones_like(ids))
        tensors[f"seq{s}.logits"] = out.logits[0]
    return tensors


def mutated(config):
    """Whether peft changes the base weights when it initialises this adapter."""
    return getattr(config, "init_lora_weights", None) in ("pissa", "olora")


def subtracted(model, tiny, cls):
    """What was taken from the base weights, by path."""
    before = dict(base(FIXTURES / "models" / tiny, cls).named_modules())
    wrapped = [(n, m) for n, m in model.base_model.model.named_modules() if hasattr(m, "base_layer")]
    return {f"initial.{n}": before[n].weight.data - m.base_layer.weight.data for n, m in wrapped}


def save(model, folder, initial):
    if initial is None:
        model.save_pretrained(folder)
    else:
        model.save_pretrained(folder, path_initial_model_for_weight_conversion=initial)
    (folder / "README.md").unlink(missing_ok=True)


def keep_order(file, config, fields):
    """peft sorts keys when it writes and takes them in the order of the file when it reads."""
    if fields:
        written = json.loads(file.read_text())
        written |= {field: getattr(config, field) for field in fields}
        file.write_text(json.dumps(written, indent=2))


def gradients(model, lengths=LENGTHS):
    """Mean loss over all next tokens of both sequences (or over their classes), and its gradients, in float64 after the logits."""
    total, count = 0.0, 0
    for ids, label in zip(token_ids(SEED + 1, lengths, 64), CLASSES):
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0].double()
        if logits.ndim == 1:
            logits, target = logits[None], torch.tensor([label])
        else:
            # Virtual tokens come first.
            logits, target = logits[-ids.shape[1]:][:-1], ids[0, 1:]
        total = total + torch.nn.functional.cross_entropy(logits, target, reduction="sum")
        count += len(target)
    loss = total / count
    loss.backward()
    tensors = {"loss": loss.float().reshape(1)}
    for name, p in model.named_parameters():
        if p.grad is not None and p.requires_grad:
            task = name.rsplit(".", 1)[1]
            name = (task if task.startswith("prefix_task") else "prompt_embeddings") if "prompt_encoder" in name else name
            name = "base_model.unilora_theta_d" if "unilora_theta_d" in name else name
            name = "base_model.vblora_vector_bank" if "vector_bank" in name else name
            name = f"base_model.tinylora_v.{name.rsplit('.', 1)[1]}" if "tinylora_v" in name else name
            wrappers = [".modules_to_save.default", ".default"]
            if model.peft_config["default"].peft_type == "TRAINABLE_TOKENS":
                wrappers.append(".token_adapter")
            for inner in wrappers:
                name = name.replace(inner, "")
            # Files leave this ending out.
            tensors["grad." + name.replace("lora_magnitude_vector.weight", "lora_magnitude_vector")] = p.grad
    return tensors


def on_plain_maps():
    """Lets QA-LoRA act on plain maps: peft has it for those of GPTQ only."""
    from peft.tuners.lora import layer, variants

    plain = layer.Linear.resolve_lora_variant
    layer.Linear.resolve_lora_variant = lambda self, *, config, **more: (
        variants.QALoraLinearVariant() if config.use_qalora else plain(self, config=config, **more)
    )


def without_cuda():
    """Lets BOFT keep its butterfly factors: peft sets them to one where its CUDA kernel is missing."""
    from peft.tuners.boft import layer

    layer.get_fbd_cuda = lambda: True
    layer.FastBlockDiag.apply = lambda blocks: torch.stack([torch.block_diag(*factor) for factor in blocks])


def bitfit(folder, purpose):
    """BitFit, which peft does not have: every bias of the encoder at a random value, with the head, in peft's layout."""
    model_dir = FIXTURES / "models" / "bert"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    model = base(model_dir, hf.BertForSequenceClassification)
    for name, p in model.named_parameters():
        p.requires_grad_(name.endswith(".bias") or name.startswith("classifier"))
    trained = randomise(model, SEED, 0.3)
    stored = {f"base_model.model.{n}": p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    config = {
        "auto_mapping": None, "base_model_name_or_path": str(model_dir), "exclude_modules": None, "inference_mode": True,
        "modules_to_save": ["classifier", "score"], "peft_type": "BITFIT", "peft_version": peft.__version__, "revision": None,
        "target_modules": ".*", "task_type": CLS,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True))
    save_file(stored, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    tensors = outputs(model)
    tensors |= {k.replace("grad.", "grad.base_model.model."): v for k, v in gradients(model).items()}
    write_golden(
        folder,
        tensors,
        header(
            SEED, {"grad.KEY": "gradient of the loss, as the tensor KEY"}, purpose=purpose, model=str(model_dir),
            model_class="BertForSequenceClassification", classes=CLASSES, trained=trained,
            trainable_parameters=sum(v.numel() for v in stored.values()), computed_in="float32, eager attention",
        ),
    )
    print(f"{folder.name:24} {len(stored):3} tensors")


def true_gradients():
    """The backward that peft wrote for C3A mirrors the kernel in the gradient of the input; this is its forward, derived by torch."""
    from peft.tuners.c3a import layer, utils

    layer.BlockCircularConvolution.apply = lambda x, w: torch.nn.functional.linear(x, utils.get_circulant_fast(w))


def main(names):
    warnings.filterwarnings("ignore")
    hf.logging.set_verbosity_error()
    for name in names or [*ADAPTERS, BITFIT]:
        if name == BITFIT:
            bitfit(FIXTURES / "adapters" / name, "every bias, and the head")
            continue
        tiny, cls, config, purpose, *more = ADAPTERS[name]
        more = more[0] if more else {}
        if more.get("butterfly"):
            without_cuda()
        if more.get("pooled"):
            on_plain_maps()
        if isinstance(config, peft.C3AConfig):
            true_gradients()
        model_dir, folder = FIXTURES / "models" / tiny, FIXTURES / "adapters" / name
        shutil.rmtree(folder, ignore_errors=True)
        config.base_model_name_or_path = str(model_dir)
        torch.manual_seed(SEED)
        model = peft.get_peft_model(base(model_dir, cls), config).eval()
        initial, taken = None, {}
        if mutated(config):
            initial, taken = tempfile.mkdtemp(), subtracted(model, tiny, cls)
            config.init_lora_weights = True
            model.save_pretrained(initial)
        trained = randomise(model, SEED, more.get("spread", 0.3))
        trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
        save(model, folder, initial)
        keep_order(folder / "adapter_config.json", config, more.get("in_order", []))

        # The golden comes from a fresh base plus the files.
        fresh = base(model_dir, cls)
        before = outputs(fresh)
        # peft refuses to train a prompt that it reads.
        prompt = isinstance(config, peft.PromptLearningConfig)
        loaded = peft.PeftModel.from_pretrained(fresh, folder, is_trainable=not prompt).eval()
        if prompt:
            loaded.prompt_encoder.requires_grad_(True)
        if initial is not None:
            trainable = sum(p.numel() for p in loaded.parameters() if p.requires_grad)
        tensors = outputs(loaded)
        if "noise" in more:
            more["noise"](loaded)
        tensors |= gradients(loaded) | taken
        effect = 0.0
        for s in range(len(LENGTHS)):
            after = tensors[f"seq{s}.logits"]
            plain = before[f"seq{s}.logits"]
            rows = plain.shape[0] if plain.ndim == 2 else 1
            effect = max(effect, (after.reshape(-1, after.shape[-1])[-rows:] - plain).abs().max().item())
            if "SequenceClassification" not in cls.__name__:
                tensors[f"seq{s}.base_logits"] = plain
        if effect < 0.1:
            raise SystemExit(f"{name}: the adapter moves the logits by {effect:.1e} only")
        stored = load_file(folder / "adapter_model.safetensors")
        # Some methods store parts that they leave out.
        zero = [k for k, v in stored.items() if not v.any() and not k.endswith((".zeros", ".lora_velora_embed"))]
        if zero:
            raise SystemExit(f"{name}: all-zero tensors {zero}")
        write_golden(
            folder,
            tensors,
            header(
                SEED,
                {
                    "seqS.input_ids": "[tokens] i64, each sequence was run by itself",
                    "seqS.logits": "[tokens (+ virtual tokens in front), vocab], or [labels] for classification",
                    "seqS.base_logits": "[tokens, vocab] without the adapter",
                    "loss": "[1] mean over the next tokens of all sequences, or over their classes",
                    "grad.KEY": "gradient of the loss, as the tensor KEY",
                    "initial.PATH": "what the initialisation took from a weight",
                },
                purpose=purpose,
                model=str(model_dir),
                model_class=cls.__name__,
                trainable_parameters=trainable,
                trained=trained,
                classes=CLASSES,
                largest_logit_change=round(effect, 4),
                computed_in="float32, eager attention",
            ),
        )
        size = sum(f.stat().st_size for f in folder.iterdir())
        print(f"{name:24} {size/1e3:6.1f} kB  {len(stored):3} tensors  {trainable:6} trainable  moves logits by {effect:.2f}")


if __name__ == "__main__":
    main(sys.argv[1:])
