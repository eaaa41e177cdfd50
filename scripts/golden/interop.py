"""Models and adapters at the edges of the exchange with Python, with reference outputs.

Usage: python scripts/golden/interop.py [NAME ...]      writes fixtures/interop/models/NAME/ and fixtures/interop/adapters/NAME/

Models have heads of their own or lack a prefix; adapters are those of `adapters.py` whose files hold more than their method.
"""

import json
import shutil
import sys

import common
import peft
import torch
import transformers as hf
from common import FIXTURES, generator, header, token_ids, write_golden

SEED = 20251
LENGTHS = (9, 6)
OUT = FIXTURES / "interop"
TINY = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, vocab_size=32)
ENCODER = dict(**TINY, max_position_embeddings=32, type_vocab_size=2)
LLAMA = dict(**TINY, num_key_value_heads=1, max_position_embeddings=32, bos_token_id=1, eos_token_id=2, pad_token_id=0)

# name: (config, class, what it is for)
MODELS = {
    "bert-classifier": (
        hf.BertConfig(**ENCODER, num_labels=3), hf.BertForSequenceClassification, "a base with a classifier of its own"),
    "bert-masked-lm": (hf.BertConfig(**ENCODER), hf.BertForMaskedLM, "a base with a head over the vocabulary"),
    "roberta-bare": (hf.RobertaConfig(**ENCODER, pad_token_id=1), hf.RobertaModel, "a bare base with a pooler"),
    "llama-classifier": (
        hf.LlamaConfig(**LLAMA, num_labels=3, tie_word_embeddings=False), hf.LlamaForSequenceClassification,
        "a decoder with a classifier of its own, untied"),
}


def lora(targets, task=None, **fields):
    return peft.LoraConfig(task_type=task, r=2, lora_alpha=8, target_modules=targets, **fields)


