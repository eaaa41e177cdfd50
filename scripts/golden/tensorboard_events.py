"""A TensorBoard event file by TensorBoard's own writer, read back by its own reader.

Usage: python scripts/golden/tensorboard_events.py          writes fixtures/tensorboard/golden.tfevents
       python scripts/golden/tensorboard_events.py DIR      prints the scalars of the event files in DIR as JSON

Runs in an environment of its own: pip install tensorboard==VERSION (the version is in the header below).
"""

import json
import sys
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

VERSION = "2.21.0"
OUT = Path(__file__).parents[2] / "fixtures" / "tensorboard" / "golden.tfevents"


def events():
    yield Event(wall_time=1_700_000_000.5, file_version="brain.Event:2")
    yield Event(wall_time=1_700_000_000.5, step=11, session_log=SessionLog(status=SessionLog.START))
    scalars = [
        (1_700_000_001.25, 11, {"train/loss": 2.5, "train/learning_rate": 2e-4}),
        (1_700_000_002.0, 300, {"eval/loss": 0.0, "eval/accuracy": 0.875}),
    ]
    for wall_time, step, values in scalars:
        summary = Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()])
        yield Event(wall_time=wall_time, step=step, summary=summary)


def scalars(path):
    accumulator = EventAccumulator(str(path)).Reload()
    return {tag: [(e.wall_time, e.step, e.value) for e in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]}


def main():
    if len(sys.argv) > 1:
        print(json.dumps(scalars(sys.argv[1]), indent=1))
        return
    OUT.parent.mkdir(parents=True, exist_ok=True)
    with OUT.open("wb") as file:
        writer = RecordWriter(file)
        for event in events():
            writer.write(event.SerializeToString())
        writer.flush()
    read = scalars(OUT)
    assert [point[1] for point in read["train/loss"]] == [11] and read["eval/accuracy"][0][2] == 0.875, read


if __name__ == "__main__":
    main()
