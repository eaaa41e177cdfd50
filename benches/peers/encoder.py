"""Sentence embeddings with all-MiniLM-L6-v2 by Frugal and by others, in turn.

Usage: FRUGAL_DATA=DIR python benches/peers/encoder.py [--pairs 5] [--quantize none] [--peer sentence-transformers]
           [--peer-precision float32] [--out benches/results/encoder.json]

256 sentences of DIR/sst2/train.tsv, tokenized, encoded, averaged and scaled to unit length. The other side does what
sentence-transformers does in `encode`: sort by length, batches of 32, pad each to its longest, two threads. It is that library
where it is installed (and the same steps on transformers otherwise), or `openvino` (`float32`, `bfloat16`) or `onnxruntime`
(`float32`, `int8` by its dynamic quantisation), for which the model is converted as those libraries' guides say. Frugal's
embeddings must be those of sentence-transformers in single precision, by 1e-4 or, with `--quantize`, by a cosine of 0.995 or more;
the other side's cosine is in the results.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import built

ROOT = Path(__file__).resolve().parents[2]
MODEL = Path.home() / ".cache/frugal/models/minilm-l6"
SENTENCES, RUNS = 256, 4


def batched(sentences, encode):
    """Embeddings by `encode`, of 32 padded sentences at a time, longest first."""
    import numpy

    order = sorted(range(len(sentences)), key=lambda i: -len(sentences[i]))
    found = [None] * len(sentences)
    for start in range(0, len(order), 32):
        rows = order[start:start + 32]
        hidden, mask = encode([sentences[i] for i in rows])
        mask = mask[:, :, None].astype("float32")
        pooled = (hidden * mask).sum(1) / mask.sum(1)
        pooled /= numpy.linalg.norm(pooled, axis=1, keepdims=True)
        for i, row in zip(rows, pooled):
            found[i] = row
    return found


def exported(folder):
    """The model as ONNX, by torch's exporter."""
    import torch
    import transformers as hf

    model = hf.AutoModel.from_pretrained(MODEL, attn_implementation="eager").eval()
    example = hf.AutoTokenizer.from_pretrained(MODEL)(["one", "a longer one"], padding=True, return_tensors="pt")
    names = ["input_ids", "attention_mask", "token_type_ids"]
    path = Path(folder) / "model.onnx"

    class Encoder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, *inputs):
            return self.model(**dict(zip(names, inputs))).last_hidden_state

    torch.onnx.export(Encoder(), tuple(example[name] for name in names), path, input_names=names, output_names=["last_hidden_state"],
                      dynamic_axes={name: {0: "batch", 1: "length"} for name in [*names, "last_hidden_state"]}, dynamo=False)
    return path, names


def converted(library, precision, sentences):
    """A function that embeds the sentences by OpenVINO or ONNX Runtime."""
    import transformers as hf

    tokenizer = hf.AutoTokenizer.from_pretrained(MODEL)
    with tempfile.TemporaryDirectory() as folder:
        path, names = exported(folder)
        if library == "openvino":
            import openvino

            hints = {"INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[precision], "INFERENCE_NUM_THREADS": 2,
                     "PERFORMANCE_HINT": "LATENCY"}
            model = openvino.Core().compile_model(str(path), "CPU", hints)
            infer = lambda batch: model({name: batch[name] for name in names})[0]
        else:
            import onnxruntime
            from onnxruntime.quantization import QuantType, quantize_dynamic

            if precision == "int8":
                quantize_dynamic(path, path.with_name("int8.onnx"), weight_type=QuantType.QInt8)
                path = path.with_name("int8.onnx")
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = 2
            session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            infer = lambda batch: session.run(None, {name: batch[name] for name in names})[0]

    def encode(texts):
        batch = tokenizer(texts, padding=True, truncation=True, max_length=256, return_tensors="np")
        return infer(batch), batch["attention_mask"]

    return lambda: batched(sentences, encode)


