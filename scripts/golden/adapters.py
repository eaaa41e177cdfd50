"""Adapters written by peft for the tiny models, with reference logits.

Usage: python scripts/golden/adapters.py [NAME ...]      writes fixtures/adapters/NAME/

(Not called peft.py: a script of that name would hide the library it imports.)
"""

import json
import shutil
import sys
import warnings

import common
import peft
import torch
import transformers as hf
from common import FIXTURES, generator, header, token_ids, write_golden
from safetensors.torch import load_file

SEED = 20241
LENGTHS = (11, 7)
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


# name: (tiny model, class, peft config, what it is for)
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


def randomise(model, seed):
    """Give every tensor the adapter trains a random value; returns their names."""
    g = generator(seed)
    names = []
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            if p.requires_grad:
                p.copy_(0.3 * torch.randn(p.shape, generator=g))
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


def main(names):
    warnings.filterwarnings("ignore")
    hf.logging.set_verbosity_error()
    for name in names or ADAPTERS:
        tiny, cls, config, purpose = ADAPTERS[name]
        model_dir, folder = FIXTURES / "models" / tiny, FIXTURES / "adapters" / name
        shutil.rmtree(folder, ignore_errors=True)
        config.base_model_name_or_path = str(model_dir)
        torch.manual_seed(SEED)
        model = peft.get_peft_model(base(model_dir, cls), config).eval()
        trained = randomise(model, SEED)
        trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
        model.save_pretrained(folder)
        (folder / "README.md").unlink(missing_ok=True)

        # The golden comes from a fresh base plus the files.
        fresh = base(model_dir, cls)
        before = outputs(fresh)
        loaded = peft.PeftModel.from_pretrained(fresh, folder).eval()
        tensors = outputs(loaded)
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
        zero = [k for k, v in stored.items() if not v.any()]
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
                },
                purpose=purpose,
                model=str(model_dir),
                model_class=cls.__name__,
                trainable_parameters=trainable,
                trained=trained,
                largest_logit_change=round(effect, 4),
                computed_in="float32, eager attention",
            ),
        )
        size = sum(f.stat().st_size for f in folder.iterdir())
        print(f"{name:24} {size/1e3:6.1f} kB  {len(stored):3} tensors  {trainable:6} trainable  moves logits by {effect:.2f}")


if __name__ == "__main__":
    main(sys.argv[1:])
