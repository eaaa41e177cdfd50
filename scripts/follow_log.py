#!/usr/bin/env python3
"""Passes the log of a run on to MLflow or Weights & Biases while it grows.

    scripts/follow_log.py runs/sst2 --to mlflow          # ./mlruns, or MLFLOW_TRACKING_URI
    scripts/follow_log.py runs/sst2 --to wandb           # offline unless WANDB_MODE says otherwise
    scripts/follow_log.py runs/sst2 --to print --once

Every line of `log.jsonl` is a JSON object: `step`, and numbers by name. A run that is resumed cuts
its log back to the checkpoint; steps that come again are passed on once.
"""

import argparse
import json
import os
import time
import tomllib
from pathlib import Path


def records(folder, once=False, interval=1.0):
    """Yields (step, metrics) of each line until `record.json` says that the run has ended."""
    log, record = folder / "log.jsonl", folder / "record.json"
    seen = set()
    while True:
        ended = once or record.exists()
        lines = log.read_bytes().split(b"\n")[:-1] if log.exists() else []
        for line in lines:
            entry = json.loads(line)
            step = entry.pop("step")
            metrics = {k: v for k, v in entry.items() if isinstance(v, (int, float))}
            key = (step, frozenset(metrics))
            if key not in seen:
                seen.add(key)
                yield step, metrics
        if ended:
            return
        time.sleep(interval)


def flat(table, prefix=""):
    """Dotted keys of nested tables."""
    for key, value in table.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def to_print(_name, _config):
    return lambda step, metrics: print(step, json.dumps(metrics), flush=True), lambda: None


def to_mlflow(name, config):
    import mlflow

    mlflow.start_run(run_name=name)
    mlflow.log_params(dict(config))
    return lambda step, metrics: mlflow.log_metrics(metrics, step=step), mlflow.end_run


def to_wandb(name, config):
    import wandb

    os.environ.setdefault("WANDB_MODE", "offline")
    run = wandb.init(project="frugal", name=name, config=dict(config))
    return lambda step, metrics: run.log(metrics, step=step), run.finish


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="run folder")
    parser.add_argument("--to", choices=["mlflow", "wandb", "print"], required=True)
    parser.add_argument("--once", action="store_true", help="pass on what is there and end")
    args = parser.parse_args()
    config_file = args.folder / "config.toml"
    config = list(flat(tomllib.loads(config_file.read_text()))) if config_file.exists() else []
    log, end = {"mlflow": to_mlflow, "wandb": to_wandb, "print": to_print}[args.to](
        args.folder.name, config
    )
    for step, metrics in records(args.folder, args.once):
        log(step, metrics)
    end()


if __name__ == "__main__":
    main()
