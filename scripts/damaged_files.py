"""Gives `frugal generate` damaged adapters and models, each to a process of its own, and looks at how the process ends.

Usage: python scripts/damaged_files.py [--frugal target/release/frugal] [--adapters 1000] [--gguf 500] [--safetensors 500] [--seed 0]

Starts from an adapter of every method, which the program trains for one step on the small model of fixtures/harness, and from that
model as a folder and as GGUF. Each case changes one file: bytes flipped, cut, repeated or put in; numbers, texts and keys of its JSON
replaced by others. A case is right where the program ends by itself, with status 0, 1 or 2, within 10 s and 2 GiB, and says no
word of a panic. Prints what is not right with the command that shows it again, and ends with status 1 where there is any.
"""

import argparse
import collections
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "fixtures/harness/llama"
VALUES = [0, -1, 1, 2, 3, 7, 2**31, 2**32 - 1, 2**53, 10**18, 2**64, -(2**63), 0.5, -0.5, 1e-300, 1e300, 1e999, -1e999, True, False, None, "",
          "x", "../../etc/passwd", "all-linear", "(((((a*)*)*)*)*)b", [], [""], ["x"] * 100, {}, {"x": 1}, {"x": {"y": []}}, "\u0000", "9" * 400]


def places(value, path=()):
    if isinstance(value, dict):
        for key in value:
            yield (*path, key)
            yield from places(value[key], (*path, key))
    elif isinstance(value, list):
        for index in range(min(len(value), 8)):
            yield (*path, index)
            yield from places(value[index], (*path, index))


def changed_json(text, draw):
    value = json.loads(text)
    every = list(places(value))
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        path = draw.choice(every)
        parent = value
        try:
            for step in path[:-1]:
                parent = parent[step]
            if draw.random() < 0.15:
                del parent[path[-1]]
            else:
                parent[path[-1]] = draw.choice(VALUES)
        except (KeyError, IndexError, TypeError):
            continue
    return json.dumps(value)


def changed_bytes(data, draw, head):
    """`head` bytes at the start say what the rest is, and are hit as often as that."""
    data = bytearray(data)
    for _ in range(draw.choice([1, 1, 2, 8])):
        end = min(len(data), head) if draw.random() < 0.7 else len(data)
        at = draw.randrange(max(end, 1))
        kind = draw.randrange(6)
        if kind == 0:
            data[at : at + 1] = bytes([draw.randrange(256)])
        elif kind == 1:
            del data[at:]
        elif kind == 2:
            data[at : at + 8] = draw.choice([b"\xff" * 8, b"\0" * 8, (2**62).to_bytes(8, "little"), (10**9).to_bytes(8, "little")])
        elif kind == 3:
            data[at:at] = data[at : at + draw.randrange(1, 64)]
        elif kind == 4:
            del data[at : at + draw.randrange(1, 64)]
        else:
            digits = [i for i in range(end) if 48 <= data[i] <= 57]
            if digits:
                data[draw.choice(digits)] = draw.choice(b"0123456789-e.")
        if not data:
            break
    return bytes(data)


def head_of(file):
    data = file.read_bytes()
    if file.suffix == ".safetensors":
        return 8 + int.from_bytes(data[:8], "little")
    return len(data) // 3


def damage(file, draw):
    if file.suffix == ".json" and draw.random() < 0.8:
        file.write_text(changed_json(file.read_text(), draw))
    else:
        head = head_of(file)
        file.write_bytes(changed_bytes(file.read_bytes(), draw, head))


def run(command):
    """Status, seconds, largest resident memory in MiB, and what was said."""
    begin = time.monotonic()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=said)
        while True:
            found, status, usage = os.wait4(process.pid, os.WNOHANG)
            if found:
                break
            if time.monotonic() - begin > 30:
                process.kill()
                _, status, usage = os.wait4(process.pid, 0)
                break
            time.sleep(0.002)
        said.seek(0)
        return os.waitstatus_to_exitcode(status), time.monotonic() - begin, usage.ru_maxrss / 1024, said.read().decode(errors="replace")


def wrong(status, seconds, memory, said):
    if status not in (0, 1, 2):
        return f"status {status}"
    if seconds > 10:
        return f"{seconds:.0f} s"
    if memory > 2048:
        return f"{memory:.0f} MiB"
    if "panicked" in said or "RUST_BACKTRACE" in said:
        return "panic"
    return None


