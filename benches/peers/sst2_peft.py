"""Peer run: SmolLM2-135M with LoRA on SST-2, by transformers and peft.

Usage: FRUGAL_DATA=DIR python benches/peers/sst2_peft.py [--lr 5e-4] [--rows 2000] [--epochs 1] [--seed 0] [--out FILE]

Reads DIR/sst2/train.tsv and dev.tsv, and the GGUF file in ~/.cache/frugal/models/smollm2-135m/ (`FRUGAL_MODELS` names
another parent folder). Prints one JSON object and writes it to FILE (default benches/results/sst2_peft.json).

Recipe, to be repeated by whatever is compared with it:
- base: the GGUF weights in float32, frozen; LoRA r 8, alpha 16 on every linear layer of the blocks, no dropout;
  head `score` (2 x 576, no bias) on the final-norm output of the last token, normal(0, 0.02) at the start, trained
- data: the first --rows rows of train.tsv, in an order drawn anew for every epoch from the seed
- text: the sentence as it stands in the file, byte-level BPE of the GGUF file, nothing added in front or behind
- batches of 16, padded on the right to the longest
- loss: mean cross-entropy over the batch
- AdamW, betas 0.9 / 0.999, eps 1e-8, no weight decay; gradients clipped to an L2 norm of 1.0 over all parameters
- learning rate: linear from 0 over the first 6 % of the steps, then linear to 0
- evaluation: all of dev.tsv after the last step
Versions: scripts/golden/requirements.txt.
"""

import argparse
import csv
import json
import os
import resource
import sys
import time
import warnings
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TQDM_DISABLE", "1")

import peft
import torch
import transformers as hf
from sklearn.metrics import accuracy_score, f1_score
from tokenizers import pre_tokenizers

ROOT = Path(__file__).resolve().parents[2]
MODELS = Path(os.environ.get("FRUGAL_MODELS") or Path.home() / ".cache/frugal/models")
BATCH, WARMUP, CLIP = 16, 0.06, 1.0


def rows(name, limit=None):
    """(label, sentence) pairs; quotes are ordinary characters."""
    if "FRUGAL_DATA" not in os.environ:
        sys.exit("error: set FRUGAL_DATA to the folder that holds sst2/")
    with open(Path(os.environ["FRUGAL_DATA"]) / "sst2" / name, encoding="utf-8", newline="") as f:
        lines = csv.reader(f, delimiter="\t", quoting=csv.QUOTE_NONE)
        next(lines)
        pairs = [(int(label), text) for label, text in lines]
    return pairs[:limit]


def load(seed):
    files = sorted((MODELS / "smollm2-135m").glob("*.gguf"))
    if not files:
        sys.exit(f"error: {MODELS / 'smollm2-135m'}: no .gguf file")
    where = dict(pretrained_model_name_or_path=files[0].parent, gguf_file=files[0].name)
    tokenizer = hf.AutoTokenizer.from_pretrained(**where)
    # transformers ignores the pre-tokenizer name `smollm` of the file: every digit alone, then byte-level words.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    torch.manual_seed(seed)
    model = hf.AutoModelForSequenceClassification.from_pretrained(**where, dtype=torch.float32, num_labels=2)
    with torch.no_grad():
        model.score.weight.normal_(0.0, 0.02)
    config = peft.LoraConfig(
        task_type="SEQ_CLS", r=8, lora_alpha=16, target_modules="all-linear", lora_dropout=0.0,
        modules_to_save=["score"],
    )
    return peft.get_peft_model(model, config), tokenizer


def batch_of(pairs, tokenizer, pad):
    ids = [tokenizer(text, add_special_tokens=True).input_ids for _, text in pairs]
    longest = max(map(len, ids))
    tokens = torch.tensor([row + [pad] * (longest - len(row)) for row in ids])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in ids])
    return {"input_ids": tokens, "attention_mask": mask}, torch.tensor([label for label, _ in pairs])


