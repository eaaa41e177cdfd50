"""Labels of words: entities by seqeval, words by tokenizers, heads by transformers, adapters by peft.

Usage: python scripts/golden/token_classification.py
       writes fixtures/metrics/entities.json and fixtures/token_classification/

Needs seqeval==1.2.2 beside what requirements.txt lists.
"""

import json
import shutil
import warnings

import common
import peft
import seqeval.metrics as seqeval
import torch
import transformers as hf
from common import FIXTURES, generator, header, token_ids, write_golden
from seqeval.metrics.sequence_labeling import get_entities

SEED = 20261
OUT = FIXTURES / "token_classification"
LABELS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
ID2LABEL = dict(enumerate(LABELS))
TINY = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, vocab_size=32)
ENCODER = dict(**TINY, max_position_embeddings=32, type_vocab_size=2)
NAMES = dict(id2label=ID2LABEL, label2id={label: i for i, label in ID2LABEL.items()})
# name: (config, class)
MODELS = {
    "bert": (hf.BertConfig(**ENCODER, **NAMES), hf.BertForTokenClassification),
    "roberta": (hf.RobertaConfig(**ENCODER, **NAMES, pad_token_id=1), hf.RobertaForTokenClassification),
    "gpt2": (
        hf.GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=32, n_positions=32, bos_token_id=1, eos_token_id=2, **NAMES),
        hf.GPT2ForTokenClassification),
    "llama": (
        hf.LlamaConfig(**TINY, **NAMES, num_key_value_heads=1, max_position_embeddings=32, bos_token_id=1, eos_token_id=2,
                       pad_token_id=0, tie_word_embeddings=False),
        hf.LlamaForTokenClassification),
}
# name: (folder of the model, class, names of the adapted layers); `dense` is also that of a pooler, which the class lacks
ADAPTERS = {
    "bert": ("bert", hf.BertForTokenClassification, ["query", "dense"]),
    "llama": ("llama", hf.LlamaForTokenClassification, ["q_proj", "down_proj"]),
}
LENGTHS = (9, 6)


def tags(g, length, names):
    return [names[int(torch.randint(len(names), (1,), generator=g))] for _ in range(length)]


def entity_cases():
    g = generator(SEED)
    iob2 = ["O", "O", "O", "B-PER", "I-PER", "B-LOC", "I-LOC", "B-A-B", "I-A-B"]
    others = iob2 + ["E-PER", "S-PER", "E-LOC", "S-LOC", "B", "I", "NOUN", "VERB"]
    for i in range(40):
        names = iob2 if i < 24 else others
        lengths = [int(n) for n in torch.randint(1, 12, (1 + i % 5,), generator=g)]
        gold = [tags(g, n, names) for n in lengths]
        right = 0.7 if i % 3 else 0.2
        predicted = [
            [t if float(torch.rand(1, generator=g)) < right else tags(g, 1, names)[0] for t in text] for text in gold
        ]
        yield gold, predicted


def entities():
    cases = []
    for gold, predicted in entity_cases():
        report = seqeval.classification_report(gold, predicted, output_dict=True, zero_division=0)
        kinds = {
            name: [float(report[name][k]) for k in ("precision", "recall", "f1-score", "support")]
            for name in report if name not in ("micro avg", "macro avg", "weighted avg")
        }
        score = dict(zero_division=0)
        cases.append({
            "gold": gold, "predicted": predicted,
            "entities": [get_entities(text) for text in gold],
            "precision": float(seqeval.precision_score(gold, predicted, **score)),
            "recall": float(seqeval.recall_score(gold, predicted, **score)),
            "f1": float(seqeval.f1_score(gold, predicted, **score)),
            "accuracy": float(seqeval.accuracy_score(gold, predicted)),
            "kinds": kinds,
        })
    head = header(SEED, {"cases": "seqeval 1.2.2, default mode, zero_division 0"})
    (FIXTURES / "metrics" / "entities.json").write_text(json.dumps(head | {"cases": cases}) + "\n")


SENTENCES = [
    ["EU", "rejects", "German", "call"],
    ["Unbelievable", "", "words", "they're", "…"],
    ["a"],
    ["New", "York", "'s", "über-long", "end", "of", "it", "all", "here"],
]


