"""Shared by the golden generators: paths, seeding, headers, deterministic writes."""

import json
import os
import sys
from pathlib import Path

# peft keeps target_modules in a set; a fixed hash seed makes the files it writes reproducible.
if os.environ.get("PYTHONHASHSEED") != "0":
    os.environ["PYTHONHASHSEED"] = "0"
    os.execv(sys.executable, [sys.executable, *sys.argv])
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TQDM_DISABLE", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"

import torch
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = Path(sys.argv[0]).resolve()
# Relative paths end up in the files peft writes; absolute ones would not be reproducible.
os.chdir(ROOT)
FIXTURES = Path("fixtures")
torch.set_num_threads(2)


def versions():
    import importlib.metadata as md

    names = ("torch", "transformers", "peft", "safetensors", "tokenizers", "gguf", "numpy")
    return {n: md.version(n) for n in names} | {"python": sys.version.split()[0]}


def header(seed, keys, **extra):
    """The JSON header that accompanies every golden file."""
    script = SCRIPT.relative_to(ROOT) if SCRIPT.is_relative_to(ROOT) else SCRIPT.name
    return {"generator": str(script), "seed": seed, "versions": versions(), **extra, "keys": keys}


def write_golden(folder, tensors, head, name="golden"):
    """Write NAME.safetensors and its header NAME.json into `folder`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {k: v.detach().contiguous().clone() for k, v in tensors.items()}
    for key, value in tensors.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise SystemExit(f"{folder}/{name}: {key} is not finite")
    save_file(tensors, folder / f"{name}.safetensors", metadata={"format": "pt"})
    for file in folder.glob("*.safetensors"):
        file.chmod(0o644)
    (folder / f"{name}.json").write_text(json.dumps(head, indent=2) + "\n")


def generator(seed):
    return torch.Generator().manual_seed(seed)


def token_ids(seed, lengths, vocab, low=3):
    """Seeded ids in low..vocab, avoiding the usual pad/bos/eos ids 0, 1, 2."""
    g = generator(seed)
    return [torch.randint(low, vocab, (1, n), generator=g) for n in lengths]