INTEROP, TINY_MODELS = OUT / "models", FIXTURES / "models"
CLASSIFIER = hf.BertForSequenceClassification
# name: (folder of the model, class, peft config, what it is for, options of save_pretrained)
ADAPTERS = {
    "bert-headless": (
        INTEROP / "bert-classifier", CLASSIFIER, lora(["query", "value"]), "an adapter that leaves the head of its base as it is", {}),
    "llama-headless": (
        INTEROP / "llama-classifier", hf.LlamaForSequenceClassification, lora(["q_proj"]), "the same on a decoder", {}),
    "bert-bare": (
        TINY_MODELS / "bert", hf.BertModel,
        lora(r"^encoder\.layer\.\d\.attention\.self\.(query|value)", "FEATURE_EXTRACTION",
             alpha_pattern={"^encoder.layer.0.*": 32, "value": 2}),
        "patterns over the paths of a bare encoder", {}),
    "bert-bias-all-seqcls": (
        TINY_MODELS / "bert", CLASSIFIER, lora(["query"], "SEQ_CLS", bias="all"), "biases of the head, three times in the file", {}),
    "roberta-bias-all-seqcls": (
        TINY_MODELS / "roberta", hf.RobertaForSequenceClassification, lora(["query"], "SEQ_CLS", bias="all"),
        "the same for a head of two layers", {}),
    "bert-hra-bias-all-seqcls": (
        TINY_MODELS / "bert", CLASSIFIER, peft.HRAConfig(task_type="SEQ_CLS", r=2, target_modules=["query"], bias="all"),
        "trained biases beside another method", {}),
    "bert-oft-bias-only": (
        TINY_MODELS / "bert", hf.BertModel,
        peft.OFTConfig(task_type="FEATURE_EXTRACTION", oft_block_size=8, target_modules=["query"], bias="oft_only"),
        "trained biases of the adapted maps", {}),
    "llama-bias-all": (
        TINY_MODELS / "llama", hf.LlamaForCausalLM, lora(["q_proj"], "CAUSAL_LM", bias="all"), "bias on a model without biases", {}),
    "llama-bias-only": (
        TINY_MODELS / "llama", hf.LlamaForCausalLM, lora(["q_proj"], "CAUSAL_LM", bias="lora_only"), "the same", {}),
    "llama-layers-empty": (
        TINY_MODELS / "llama", hf.LlamaForCausalLM,
        lora(["q_proj"], "CAUSAL_LM", layers_to_transform=[], layers_pattern="layers"), "an empty list of blocks names all", {}),
    "llama-whole-path": (
        TINY_MODELS / "llama", hf.LlamaForCausalLM,
        lora(["model.layers.0.self_attn.q_proj", "v_proj"], "CAUSAL_LM", layers_to_transform=[1]),
        "block numbers do not restrict a whole path", {}),
    "llama-saved-embeddings": (
        TINY_MODELS / "llama", hf.LlamaForCausalLM, lora(["q_proj"], "CAUSAL_LM"), "copies of the tables in the file",
        {"save_embedding_layers": True}),
    "llama-saved-mlp": (
        TINY_MODELS / "llama", hf.LlamaForCausalLM, lora("all-linear", "CAUSAL_LM", modules_to_save=["mlp"]),
        "modules that are saved whole are no targets", {}),
    "bert-prompt-seqcls": (
        TINY_MODELS / "bert", CLASSIFIER, peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=3),
        "a prompt in front of the token that the head reads", {}),
    "roberta-p-tuning-seqcls": (
        TINY_MODELS / "roberta", hf.RobertaForSequenceClassification,
        peft.PromptEncoderConfig(task_type="SEQ_CLS", num_virtual_tokens=3, encoder_hidden_size=8), "the same, from a network", {}),
    "mixtral-all-linear": (
        TINY_MODELS / "mixtral", hf.MixtralForCausalLM, lora("all-linear", "CAUSAL_LM"),
        "experts in two tensors and a router, as parameters", {}),
    "mixtral-experts": (
        TINY_MODELS / "mixtral", hf.MixtralForCausalLM, lora(["w1", "w2", "w3", "q_proj"], "CAUSAL_LM", use_rslora=True),
        "maps of experts that peft turns into parameters of twice the rank", {}),
    "mixtral-parameters": (
        TINY_MODELS / "mixtral", hf.MixtralForCausalLM,
        lora([], "CAUSAL_LM", target_parameters=["mlp.experts.gate_up_proj", "gate.weight"],
             rank_pattern={"gate.weight": 3}, alpha_pattern={"experts.gate_up_proj": 5}),
        "parameters alone, with patterns", {}),
    "mixtral-saved-router": (
        TINY_MODELS / "mixtral", hf.MixtralForCausalLM, lora(["q_proj"], "CAUSAL_LM", modules_to_save=["gate"]),
        "a router that is saved whole", {}),
    "deepseek-all-linear": (
        TINY_MODELS / "deepseek_v3", hf.DeepseekV3ForCausalLM, lora("all-linear", "CAUSAL_LM"),
        "names of parameters that a model without experts does not have", {}),
    "llama-tied-pair": (
        TINY_MODELS / "llama", hf.LlamaForCausalLM, lora(["embed_tokens", "q_proj"], "CAUSAL_LM", ensure_weight_tying=True),
        "a table and the head that shares it", {}),
    "llama-vblora-topk": (
        TINY_MODELS / "llama", hf.LlamaForCausalLM,
        peft.VBLoRAConfig(task_type="CAUSAL_LM", r=2, num_vectors=12, vector_length=8, topk=3, target_modules=["q_proj", "v_proj"],
                          save_only_topk_weights=True), "the vectors that are mixed and their weights alone", {}),
    "llama-vblora-topk-1": (
        TINY_MODELS / "llama", hf.LlamaForCausalLM,
        peft.VBLoRAConfig(task_type="CAUSAL_LM", r=2, num_vectors=300, vector_length=8, topk=1, target_modules=["q_proj", "v_proj"],
                          save_only_topk_weights=True), "one vector for a piece, of a bank that a byte cannot count", {}),
    "llama-tokens-tied-same": (
        TINY_MODELS / "llama", hf.LlamaForCausalLM,
        lora(["q_proj"], "CAUSAL_LM", trainable_token_indices={"embed_tokens": [17, 31], "lm_head": [17, 31]}),
        "rows of a table and of the head that shares it, the same ones", {}),
    "llama-tokens-tied-others": (
        TINY_MODELS / "llama", hf.LlamaForCausalLM,
        lora(["q_proj"], "CAUSAL_LM", trainable_token_indices={"embed_tokens": [17, 31], "lm_head": [3, 9, 17]}),
        "others in the head than in the table that it shares", {}),
    "llama-tokens-tied-head": (
        TINY_MODELS / "llama", hf.LlamaForCausalLM,
        lora(["q_proj"], "CAUSAL_LM", trainable_token_indices={"lm_head": [17, 31]}), "of a tied head alone", {}),
    "gpt2-tokens-two-tables": (
        TINY_MODELS / "gpt2", hf.GPT2LMHeadModel,
        lora(["c_attn"], "CAUSAL_LM", trainable_token_indices={"wte": [17, 31], "wpe": [0, 2]}), "of tokens and of positions", {}),
    "llama-prompt-saved-head": (
        TINY_MODELS / "llama", hf.LlamaForCausalLM,
        peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3, modules_to_save=["lm_head"]),
        "a prompt with a trained head, which was tied", {}),
    "llama-p-tuning-saved-norm": (
        TINY_MODELS / "llama", hf.LlamaForCausalLM,
        peft.PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=3, encoder_hidden_size=8, modules_to_save=["norm", "lm_head"]),
        "a prompt with a trained norm and head", {}),
    "llama-prefix-saved-head": (
        TINY_MODELS / "llama-rope-llama3", hf.LlamaForCausalLM,
        peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3, modules_to_save=["lm_head", "embed_tokens"]),
        "keys and values in front of a model with trained tables", {}),
    "bert-token-cls": (
        TINY_MODELS / "bert", hf.BertForTokenClassification, lora(["query"], "TOKEN_CLS"), "a head over single tokens", {}),
    "bert-question-answering": (
        TINY_MODELS / "bert", hf.BertForQuestionAnswering, lora(["query"], "QUESTION_ANS"), "a head over spans", {}),
}