def words():
    """Tokens of words, and labels as examples/pytorch/token-classification/run_ner.py aligns them."""
    cases = []
    for name in ("word-piece", "byte-level", "metaspace"):
        more = {"add_prefix_space": True} if name == "byte-level" else {}
        tokenizer = hf.AutoTokenizer.from_pretrained(FIXTURES / "tokenizers" / name, **more)
        for sentence in SENTENCES:
            encoded = tokenizer(sentence, is_split_into_words=True)
            cut = tokenizer(sentence, is_split_into_words=True, truncation=True, max_length=6)
            own = [LABELS[i % len(LABELS)] for i in range(len(sentence))]
            aligned = {}
            for every in (False, True):
                last, found = None, []
                for word in encoded.word_ids():
                    label = -100
                    if word is not None and word != last:
                        label = LABELS.index(own[word])
                    elif word is not None and every:
                        label = LABELS.index(own[word].replace("B-", "I-"))
                    found.append(label)
                    last = word
                aligned["all" if every else "first"] = found
            cases.append({
                "tokenizer": name, "words": sentence, "tags": own, "input_ids": encoded["input_ids"],
                "word_ids": encoded.word_ids(), "cut": cut["input_ids"], **aligned,
            })
    head = header(SEED, {"cases": "is_split_into_words=True; cut to 6 tokens; labels on the first token of a word and on all"})
    (OUT / "words.json").write_text(json.dumps(head | {"labels": LABELS, "cases": cases}) + "\n")


def randomise(parameters, spread):
    g = generator(SEED)
    with torch.no_grad():
        for _, p in sorted(parameters):
            p.copy_(spread * torch.randn(p.shape, generator=g))


def outputs(model):
    """Logits of each sequence, and loss and gradient of the head over both together."""
    g = generator(SEED + 2)
    tensors, total, count = {}, 0, 0
    for s, ids in enumerate(token_ids(SEED + 1, LENGTHS, 32)):
        labels = torch.randint(len(LABELS), ids.shape, generator=g)
        labels[torch.rand(ids.shape, generator=g) < 0.3] = -100
        out = model(input_ids=ids, attention_mask=torch.ones_like(ids))
        tensors |= {f"seq{s}.input_ids": ids[0], f"seq{s}.labels": labels[0], f"seq{s}.logits": out.logits[0]}
        total = total + torch.nn.functional.cross_entropy(out.logits[0], labels[0], reduction="sum")
        count += int((labels != -100).sum())
    loss = total / count
    head = [(n, p) for n, p in model.named_parameters() if n.endswith(("classifier.weight", "score.weight", "default.weight"))]
    head = [p for n, p in head if p.requires_grad and ("classifier" in n or "score" in n)]
    (gradient,) = torch.autograd.grad(loss, head)
    return tensors | {"loss": loss.reshape(1), "head.gradient": gradient}


KEYS = {
    "seqS.input_ids": "[tokens] i64", "seqS.labels": "[tokens] i64, -100 where nothing is said",
    "seqS.logits": "[tokens, labels]", "loss": "mean over the labelled tokens of both", "head.gradient": "of the head's weight",
}


def main():
    warnings.simplefilter("ignore")
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir()
    entities()
    words()
    for name, (config, cls) in MODELS.items():
        torch.manual_seed(SEED)
        model = cls(config).eval()
        randomise([p for p in model.named_parameters() if p[1].ndim > 1 or "classifier" in p[0] or "score" in p[0]], 0.3)
        folder = OUT / "models" / name
        model.save_pretrained(folder)
        (folder / "generation_config.json").unlink(missing_ok=True)
        write_golden(folder, outputs(model), header(SEED, KEYS, model_class=cls.__name__))
    for name, (base, cls, targets) in ADAPTERS.items():
        folder, model_dir = OUT / "adapters" / name, FIXTURES / "models" / base
        def load():
            torch.manual_seed(SEED)
            return cls.from_pretrained(model_dir, dtype=torch.float32, attn_implementation="eager", num_labels=len(LABELS)).eval()
        config = peft.LoraConfig(task_type="TOKEN_CLS", r=2, lora_alpha=8, target_modules=targets)
        config.base_model_name_or_path = str(model_dir)
        model = peft.get_peft_model(load(), config).eval()
        randomise([p for p in model.named_parameters() if p[1].requires_grad], 0.3)
        model.save_pretrained(folder)
        (folder / "README.md").unlink(missing_ok=True)
        loaded = peft.PeftModel.from_pretrained(load(), folder, is_trainable=True).eval()
        write_golden(folder, outputs(loaded), header(SEED, KEYS, model=str(model_dir), model_class=cls.__name__))


if __name__ == "__main__":
    main()
