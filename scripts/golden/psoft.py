"""PSOFT adapters that peft wrote for the tiny models, with the signs of singular vectors that Frugal's files mean.

Usage: python scripts/golden/psoft.py      writes fixtures/adapters/NAME/

Files of peft leave out the singular vectors and with them their signs. The signs of the library that peft decomposed
with are found here, and rotations and gradients are taken over to those where the element of largest magnitude of each
left singular vector is positive; logits and losses are peft's own.
"""

import json

import adapters
import peft
import torch
from adapters import base, bert, llama
from common import FIXTURES
from safetensors.torch import load_file, save_file

PSOFT = {
    "llama-psoft": llama(peft.PsoftConfig(r=6, psoft_alpha=3, target_modules=["q_proj", "down_proj"]), "rotations and scales"),
    "llama-psoft-neumann": llama(
        peft.PsoftConfig(r=5, ab_svd_init="pissa_init", use_cayley_neumann=True, num_cayley_neumann_terms=6, cayley_neumann_eps=0.9,
                         psoft_mag_a=False, target_modules=["k_proj", "v_proj"]), "Neumann's series of a bounded matrix", spread=0.5),
    "bert-psoft-seqcls": bert(
        peft.PsoftConfig(r=6, psoft_orth=False, psoft_mag_b=False, target_modules=["query", "value"]), "a matrix without constraint", spread=1.0),
}


def signs(model, path, r):
    u = torch.linalg.svd(model.get_submodule(path).weight.data, full_matrices=False).U[:, :r]
    return u[u.abs().argmax(0), torch.arange(r)].sign()


def turned(model, tensors, r):
    """Matrices of the subspace for the other signs."""
    for key in tensors:
        if not key.endswith(".psoft_R.weight"):
            continue
        path = key.removeprefix("grad.").removeprefix("base_model.model.").removesuffix(".psoft_R.weight")
        d = signs(model, path, r)
        both = d[:, None] * d[None, :]
        rows, columns = torch.triu_indices(r, r, 1)
        tensors[key] = tensors[key] * (both[rows, columns] if tensors[key].ndim == 1 else both)
    return {key: value.contiguous() for key, value in tensors.items()}


def main():
    adapters.ADAPTERS = PSOFT
    adapters.main(list(PSOFT))
    for name, (tiny, cls, *_) in PSOFT.items():
        folder, model = FIXTURES / "adapters" / name, base(FIXTURES / "models" / tiny, cls)
        config = json.loads((folder / "adapter_config.json").read_text())
        del config["fan_in_fan_out"]
        config |= {"peft_type": "PSOFT_WITH_SIGNS", "peft_version": peft.__version__}
        (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True))
        for file in ("adapter_model", "golden"):
            file = folder / f"{file}.safetensors"
            save_file(turned(model, load_file(file), config["r"]), file, metadata={"format": "pt"})
            file.chmod(0o644)


if __name__ == "__main__":
    main()
