"""Compares what transformers computes of two model folders of the same class.

Usage: python scripts/check_export.py FOLDER OTHER [--adapter DIR]

With `--adapter` the first folder is read with that adapter of peft. Prints the largest difference of the outputs, and fails above
1e-4 or where the second folder lacks a tensor.
"""

import argparse
import json
from pathlib import Path

import torch
import transformers as hf


def load(folder):
    config = json.loads((Path(folder) / "config.json").read_text())
    cls = getattr(hf, config["architectures"][0])
    model, info = cls.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    return model.eval(), info


@torch.no_grad()
def outputs(model, vocab):
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(3, vocab, (1, 9), generator=generator)
    out = model(input_ids=ids, attention_mask=torch.ones_like(ids))
    return [v for v in (getattr(out, n, None) for n in ("logits", "last_hidden_state", "pooler_output")) if v is not None]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("other")
    parser.add_argument("--adapter")
    args = parser.parse_args()
    other, info = load(args.other)
    if info["missing_keys"] or info["unexpected_keys"]:
        raise SystemExit(f"missing {info['missing_keys']}, unexpected {info['unexpected_keys']}")
    if args.adapter:
        import peft

        config = json.loads((Path(args.other) / "config.json").read_text())
        extra = {"num_labels": len(config["id2label"])} if "id2label" in config else {}
        torch.manual_seed(0)
        model = type(other).from_pretrained(args.folder, dtype=torch.float32, **extra)
        model = peft.PeftModel.from_pretrained(model, args.adapter).eval()
    else:
        model, _ = load(args.folder)
    vocab = min(other.config.vocab_size, 64)
    worst = max((a - b).abs().max().item() for a, b in zip(outputs(model, vocab), outputs(other, vocab), strict=True))
    print(f"{type(other).__name__}: largest difference {worst:.1e}")
    if worst > 1e-4:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
