"""Generation from one GGUF file by Frugal and by llama.cpp, in turn.

Usage: python benches/peers/generate.py [--pairs 5] [--threads 2] [--out benches/results/generate.json]

Both sides read SmolLM2-135M as stored (Q4_1 and Q8_0), use the same number of threads, evaluate the same prompt of 512 tokens
and then continue a short prompt greedily by 128 tokens. The texts are compared: both round inputs of maps to 8 bits, in groups
of their own, so a later word may differ; how many tokens agree is part of the result. llama.cpp comes as `llama-cpp-python`,
built from source for this processor (`pip install llama-cpp-python diskcache`).
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import built

ROOT = Path(__file__).resolve().parents[2]
MODEL = next((Path.home() / ".cache/frugal/models/smollm2-135m").glob("*.gguf"))
PROMPT = "The history of the printing press begins"
PREFILL, DECODE = 512, 128


def prefill_ids(vocab):
    return [(i * 7919 + 13) % vocab for i in range(PREFILL)]


def peer(threads):
    import llama_cpp
    import numpy

    model = llama_cpp.Llama(str(MODEL), n_ctx=1024, n_batch=512, n_ubatch=512, n_threads=threads, n_threads_batch=threads, verbose=False)
    # `scores` stays empty unless the logits of all tokens are asked for.
    likeliest = lambda: int(numpy.ctypeslib.as_array(model._ctx.get_logits_ith(-1), shape=(model.n_vocab(),)).argmax())
    prompt = model.tokenize(PROMPT.encode(), add_bos=False)
    prefill, decode, tokens = [], [], []
    for _ in range(3):
        model.reset()
        start = time.perf_counter()
        model.eval(prefill_ids(model.n_vocab()))
        prefill.append(PREFILL / (time.perf_counter() - start))
        model.reset()
        model.eval(prompt)
        tokens = [likeliest()]
        start = time.perf_counter()
        for _ in range(DECODE - 1):
            model.eval([tokens[-1]])
            tokens.append(likeliest())
        decode.append((DECODE - 1) / (time.perf_counter() - start))
    info = llama_cpp.llama_print_system_info().decode()
    print(json.dumps({"prompt": prompt, "tokens": tokens, "prefill": prefill, "decode": decode, "system": info}))


def run(command, threads):
    import os

    environment = {**os.environ, "RAYON_NUM_THREADS": str(threads), "OMP_NUM_THREADS": str(threads)}
    result = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return json.loads(result.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--program", help="the built example `generation` (default: build it)")
    parser.add_argument("--out", type=Path, default=ROOT / "benches/results/generate.json")
    parser.add_argument("--peer", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peer:
        return peer(args.threads)
    ours = [args.program or built.example("generation")]
    pairs, agree = [], []
    for _ in range(args.pairs):
        frugal = run([*ours, str(MODEL), PROMPT, str(PREFILL), str(DECODE)], args.threads)
        other = run([sys.executable, __file__, "--peer", "--threads", str(args.threads)], args.threads)
        if frugal["prompt"] != other["prompt"]:
            sys.exit(f"the two sides do not read the same: {frugal['prompt']} and {other['prompt']}")
        same = next((i for i, (a, b) in enumerate(zip(frugal["tokens"], other["tokens"])) if a != b), DECODE)
        if same == 0:
            sys.exit(f"the two sides do not write the same: {frugal['tokens'][:8]} and {other['tokens'][:8]}")
        agree.append(same)
        median = lambda side, what: statistics.median(side[what])
        pairs.append({f"{name}_{what}_tokens_per_second": median(side, what)
                      for name, side in [("frugal", frugal), ("llama_cpp", other)] for what in ["prefill", "decode"]})
        print(json.dumps(pairs[-1]), file=sys.stderr)
    ratio = lambda what: statistics.median(p[f"frugal_{what}_tokens_per_second"] / p[f"llama_cpp_{what}_tokens_per_second"] for p in pairs)
    result = {"what": "SmolLM2-135M as stored in GGUF, 512 tokens read, 128 written", "threads": args.threads,
              "decode_ratio": ratio("decode"), "prefill_ratio": ratio("prefill"), "first_tokens_alike": min(agree),
              "llama_cpp": other["system"], "pairs": pairs}
    args.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps({k: v for k, v in result.items() if k != "pairs"}))


if __name__ == "__main__":
    main()
