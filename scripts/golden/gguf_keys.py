"""The metadata keys of a model that gguf knows, whatever its architecture.

Usage: python scripts/golden/gguf_keys.py      writes fixtures/gguf/keys.json
"""

import importlib.metadata as md
import inspect
import json
from pathlib import Path

from gguf import constants

OUT = Path(__file__).resolve().parents[2] / "fixtures" / "gguf" / "keys.json"
PREFIX = "{arch}."


def keys(group):
    for value in vars(group).values():
        if isinstance(value, str) and value.startswith(PREFIX):
            yield value.removeprefix(PREFIX)
        elif inspect.isclass(value):
            yield from keys(value)


def main():
    golden = {
        "generator": "scripts/golden/gguf_keys.py",
        "versions": {"gguf": md.version("gguf")},
        # Names that other parts are put into belong to embedding models alone.
        "keys": sorted({key for key in keys(constants.Keys) if "{" not in key}),
    }
    OUT.write_text(json.dumps(golden, indent=1) + "\n")
    print(f"{len(golden['keys'])} keys")


if __name__ == "__main__":
    main()
