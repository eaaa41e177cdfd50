"""Sentence embeddings with all-MiniLM-L6-v2 by Frugal and by PyTorch, in turn.

Usage: FRUGAL_DATA=DIR python benches/peers/encoder.py [--pairs 5] [--out benches/results/encoder.json]

256 sentences of DIR/sst2/train.tsv, tokenized, encoded, averaged and scaled to unit length. The PyTorch side does what
sentence-transformers does in `encode`: sort by length, batches of 32, pad each to its longest, two threads; it is that library
where it is installed, and the same steps on transformers otherwise. Both sides must agree on the embeddings.
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


def peer(file):
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
        def encode():
            order = sorted(range(len(sentences)), key=lambda i: -len(sentences[i]))
            found = [None] * len(sentences)
            for start in range(0, len(order), 32):
                rows = order[start:start + 32]
                batch = tokenizer([sentences[i] for i in rows], padding=True, truncation=True, max_length=256, return_tensors="pt")
                hidden = model(**batch).last_hidden_state
                mask = batch["attention_mask"].unsqueeze(-1).float()
                pooled = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)
                for i, row in zip(rows, pooled.numpy()):
                    found[i] = row
            return found

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
    parser.add_argument("--peer", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peer:
        return peer(args.peer)
    ours = [args.program or built.example("embed")]
    with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8") as file:
        file.write("\n".join(sentences()))
        file.flush()
        pairs = []
        for _ in range(args.pairs):
            frugal, other = run([*ours, str(MODEL), file.name]), run([sys.executable, __file__, "--peer", file.name])
            worst = max(abs(a - b) for key in ["first", "last"] for a, b in zip(frugal[key], other[key]))
            if worst > 1e-4:
                sys.exit(f"the two sides do not compute the same: embeddings differ by {worst}")
            # The first run warms up.
            rate = lambda side: SENTENCES / statistics.median(side["seconds"][1:])
            pairs.append({"frugal_sentences_per_second": rate(frugal), "peer_sentences_per_second": rate(other), "largest_difference": worst})
            print(json.dumps(pairs[-1]), file=sys.stderr)
    ratios = [p["frugal_sentences_per_second"] / p["peer_sentences_per_second"] for p in pairs]
    result = {"what": "all-MiniLM-L6-v2, 256 sentences of SST-2", "peer": other["library"], "speed_ratio": statistics.median(ratios), "pairs": pairs}
    args.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps({k: v for k, v in result.items() if k != "pairs"}))


if __name__ == "__main__":
    main()