@torch.no_grad()
def evaluate(model, tokenizer, pairs):
    model.eval()
    order = sorted(range(len(pairs)), key=lambda i: len(pairs[i][1]))
    predicted = [0] * len(pairs)
    for start in range(0, len(order), 32):
        chosen = order[start:start + 32]
        inputs, _ = batch_of([pairs[i] for i in chosen], tokenizer, model.config.pad_token_id)
        for i, p in zip(chosen, model(**inputs).logits.argmax(-1).tolist()):
            predicted[i] = p
    labels = [label for label, _ in pairs]
    return {
        "accuracy": accuracy_score(labels, predicted),
        "macro_f1": f1_score(labels, predicted, average="macro"),
        "correct": sum(a == b for a, b in zip(labels, predicted)),
        "rows": len(pairs),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dev-rows", type=int, help="only so many rows of dev.tsv")
    parser.add_argument("--out", type=Path, default=ROOT / "benches/results/sst2_peft.json")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    hf.logging.set_verbosity_error()
    hf.utils.logging.disable_progress_bar()
    torch.set_num_threads(args.threads)

    train, dev = rows("train.tsv", args.rows), rows("dev.tsv", args.dev_rows)
    model, tokenizer = load(args.seed)
    trained = [p for p in model.parameters() if p.requires_grad]
    per_epoch = -(-len(train) // BATCH)
    steps = per_epoch * args.epochs
    warmup = round(WARMUP * steps)
    optimizer = torch.optim.AdamW(trained, lr=args.lr, weight_decay=0.0)
    schedule = hf.get_linear_schedule_with_warmup(optimizer, warmup, steps)
    order = torch.Generator().manual_seed(args.seed)

    losses, norms, tokens, padded = [], [], 0, 0
    model.train()
    started, cpu = time.perf_counter(), time.process_time()
    for _ in range(args.epochs):
        shuffled = torch.randperm(len(train), generator=order).tolist()
        for start in range(0, len(train), BATCH):
            chosen = [train[i] for i in shuffled[start:start + BATCH]]
            inputs, labels = batch_of(chosen, tokenizer, model.config.pad_token_id)
            loss = torch.nn.functional.cross_entropy(model(**inputs).logits, labels)
            loss.backward()
            norms.append(torch.nn.utils.clip_grad_norm_(trained, CLIP).item())
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            tokens += int(inputs["attention_mask"].sum())
            padded += inputs["input_ids"].numel()
            if len(losses) % 10 == 0:
                print(f"step {len(losses)}/{steps}  loss {sum(losses[-10:]) / 10:.4f}  "
                      f"{time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
    train_seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    started = time.perf_counter()
    metrics = evaluate(model, tokenizer, dev)
    result = {
        "what": "SmolLM2-135M, LoRA, SST-2, transformers + peft",
        "recipe": {
            "lora": {"r": 8, "lora_alpha": 16, "target_modules": "all-linear", "lora_dropout": 0.0,
                     "modules_to_save": ["score"]},
            "rows": len(train), "epochs": args.epochs, "batch_size": BATCH, "steps": steps, "warmup_steps": warmup,
            "lr": args.lr, "schedule": "linear", "weight_decay": 0.0, "max_grad_norm": CLIP, "seed": args.seed,
            "dtype": "float32", "attention": model.config._attn_implementation,
        },
        **metrics,
        "trainable_parameters": sum(p.numel() for p in trained),
        "train_seconds": round(train_seconds, 1),
        # Unlike the wall clock, this hardly depends on what else runs on the machine.
        "train_cpu_seconds": round(cpu, 1),
        "train_tokens": tokens,
        "train_tokens_with_padding": padded,
        "tokens_per_second": round(tokens / train_seconds, 1),
        "eval_seconds": round(time.perf_counter() - started, 1),
        "peak_rss_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        "threads": args.threads,
        "versions": {"torch": torch.__version__, "transformers": hf.__version__, "peft": peft.__version__,
                     "python": sys.version.split()[0]},
        "train_loss": [round(x, 5) for x in losses],
        "grad_norm": [round(x, 4) for x in norms],
    }
    text = json.dumps(result, indent=2)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
