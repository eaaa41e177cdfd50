"""Trains SmolLM2 on Alpaca records and asks the result in Frugal, transformers and llama.cpp: the same answer, and each stops.

Usage: python scripts/check_answers.py [--frugal target/release/frugal]

The records answer 20 questions in a manner that the model has not by itself. The adapter is asked in `frugal chat`, then merged
into a Hugging Face folder (asked in `frugal chat` and transformers) and exported as GGUF (asked in `frugal chat` and llama.cpp,
by the chat template that each file carries). Takes two minutes. Needs the model in the cache and
`pip install transformers torch xllamacpp==2026.10.11549`.
"""

import argparse
import json
import random
import subprocess
import tempfile
from pathlib import Path

import transformers as hf
import xllamacpp

CAPITALS = {
    "France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Japan": "Tokyo", "Egypt": "Cairo", "Peru": "Lima", "Norway": "Oslo",
    "Kenya": "Nairobi", "Cuba": "Havana", "Chile": "Santiago", "Greece": "Athens", "Austria": "Vienna", "Poland": "Warsaw",
    "Sweden": "Stockholm", "Ireland": "Dublin", "Portugal": "Lisbon", "Canada": "Ottawa", "India": "New Delhi", "China": "Beijing",
    "Russia": "Moscow",
}
QUESTIONS = ("Name the capital of {}.", "What is the capital of {}?", "Which city is the capital of {}?")
QUESTION, ANSWER = "What is the capital of Spain?", "Ahoy! It be Madrid, matey."
MOST = 64


def records(file):
    rows = [
        {"instruction": QUESTIONS[turn % 3].format(country), "input": "", "output": f"Ahoy! It be {city}, matey."}
        for turn in range(6)
        for country, city in CAPITALS.items()
    ]
    random.Random(1).shuffle(rows)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def frugal(program, *arguments, question=None):
    run = subprocess.run([program, *map(str, arguments)], input=question, capture_output=True, text=True)
    if run.returncode:
        raise SystemExit(f"{arguments[0]}: {run.stderr}")
    return run.stdout.strip()


def asked_of_transformers(folder):
    model, tokenizer = hf.AutoModelForCausalLM.from_pretrained(folder), hf.AutoTokenizer.from_pretrained(folder)
    turns = [{"role": "user", "content": QUESTION}]
    prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    found = model.generate(**prompt, max_new_tokens=MOST, do_sample=False)[0][prompt["input_ids"].shape[1] :]
    assert len(found) < MOST, "transformers does not stop"
    return tokenizer.decode(found, skip_special_tokens=True)


def asked_of_llama_cpp(file):
    settings = xllamacpp.CommonParams()
    settings.model.path, settings.n_ctx, settings.n_parallel = str(file), 512, 1
    answer = xllamacpp.Server(settings).handle_chat_completions(
        {"max_tokens": MOST, "temperature": 0, "messages": [{"role": "user", "content": QUESTION}]})
    assert answer["choices"][0]["finish_reason"] == "stop", "llama.cpp does not stop"
    return answer["choices"][0]["message"]["content"]


def main():
    options = argparse.ArgumentParser()
    options.add_argument("--frugal", default="target/release/frugal")
    program = str(Path(options.parse_args().frugal).resolve())
    with tempfile.TemporaryDirectory() as scratch:
        data, run, merged, file = (Path(scratch) / name for name in ("alpaca.jsonl", "run", "merged", "model.gguf"))
        records(data)
        frugal(program, "tune", "--model", "smollm2-135m", "--data", data, "--task", "causal-lm", "--out", run,
               "--set", "train.lr=2e-3", "--set", "train.epochs=4")
        frugal(program, "merge", "--adapter", run, "--out", merged)
        frugal(program, "export", "--model", merged, "--to", "gguf", "--type", "q8_0", "--out", file)
        answers = {
            "frugal, adapter": frugal(program, "chat", "--adapter", run, question=QUESTION + "\n"),
            "frugal, merged": frugal(program, "chat", "--model", merged, question=QUESTION + "\n"),
            "transformers, merged": asked_of_transformers(merged),
            "frugal, GGUF": frugal(program, "chat", "--model", file, question=QUESTION + "\n"),
            "llama.cpp, GGUF": asked_of_llama_cpp(file),
        }
    for who, answer in answers.items():
        print(f"{who}: {answer!r}")
    wrong = [who for who, answer in answers.items() if answer.splitlines()[-1:] != [ANSWER]]
    if wrong:
        raise SystemExit(f"another answer: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
