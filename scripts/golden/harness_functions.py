"""Writes crates/frugal-eval/src/tasks/functions/known.txt, the digests of the Python functions of
lm-evaluation-harness that are built in, and fixtures/harness/keys.json, the keys of its task files.

Usage: python scripts/golden/harness_functions.py

A line names the built-in function, its Python file, the definitions that it rests on, the data sets that it belongs to
and the digest of these definitions without white space. Needs `lm-eval==0.4.13`.
"""

import dataclasses
import hashlib
import importlib.util
import json
from pathlib import Path

from lm_eval.config.group import AggMetricConfig, GroupConfig
from lm_eval.config.task import FewshotConfig, TaskConfig

TASKS = Path(importlib.util.find_spec("lm_eval").origin).parent / "tasks"
OUT = Path(__file__).resolve().parents[2] / "crates/frugal-eval/src/tasks/functions/known.txt"

CROWS = ["age", "appearance", "autre", "disability", "gender", "nationality", "orientation", "race_color", "religion", "socio"]
SUBJECTS = "biology business chemistry computer_science economics engineering health history law math other philosophy physics psychology"
GLUE = "aps/super_glue,super_glue"

# Family, Python file, data sets, and for each function the definitions that it uses.
FAMILIES = [
    ("arithmetic", "arithmetic/utils.py", "EleutherAI/arithmetic", {"process_docs": ""}),
    ("cb", "super_glue/cb/aggregate.py", GLUE, {"cb_multi_fi": ""}),
    ("copa", "super_glue/copa/utils.py", GLUE, {"doc_to_choice": "convert_choice", "doc_to_target": "convert_choice", "doc_to_text": ""}),
    ("coqa", "coqa/utils.py", "EleutherAI/coqa", {"doc_to_target": "", "doc_to_text": "", "process_results": "compute_scores,doc_to_target"}),
    ("crows_pairs", "crows_pairs/utils.py", "jannalu/crows_pairs_multilingual",
     {"doc_to_choice": ""} | {f"filter_{b}": "filter_dataset" for b in CROWS} | {"process_results": ""}),
    ("drop", "drop/utils.py", "EleutherAI/drop", {
        "process_docs": "get_answers,parse_answer",
        "process_results": "get_metrics,_answer_to_bags,_align_bags,_compute_f1,_match_numbers_if_present,_is_number,_remove_articles,"
        "_white_space_fix,_remove_punc,_fix_number,_tokenize,_normalize"}),
    ("hellaswag", "hellaswag/utils.py", "Rowan/hellaswag,hellaswag", {"process_docs": "preprocess"}),
    ("hendrycks_math", "hendrycks_math/utils.py", "EleutherAI/hendrycks_math", {
        "process_docs": "remove_boxed,last_boxed_only_string",
        "process_results": "is_equiv,remove_boxed,last_boxed_only_string,fix_fracs,fix_a_slash_b,remove_right_units,fix_sqrt,strip_string"}),
    ("humaneval", "humaneval/utils.py", "openai/openai_humaneval", {"build_predictions": "", "build_predictions_instruct": "", "pass_at_k": ""}),
    ("logiqa", "logiqa/utils_logiqa.py", "EleutherAI/logiqa", {"doc_to_target": "", "doc_to_text": ""}),
    ("logiqa2", "logiqa2/utils_logiqa2.py", "baber/logiqa2", {"doc_to_text": ""}),
    ("mathqa", "mathqa/utils.py", "regisss/math_qa,math_qa,allenai/math_qa", {"doc_to_choice": ""}),
    ("mbpp", "mbpp/utils.py", "google-research-datasets/mbpp", {"build_predictions": "extract_code_blocks", "pass_at_1": ""}),
    ("medmcqa", "medmcqa/utils_medmcqa.py", "openlifescienceai/medmcqa,medmcqa", {"doc_to_text": ""}),
    ("medqa", "medqa/preprocess_medqa.py", "GBaker/MedQA-USMLE-4-options-hf", {"doc_to_target": "", "doc_to_text": ""}),
    ("mmlu_pro", "mmlu_pro/utils.py", "TIGER-Lab/MMLU-Pro", {
        "doc_to_text": "format_cot_example,choices", "fewshot_to_target": "format_cot_target", "fewshot_to_text": "format_cot_example,choices"}
     | {f"process_{s}": "process_docs" for s in SUBJECTS.split()}),
    ("mnli", "glue/mnli/utils.py", "nyu-mll/glue,glue", {"doc_to_text": ""}),
    ("pubmedqa", "pubmedqa/preprocess_pubmedqa.py", "bigbio/pubmed_qa", {"doc_to_text": ""}),
    ("race", "race/preprocess_race.py", "EleutherAI/race", {
        "doc_to_choice": "last_problem,process_ast", "doc_to_target": "last_problem,process_ast",
        "doc_to_text": "last_problem,process_ast,get_answer_option"}),
    ("record", "super_glue/record/util.py", GLUE, {
        "doc_to_choice": "format_answer", "doc_to_target": "format_answer", "doc_to_text": "", "process_docs": "", "process_results": ""}),
    ("toxigen", "toxigen/utils.py", "skg/toxigen-data", {"doc_to_target": ""}),
    ("truthfulqa", "truthfulqa/utils.py", "truthfulqa/truthful_qa,truthful_qa", {"process_results_mc2": ""}),
    ("webqs", "webqs/utils.py", "stanfordnlp/web_questions,web_questions", {"doc_to_choice": "_remove_prefixes", "doc_to_target": "_remove_prefixes"}),
    ("wikitext", "wikitext/preprocess_wikitext.py", "EleutherAI/wikitext_document_level", {"process_results": "", "wikitext_detokenizer": ""}),
    ("winogrande", "winogrande/preprocess_winogrande.py", "allenai/winogrande,winogrande", {"doc_to_choice": "", "doc_to_target": "", "doc_to_text": ""}),
    ("wsc", "super_glue/wsc/preprocess_wsc.py", GLUE, {"default_doc_to_text": ""}),
    ("wsc273", "wsc273/utils.py", "lighteval/winograd_wsc,winograd_wsc", {"process_doc": ""}),
]


def definition(source, name):
    """A definition at the left margin, to where the next one begins."""
    lines = source.splitlines(keepends=True)
    begins = (f"def {name}(", f"def {name} =", f"{name}(", f"{name} =")
    start = next(i for i, line in enumerate(lines) if line.startswith(begins))
    end = start + 1
    while end < len(lines) and (lines[end][0].isspace() or lines[end][0] in ")]}"):
        end += 1
    return "".join(lines[start:end])


def digest(source, names):
    plain = "".join("".join(definition(source, name) for name in names).split()).replace("'", '"')
    return hashlib.sha256(plain.encode()).hexdigest()[:16]


def main():
    lines = ["# lm-eval 0.4.13; written by scripts/golden/harness_functions.py"]
    for family, file, datasets, functions in FAMILIES:
        source = (TASKS / file).read_text()
        for name, uses in functions.items():
            names = [name, *filter(None, uses.split(","))]
            lines.append(f"{family}.{name} {file} {','.join(names)} {datasets} {digest(source, names)}")
    OUT.write_text("\n".join(lines) + "\n")
    kinds = (TaskConfig, FewshotConfig, GroupConfig, AggMetricConfig)
    keys = {kind.__name__: [field.name for field in dataclasses.fields(kind)] for kind in kinds}
    file = Path(__file__).resolve().parents[2] / "fixtures/harness/keys.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(keys, indent=1) + "\n")


if __name__ == "__main__":
    main()
