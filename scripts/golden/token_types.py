"""Token types of two texts by the class and the `model_input_names` of tokenizer_config.json.

Usage: python scripts/golden/token_types.py

Writes fixtures/token_types.json: what is put into the tokenizer_config.json of fixtures/tokenizers/word-piece, and the token types that
AutoTokenizer of transformers gives, null for none. Needs no torch.
"""

import importlib.metadata as md
import json
import shutil
import tempfile
from pathlib import Path

from transformers import AutoTokenizer

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "fixtures/tokenizers/word-piece"
CLASSES = [
    "BertTokenizer", "BertTokenizerFast", "ElectraTokenizer", "MobileBertTokenizer", "PreTrainedTokenizerFast", "DistilBertTokenizer",
    "SomebodysTokenizer", None,
]
NAMES = [None, ["input_ids", "attention_mask"], ["input_ids", "token_type_ids", "attention_mask"]]
PAIR = ["the film", "is good"]


def types(name, names):
    with tempfile.TemporaryDirectory() as folder:
        for file in SOURCE.iterdir():
            shutil.copy(file, folder)
        path = Path(folder) / "tokenizer_config.json"
        config = json.loads(path.read_text())
        for key, value in (("tokenizer_class", name), ("model_input_names", names)):
            config.pop(key, None)
            if value is not None:
                config[key] = value
        path.write_text(json.dumps(config))
        # What AutoTokenizer goes by where no class is named.
        (Path(folder) / "config.json").write_text(json.dumps({"model_type": "bert"}))
        return AutoTokenizer.from_pretrained(folder)(*PAIR).get("token_type_ids")


def main():
    cases = [{"tokenizer_class": c, "model_input_names": n, "token_type_ids": types(c, n)} for c in CLASSES for n in NAMES]
    golden = {"transformers": md.version("transformers"), "pair": PAIR, "cases": cases}
    (ROOT / "fixtures/token_types.json").write_text(json.dumps(golden, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
