"""What llama.cpp's own quantizer makes of some values and of some models, as bounds for ours.

Needs llama.cpp's libraries, which the npm package carries: `npm pack @node-llama-cpp/linux-x64@3.22.1`, unpack, and give the folder
`package/bins/linux-x64` as the argument.

k-quants.gguf   tensors `NAME` (F32) of several distributions, and `NAME.TYPE` as `ggml_quantize_chunk` stores them
file-types.json the type that `llama_model_quantize` gives each tensor of some models: MODEL -> FILE TYPE -> TENSOR -> TYPE
"""

import ctypes
import json
import sys
import tempfile
from pathlib import Path

LIBRARIES = Path(sys.argv[1]).resolve()

import numpy as np
from gguf import GGUFReader, GGUFWriter
from gguf.constants import GGML_QUANT_SIZES
from gguf.constants import GGMLQuantizationType as T

from common import FIXTURES

FOLDER = FIXTURES / "gguf"
TYPES = (T.Q4_K, T.Q5_K, T.Q6_K)
FILE_TYPES = {"q4_k_m": 15, "q5_k_m": 17, "q6_k": 18}


class Parameters(ctypes.Structure):
    """`llama_model_quantize_params`: what is set here, and room for the rest."""

    _fields_ = [("threads", ctypes.c_int32), ("file_type", ctypes.c_int32), ("rest", ctypes.c_uint8 * 248)]


def library(name):
    return ctypes.CDLL(str(LIBRARIES / name), mode=ctypes.RTLD_GLOBAL)


base = library("libggml-base.so")
library("libggml.v0.5.0.so")
llama = library("libllama.v0.5.0.so")
base.ggml_quantize_chunk.restype = ctypes.c_size_t
base.ggml_quantize_chunk.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p]
llama.llama_model_quantize_default_params.restype = Parameters
llama.llama_model_quantize.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p]
llama.llama_model_quantize.restype = ctypes.c_uint32


def quantize(values, qtype):
    block_len, block_bytes = GGML_QUANT_SIZES[qtype]
    out = np.zeros((values.shape[0], values.shape[1] // block_len * block_bytes), dtype=np.uint8)
    size = base.ggml_quantize_chunk(int(qtype), values.ctypes.data, out.ctypes.data, 0, *values.shape, None)
    assert size == out.nbytes
    return out


def distributions(rng):
    normal = rng.normal(scale=0.05, size=(12, 256))
    yield "normal", normal
    yield "heavy", rng.standard_t(2, size=(8, 256)) * 0.02
    yield "positive", rng.uniform(0.5, 1.5, size=(4, 256))
    yield "negative", -rng.exponential(size=(4, 256))
    outlier = rng.normal(scale=0.01, size=(4, 256))
    outlier[:, 100] = [3, -3, 30, -0.5]
    yield "outlier", outlier
    scaled = rng.normal(size=(4, 256)) * np.logspace(-6, 3, 256)
    yield "scaled", scaled
    sparse = rng.normal(size=(4, 256)) * (rng.random((4, 256)) < 0.05)
    yield "sparse", sparse
    special = np.zeros((6, 256))
    special[1] = 3.25
    special[2] = -3.25
    special[3, ::2] = 1
    special[4] = 1e-20
    special[5, :32] = np.arange(32) - 16
    yield "special", special


def write_values():
    writer = GGUFWriter(FOLDER / "k-quants.gguf", "test")
    for name, values in distributions(np.random.default_rng(9)):
        values = np.ascontiguousarray(values, dtype=np.float32)
        writer.add_tensor(name, values)
        for qtype in TYPES:
            writer.add_tensor(f"{name}.{qtype.name.lower()}", quantize(values, qtype), raw_dtype=qtype)
    finish(writer)


def finish(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_model(path, layers, hidden, inner, tied):
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(hidden)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(4)
    writer.add_head_count_kv(4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("none")
    writer.add_vocab_size(8)
    rng = np.random.default_rng(10)

    def add(name, *shape):
        writer.add_tensor(name, rng.normal(size=shape).astype(np.float32))

    add("token_embd.weight", 8, hidden)
    add("output_norm.weight", hidden)
    if not tied:
        add("output.weight", 8, hidden)
    for layer in range(layers):
        for name, *shape in [
            ("attn_norm", hidden), ("ffn_norm", hidden), ("attn_q", hidden, hidden), ("attn_k", hidden, hidden), ("attn_v", hidden, hidden),
            ("attn_output", hidden, hidden), ("ffn_gate", inner, hidden), ("ffn_up", inner, hidden), ("ffn_down", hidden, inner),
        ]:  # fmt: skip
            add(f"blk.{layer}.{name}.weight", *shape)
    finish(writer)


def file_types():
    models = {"untied": (10, 256, 256, False), "tied": (16, 256, 512, True), "narrow": (3, 64, 256, False), "odd": (9, 256, 72, True)}
    found = {}
    for name, (layers, hidden, inner, tied) in models.items():
        found[name] = {"layers": layers, "tied": tied, "shapes": {}, "types": {}}
        with tempfile.TemporaryDirectory() as folder:
            whole, out = Path(folder) / "whole.gguf", Path(folder) / "out.gguf"
            write_model(whole, layers, hidden, inner, tied)
            for tensor in GGUFReader(whole).tensors:
                found[name]["shapes"][tensor.name] = [int(n) for n in reversed(tensor.shape)]
            for file_type, code in FILE_TYPES.items():
                parameters = llama.llama_model_quantize_default_params()
                parameters.file_type = code
                assert llama.llama_model_quantize(str(whole).encode(), str(out).encode(), ctypes.byref(parameters)) == 0, (name, file_type)
                found[name]["types"][file_type] = {t.name: t.tensor_type.name for t in GGUFReader(out).tensors}
    return found


write_values()
types = {"generator": "scripts/golden/gguf_k_quants.py", "llama.cpp": "@node-llama-cpp/linux-x64 3.22.1", "models": file_types()}
(FOLDER / "file-types.json").write_text(json.dumps(types, separators=(",", ":")) + "\n")
