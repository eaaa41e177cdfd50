"""What sentence-transformers computes with a tiny sparse encoder, for every kind of pooling.

Usage: python scripts/golden/sparse_encoders.py   writes fixtures/encoders/sparse

`base` is a tiny random BERT with its masked language model and tokenizer, whose layer norms are named
`gamma` and `beta` as in old files. `variants` holds what else a folder has (`modules.json` and the like);
`expected.json` the weights above 0 of each text, by entry of the vocabulary, for each of them and for
`base` alone.
"""

import json
import shutil
import tempfile
from pathlib import Path

import torch
from common import FIXTURES
from encoders import TEXTS, config, tokenizer
from safetensors.torch import load_file, save_file
from sentence_transformers import SparseEncoder
from sentence_transformers.sparse_encoder.modules import SpladePooling
from sentence_transformers.base.modules.transformer import Transformer
from transformers import BertForMaskedLM

OUT = FIXTURES / "encoders" / "sparse"
VARIANTS = {"max": ("max", "relu"), "sum": ("sum", "relu"), "max-twice": ("max", "log1p_relu"), "sum-twice": ("sum", "log1p_relu")}


def weights(model):
    rows = model.encode(TEXTS, convert_to_sparse_tensor=False).tolist()
    return [{str(i): w for i, w in enumerate(row) if w > 0} for row in rows]


def main():
    shutil.rmtree(OUT, ignore_errors=True)
    torch.manual_seed(5)
    model = BertForMaskedLM(config())
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "LayerNorm" in name or name.endswith("bias"):
                value.add_(torch.randn_like(value) * 0.2)
    base = OUT / "base"
    model.save_pretrained(base)
    tokenizer(16).save_pretrained(base)
    expected = {"texts": TEXTS, "base": weights(SparseEncoder(str(base), device="cpu"))}
    for name, (strategy, activation) in VARIANTS.items():
        modules = [Transformer(str(base), transformer_task="fill-mask"), SpladePooling(strategy, activation)]
        encoder = SparseEncoder(modules=modules, device="cpu")
        expected[name] = weights(encoder)
        folder = OUT / "variants" / name
        with tempfile.TemporaryDirectory() as whole:
            encoder.save(whole, create_model_card=False)
            for kept in ("modules.json", "sentence_bert_config.json", "1_SpladePooling/config.json"):
                (folder / kept).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(Path(whole) / kept, folder / kept)
    tensors = load_file(base / "model.safetensors")
    old = lambda name: name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
    save_file({old(name): value for name, value in tensors.items()}, base / "model.safetensors", metadata={"format": "pt"})
    (base / "model.safetensors").chmod(0o644)
    # What classes of other programs are asked to do.
    for name in ("generation_config.json",):
        (base / name).unlink(missing_ok=True)
    (OUT / "expected.json").write_text(json.dumps(expected) + "\n")


main()
