"""Functions and classes of a Python library with their documentation, as a knowledge base for concept retrieval.

Usage: python scripts/cramf/python_docs.py sympy data/python-docs/sympy.jsonl.gz

One JSON object a line: library_version, name, kind, module, signature, doc (the first paragraph), more (the paragraphs of
prose behind it). Written for sympy 1.14.0 (BSD); any importable package will do.
"""

import gzip
import importlib
import inspect
import json
import pkgutil
import re
import sys
import warnings

SKIPPED = re.compile(r"\.(tests|testing|benchmarks|conftest|_\w+|setup)(\.|$)")


def modules(name):
    package = importlib.import_module(name)
    yield package
    for found in pkgutil.walk_packages(package.__path__, f"{name}.", onerror=lambda _: None):
        if SKIPPED.search(found.name):
            continue
        try:
            yield importlib.import_module(found.name)
        except Exception as error:  # optional dependencies
            print(f"{found.name}: {error}", file=sys.stderr)


def paragraphs(text):
    """Paragraphs of prose: no headings, lists, code or what comes behind the examples."""
    for block in re.split(r"\n\s*\n", inspect.cleandoc(text)):
        lines = block.splitlines()
        if not lines:
            continue
        if any(re.match(r"^[=\-~^]{3,}$", line.strip()) for line in lines):
            if re.match(r"^(examples?|references|see also|notes?)\b", lines[0].strip().lower()):
                return
            continue
        if block.lstrip().startswith((">>>", "*", "-", "..", "[", ":")) or lines[0].startswith(" "):
            continue
        yield " ".join(block.split())


def members(module):
    for name, value in sorted(vars(module).items()):
        if name.startswith("_") or getattr(value, "__module__", None) != module.__name__:
            continue
        if inspect.isfunction(value) or inspect.isclass(value):
            yield name, value
        if inspect.isclass(value):
            for inner, method in sorted(vars(value).items()):
                if not inner.startswith("_") and inspect.isfunction(method):
                    yield f"{name}.{inner}", method


def signature(value):
    try:
        return str(inspect.signature(value))
    except (TypeError, ValueError):
        return "(...)"


def main(package, path):
    warnings.filterwarnings("ignore")
    version = getattr(importlib.import_module(package), "__version__", "")
    count = 0
    with gzip.GzipFile(path, "wb", mtime=0) as file:
        for module in modules(package):
            for name, value in members(module):
                prose = list(paragraphs(value.__doc__)) if isinstance(value.__doc__, str) else []
                if not prose:
                    continue
                row = {
                    "library_version": f"{package} {version}",
                    "name": f"{module.__name__}.{name}",
                    "kind": "class" if inspect.isclass(value) else "function",
                    "module": module.__name__,
                    "signature": f"{name.rsplit('.')[-1]}{signature(value)}"[:300],
                    "doc": prose[0],
                    "more": " ".join(prose[1:4])[:1000],
                }
                file.write((json.dumps(row) + "\n").encode())
                count += 1
    print(f"{path}: {count} definitions of {package} {version}")


if __name__ == "__main__":
    main(*sys.argv[1:])
