"""Builds Frugal's side of a comparison and says where it is."""

import json
import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def example(name):
    """The example program `name`, freshly built."""
    return build(["--example", name], f"examples/{name}")


def binary(name):
    """The program `name`, freshly built."""
    return build(["--bin", name], name)


def bench(name):
    """The bench program `name`, freshly built."""
    lines = cargo(["--bench", name], ["--message-format", "json"])
    found = [json.loads(line) for line in lines if line.startswith("{")]
    return next(m["executable"] for m in found if m.get("executable") and m["target"]["name"] == name)


def cargo(what, options=()):
    # With --workspace, so that features and hence Burn's build are those of everything else.
    command = ["cargo", "build", "--quiet", "--release", "--workspace", *what, *options]
    return subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()


def build(what, path):
    cargo(what)
    return str(Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release" / path)
