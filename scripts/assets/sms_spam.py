"""Divide the SMS Spam Collection into the parts in crates/frugal-core/assets/data/sms-spam/.

    python3 scripts/assets/sms_spam.py PATH/TO/SMSSpamCollection

The file comes from https://archive.ics.uci.edu/dataset/228/sms+spam+collection (CC BY 4.0). Every message is kept.
Messages that differ only in case or white space go to the same part, so none of the test part is seen in training.
"""

import hashlib
import sys
from collections import defaultdict
from pathlib import Path

SEED = 1
SHARES = {"test": 0.2, "validation": 0.1}  # the rest is train
SHA256 = "55341228082b25b832a5868a5ab4b038142a57f70c676c123280af6ff457fe46"
OUT = Path(__file__).resolve().parents[2] / "crates" / "frugal-core" / "assets" / "data" / "sms-spam"


def key(text):
    return " ".join(text.casefold().split())


def order(text):
    # A hash rather than a random generator: the same in every version of every language.
    return hashlib.sha256(f"{SEED}:{text}".encode()).digest()


def main(source):
    raw = Path(source).read_bytes()
    digest = hashlib.sha256(raw).hexdigest()
    if digest != SHA256:
        raise SystemExit(f"{source}: SHA-256 is {digest}, expected {SHA256}")
    rows = [line.removesuffix("\r").split("\t") for line in raw.decode("utf-8").split("\n") if line]
    if any(len(row) != 2 or "\r" in row[1] for row in rows):
        raise SystemExit(f"{source}: expected label<TAB>text on every line")

    groups = defaultdict(list)
    for i, (_, text) in enumerate(rows):
        groups[key(text)].append(i)
    strata = defaultdict(list)
    for text, members in groups.items():
        strata[rows[members[0]][0]].append((order(text), members))

    part_of = {}
    for _, members in sorted(strata.items()):
        members.sort()
        total = sum(len(m) for _, m in members)
        queue = iter(members)
        for part, share in SHARES.items():
            filled = 0
            while filled < round(share * total):
                _, group = next(queue)
                part_of.update((i, part) for i in group)
                filled += len(group)
        part_of.update((i, "train") for _, group in queue for i in group)

    for part in ("train", "validation", "test"):
        lines = ["label\ttext"] + ["\t".join(row) for i, row in enumerate(rows) if part_of[i] == part]
        (OUT / f"{part}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
        spam = sum(line.startswith("spam\t") for line in lines)
        print(f"{part}: {len(lines) - 1} messages, {spam} spam")


if __name__ == "__main__":
    main(*sys.argv[1:])
