//! The evaluation harness on SmolLM2-135M against lm-evaluation-harness with PyTorch, sample by
//! sample.
//!
//! `scripts/golden/harness.py` wrote the fixtures. The data sets are not part of the project:
//! without `FRUGAL_DATA` only the perplexity of a text is compared.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use frugal::adapt::{ActiveAdapters, AdapterSet};
use frugal::measure::language_model::HarnessModel;
use frugal_eval::spectrum::spectrum;
use frugal_eval::tasks::{Context, Task, TaskResult, run};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::real::{files, smollm2};
use crate::support::fixture;

/// The difference that is allowed between two log-likelihoods, in nats.
const NATS: f64 = 1e-3;

fn golden(task: &str) -> Value {
    let path = fixture("real/smollm2-harness").join(format!("{task}.json"));
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn number(value: &Value, pointer: &str) -> f64 {
    value
        .pointer(pointer)
        .and_then(Value::as_f64)
        .unwrap_or_else(|| panic!("{pointer} of {value}"))
}

/// Runs a task as the fixture was made; returns the result and the samples.
fn evaluate(
    task: &str,
    golden: &Value,
    data: Option<PathBuf>,
    out: &Path,
) -> (TaskResult, Vec<Value>) {
    let (files, backbone) = (files("smollm2-135m"), smollm2());
    let mut model = HarnessModel {
        backbone: backbone.clone(),
        adapters: Arc::new(AdapterSet::default()),
        choice: ActiveAdapters::Base,
        tokenizer: files.tokenizer().unwrap(),
        batch_tokens: 4096,
        fingerprint: "smollm2-135m".into(),
    };
    let context = Context {
        data,
        limit: number(golden, "/limit") as usize,
        num_fewshot: Some(number(golden, "/num_fewshot") as usize),
        first_shots: true,
        out: Some(out.to_owned()),
        ..Context::default()
    };
    let (task, _) = Task::find(task).unwrap();
    let result = run(&task, &context, &mut model, &mut |_| true)
        .unwrap()
        .unwrap();
    let samples =
        std::fs::read_to_string(out.join(format!("samples_{}.jsonl", task.name))).unwrap();
    (
        result,
        samples
            .lines()
            .map(|l| serde_json::from_str(l).unwrap())
            .collect(),
    )
}

fn data() -> Option<PathBuf> {
    let folder = std::env::var_os("FRUGAL_DATA").map(PathBuf::from);
    if folder.is_none() {
        eprintln!("not compared: set FRUGAL_DATA to the folder that holds sst2/ and gsm8k/");
    }
    folder
}

#[test]
fn log_likelihoods_of_sst2_are_those_of_lm_evaluation_harness() {
    let Some(data) = data() else { return };
    let (golden, out) = (golden("sst2"), tempfile::tempdir().unwrap());
    let (result, samples) = evaluate("sst2", &golden, Some(data), out.path());
    let expected = golden["samples"].as_array().unwrap();
    assert_eq!((samples.len(), expected.len()), (200, 200));
    let mut worst: f64 = 0.0;
    for (ours, theirs) in samples.iter().zip(expected) {
        let prompt = ours
            .pointer("/arguments/gen_args_0/arg_0")
            .unwrap()
            .as_str()
            .unwrap();
        let digest: String = Sha256::digest(prompt.as_bytes())
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect();
        assert_eq!(theirs["prompt_sha256"], digest, "{prompt}");
        for choice in 0..2 {
            let (a, b) = (
                number(ours, &format!("/resps/{choice}/0/0")),
                number(theirs, &format!("/resps/{choice}/0")),
            );
            worst = worst.max((a - b).abs());
            assert!(
                (a - b).abs() <= NATS,
                "record {}: {a} and {b}",
                ours["doc_id"]
            );
            assert_eq!(
                ours["resps"][choice][0][1], theirs["resps"][choice][1],
                "record {}",
                ours["doc_id"]
            );
        }
    }
    eprintln!(
        "largest difference of {} log-likelihoods: {worst:.2e} nats",
        2 * samples.len()
    );
    let accuracy = result
        .measured
        .iter()
        .find(|m| m.metric == "acc")
        .unwrap()
        .value;
    assert_eq!(accuracy, number(&golden, "/scores/acc,none"));
}

#[test]
fn answers_to_gsm8k_are_those_of_lm_evaluation_harness() {
    let Some(data) = data() else { return };
    let (mut golden, out) = (golden("gsm8k"), tempfile::tempdir().unwrap());
    // A few of the two hundred records take long enough; benches/peers/harness.py compares all.
    golden["limit"] = 6.into();
    let (_, samples) = evaluate("gsm8k", &golden, Some(data), out.path());
    let samples: Vec<&Value> = samples
        .iter()
        .filter(|s| s["filter"] == "strict-match")
        .collect();
    let expected = golden["samples"].as_array().unwrap();
    assert_eq!((samples.len(), expected.len()), (6, 200));
    for (ours, theirs) in samples.iter().zip(expected) {
        let prompt = ours
            .pointer("/arguments/gen_args_0/arg_0")
            .unwrap()
            .as_str()
            .unwrap();
        let digest: String = Sha256::digest(prompt.as_bytes())
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect();
        assert_eq!(theirs["prompt_sha256"], digest, "{prompt}");
        assert_eq!(
            ours["resps"][0][0], theirs["resps"][0],
            "record {}",
            ours["doc_id"]
        );
    }
}

#[test]
fn the_perplexity_of_a_text_is_that_of_lm_evaluation_harness() {
    let (golden, out) = (golden("perplexity"), tempfile::tempdir().unwrap());
    let text = out.path().join("text.txt");
    std::fs::write(&text, golden["text"].as_str().unwrap()).unwrap();
    let (result, _) = evaluate(
        &format!("perplexity:{}", text.display()),
        &golden,
        None,
        out.path(),
    );
    for name in ["word_perplexity", "byte_perplexity", "bits_per_byte"] {
        let ours = result
            .measured
            .iter()
            .find(|m| m.metric == name)
            .unwrap()
            .value;
        let theirs = number(&golden, &format!("/scores/{name},none"));
        assert!(
            (ours / theirs - 1.0).abs() < 1e-4,
            "{name}: {ours} and {theirs}"
        );
    }
}

#[test]
fn the_cost_of_a_text_and_the_spread_of_its_states_are_those_of_pytorch() {
    let golden = golden("capacity");
    let text = self::golden("perplexity")["text"]
        .as_str()
        .unwrap()
        .to_owned();
    let (files, backbone) = (files("smollm2-135m"), smollm2());
    let model = HarnessModel {
        backbone: backbone.clone(),
        adapters: Arc::new(AdapterSet::default()),
        choice: ActiveAdapters::Base,
        tokenizer: files.tokenizer().unwrap(),
        batch_tokens: 4096,
        fingerprint: String::new(),
    };
    let stretches = model.stretches(&text, 1024, 0).unwrap();
    assert_eq!(stretches.len(), 1);
    let cost = model.text_cost(&stretches).unwrap();
    assert_eq!(
        (cost.tokens as f64, cost.bytes as f64),
        (number(&golden, "/tokens"), number(&golden, "/bytes"))
    );
    assert!(
        (cost.nats / number(&golden, "/nats") - 1.0).abs() < 1e-5,
        "{cost:?} {golden}"
    );
    let spectrum = spectrum(&model.hidden_states(&stretches[0].ids).unwrap(), 576, true).unwrap();
    for (ours, key) in [
        (spectrum.matrix_nuclear_norm, "/matrix_nuclear_norm"),
        (spectrum.nuclear_norm.unwrap(), "/nuclear_norm"),
        (spectrum.matrix_entropy.unwrap(), "/matrix_entropy"),
    ] {
        assert!(
            (ours / number(&golden, key) - 1.0).abs() < 1e-4,
            "{key}: {ours} and {golden}"
        );
    }
    // Half as long stretches cover the same text but for their first tokens.
    let length = stretches[0].ids.len() / 2;
    let halves = model.stretches(&text, length, 0).unwrap();
    assert!(halves.len() == 2 && halves.iter().all(|s| s.ids.len() == length));
    assert_eq!(model.stretches(&text, length, 1).unwrap().len(), 1);
}