def load(folder, cls):
    extra = {"num_labels": 3} if folder.parent == TINY_MODELS and "SequenceClassification" in cls.__name__ else {}
    torch.manual_seed(SEED)
    return cls.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager", **extra).eval()


def randomise(parameters, spread):
    g = generator(SEED)
    with torch.no_grad():
        for _, p in sorted(parameters):
            p.copy_(spread * torch.randn(p.shape, generator=g))


@torch.no_grad()
def outputs(model):
    tensors = {}
    for s, ids in enumerate(token_ids(SEED + 1, LENGTHS, 32)):
        out = model(input_ids=ids, attention_mask=torch.ones_like(ids))
        tensors[f"seq{s}.input_ids"] = ids[0]
        names = [n for n in ("logits", "last_hidden_state", "pooler_output") if getattr(out, n, None) is not None]
        tensors |= {f"seq{s}.{n}": getattr(out, n)[0] for n in names}
    return tensors


KEYS = {
    "seqS.input_ids": "[tokens] i64, each sequence was run by itself",
    "seqS.NAME": "logits, last_hidden_state or pooler_output of the class, without the batch",
}


def write(folder, tensors, cls, purpose, **more):
    write_golden(folder, tensors, header(SEED, KEYS, purpose=purpose, model_class=cls.__name__, **more))
    print(folder.name, sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()))


def beside(folder):
    """Files that lie beside the weights of real models."""
    files = {
        "generation_config.json": {"eos_token_id": [2, 5], "temperature": 0.6},
        "modules.json": [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
                         {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}],
        "1_Pooling/config.json": {"word_embedding_dimension": 16, "pooling_mode_mean_tokens": True},
        "special_tokens_map.json": {"additional_special_tokens": ["<a>"]},
        "preprocessor_config.json": {"size": 1},
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")
    (folder / "chat_template.jinja").write_text("{{ messages }}\n")


def main(names):
    if not names:
        shutil.rmtree(OUT, ignore_errors=True)
    for name, (config, cls, purpose) in MODELS.items():
        if names and name not in names:
            continue
        torch.manual_seed(SEED)
        model = cls(config).eval()
        # Spread out, so that a missing or misplaced tensor shows.
        randomise([p for p in model.named_parameters() if p[1].ndim > 1], 0.3)
        model.save_pretrained(INTEROP / name)
        beside(INTEROP / name)
        write(INTEROP / name, outputs(load(INTEROP / name, cls)), cls, purpose)
    for name, (model_dir, cls, config, purpose, options) in ADAPTERS.items():
        if names and name not in names:
            continue
        folder = OUT / "adapters" / name
        config.base_model_name_or_path = str(model_dir)
        torch.manual_seed(SEED)
        model = peft.get_peft_model(load(model_dir, cls), config).eval()
        randomise([p for p in model.named_parameters() if p[1].requires_grad], 0.3)
        model.save_pretrained(folder, **options)
        (folder / "README.md").unlink(missing_ok=True)
        loaded = peft.PeftModel.from_pretrained(load(model_dir, cls), folder).eval()
        write(folder, outputs(loaded), cls, purpose, model=str(model_dir))


if __name__ == "__main__":
    main(sys.argv[1:])
