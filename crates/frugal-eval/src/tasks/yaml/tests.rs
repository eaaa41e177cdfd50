//! Task files as lm-evaluation-harness reads them.

use super::super::filter::Step;
use super::*;

fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    folder
}

const MATHS: &str = r#####"
tag: [math_word_problems]
task: maths
dataset_path: json
dataset_kwargs: { data_files: { test: test.jsonl, train: train.jsonl } }
output_type: generate_until
training_split: train
test_split: test
doc_to_text: "Question: {{question}}\nAnswer:"
doc_to_target: answer
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
    ignore_case: true
    ignore_punctuation: false
    regexes_to_ignore: [",", "\\$", "(?s).*#### ", "\\.$"]
generation_kwargs:
  until: ["Question:", "</s>", "<|im_end|>"]
  do_sample: false
  temperature: 0.0
repeats: 1
num_fewshot: 5
filter_list:
  - name: "strict-match"
    filter:
      - function: "regex"
        regex_pattern: "#### (\\-?[0-9\\.\\,]+)"
      - function: "take_first"
  - name: "flexible-extract"
    filter:
      - { function: "regex", group_select: -1, regex_pattern: "(-?[$0-9.,]{2,})|(-?[0-9]+)" }
      - function: "take_first"
metadata: { version: 3.0 }
"#####;

#[test]
fn a_task_in_yaml_is_the_task_in_toml() {
    let folder = folder(&[("maths.yaml", MATHS)]);
    let found = read(&folder.path().join("maths.yaml")).unwrap();
    let mut expected = Task::builtin("gsm8k").unwrap().unwrap();
    expected.name = "maths".into();
    expected.description.clear();
    expected.source = Source {
        test: "test.jsonl".into(),
        fewshot: "train.jsonl".into(),
        hub: Hub {
            path: "json".into(),
            test: "test".into(),
            fewshot: "train".into(),
            ..Hub::default()
        },
        ..Source::default()
    };
    expected.prompt.target = "answer".into();
    expected.prompt.letters = false;
    expected.generation.greedy = true;
    for filter in &mut expected.filters {
        filter.steps.push(Step::Take { take: 1 });
    }
    assert_eq!(found, expected);
}

#[test]
fn choices_may_be_a_list_a_field_or_an_expression() {
    let base = "task: t\ndataset_path: hub/name\noutput_type: multiple_choice\nvalidation_split: validation\ndoc_to_text: stem\nmetric_list: [{metric: acc}, {metric: acc_norm}]\n";
    let with = |lines: &str| {
        let folder = folder(&[("t.yaml", &format!("{base}{lines}"))]);
        read(&folder.path().join("t.yaml")).unwrap()
    };
    assert_eq!(
        with("doc_to_choice: [no, 'yes']\ndoc_to_target: label\n")
            .prompt
            .choices,
        ["no", "yes"]
    );
    let own = folder(&[
        ("base.yaml", base),
        (
            "arc.yaml",
            "include: base.yaml\ntask: arc\ndoc_to_choice: '{{choices.text}}'\ndoc_to_target: '{{choices.label.index(answerKey)}}'\n",
        ),
        (
            "sciq.yaml",
            "include: base.yaml\ntask: sciq\ndoc_to_choice: '{{[wrong, right]}}'\ndoc_to_target: 1\n",
        ),
        (
            "data.jsonl",
            "{\"stem\": \"s\", \"choices\": {\"text\": [\"bb\", \"a\"], \"label\": [\"A\", \"B\"]}, \"answerKey\": \"B\", \"wrong\": \"x\", \"right\": \"y\"}\n",
        ),
    ]);
    for (name, choices, gold) in [("arc", ["bb", "a"], 1), ("sciq", ["x", "y"], 1)] {
        let path = own.path().join(format!("{name}.yaml"));
        let (task, place) = Task::find(&format!("{}:data.jsonl", path.display())).unwrap();
        assert_eq!(task.name, name);
        let context = super::super::Context {
            task_folder: place,
            ..Default::default()
        };
        let prepared =
            super::super::prompt::prepare(&task, &context, &super::super::tests::Parrot::new(""))
                .unwrap();
        let sample = &prepared.samples[0];
        assert_eq!(
            (sample.choices.as_slice(), sample.golds.as_slice()),
            (&choices.map(str::to_owned)[..], &[gold][..])
        );
    }
}

