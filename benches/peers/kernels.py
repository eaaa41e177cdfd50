"""Every kernel beside the PyTorch operation at the same shapes, in turn.

Usage: python benches/peers/kernels.py [--pairs 5] [--out benches/results/kernels.json]

Frugal's side is the criterion bench `kernels` (crates/frugal-kernels/benches/kernels.rs), whose cases and inputs this script repeats
in PyTorch with two threads. Both sides compute the same first: the sum of the magnitudes of each result and gradient must agree. A
packed weight is put beside PyTorch's product with the dense one, moments of eight bits beside bitsandbytes. Writes a JSON file and the table in docs/kernels.md.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import built

ROOT = Path(__file__).resolve().parents[2]
TOKENS, D, D_FF, VOCAB, HEADS, KV_HEADS, HEAD_DIM, RANK, CHAIN, ADAPTERS = 1024, 576, 1536, 49152, 9, 3, 64, 8, 8, 4
SECONDS = 0.4


def cases():
    import bitsandbytes
    import numpy
    import torch
    import torch.nn.functional as F

    torch.set_num_threads(2)

    def values(*shape, seed, scale):
        k = numpy.arange(math.prod(shape), dtype=numpy.float64)
        return torch.from_numpy((scale * numpy.sin(0.37 * k + seed)).astype(numpy.float32)).view(*shape)

    def step(inputs, op):
        weights = values(*op(*inputs).shape, seed=5, scale=1.0)

        def run():
            for x in inputs:
                x.requires_grad_(True).grad = None
            y = op(*inputs)
            (y * weights).sum().backward()
            return [y.detach(), *(x.grad for x in inputs)]

        return run

    @torch.inference_mode()
    def inferred(op):
        return [op()]

    def chain(f):
        def op(x):
            for _ in range(CHAIN):
                x = f(x)
            return x

        return op

    def residual(f):
        def op(x, y):
            for _ in range(CHAIN):
                x = x + y
                y = f(x)
            return y

        return step([values(TOKENS, D, seed=seed, scale=2.0) for seed in (1, 2)], op)

    def gated(f):
        def op(gate, *ups):
            for up in ups:
                gate = f(gate) * up
            return gate

        return step(wide(CHAIN + 1), op)

    x = lambda: values(TOKENS, D, seed=1, scale=2.0)
    wide = lambda count: [values(TOKENS, D_FF, seed=seed, scale=2.0) for seed in range(1, count + 1)]
    gain, bias = values(D, seed=3, scale=1.5), values(D, seed=4, scale=0.5)
    cos, sin = (values(TOKENS, HEAD_DIM // 2, seed=seed, scale=1.0).repeat(1, 2).unsqueeze(1) for seed in (6, 7))

    def rope(x):
        heads = x.view(TOKENS, -1, HEAD_DIM)
        half = torch.cat((-heads[..., HEAD_DIM // 2:], heads[..., :HEAD_DIM // 2]), dim=-1)
        return (heads * cos + half * sin).view(TOKENS, -1)

    def attention(sequences):
        split = lambda t, heads: t.view(sequences, -1, heads, HEAD_DIM).transpose(1, 2)

        def op(q, k, v):
            y = F.scaled_dot_product_attention(split(q, HEADS), split(k, KV_HEADS), split(v, KV_HEADS), is_causal=True, enable_gqa=True)
            return y.transpose(1, 2).reshape(TOKENS, -1)

        return op

    def in_both_directions(q, k, v, bias=None):
        split = lambda t, heads: t.view(4, -1, heads, HEAD_DIM).transpose(1, 2)
        bias = None if bias is None else bias.view(1, HEADS, 256, 256)
        y = F.scaled_dot_product_attention(split(q, HEADS), split(k, KV_HEADS), split(v, KV_HEADS), attn_mask=bias, enable_gqa=True)
        return y.transpose(1, 2).reshape(TOKENS, -1)

    qkv = lambda: [values(TOKENS, h * HEAD_DIM, seed=s, scale=1.0) for h, s in [(HEADS, 1), (KV_HEADS, 2), (KV_HEADS, 3)]]
    one = [t.view(1, -1, h, HEAD_DIM).transpose(1, 2).contiguous() for t, h in zip([qkv()[0][:1], *qkv()[1:]], [HEADS, KV_HEADS, KV_HEADS])]
    weight = values(D_FF, D, seed=2, scale=0.05)
    a, b = values(RANK, D, seed=3, scale=0.1), values(D_FF, RANK, seed=4, scale=0.1)
    rows = lambda: values(TOKENS, D, seed=1, scale=1.0)
    pair = lambda i: [values(RANK, D, seed=2 * i + 3, scale=0.1), values(D_FF, RANK, seed=2 * i + 4, scale=0.1)]

    def multi_lora(x, *factors):
        low = [F.linear(F.linear(part, a), b) for part, a, b in zip(x.chunk(ADAPTERS), factors[::2], factors[1::2])]
        return F.linear(x, weight) + 2.0 * torch.cat(low)

    head = values(VOCAB, D, seed=2, scale=0.05)
    targets = torch.tensor([i * 7919 % VOCAB for i in range(TOKENS)])
    row = values(1, D, seed=1, scale=1.0)
    dense = lambda: step([rows()], lambda x: F.linear(x, weight))
    dense_row = lambda: lambda: inferred(lambda: F.linear(row, weight))
    found = {
        "rms_norm": step([x()], chain(lambda x: F.rms_norm(x, (D,), gain, 1e-5))),
        "layer_norm": step([x()], chain(lambda x: F.layer_norm(x, (D,), gain, bias, 1e-5))),
        "add_rms_norm": residual(lambda x: F.rms_norm(x, (D,), gain, 1e-5)),
        "add_layer_norm": residual(lambda x: F.layer_norm(x, (D,), gain, bias, 1e-5)),
        "silu": step(wide(1), chain(F.silu)),
        "gelu": step(wide(1), chain(F.gelu)),
        "gelu_tanh": step(wide(1), chain(lambda x: F.gelu(x, approximate="tanh"))),
        "swiglu": gated(F.silu),
        "geglu_tanh": gated(lambda gate: F.gelu(gate, approximate="tanh")),
        "rope": step([x()], chain(rope)),
        "attention_4x256": step(qkv(), attention(4)),
        "attention_1x1024": step(qkv(), attention(1)),
        "attention_bias_4x256": step([*qkv(), values(HEADS * 256, 256, seed=4, scale=1.0)], in_both_directions),
        "cross_attention_4x256x64": step([qkv()[0], *(t[:256].clone() for t in qkv()[1:])], in_both_directions),
        "cached_attention_1024": lambda: inferred(lambda: F.scaled_dot_product_attention(*one, enable_gqa=True)),
        "linear": dense(),
        "linear_1_row": dense_row(),
        "lora_linear": step([rows(), a, b], lambda x, a, b: F.linear(x, weight) + 2.0 * F.linear(F.linear(x, a), b)),
        "multi_lora_linear": step([rows(), *(factor for i in range(ADAPTERS) for factor in pair(i))], multi_lora),
        "linear_cross_entropy": step([rows()], lambda x: F.cross_entropy(F.linear(x, head), targets, reduction="sum").view(1, 1)),
    }
    for name in ["quantized_linear_int8", "quantized_linear_nf4", "quantized_linear_q4_0", "w8a8_linear", "w4a8_linear"]:
        found[name], found[f"{name}_1_row"] = dense(), dense_row()
    trained = [values(5817, seed=i + 1, scale=1.0).requires_grad_(True) for i in range(420)]
    for i, parameter in enumerate(trained):
        parameter.grad = values(5817, seed=i, scale=0.1)
    eight_bit = [p.detach().clone().requires_grad_(True) for p in trained]
    for ours, theirs in zip(eight_bit, trained):
        ours.grad = theirs.grad

    def stepped(optimizer, parameters):
        optimizer.step()
        return [parameters[0][:1].detach()]

    single = torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.01, fused=True)
    blockwise = bitsandbytes.optim.AdamW8bit(eight_bit, lr=1e-3, weight_decay=0.01)
    found["adamw"] = lambda: stepped(single, trained)
    found["adamw_8bit"] = lambda: stepped(blockwise, eight_bit)
    found["grad_norm"] = lambda: [torch.nn.utils.get_total_norm([p.grad for p in trained])]
    return found


def peer():
    result = {}
    for name, run in cases().items():
        sums = [t.abs().sum().item() for t in run()]
        seconds, until = [], time.perf_counter() + SECONDS
        while time.perf_counter() < until or len(seconds) < 5:
            start = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - start)
        result[name] = {"seconds": statistics.median(seconds), "sums": sums}
    print(json.dumps(result))


def frugal(program, folder, checks):
    command = [program, "--bench", "--noplot", "--warm-up-time", "0.1", "--measurement-time", str(SECONDS), "--sample-size", "10"]
    environment = {"CRITERION_HOME": folder, "PATH": "/usr/bin:/bin"}
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    read = lambda name: json.loads((Path(folder) / name / "new/estimates.json").read_text())["median"]["point_estimate"] * 1e-9
    return {name: {"seconds": read(name), "sums": sums} for name, sums in checks.items()}


# Rounded weights and inputs give other results; how far is what packed.rs tests.
ROUNDED = {"int8": 0.01, "q4_0": 0.1, "nf4": 0.1, "w8a8": 0.02, "w4a8": 0.1}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--program", help="the built bench `kernels` (default: build it)")
    parser.add_argument("--out", type=Path, default=ROOT / "benches/results/kernels.json")
    parser.add_argument("--peer", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peer:
        return peer()
    program = args.program or built.bench("kernels")
    lines = subprocess.run([program, "--checks"], check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    checks = {name: [float(v) for v in sums.split(",")] for name, sums in (line.split() for line in lines)}
    pairs = []
    for _ in range(args.pairs):
        with tempfile.TemporaryDirectory() as folder:
            ours = frugal(program, folder, checks)
        other = json.loads(subprocess.run([sys.executable, __file__, "--peer"], check=True, stdout=subprocess.PIPE, text=True).stdout)
        for name, found in ours.items():
            bound = next((bound for word, bound in ROUNDED.items() if word in name), 1e-3)
            for i, (a, b) in enumerate(zip(found["sums"], other[name]["sums"], strict=True)):
                if abs(a - b) > bound * abs(b):
                    sys.exit(f"{name}: the two sides do not compute the same: result {i} sums to {a} and {b}")
        pairs.append({name: [found["seconds"], other[name]["seconds"]] for name, found in ours.items()})
        print(json.dumps({name: round(b / a, 2) for name, (a, b) in pairs[-1].items()}), file=sys.stderr)
    result = {}
    for name in checks:
        own, other = ([pair[name][side] for pair in pairs] for side in (0, 1))
        result[name] = {"frugal_ms": 1e3 * statistics.median(own), "torch_ms": 1e3 * statistics.median(other),
                        "ratio": statistics.median(b / a for a, b in zip(own, other))}
    args.out.write_text(json.dumps({"what": "kernels beside PyTorch, two threads", "pairs": args.pairs, "kernels": result}, indent=2) + "\n")
    table = ["| kernel | Frugal (ms) | PyTorch (ms) | times as fast |", "|---|---:|---:|---:|"]
    table += [f"| `{name}` | {r['frugal_ms']:.3f} | {r['torch_ms']:.3f} | {r['ratio']:.2f} |" for name, r in result.items()]
    print("\n".join(table))
    page = ROOT / "docs/kernels.md"
    before, rest = page.read_text().split("<!-- table -->\n", 1)
    page.write_text(before + "<!-- table -->\n" + "\n".join(table) + "\n" + rest[rest.index("<!-- end -->"):])


if __name__ == "__main__":
    main()
