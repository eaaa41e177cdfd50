"""Golden ids for tokens that stand beside tokenizer.json: in added_tokens.json, special_tokens_map.json, tokenizer_config.json.

Writes fixtures/added_tokens.json: for each case the files to put over those of fixtures/tokenizers/byte-level, and the ids that
AutoTokenizer of transformers gives. Needs no torch.
"""

import importlib.metadata as md
import json
import shutil
import sys
import tempfile
from pathlib import Path

from transformers import AutoTokenizer

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "fixtures" / "tokenizers" / "byte-level"
X1, X2 = "<|x1|>", "<tool>"
TEXTS = ["a<|x1|>b", "a <|x1|> b", "<tool><|x1|>", "the film<tool> is good", "bad<|im_end|>"]


def added(content, lstrip=False, rstrip=False, special=True):
    return {
        "content": content,
        "lstrip": lstrip,
        "normalized": False,
        "rstrip": rstrip,
        "single_word": False,
        "special": special,
    }


CASES = {
    "added_tokens.json": {"added_tokens.json": {X1: 340}},
    "two in the order of their ids": {"added_tokens.json": {X2: 341, X1: 340}},
    "additional_special_tokens of the map": {"special_tokens_map.json": {"additional_special_tokens": [X1]}},
    "pad_token of the map": {"special_tokens_map.json": {"pad_token": X1}},
    "map and added_tokens.json": {
        "added_tokens.json": {X1: 340},
        "special_tokens_map.json": {"additional_special_tokens": [X1]},
    },
    "added_tokens_decoder that takes spaces": {
        "tokenizer_config.json": {"added_tokens_decoder": {"340": added(X1, lstrip=True, rstrip=True)}}
    },
    "added_tokens_decoder not special": {
        "tokenizer_config.json": {"added_tokens_decoder": {"340": added(X1, special=False), "341": added(X2)}}
    },
    "additional_special_tokens of the config": {"tokenizer_config.json": {"additional_special_tokens": [X2, X1]}},
    "extra_special_tokens as a list": {"tokenizer_config.json": {"extra_special_tokens": [X1]}},
    "extra_special_tokens by name": {"tokenizer_config.json": {"extra_special_tokens": {"image_token": X1}}},
    "cls_token of the config": {"tokenizer_config.json": {"cls_token": X1}},
    "pad_token with its own stripping": {
        "tokenizer_config.json": {"pad_token": added(X1, lstrip=True) | {"__type": "AddedToken"}}
    },
    "a token that the vocabulary has": {"added_tokens.json": {"film": 260}, "tokenizer_config.json": {}},
}


def main():
    vocab = json.loads((SOURCE / "tokenizer.json").read_text())["model"]["vocab"]
    word = next(t for t in ("film", "Ġfilm", "good", "the") if t in vocab)
    CASES["a token that the vocabulary has"] = {"added_tokens.json": {word: vocab[word]}}
    out = []
    for name, files in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            folder = Path(folder)
            for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
                shutil.copy(SOURCE / file, folder)
            merged = {}
            for file, value in files.items():
                path = folder / file
                merged[file] = (json.loads(path.read_text()) if path.exists() else {}) | value
                path.write_text(json.dumps(merged[file]))
            tokenizer = AutoTokenizer.from_pretrained(folder)
            cases = [
                {
                    "text": text,
                    "ids": tokenizer(text).input_ids,
                    "decoded": tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True),
                }
                for text in TEXTS
            ]
            out.append({"name": name, "files": merged, "pad_token": tokenizer.pad_token, "cases": cases})
    versions = {n: md.version(n) for n in ("transformers", "tokenizers")} | {"python": sys.version.split()[0]}
    golden = {"generator": "scripts/golden/added_tokens.py", "versions": versions, "folders": out}
    path = ROOT / "fixtures" / "added_tokens.json"
    path.write_text(json.dumps(golden, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{len(out)} folders, {len(TEXTS)} texts each")


if __name__ == "__main__":
    main()
