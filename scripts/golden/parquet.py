"""Parquet files as pyarrow writes them, with the same records as JSON lines: fixtures/parquet. Needs no torch."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

FOLDER = Path(__file__).resolve().parents[2] / "fixtures" / "parquet"

CLASSES = [{"idx": i, "text": text, "label": i % 3} for i, text in enumerate(["a film", "naïve 🦀", "", "two\nlines", "\"quoted\", and more"])]
CHATS = [
    {"id": 1, "messages": [{"role": "user", "content": "q", "name": None}, {"role": "assistant", "content": "a", "name": None}]},
    {"id": 2, "messages": [{"role": "user", "content": "q", "name": "Ann"}, {"role": "assistant", "content": "a", "name": None}]},
]


def lines(name, records):
    text = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records)
    (FOLDER / name).write_text(text, encoding="utf-8")


def main():
    FOLDER.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(CLASSES)
    for codec in ("snappy", "zstd", "gzip"):
        # Two groups of rows, as large files have them.
        pq.write_table(table, FOLDER / f"{codec}.parquet", compression=codec, row_group_size=3)
    for codec in ("brotli", "lz4"):
        # Not read, and to be called what they are.
        pq.write_table(table, FOLDER / f"{codec}.parquet", compression=codec)
    pq.write_table(table, FOLDER / "plain.parquet", compression="none", use_dictionary=False, data_page_version="2.0")
    pq.write_table(pa.Table.from_pylist(CHATS), FOLDER / "messages.parquet")
    lines("classification.jsonl", CLASSES)
    lines("messages.jsonl", CHATS)
    print(sorted(p.name for p in FOLDER.iterdir()))


if __name__ == "__main__":
    main()
