//! Task files of lm-evaluation-harness on tiny random models against the harness itself, sample by
//! sample.
//!
//! `scripts/golden/harness_tasks.py` wrote the fixtures.

use std::path::Path;
use std::sync::Arc;

use frugal::adapt::{ActiveAdapters, AdapterSet};
use frugal::measure::language_model::HarnessModel;
use frugal::model::LoadOptions;
use frugal::model::load::{Lookup, ModelFiles};
use frugal_eval::tasks::{Context, Task, TaskResult, override_generation, run};
use serde_json::{Map, Value};

use crate::support::fixture;

/// The difference that is allowed between two log-likelihoods, in nats for each hundred.
const NATS: f64 = 2e-4;

fn golden() -> Map<String, Value> {
    let bytes = std::fs::read(fixture("harness").join("golden.json")).unwrap();
    serde_json::from_slice(&bytes).unwrap()
}

fn evaluate(
    model: &mut HarnessModel<'_>,
    name: &str,
    expected: &Value,
    out: &Path,
) -> (TaskResult, Vec<Value>) {
    let folder = fixture("harness");
    let place = |part: &str| folder.join(part).display().to_string();
    let named = format!("{}/{name}.yaml:{}/{name}", place("tasks"), place("rows"));
    let (mut task, task_folder) = Task::find(&named).unwrap_or_else(|e| panic!("{e}"));
    if let Some(kwargs) = expected["gen_kwargs"].as_str() {
        override_generation(&mut task, kwargs).unwrap();
    }
    let context = Context {
        task_folder,
        num_fewshot: expected["num_fewshot"]
            .as_u64()
            .filter(|n| *n > 0)
            .map(|n| n as usize),
        out: Some(out.to_owned()),
        ..Context::default()
    };
    let result = run(&task, &context, model, &mut |_| true)
        .unwrap_or_else(|e| panic!("{name}: {e}"))
        .unwrap();
    let samples = std::fs::read_to_string(out.join(format!("samples_{name}.jsonl"))).unwrap();
    let mut samples: Vec<Value> = samples
        .lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect();
    samples.dedup_by_key(|sample| sample["doc_id"].clone());
    (result, samples)
}

fn close(ours: &Value, theirs: &Value) -> bool {
    let (Some(ours), Some(theirs)) = (ours.as_f64(), theirs.as_f64()) else {
        return false;
    };
    (ours - theirs).abs() <= NATS * (1.0 + theirs.abs() / 100.0)
}

fn compare(name: &str, samples: &[Value], expected: &Value) {
    let expected = expected["samples"].as_array().unwrap();
    assert_eq!(samples.len(), expected.len(), "{name}");
    for (ours, theirs) in samples.iter().zip(expected) {
        let of = format!("{name}, record {}", ours["doc_id"]);
        let arguments = theirs["arguments"].as_array().unwrap();
        assert_eq!(
            ours["arguments"].as_object().unwrap().len(),
            arguments.len(),
            "{of}"
        );
        for (i, argument) in arguments.iter().enumerate() {
            for (j, text) in argument.as_array().unwrap().iter().enumerate() {
                assert_eq!(
                    &ours["arguments"][format!("gen_args_{i}")][format!("arg_{j}")],
                    text,
                    "{of}"
                );
            }
        }
        for (i, theirs) in theirs["resps"].as_array().unwrap().iter().enumerate() {
            match theirs {
                Value::String(_) => assert_eq!(&ours["resps"][0][0], theirs, "{of}"),
                Value::Array(pair) => {
                    let ours = &ours["resps"][i][0];
                    assert!(
                        close(&ours[0], &pair[0]),
                        "{of}, answer {i}: {ours} and {theirs}"
                    );
                    assert_eq!(ours[1], pair[1], "{of}, answer {i}");
                }
                sum => assert!(
                    close(&ours["resps"][0][0][0], sum),
                    "{of}: {} and {sum}",
                    ours["resps"]
                ),
            }
        }
    }
}

/// Prompts, log-likelihoods, greedy texts and scores, on a model that puts a start token in front of
/// a text; among the prompts are empty ones.
fn task_files_score_as_in_the_harness(model: &str, files_scored: usize) {
    let golden = golden();
    let files = ModelFiles::open(
        &fixture("harness").join(model).display().to_string(),
        &Lookup::default(),
    )
    .unwrap();
    let backbone = files
        .load_with(&crate::support::device(), LoadOptions::default())
        .unwrap();
    let mut model_ = HarnessModel {
        backbone: backbone.clone(),
        adapters: Arc::new(AdapterSet::default()),
        choice: ActiveAdapters::Base,
        tokenizer: files.tokenizer().unwrap(),
        batch_tokens: 4096,
        fingerprint: model.to_owned(),
    };
    let tasks = golden[model].as_object().unwrap();
    assert_eq!(tasks.len(), files_scored);
    for (name, expected) in tasks {
        let out = tempfile::tempdir().unwrap();
        let (result, samples) = evaluate(&mut model_, name, expected, out.path());
        compare(name, &samples, expected);
        let scores = expected["scores"].as_object().unwrap();
        assert_eq!(result.measured.len(), scores.len(), "{name}");
        for (score, theirs) in scores {
            let found = result
                .measured
                .iter()
                .find(|m| format!("{},{}", m.metric, m.filter) == *score);
            let ours = found
                .unwrap_or_else(|| panic!("{name} has no {score}"))
                .value;
            let theirs = theirs.as_f64().unwrap();
            assert!(
                (ours - theirs).abs() <= 1e-4 * theirs.abs().max(1.0),
                "{name} {score}: {ours} and {theirs}"
            );
        }
    }
}

#[test]
fn task_files_score_as_in_the_harness_with_a_start_token_and_empty_contexts() {
    task_files_score_as_in_the_harness("gemma3_text", 32);
}

#[test]
fn task_files_score_as_in_the_harness_without_a_start_token() {
    task_files_score_as_in_the_harness("llama", 10);
}
