"""Settings of tokenizer_config.json that a class puts in place of those of tokenizer.json.

Usage: python scripts/golden/tokenizer_classes.py

Writes fixtures/tokenizer_classes.json: for each case the folder under fixtures/tokenizers, what is put into its
tokenizer_config.json, and the ids that AutoTokenizer of transformers gives. Needs no torch.
"""

import importlib.metadata as md
import json
import shutil
import sys
import tempfile
from pathlib import Path

from transformers import AutoTokenizer

ROOT = Path(__file__).resolve().parents[2]
TEXTS = ["the film is good", " the Film", "It was NOT good, naïve café", "電影 good"]
SPACE = {"add_prefix_space": True}
CASES = {
    "a space before each text": ("byte-level", {"tokenizer_class": "GPT2Tokenizer", **SPACE}),
    "a space before each text, of the class's fast form": ("byte-level", {"tokenizer_class": "GPT2TokenizerFast", **SPACE}),
    "no space before a text": ("byte-level", {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": False}),
    "the class that takes all from tokenizer.json": ("byte-level", {"tokenizer_class": "PreTrainedTokenizerFast", **SPACE}),
    "cased": ("word-piece", {"tokenizer_class": "BertTokenizer", "do_lower_case": False}),
    "cased without accents": (
        "word-piece", {"tokenizer_class": "BertTokenizerFast", "do_lower_case": False, "strip_accents": True}),
    "lower case with accents": (
        "word-piece", {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "strip_accents": False}),
    "Chinese characters together": (
        "word-piece", {"tokenizer_class": "BertTokenizer", "tokenize_chinese_chars": False}),
}


def main():
    out = []
    for name, (source, changes) in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            folder = Path(folder)
            shutil.copytree(ROOT / "fixtures" / "tokenizers" / source, folder, dirs_exist_ok=True)
            path = folder / "tokenizer_config.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | changes))
            tokenizer = AutoTokenizer.from_pretrained(folder)
            cases = [{"text": text, "ids": tokenizer(text).input_ids} for text in TEXTS]
            out.append({"name": name, "folder": source, "config": changes, "cases": cases})
    versions = {n: md.version(n) for n in ("transformers", "tokenizers")} | {"python": sys.version.split()[0]}
    golden = {"generator": "scripts/golden/tokenizer_classes.py", "versions": versions, "folders": out}
    path = ROOT / "fixtures" / "tokenizer_classes.json"
    path.write_text(json.dumps(golden, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{len(out)} cases, {len(TEXTS)} texts each")


if __name__ == "__main__":
    main()