#[test]
fn what_cannot_be_done_here_is_named() {
    let base = "task: t\ndataset_path: json\ndoc_to_text: a\ndoc_to_target: b\nmetric_list: [{metric: exact_match}]\n";
    for (lines, word) in [
        ("process_docs: !function utils.f\n", "process_docs"),
        ("doc_to_choice: !function utils.f\n", "utils.f"),
        ("output_type: loglikelihood\n", "exact_match"),
        (
            "filter_list: [{name: f, filter: [{function: decontaminate}]}]\n",
            "decontaminate",
        ),
        ("generation_kwargs: {num_beams: 3}\n", "num_beams"),
        ("include: t.yaml\n", "include"),
        ("repeats: 3\n", "repeats"),
        ("num_fewshot: [1\n", "line"),
    ] {
        let folder = folder(&[("t.yaml", &format!("{base}{lines}"))]);
        let error = read(&folder.path().join("t.yaml")).unwrap_err().to_string();
        assert!(
            error.contains(word) && error.contains("t.yaml"),
            "{lines}: {error}"
        );
    }
    let folder = folder(&[("t.yaml", &base.replace("exact_match", "bleu"))]);
    assert!(
        read(&folder.path().join("t.yaml"))
            .unwrap_err()
            .to_string()
            .contains("bleu")
    );
}

/// Keys of the reference's classes; `scripts/golden/harness_functions.py` wrote them.
fn reference_keys(class: &str) -> Vec<String> {
    let all: Json =
        serde_json::from_str(include_str!("../../../../../fixtures/harness/keys.json")).unwrap();
    serde_json::from_value(all[class].clone()).unwrap()
}

/// A value of each key that differs from its default.
const VALUES: &[(&str, &str)] = &[
    ("task", "other"),
    ("task_alias", "x"),
    ("tag", "x"),
    ("custom_dataset", "!function utils.f"),
    ("dataset_path", "csv"),
    ("dataset_name", "x"),
    ("dataset_kwargs", "{data_dir: x}"),
    ("training_split", "x"),
    ("validation_split", "x"),
    ("test_split", "x"),
    ("fewshot_split", "x"),
    ("process_docs", "!function utils.f"),
    ("doc_to_text", "x"),
    ("doc_to_target", "x"),
    ("doc_to_image", "x"),
    ("doc_to_audio", "x"),
    ("unsafe_code", "true"),
    ("doc_to_choice", "[a, b]"),
    ("process_results", "!function utils.f"),
    ("use_prompt", "promptsource:*"),
    ("description", "x"),
    ("target_delimiter", "x"),
    ("fewshot_delimiter", "x"),
    ("fewshot_config", "{sampler: first_n}"),
    ("num_fewshot", "3"),
    ("metric_list", "[{metric: exact_match, ignore_case: true}]"),
    ("output_type", "loglikelihood_rolling"),
    ("generation_kwargs", "{max_gen_toks: 3}"),
    ("repeats", "2"),
    (
        "filter_list",
        "[{name: f, filter: [{function: lowercase}]}]",
    ),
    ("should_decontaminate", "true"),
    ("doc_to_decontamination_query", "x"),
    ("gen_prefix", "x"),
    ("metadata", "{version: 7}"),
];

const FEWSHOT: &[(&str, &str)] = &[
    ("sampler", "first_n"),
    ("split", "x"),
    ("process_docs", "!function utils.f"),
    ("fewshot_indices", "[1]"),
    ("samples", "[{a: b}]"),
    ("doc_to_text", "x"),
    ("doc_to_choice", "[a, b]"),
    ("doc_to_target", "x"),
    ("gen_prefix", "x"),
    ("fewshot_delimiter", "x"),
    ("target_delimiter", "x"),
];

#[test]
fn every_key_of_the_reference_is_honoured_or_refused_by_name() {
    let base =
        "task: t\ndataset_path: hub/name\ntest_split: test\ndoc_to_text: a\ndoc_to_target: b\n";
    let of = |lines: &str| {
        let folder = folder(&[("t.yaml", lines)]);
        read(&folder.path().join("t.yaml"))
    };
    let plain = of(base).unwrap();
    let without = |key: &str| -> String {
        let lines = base
            .lines()
            .filter(|line| !line.starts_with(&format!("{key}:")));
        lines.map(|line| format!("{line}\n")).collect()
    };
    for (class, table, prefix) in [
        ("TaskConfig", VALUES, ""),
        ("FewshotConfig", FEWSHOT, "fewshot_config"),
    ] {
        let known: Vec<&str> = table.iter().map(|(key, _)| *key).collect();
        assert_eq!(reference_keys(class), known, "{class}");
        for (key, value) in table {
            let text = if prefix.is_empty() {
                format!("{}{key}: {value}\n", without(key))
            } else {
                format!("{base}{prefix}: {{{key}: {value}}}\n")
            };
            match of(&text) {
                Ok(task) if task != plain => {}
                Ok(_) => assert!(
                    prefix.is_empty() && IGNORED.contains(key),
                    "`{key}: {value}` is dropped"
                ),
                Err(error) => assert!(
                    error.to_string().contains(key) || *key == "output_type",
                    "{key}: {error}"
                ),
            }
        }
    }
    let unknown = of(&format!("{base}doc_to_txt: c\n")).unwrap_err();
    assert!(unknown.to_string().contains("doc_to_txt"), "{unknown}");
}

