"""What sentence-transformers computes with a tiny encoder, for every kind of pooling and module.

Usage: python scripts/golden/encoders.py   writes fixtures/encoders

`base` is a tiny random BERT with its tokenizer, `cross` one with a classifier of one output. Every
folder in `variants` holds what else a model's folder has (`modules.json` and the like), as
sentence-transformers saves it, and `expected.json`: texts with their vectors. `old` is such a folder
as versions before 6 wrote it.
"""

import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch
from common import FIXTURES
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.util.quantization import quantize_embeddings
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    PreTrainedTokenizerFast,
)

OUT = FIXTURES / "encoders"
WORDS = (
    "[PAD] [UNK] [CLS] [SEP] [MASK] query : passage the wing of a flutter at speed super ##sonic "
    "flow over body heat trans ##fer . ,"
).split()
TEXTS = [
    "wing flutter at supersonic speed",
    "heat",
    "the flow over a body , the heat transfer of the body and the flutter of the wing",
    "Heat transfer .",
]
MODES = ["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]


def tokenizer(max_length):
    inner = Tokenizer(models.WordPiece({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    inner.normalizer = normalizers.BertNormalizer(lowercase=True)
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=max_length,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def config(**more):
    return BertConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=40,
        initializer_range=0.3,
        **more,
    )


def save(name, model, cases):
    """Saves what is not in `base`, and the vectors of each case: options of `encode`."""
    folder = OUT / "variants" / name
    folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as whole:
        model.save(whole, create_model_card=False)
        for path in Path(whole).rglob("*"):
            inside = path.relative_to(whole)
            at_top = len(inside.parts) == 1
            kept = path.name in (
                "modules.json",
                "sentence_bert_config.json",
                "config_sentence_transformers.json",
                "tokenizer_config.json",
            )
            if path.is_file() and (kept or not at_top):
                (folder / inside).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, folder / inside)
    expected = []
    for options in cases:
        vectors = model.encode(TEXTS, **options)
        expected.append({"options": options, "vectors": vectors.tolist()})
    # No time, version or path of the machine.
    path = folder / "config_sentence_transformers.json"
    settings = json.loads(path.read_text())
    settings.pop("__version__", None)
    path.write_text(json.dumps(settings, indent=1) + "\n")
    (folder / "expected.json").write_text(json.dumps({"texts": TEXTS, "cases": expected}) + "\n")


def transformer():
    return Transformer(str(OUT / "base"))


def named_and_flagged():
    """Modes by name beside flags of older files that say something else."""
    folder = OUT / "variants" / "named-and-flagged"
    shutil.copytree(OUT / "variants" / "several", folder)
    (folder / "1_Pooling" / "config.json").write_text(
        json.dumps(
            {
                "word_embedding_dimension": 32,
                "pooling_mode": "weightedmean",
                "pooling_mode_cls_token": True,
                "pooling_mode_mean_tokens": True,
                "pooling_mode_max_tokens": False,
            }
        )
        + "\n"
    )
    (folder / "expected.json").unlink()
    with tempfile.TemporaryDirectory() as whole:
        shutil.copytree(OUT / "base", whole, dirs_exist_ok=True)
        shutil.copytree(folder, whole, dirs_exist_ok=True)
        vectors = SentenceTransformer(whole).encode(TEXTS)
    expected = {"texts": TEXTS, "cases": [{"options": {}, "vectors": vectors.tolist()}]}
    (folder / "expected.json").write_text(json.dumps(expected) + "\n")


def similar():
    """Vectors of any length, compared by what the folder says: `model.similarity` of all texts."""
    for name in ["dot", "cosine"]:
        model = SentenceTransformer(
            modules=[transformer(), Pooling(32, pooling_mode="mean_sqrt_len_tokens")], similarity_fn_name=name
        )
        save(f"similarity-{name}", model, [{}])
        path = OUT / "variants" / f"similarity-{name}" / "expected.json"
        expected = json.loads(path.read_text())
        vectors = model.encode(TEXTS)
        expected["similarity"] = model.similarity(vectors, vectors).tolist()
        path.write_text(json.dumps(expected) + "\n")


def main():
    shutil.rmtree(OUT, ignore_errors=True)
    torch.manual_seed(0)
    BertModel(config()).save_pretrained(OUT / "base")
    tokenizer(16).save_pretrained(OUT / "base")
    for mode in MODES:
        save(mode, SentenceTransformer(modules=[transformer(), Pooling(32, pooling_mode=mode)]), [{}])
        prompted = SentenceTransformer(
            modules=[transformer(), Pooling(32, pooling_mode=mode, include_prompt=False)],
            prompts={"query": "query : ", "passage": "passage : "},
        )
        save(f"{mode}-prompt", prompted, [{}, {"prompt_name": "query"}, {"prompt": "the wing "}])
    several = SentenceTransformer(
        modules=[transformer(), Pooling(32, pooling_mode=("max", "cls", "mean"))]
    )
    save("several", several, [{}])
    torch.manual_seed(1)
    dense = SentenceTransformer(
        modules=[
            transformer(),
            Pooling(32, pooling_mode="mean"),
            Dense(32, 24),
            Dense(24, 16, bias=False, activation_function=torch.nn.Identity()),
            Normalize(),
        ],
        prompts={"query": "query : "},
        default_prompt_name="query",
    )
    save(
        "dense",
        dense,
        [
            {},
            {"prompt": ""},
            {"truncate_dim": 5},
            {"truncate_dim": 5, "normalize_embeddings": True},
        ],
    )
    # As versions before 6 have it: a flag for each mode, and the longest text beside the model.
    old = OUT / "variants" / "old"
    shutil.copytree(OUT / "variants" / "several", old)
    (old / "1_Pooling" / "config.json").write_text(
        json.dumps(
            {
                "word_embedding_dimension": 32,
                "pooling_mode_cls_token": True,
                "pooling_mode_mean_tokens": True,
                "pooling_mode_max_tokens": False,
                "pooling_mode_mean_sqrt_len_tokens": False,
            }
        )
    )
    (old / "sentence_bert_config.json").write_text('{"max_seq_length": 8, "do_lower_case": true}')
    for path in ["modules.json"]:
        modules = json.loads((old / path).read_text())
        for module in modules:
            module["type"] = "sentence_transformers.models." + module["type"].split(".")[-1]
        (old / path).write_text(json.dumps(modules, indent=1) + "\n")
    (old / "config_sentence_transformers.json").unlink()
    (old / "expected.json").unlink()
    with tempfile.TemporaryDirectory() as whole:
        shutil.copytree(OUT / "base", whole, dirs_exist_ok=True)
        shutil.copytree(old, whole, dirs_exist_ok=True)
        vectors = SentenceTransformer(whole).encode(TEXTS)
    expected = {"texts": TEXTS, "cases": [{"options": {}, "vectors": vectors.tolist()}]}
    (old / "expected.json").write_text(json.dumps(expected) + "\n")

    named_and_flagged()
    similar()

    torch.manual_seed(2)
    vectors = torch.randn(6, 20).numpy()
    quantized = {
        name: quantize_embeddings(vectors, precision=name).tolist()
        for name in ["int8", "uint8", "binary", "ubinary"]
    }
    text = json.dumps({"vectors": np.asarray(vectors).tolist(), **quantized})
    (OUT / "quantized.json").write_text(text + "\n")

    torch.manual_seed(3)
    BertForSequenceClassification(config(num_labels=1)).save_pretrained(OUT / "cross")
    tokenizer(24).save_pretrained(OUT / "cross")
    cross = CrossEncoder(str(OUT / "cross"))
    query = "wing flutter"
    scores = cross.predict([(query, text) for text in TEXTS])
    ranks = [hit["corpus_id"] for hit in cross.rank(query, TEXTS)]
    expected = {"query": query, "texts": TEXTS, "scores": scores.tolist(), "order": ranks}
    (OUT / "cross" / "expected.json").write_text(json.dumps(expected) + "\n")


if __name__ == "__main__":
    main()