def adapters(program, folder):
    """A folder of an adapter for each method that a decoder can be given in one step."""
    data = folder / "data.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"the {i} of", "completion": " and the answer"}) + "\n" for i in range(8)))
    names = [m["name"] for m in json.loads(subprocess.run([program, "methods", "--json"], capture_output=True, text=True, check=True).stdout)]
    left = []
    for name in names:
        out = folder / name
        status, *_ = run([program, "tune", "--model", str(MODEL), "--data", str(data), "--task", "causal-lm", "--method", name, "--max-steps", "1",
                          "--set", "data.validation_share=0", "--out", str(out), "--quiet"])
        if status == 0 and (out / "adapter_config.json").exists():
            for other in [f for f in out.iterdir() if f.name not in ("adapter_config.json", "adapter_model.safetensors", "frugal.json", "base.json")]:
                shutil.rmtree(other) if other.is_dir() else other.unlink()
            yield out
        else:
            left.append(name)
    print(f"without an adapter to damage: {', '.join(left) or 'none'}", flush=True)


def main():
    options = argparse.ArgumentParser()
    options.add_argument("--frugal", default=str(ROOT / "target/release/frugal"))
    options.add_argument("--adapters", type=int, default=1000)
    options.add_argument("--gguf", type=int, default=500)
    options.add_argument("--safetensors", type=int, default=500)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--keep", help="folder in which cases that are not right are kept")
    options = options.parse_args()
    program = str(Path(options.frugal).resolve())
    failures, endings = [], collections.Counter()
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        whole = list(adapters(program, scratch))
        gguf = scratch / "whole.gguf"
        if run([program, "export", "--model", str(MODEL), "--to", "gguf", "--type", "f32", "--out", str(gguf), "--quiet"])[0]:
            sys.exit("the model is not exported as GGUF")
        ask = ["--prompt", "the answer", "--max-tokens", "2", "--quiet"]
        for model in (["--model", str(gguf)], *(["--model", str(MODEL), "--adapter", str(a)] for a in whole)):
            status, _, _, said = run([program, "generate", *model, *ask])
            if status:
                sys.exit(f"undamaged and not read: {model[-1]}: {said}")
        plan = [("adapters", options.adapters), ("gguf", options.gguf), ("safetensors", options.safetensors)]
        for kind, count in plan:
            worst = [0.0, 0.0]
            for index in range(count):
                draw = random.Random(f"{options.seed} {kind} {index}")
                case = scratch / "case"
                if kind == "adapters":
                    source = whole[index % len(whole)]
                    shutil.copytree(source, case)
                    names = ["adapter_config.json"] * 3 + ["adapter_model.safetensors"] * 2 + (["frugal.json"] if (case / "frugal.json").exists() else [])
                    damage(case / draw.choice(names), draw)
                    command = [program, "generate", "--model", str(MODEL), "--adapter", str(case), *ask]
                elif kind == "gguf":
                    case = scratch / "case.gguf"
                    shutil.copy(gguf, case)
                    damage(case, draw)
                    command = [program, "generate", "--model", str(case), *ask]
                else:
                    shutil.copytree(MODEL, case)
                    damage(case / draw.choice(["model.safetensors"] * 3 + ["config.json"]), draw)
                    command = [program, "generate", "--model", str(case), *ask]
                status, seconds, memory, said = run(command)
                endings[kind, status] += 1
                worst = [max(worst[0], seconds), max(worst[1], memory)]
                found = wrong(status, seconds, memory, said)
                if found:
                    failures.append(f"{kind} {index}: {found}: {said.strip()[-300:]}")
                    print(failures[-1], flush=True)
                    if options.keep:
                        kept = Path(options.keep) / f"{kind}-{index}"
                        kept.parent.mkdir(parents=True, exist_ok=True)
                        (shutil.copytree if case.is_dir() else shutil.copy)(case, kept)
                shutil.rmtree(case) if case.is_dir() else case.unlink()
            print(f"{kind}: {count} cases, longest {worst[0]:.1f} s, largest {worst[1]:.0f} MiB, "
                  f"status {dict(sorted((s, n) for (k, s), n in endings.items() if k == kind))}", flush=True)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