/// Task files of lm-evaluation-harness that many people run.
const POPULAR: &[(&str, &str)] = &[
    ("arc/arc_easy.yaml", ""),
    ("arc/arc_challenge.yaml", ""),
    ("openbookqa/openbookqa.yaml", ""),
    ("piqa/piqa.yaml", ""),
    ("hellaswag/hellaswag.yaml", ""),
    ("winogrande/default.yaml", ""),
    ("super_glue/boolq/default.yaml", ""),
    ("super_glue/copa/default.yaml", ""),
    ("super_glue/rte/default.yaml", ""),
    ("super_glue/wic/default.yaml", ""),
    ("super_glue/wsc/default.yaml", ""),
    ("super_glue/cb/default.yaml", ""),
    ("super_glue/multirc/default.yaml", ""),
    ("super_glue/record/default.yaml", ""),
    ("glue/sst2/default.yaml", ""),
    ("glue/cola/default.yaml", ""),
    ("glue/mrpc/default.yaml", ""),
    ("glue/mnli/default.yaml", ""),
    ("mmlu/default/mmlu_anatomy.yaml", ""),
    ("mmlu_pro/mmlu_pro_math.yaml", ""),
    ("gsm8k/gsm8k.yaml", ""),
    ("gsm8k/gsm8k-cot.yaml", ""),
    ("gsm8k/gsm8k-cot-self-consistency.yaml", ""),
    ("triviaqa/default.yaml", ""),
    ("nq_open/nq_open.yaml", ""),
    ("drop/default.yaml", ""),
    ("coqa/default.yaml", ""),
    ("squadv2/squadv2.yaml", "class"),
    ("lambada/lambada_openai.yaml", ""),
    ("lambada/lambada_standard.yaml", ""),
    ("wikitext/wikitext.yaml", ""),
    ("truthfulqa/truthfulqa_mc1.yaml", ""),
    ("truthfulqa/truthfulqa_mc2.yaml", ""),
    ("truthfulqa/truthfulqa_gen.yaml", "process_docs_gen"),
    ("bbh/cot_fewshot/boolean_expressions.yaml", ""),
    ("minerva_math/minerva_math_algebra.yaml", "utils."),
    ("hendrycks_math/hendrycks_math_algebra.yaml", ""),
    ("mathqa/mathqa.yaml", ""),
    ("logiqa/logiqa.yaml", ""),
    ("sciq/sciq.yaml", ""),
    ("race/race.yaml", ""),
    ("pubmedqa/pubmedqa.yaml", ""),
    ("medmcqa/medmcqa.yaml", ""),
    ("commonsense_qa/default.yaml", ""),
    ("humaneval/humaneval.yaml", ""),
    ("mbpp/mbpp.yaml", ""),
    ("ifeval/ifeval.yaml", "process_results"),
    ("gpqa/n_shot/gpqa_main_n_shot.yaml", "process_docs"),
];

/// The files are not part of the project: `FRUGAL_LM_EVAL_TASKS` names the folder `lm_eval/tasks`.
#[test]
fn popular_task_files_are_read() {
    let Some(tasks) = std::env::var_os("FRUGAL_LM_EVAL_TASKS").map(std::path::PathBuf::from) else {
        eprintln!("skipped: set FRUGAL_LM_EVAL_TASKS to the folder lm_eval/tasks");
        return;
    };
    let mut refused = 0;
    for (file, word) in POPULAR {
        match read(&tasks.join(file)) {
            Ok(task) => assert!(
                word.is_empty() && !task.metrics.is_empty(),
                "{file} is read"
            ),
            Err(error) => {
                let error = error.to_string();
                assert!(!word.is_empty() && error.contains(word), "{file}: {error}");
                refused += 1;
            }
        }
    }
    assert!(
        POPULAR.len() - refused >= 42,
        "{refused} of {} are refused",
        POPULAR.len()
    );
}
