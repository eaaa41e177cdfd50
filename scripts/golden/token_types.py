"""Which tokenizers tell a model the two texts of a pair apart.

Usage: python scripts/golden/token_types.py

Writes fixtures/token_types.json: for each case what is put into tokenizer_config.json of fixtures/tokenizers/word-piece
and, where a model lies beside it, its config.json, with the token types that AutoTokenizer of transformers gives for a
pair (null where it gives none). Needs no torch.
"""

import importlib.metadata as md
import json
import shutil
import sys
import tempfile
from pathlib import Path

from transformers import AutoTokenizer

ROOT = Path(__file__).resolve().parents[2]
PAIR = ("the film is good", "it was not good")
NAMES = ["input_ids", "token_type_ids", "attention_mask"]
CLASSES = [
    "BertTokenizer", "BertTokenizerFast", "DistilBertTokenizer", "DistilBertTokenizerFast", "ElectraTokenizer",
    "MobileBertTokenizer", "LxmertTokenizer", "LayoutLMTokenizer", "PreTrainedTokenizerFast", "TokenizersBackend",
    "NoSuchTokenizer",
]
CASES = [({"tokenizer_class": name}, None) for name in CLASSES] + [
    ({"tokenizer_class": "BertTokenizer", "model_input_names": ["input_ids", "attention_mask"]}, None),
    ({"tokenizer_class": "DistilBertTokenizer", "model_input_names": NAMES}, None),
    ({"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": NAMES}, None),
    ({}, {"model_type": "bert"}),
    ({}, {"model_type": "distilbert"}),
    ({}, {"model_type": "electra"}),
    ({}, {"model_type": "bert", "tokenizer_class": "DistilBertTokenizer"}),
    ({"tokenizer_class": "DistilBertTokenizer"}, {"model_type": "bert"}),
    ({"tokenizer_class": "PreTrainedTokenizerFast"}, {"model_type": "bert"}),
    ({"tokenizer_class": "BertTokenizer"}, {"model_type": "roberta"}),
]


def main():
    out = []
    source = ROOT / "fixtures" / "tokenizers" / "word-piece"
    for changes, model in CASES:
        with tempfile.TemporaryDirectory() as folder:
            folder = Path(folder)
            shutil.copy(source / "tokenizer.json", folder)
            config = json.loads((source / "tokenizer_config.json").read_text())
            config.pop("tokenizer_class")
            (folder / "tokenizer_config.json").write_text(json.dumps(config | changes))
            if model:
                (folder / "config.json").write_text(json.dumps(model))
            given = AutoTokenizer.from_pretrained(folder)(*PAIR)
            out.append({"config": changes, "model": model, "token_type_ids": given.get("token_type_ids")})
    versions = {n: md.version(n) for n in ("transformers", "tokenizers")} | {"python": sys.version.split()[0]}
    golden = {"generator": "scripts/golden/token_types.py", "versions": versions, "pair": PAIR, "cases": out}
    path = ROOT / "fixtures" / "token_types.json"
    path.write_text(json.dumps(golden, indent=1) + "\n", encoding="utf-8")
    for case in out:
        print(case)


if __name__ == "__main__":
    main()
