"""Load an adapter folder with peft and transformers, and compare its logits with a file.

Usage: python scripts/check_peft.py DIR --model PATH [--expect FILE] [--tolerance 2e-3]

DIR     adapter_config.json and adapter_model.safetensors
PATH    the base model: a Hugging Face folder, a .gguf file, or a folder that holds one .gguf file
FILE    a safetensors file with, for N = 0, 1, 2, ...
            input_ids.N         i64 [tokens]
            logits.N            f32 [tokens, vocab] (causal language model) or [labels] (sequence classification)
            token_type_ids.N    i64 [tokens], optional
        Every sequence is run by itself, without padding, in float32. Logits of virtual tokens are left out.

The task is `task_type` of the adapter. Tensors that are missing from the folder or that peft does not know are errors:
peft itself only warns. Exit status 0: everything agrees within the tolerance; 1: it does not; 2: wrong usage or input.
Versions: scripts/golden/requirements.txt.
"""

import argparse
import json
import os
import sys
import warnings
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TQDM_DISABLE", "1")

import peft
import torch
import transformers as hf
from safetensors.torch import load_file


class BadInput(Exception):
    pass


def arguments():
    parser = argparse.ArgumentParser(description="compare an adapter's logits with what peft computes")
    parser.add_argument("adapter", type=Path, metavar="DIR")
    parser.add_argument("--model", type=Path, required=True, metavar="PATH")
    parser.add_argument("--expect", type=Path, metavar="FILE")
    parser.add_argument("--tolerance", type=float, default=2e-3)
    return parser.parse_args()


def base_model(path, task, labels):
    cls = {
        "CAUSAL_LM": hf.AutoModelForCausalLM,
        "SEQ_CLS": hf.AutoModelForSequenceClassification,
    }.get(task)
    if cls is None:
        raise BadInput(f"task_type {task!r}: only CAUSAL_LM and SEQ_CLS are known here")
    extra = {"num_labels": labels} if task == "SEQ_CLS" else {}
    if path.is_dir() and not (path / "config.json").exists():
        found = sorted(path.glob("*.gguf"))
        if len(found) != 1:
            raise BadInput(f"{path}: neither config.json nor one .gguf file")
        path = found[0]
    if path.suffix == ".gguf":
        path, extra["gguf_file"] = path.parent, path.name
    elif not path.is_dir():
        raise BadInput(f"{path}: no such folder")
    return cls.from_pretrained(path, dtype=torch.float32, attn_implementation="eager", **extra).eval()


def label_count(stored):
    """Rows of the last layer of the classification head that the folder holds."""
    heads = ("score.weight", "classifier.weight", "classifier.out_proj.weight")
    for key, value in stored.items():
        # Prompt methods wrap the model once less.
        if key.removeprefix("base_model.").removeprefix("model.") in heads:
            return value.shape[0]
    raise BadInput(f"task_type SEQ_CLS, but none of {', '.join(heads)} in adapter_model.safetensors")


def check_type(config):
    """Refuses what peft has no form for."""
    if config["peft_type"] not in peft.PeftType.__members__:
        raise BadInput(f"peft {peft.__version__} has no method {config['peft_type']}")
    factors = config.get("boft_n_butterfly_factor", 1)
    if config["peft_type"] == "BOFT" and factors > 1 and not torch.cuda.is_available():
        raise BadInput(f"peft can hold {factors} factors of BOFT only where its CUDA kernel runs")


def take_head(model, stored):
    """Puts a classification head into the base model and out of `stored`: some methods of peft keep none."""
    prefix = "base_model.model."
    heads = {k: stored.pop(k) for k in list(stored) if k.removeprefix(prefix).split(".")[0] in ("score", "classifier")}
    model.load_state_dict({k.removeprefix(prefix): v for k, v in heads.items()}, strict=False)


def check_keys(model, stored):
    """Every stored tensor was used, and nothing kept its initial value."""
    known = peft.get_peft_model_state_dict(model)
    missing = sorted(set(known) - set(stored))
    unexpected = sorted(set(stored) - set(known))
    wrong = [k for k in set(known) & set(stored) if known[k].shape != stored[k].shape or not torch.equal(known[k], stored[k].float())]
    for what, keys in (("missing", missing), ("unexpected", unexpected), ("not loaded", sorted(wrong))):
        if keys:
            print(f"{len(keys)} tensors {what}: {', '.join(keys[:4])}{', ...' if len(keys) > 4 else ''}")
    return not (missing or unexpected or wrong)


@torch.no_grad()
def largest_difference(model, file):
    expect = load_file(file)
    numbers = sorted(int(k.removeprefix("input_ids.")) for k in expect if k.startswith("input_ids."))
    if not numbers:
        raise BadInput(f"{file}: no input_ids.0")
    worst, effect = 0.0, 0.0
    for n in numbers:
        want = expect.get(f"logits.{n}")
        if want is None:
            raise BadInput(f"{file}: input_ids.{n} without logits.{n}")
        ids = expect[f"input_ids.{n}"][None]
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if f"token_type_ids.{n}" in expect:
            inputs["token_type_ids"] = expect[f"token_type_ids.{n}"][None]

        def logits():
            out = model(**inputs).logits[0]
            return out[-want.shape[0]:] if want.ndim == 2 else out

        got = logits()
        if got.shape != want.shape:
            raise BadInput(f"{file}: logits.{n} has shape {list(want.shape)}, the model gives {list(got.shape)}")
        difference = (got - want).abs().max().item()
        # NaN compares as false everywhere, so it must not slip through `max`.
        worst = float("inf") if not difference == difference else max(worst, difference)
        with model.disable_adapter():
            effect = max(effect, (logits() - got).abs().max().item())
    return worst, effect, len(numbers)


def run(args):
    file = args.adapter / "adapter_model.safetensors"
    for needed in (args.adapter / "adapter_config.json", file, args.expect):
        if needed is not None and not needed.is_file():
            raise BadInput(f"{needed}: no such file")
    config = json.loads((args.adapter / "adapter_config.json").read_text())
    stored = load_file(file)
    task = config.get("task_type")
    labels = label_count(stored) if task == "SEQ_CLS" else None
    check_type(config)
    base = base_model(args.model, task, labels)
    if config["peft_type"] == "TRAINABLE_TOKENS":
        take_head(base, stored)
    model = peft.PeftModel.from_pretrained(base, args.adapter).eval()
    good = check_keys(model, stored)
    print(f"{config['peft_type']} {task}: {len(stored)} tensors, {sum(t.numel() for t in stored.values())} values")
    if args.expect:
        worst, effect, count = largest_difference(model, args.expect)
        verdict = "agree" if worst <= args.tolerance else "DIFFER"
        print(f"logits {verdict}: largest absolute difference {worst:.3e} over {count} sequences, "
              f"tolerance {args.tolerance:g}; the adapter itself moves them by {effect:.3g}")
        good = good and worst <= args.tolerance
    return 0 if good else 1


def main():
    warnings.filterwarnings("ignore")
    hf.logging.set_verbosity_error()
    hf.utils.logging.disable_progress_bar()
    torch.set_num_threads(min(2, torch.get_num_threads()))
    args = arguments()
    try:
        return run(args)
    except BadInput as e:
        print(f"error: {e}", file=sys.stderr)
    except Exception as e:  # peft and transformers raise many types; their message is what helps
        print(f"error: {type(e).__name__}: {e}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
