"""Builds Frugal's side of a comparison and says where it is."""

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


def build(what, path):
    # With --workspace, so that features and hence Burn's build are those of everything else.
    subprocess.run(["cargo", "build", "--quiet", "--release", "--workspace", *what], cwd=ROOT, check=True)
    return str(Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release" / path)
