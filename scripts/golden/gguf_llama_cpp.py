"""What others read from the fetched GGUF models: llama.cpp's ids for varied texts, gguf's values of some tensors.

Needs the models in the cache (`scripts/fetch-models smollm2-135m gemma3-270m`) and
`pip install gguf==0.19.0 xllamacpp==2026.10.11549`; the latter carries llama.cpp. Writes fixtures/gguf/NAME.json.
"""

import hashlib
import json
import os
import urllib.request
from pathlib import Path

import numpy as np
import xllamacpp
from gguf import GGUFReader, quants

from gguf_texts import SPECIAL, TEXTS

CACHE = Path(os.environ.get("FRUGAL_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "frugal")
FOLDER = Path(__file__).resolve().parents[2] / "fixtures/gguf"
MODELS = {
    "smollm2-135m": ("SmolLM2-135M-Instruct.Q4_1.gguf", SPECIAL),
    "gemma3-270m": ("gemma-3-270m-q4_k_m.gguf", ["<start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n", "<table>  <td>", " <eos> "]),
}


def tokenize(server, text):
    body = json.dumps({"content": text, "add_special": False, "parse_special": True}).encode()
    request = urllib.request.Request(server.listening_address + "/tokenize", body, {"Content-Type": "application/json"})
    return json.load(urllib.request.urlopen(request))["tokens"]


for name, (file, special) in MODELS.items():
    path = CACHE / "models" / name / file
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx = 64
    params.cpuparams.n_threads = 1
    server = xllamacpp.Server(params)
    texts = TEXTS + special
    golden = {
        "generator": "scripts/golden/gguf_llama_cpp.py",
        "versions": {"xllamacpp": xllamacpp.__version__},
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "texts": texts,
        "ids": [tokenize(server, text) for text in texts],
    }
    # One tensor of each type, as the SHA-256 of its little-endian float32 values.
    golden["tensors"] = {}
    for tensor in {t.tensor_type: t for t in reversed(GGUFReader(path).tensors)}.values():
        values = np.ascontiguousarray(quants.dequantize(tensor.data, tensor.tensor_type), dtype="<f4")
        golden["tensors"][tensor.name] = hashlib.sha256(values.tobytes()).hexdigest()
    (FOLDER / f"{name}.json").write_text(json.dumps(golden, ensure_ascii=False, separators=(",", ":")) + "\n")
    del server
