"""Steps of full training of a small mixture of experts by Frugal and by transformers, in turn.

Usage: python benches/peers/moe_step.py [--pairs 5] [--steps 6] [--experts 8] [--out benches/results/moe_step.json]

The model is a Mixtral of random weights: 4 blocks of width 256, experts of width 512, 2 of them for each token, a vocabulary of 2048.
The step: 4 sequences of 256 tokens, every token a target, AdamW, all weights trained, no balance loss. transformers loops over the
experts and picks their tokens by index (its `eager` experts); both sides read the same folder and must agree on the losses. The
first step of each run warms up and is not counted; a run's figure is the median of the others. Versions:
scripts/golden/requirements.txt.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import built

ROOT = Path(__file__).resolve().parents[2]
BATCH, LENGTH = 4, 256


def make(folder, experts):
    import torch
    import transformers as hf

    config = hf.MixtralConfig(
        hidden_size=256, intermediate_size=512, num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=4, vocab_size=2048,
        max_position_embeddings=LENGTH, num_local_experts=experts, num_experts_per_tok=2, router_aux_loss_coef=0.0,
        bos_token_id=None, eos_token_id=None, pad_token_id=None)
    torch.manual_seed(0)
    hf.MixtralForCausalLM(config).save_pretrained(folder)


def peer(folder, steps):
    import torch
    import transformers as hf

    torch.set_num_threads(2)
    model = hf.MixtralForCausalLM.from_pretrained(folder, dtype=torch.float32, experts_implementation="eager")
    vocab = model.config.vocab_size
    ids = torch.tensor([[((s * LENGTH + i) * 7919 + 13) % vocab for i in range(LENGTH)] for s in range(BATCH)])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    model.train()
    losses, seconds = [], []
    for _ in range(steps):
        start = time.perf_counter()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"tokens": BATCH * LENGTH, "losses": losses, "seconds": seconds, "peak_rss_bytes": peak}))


def run(command):
    result = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(result.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--program", help="the built example `lora_step` (default: build it)")
    parser.add_argument("--out", type=Path, default=ROOT / "benches/results/moe_step.json")
    parser.add_argument("--peer", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peer:
        return peer(args.peer, args.steps)
    ours = args.program or built.example("lora_step")
    rate = lambda r: r["tokens"] / statistics.median(r["seconds"][1:])
    pairs = []
    with tempfile.TemporaryDirectory() as folder:
        make(folder, args.experts)
        for _ in range(args.pairs):
            frugal = run([ours, folder, str(args.steps), "method=full", f"batch={BATCH}", f"length={LENGTH}"])
            other = run([sys.executable, __file__, "--peer", folder, "--steps", str(args.steps)])
            worst = max(abs(a - b) / b for a, b in zip(frugal["losses"], other["losses"]))
            # A rounding may send a token to another expert, and from then on the two differ.
            if worst > 1e-2:
                sys.exit(f"the two sides do not compute the same: losses {frugal['losses']} and {other['losses']}")
            pairs.append({"frugal_tokens_per_second": rate(frugal), "peer_tokens_per_second": rate(other),
                          "frugal_peak_mib": frugal["peak_rss_bytes"] / 2**20, "peer_peak_mib": other["peak_rss_bytes"] / 2**20,
                          "largest_loss_difference": worst})
            print(json.dumps(pairs[-1]), file=sys.stderr)
    result = {"what": f"full training step, {args.experts} experts, 4 x 256 tokens, against transformers",
              "speed_ratio": statistics.median(p["frugal_tokens_per_second"] / p["peer_tokens_per_second"] for p in pairs),
              "memory_ratio": statistics.median(p["frugal_peak_mib"] / p["peer_peak_mib"] for p in pairs), "pairs": pairs}
    args.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps({k: v for k, v in result.items() if k != "pairs"}))


if __name__ == "__main__":
    main()