def peer(file, library, precision):
    if library != "sentence-transformers":
        sentences = Path(file).read_text(encoding="utf-8").splitlines()
        return report(library, converted(library, precision, sentences))
    import torch

    torch.set_num_threads(2)
    sentences = Path(file).read_text(encoding="utf-8").splitlines()
    try:
        from sentence_transformers import SentenceTransformer

        model = SentenceTransformer(str(MODEL), device="cpu")
        library = "sentence-transformers"
        encode = lambda: model.encode(sentences, batch_size=32, normalize_embeddings=True, show_progress_bar=False)
    except ImportError:
        import transformers as hf

        tokenizer, model = hf.AutoTokenizer.from_pretrained(MODEL), hf.AutoModel.from_pretrained(MODEL).eval()
        library = "transformers"

        @torch.inference_mode()
        def hidden(texts):
            batch = tokenizer(texts, padding=True, truncation=True, max_length=256, return_tensors="pt")
            return model(**batch).last_hidden_state.numpy(), batch["attention_mask"].numpy()

        encode = lambda: batched(sentences, hidden)
    report(library, encode)


def report(library, encode):
    seconds = []
    for _ in range(RUNS):
        start = time.perf_counter()
        found = encode()
        seconds.append(time.perf_counter() - start)
    print(json.dumps({"library": library, "seconds": seconds, "first": [float(v) for v in found[0]], "last": [float(v) for v in found[-1]]}))


def sentences():
    """The first sentences of SST-2's training file."""
    lines = (Path(os.environ["FRUGAL_DATA"]) / "sst2/train.tsv").read_text(encoding="utf-8").splitlines()[1:SENTENCES + 1]
    return [line.split("\t")[1].strip() for line in lines]


def run(command):
    result = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(result.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--program", help="the built example `embed` (default: build it)")
    parser.add_argument("--out", type=Path, default=ROOT / "benches/results/encoder.json")
    parser.add_argument("--quantize", default="none", help="how Frugal holds weights: none, bf16, int8 (with products of integers)")
    parser.add_argument("--peer", default="sentence-transformers", choices=["sentence-transformers", "openvino", "onnxruntime"])
    parser.add_argument("--peer-precision", default="float32", choices=["float32", "bfloat16", "int8"])
    parser.add_argument("--side", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        return peer(args.side, args.peer, args.peer_precision)
    ours = [args.program or built.example("embed")]
    with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8") as file:
        file.write("\n".join(sentences()))
        file.flush()
        pairs, ends = [], ["first", "last"]
        reference = run([sys.executable, __file__, "--side", file.name])
        for _ in range(args.pairs):
            frugal = run([*ours, str(MODEL), file.name, args.quantize])
            other = run([sys.executable, __file__, "--side", file.name, "--peer", args.peer, "--peer-precision", args.peer_precision])
            worst = max(abs(a - b) for key in ends for a, b in zip(frugal[key], reference[key]))
            cosine, peer_cosine = (min(sum(a * b for a, b in zip(side[key], reference[key])) for key in ends) for side in (frugal, other))
            if worst > 1e-4 if args.quantize == "none" else cosine < 0.995:
                sys.exit(f"Frugal's embeddings differ by {worst} from those in single precision, their cosine is {cosine}")
            # The first run warms up.
            rate = lambda side: SENTENCES / statistics.median(side["seconds"][1:])
            pairs.append({"frugal_sentences_per_second": rate(frugal), "peer_sentences_per_second": rate(other), "largest_difference": worst,
                          "smallest_cosine": cosine, "peer_smallest_cosine": peer_cosine})
            print(json.dumps(pairs[-1]), file=sys.stderr)
    ratios = [p["frugal_sentences_per_second"] / p["peer_sentences_per_second"] for p in pairs]
    result = {"what": "all-MiniLM-L6-v2, 256 sentences of SST-2", "quantize": args.quantize, "peer": other["library"],
              "peer_precision": args.peer_precision, "speed_ratio": statistics.median(ratios), "pairs": pairs}
    args.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps({k: v for k, v in result.items() if k != "pairs"}))


if __name__ == "__main__":
    main()
