"""Compares what llama.cpp and Frugal compute of the GGUF files that `frugal export` writes.

Usage: python scripts/check_k_quants.py [--frugal target/release/frugal] [--model smollm2-135m]

Exports the model in each number format and gives the same token ids to both programs. The same file is also unpacked to single
precision by the gguf package, whose reading of the blocks is independent of both: llama.cpp computes the unpacked model as exactly as
Frugal does the packed one, so that a block which Frugal wrote otherwise than it reads shows there. Of the packed file itself llama.cpp
also rounds the inputs of products to 8 bits, which changes more than the file's blocks do.

Prints for each format the size, the largest difference of the log-probabilities of llama.cpp's 50 likeliest next tokens over all texts,
from the unpacked file and from the packed one, how often the likeliest token of the packed one is the same, and the perplexity of one
text by both. Needs the model in the cache and `pip install gguf==0.19.0 xllamacpp==2026.10.11549`, which carries llama.cpp. Fails
where a difference is beyond its bound.
"""

import argparse
import json
import math
import subprocess
import tempfile
import urllib.request
from pathlib import Path

import xllamacpp
from gguf import GGUFReader, GGUFWriter, quants
from safetensors.torch import load_file

TEXTS = [
    "The capital of France is",
    "Water boils at a temperature of one hundred degrees",
    "def add(a, b):\n    return",
    "Once upon a time there was a little girl who lived in a village near the forest.",
    "1, 2, 3, 4, 5, 6,",
    "Dear Sir or Madam, I am writing to",
    "The quick brown fox jumps over the lazy",
    "In 1969 the first people walked on the",
]
# Largest difference of a log-probability from the unpacked file, in nats, and of the perplexity of the packed one, as a share.
EXACT, SHARE = 0.1, 0.06
TYPES = ["f16", "q8_0", "q6_k", "q5_k_m", "q4_k_m"]
TOP = 50


def unpack(packed, out):
    """The same model in single precision."""
    reader = GGUFReader(packed)
    writer = GGUFWriter(out, reader.fields["general.architecture"].contents())
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name not in ("general.architecture", "general.file_type"):
            kind = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(name, field.contents(), field.types[0], sub_type=kind)
    writer.add_file_type(0)
    for tensor in reader.tensors:
        values = quants.dequantize(tensor.data, tensor.tensor_type).astype("float32")
        writer.add_tensor(tensor.name, values.reshape(list(reversed(tensor.shape.tolist()))))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def ours(frugal, gguf, folder):
    data = folder / "texts.jsonl"
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    dump = folder / "logits.safetensors"
    dump.unlink(missing_ok=True)
    command = [frugal, "eval", "--model", gguf, "--data", data, "--dump-logits", dump, "--json", "--offline"]
    subprocess.run(command, check=True, capture_output=True)
    tensors = load_file(dump)
    return [(tensors[f"input_ids.{i}"].tolist(), tensors[f"logits.{i}"].double().log_softmax(-1)) for i in range(len(TEXTS))]


class Theirs:
    def __init__(self, gguf):
        params = xllamacpp.CommonParams()
        params.model.path = str(gguf)
        params.n_ctx, params.cpuparams.n_threads, params.n_parallel = 256, 2, 1
        self.server = xllamacpp.Server(params)

    def next(self, ids):
        """Log-probabilities of the likeliest tokens behind these."""
        body = {"prompt": ids, "n_predict": 1, "n_probs": TOP, "temperature": 0, "post_sampling_probs": False, "cache_prompt": False}
        url = self.server.listening_address + "/completion"
        request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
        answer = json.load(urllib.request.urlopen(request))
        return {top["id"]: top["logprob"] for top in answer["completion_probabilities"][0]["top_logprobs"]}


def perplexities(ids, logs, theirs):
    """Of the tokens that llama.cpp lists, by both."""
    pairs = []
    for n in range(2, len(ids)):
        top = theirs.next(ids[:n])
        if ids[n] in top:
            pairs.append((float(logs[n - 1, ids[n]]), top[ids[n]]))
    return [math.exp(-sum(pair[side] for pair in pairs) / len(pairs)) for side in (0, 1)]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--frugal", default="target/release/frugal")
    parser.add_argument("--model", default="smollm2-135m")
    args = parser.parse_args()
    failed = []
    print("| type | MiB | unpacked, nats | as it is, nats | same next token | perplexity, Frugal | llama.cpp |\n|---|---:|---:|---:|---:|---:|---:|")
    for kind in TYPES:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            gguf, plain = folder / "model.gguf", folder / "plain.gguf"
            command = [args.frugal, "export", "--model", args.model, "--to", "gguf", "--type", kind, "--out", gguf, "--quiet", "--offline"]
            subprocess.run(command, check=True, capture_output=True)
            unpack(gguf, plain)
            found = ours(args.frugal, gguf, folder)
            worst = []
            for file in (plain, gguf):
                theirs, differences, same = Theirs(file), [], 0
                for ids, logs in found:
                    top, last = theirs.next(ids), logs[-1]
                    differences += [abs(value - float(last[token])) for token, value in top.items()]
                    same += max(top, key=top.get) == int(last.argmax())
                worst.append(max(differences))
                mine, other = perplexities(*found[3], theirs)
                del theirs
            size = gguf.stat().st_size / 2**20
            print(f"| `{kind}` | {size:.1f} | {worst[0]:.3f} | {worst[1]:.3f} | {same} of {len(found)} | {mine:.2f} | {other:.2f} |", flush=True)
            if worst[0] > EXACT or abs(mine / other - 1) > SHARE or same < len(found) - 1:
                failed.append(kind)
    if failed:
        raise SystemExit(f"beyond the bound: {', '.join(failed)}")


if __name__ == "__main__":
    main()
