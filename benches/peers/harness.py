"""Puts the answers of `frugal eval --tasks` beside those of lm-evaluation-harness, sample by sample.

Usage:
    frugal eval --model smollm2-135m --tasks sst2 --limit 200 --num-fewshot 0 --out DIR
    frugal eval --model smollm2-135m --tasks gsm8k --limit 20 --num-fewshot 2 --fewshot-order first --out DIR
    python benches/peers/harness.py DIR      writes benches/results/harness.json

The other side is fixtures/real/smollm2-harness/, which scripts/golden/harness.py wrote. Fails if a prompt differs, if a
log-likelihood differs by more than 1e-3 nats, or if a greedy text differs.
"""

import hashlib
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def ours(folder, task):
    lines = [json.loads(line) for line in (folder / f"samples_{task}.jsonl").read_text().splitlines()]
    return {line["doc_id"]: line for line in lines}


def theirs(task):
    return json.loads((ROOT / f"fixtures/real/smollm2-harness/{task}.json").read_text())


def check_prompt(sample, reference):
    prompt = sample["arguments"]["gen_args_0"]["arg_0"]
    assert hashlib.sha256(prompt.encode()).hexdigest() == reference["prompt_sha256"], prompt


def main():
    folder = Path(sys.argv[1])
    result = {}
    reference, own = theirs("sst2"), ours(folder, "sst2")
    pairs, worst = [], 0.0
    for sample in reference["samples"]:
        line = own[sample["doc_id"]]
        check_prompt(line, sample)
        a, b = [r[0][0] for r in line["resps"]], [r[0] for r in sample["resps"]]
        worst = max(worst, *(abs(x - y) for x, y in zip(a, b)))
        pairs.append([[round(x, 6) for x in a], [round(y, 6) for y in b]])
    assert worst <= 1e-3, worst
    accuracy = sum(own[s["doc_id"]]["acc"] for s in reference["samples"]) / len(pairs)
    result["sst2"] = {
        "samples": len(pairs),
        "largest_difference_nats": worst,
        "acc": {"frugal": accuracy, "lm_eval": reference["scores"]["acc,none"]},
        "log_likelihoods": pairs,
    }
    if (folder / "samples_gsm8k.jsonl").exists():
        reference, own = theirs("gsm8k"), ours(folder, "gsm8k")
        same = 0
        for sample in reference["samples"]:
            line = own[sample["doc_id"]]
            check_prompt(line, sample)
            same += line["resps"][0][0] == sample["resps"][0]
        result["gsm8k"] = {"samples": len(reference["samples"]), "same_texts": same}
        assert same == len(reference["samples"]), same
    (ROOT / "benches/results/harness.json").write_text(json.dumps(result, separators=(",", ":")) + "\n")
    print({k: {n: v for n, v in r.items() if n != "log_likelihoods"} for k, r in result.items()})


if __name__ == "__main__":
    main()
