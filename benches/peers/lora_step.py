"""LoRA steps on SmolLM2-135M by Frugal and by transformers + peft, in turn.

Usage: python benches/peers/lora_step.py [--pairs 5] [--steps 4] [--quantize none] [--activations exact]
           [--memory balanced] [--peer-dtype float32] [--out benches/results/lora_step.json]

The step: r = 8 on all linear maps, 4 sequences of 256 tokens, every token a target, AdamW. Both sides use the same
token ids and the same initial values, and must agree on the losses. With `--quantize` the base of Frugal's side is held in few
bits, `stored` meaning the codes of the file, and the losses may differ by 0.5 % (1 % with `--activations int8`, products of
integers, and where both are in bfloat16). `--peer-dtype` is how peft's side computes: `float32`, `bfloat16` (the model is read in
it, peft keeps its adapters in float32) or `autocast` (of a model in float32). The first step of each run warms up and is not counted; a run's figure is the median of
the others. Versions: scripts/golden/requirements.txt.

The operations that a step needs in a second are given as shares of three rates: of the matrix products of the step itself, run alone
right before and after it (`share_of_own_products`), and of a plain product of `frugal doctor`, at the median (`share_of_gemm_limit`)
and at best (`share_of_best_gemm`). A share of 1 is a step in which nothing else takes time.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import built

ROOT = Path(__file__).resolve().parents[2]
BATCH, LENGTH = 4, 256
MODEL = Path.home() / ".cache/frugal/models/smollm2-135m"


def peer(steps, dtype):
    import contextlib
    import math

    import numpy
    import peft
    import torch
    import transformers as hf

    torch.set_num_threads(2)
    gguf = next(MODEL.glob("*.gguf")).name
    model = hf.AutoModelForCausalLM.from_pretrained(MODEL, gguf_file=gguf,
                                                  dtype=torch.bfloat16 if dtype == "bfloat16" else torch.float32)
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=16, target_modules="all-linear", lora_dropout=0.0)
    model = peft.get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_A" in name:
                k = numpy.arange(parameter.numel(), dtype=numpy.float64)
                values = numpy.sin(0.37 * k) / math.sqrt(parameter.shape[1])
                parameter.copy_(torch.from_numpy(values.astype(numpy.float32)).view_as(parameter))
    vocab = model.config.vocab_size
    ids = torch.tensor([[((s * LENGTH + i) * 7919 + 13) % vocab for i in range(LENGTH)] for s in range(BATCH)])
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.0)
    model.train()
    losses, seconds = [], []
    for _ in range(steps):
        start = time.perf_counter()
        casts = torch.autocast("cpu", dtype=torch.bfloat16) if dtype == "autocast" else contextlib.nullcontext()
        with casts:
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"tokens": BATCH * LENGTH, "losses": losses, "seconds": seconds, "peak_rss_bytes": peak}))


# Of a token: the linear maps and the output head forward and towards the input, the adapters forward and in both gradients, and
# causal attention over 256 tokens forward and, with scores formed again, backward.
FLOP = 4 * 134.5e6 + 6 * 2.44e6 + 14 * (LENGTH / 2) * 576 * 30


def gemm_rates(program):
    """Floating-point operations a second of plain matrix products, at the median and at best, by `frugal doctor`."""
    found = json.loads(subprocess.run([program, "doctor", "--json"], check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout)
    return 1e9 * found["gemm_gflops_sustained"], 1e9 * found["gemm_gflops"]


def own_products(ours):
    """Operations a second of the products that a step makes with the model's weights, in float32."""
    return run([*ours, "smollm2-135m", "products"])["operations_per_second"]


def run(command):
    result = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(result.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--quantize", default="none")
    parser.add_argument("--activations", default="exact")
    parser.add_argument("--memory", default="balanced")
    parser.add_argument("--peer-dtype", default="float32", choices=["float32", "bfloat16", "autocast"])
    parser.add_argument("--program", help="the built example (default: build it)")
    parser.add_argument("--doctor", help="the built program `frugal` (default: build it)")
    parser.add_argument("--out", type=Path, default=ROOT / "benches/results/lora_step.json")
    parser.add_argument("--peer", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peer:
        return peer(args.steps, args.peer_dtype)
    ours = [args.program or built.example("lora_step")]
    doctor = args.doctor or built.binary("frugal")
    bound = 1e-2 if args.activations == "int8" or args.peer_dtype != "float32" else 5e-3 if args.quantize not in ("none", "stored") else 1e-3
    rate = lambda r: r["tokens"] / statistics.median(r["seconds"][1:])
    pairs = []
    for i in range(args.pairs):
        before = own_products(ours)
        frugal = run([*ours, "smollm2-135m", str(args.steps), f"quantize={args.quantize}", f"activations={args.activations}",
                      f"memory={args.memory}"])
        products = statistics.mean([before, own_products(ours)]) / FLOP
        sustained, best = (operations / FLOP for operations in gemm_rates(doctor))
        other = run([sys.executable, __file__, "--peer", "--steps", str(args.steps), "--peer-dtype", args.peer_dtype])
        worst = max(abs(a - b) / b for a, b in zip(frugal["losses"], other["losses"]))
        if worst > bound:
            sys.exit(f"the two sides do not compute the same: losses {frugal['losses']} and {other['losses']}")
        pairs.append({"frugal_tokens_per_second": rate(frugal), "peft_tokens_per_second": rate(other),
                      "frugal_peak_mib": frugal["peak_rss_bytes"] / 2**20, "peft_peak_mib": other["peak_rss_bytes"] / 2**20,
                      "share_of_own_products": rate(frugal) / products, "share_of_gemm_limit": rate(frugal) / sustained,
                      "share_of_best_gemm": rate(frugal) / best, "largest_loss_difference": worst})
        print(json.dumps(pairs[-1]), file=sys.stderr)
    speed = [p["frugal_tokens_per_second"] / p["peft_tokens_per_second"] for p in pairs]
    memory = [p["frugal_peak_mib"] / p["peft_peak_mib"] for p in pairs]
    shares = {key: statistics.median(p[key] for p in pairs)
              for key in ("share_of_own_products", "share_of_gemm_limit", "share_of_best_gemm")}
    result = {"what": "LoRA step, SmolLM2-135M, 4 x 256 tokens, against peft",
              "peer_dtype": args.peer_dtype,
              "quantize": args.quantize, "activations": args.activations, "memory": args.memory, "speed_ratio": statistics.median(speed),
              "memory_ratio": statistics.median(memory), **shares, "pairs": pairs}
    args.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps({k: v for k, v in result.items() if k != "pairs"}))


if __name__ == "__main__":
    main()
