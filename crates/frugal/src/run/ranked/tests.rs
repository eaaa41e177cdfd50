use std::path::Path;
use std::sync::atomic::AtomicBool;

use burn::prelude::*;
use frugal_models::Quantize;
use frugal_retrieve::{EmbedOptions, Encoder, EncoderRequest};

use super::*;
use crate::run::{MemoryCheck, Rerank, Reranker, TuneRequest, Tuned, tune};

const WORDS: [&str; 8] = [
    "apple", "river", "engine", "music", "winter", "doctor", "paper", "garden",
];

fn pairs() -> String {
    let line = |i: usize| {
        let (a, b) = (WORDS[i % 8], WORDS[(i / 8 + i + 1) % 8]);
        format!(
            "{{\"query\": \"where is the {a} and the {b}\", \"positive\": \"the {a} is here beside a {b}\", \"negative\": \"nothing about {}\"}}\n",
            WORDS[(i + 3) % 8]
        )
    };
    (0..32).map(line).collect()
}

fn config(folder: &Path, task: Task, content: &str, objective: &str) -> TuneConfig {
    let file = folder.join("data.jsonl");
    std::fs::write(&file, content).unwrap();
    let mut config = TuneConfig {
        task,
        out: folder.join("run"),
        data: DataConfig {
            train: file.display().to_string(),
            validation_share: 0.25,
            ..DataConfig::default()
        },
        ..TuneConfig::default()
    };
    config.train.lr = 5e-3;
    config.train.epochs = 4.0;
    config.train.batch_size = 8;
    if !objective.is_empty() {
        config.train.objective = serde_json::from_str(objective).unwrap();
    }
    config
}

fn tuned(config: &TuneConfig) -> Result<Tuned, RunError> {
    let problems = config.problems();
    assert!(problems.is_empty(), "{problems:?}");
    let request = TuneRequest {
        config,
        command: &[],
        lookup: &Lookup::default(),
        resume: false,
        memory: MemoryCheck::Ignore,
        stop: &AtomicBool::new(false),
    };
    tune(&request, &mut |_| {})
}

#[test]
fn an_encoder_is_trained_saved_and_embeds_as_it_was_measured() {
    let folder = tempfile::tempdir().unwrap();
    for objective in [
        "",
        r#"{"name": "info_nce", "mini_batch_size": 3, "matryoshka_dims": [32, 16]}"#,
    ] {
        let mut config = config(folder.path(), Task::Embedding, &pairs(), objective);
        config.out = folder.path().join(format!("run{}", objective.len()));
        config.method.name = "lora".into();
        let tuned = tuned(&config).unwrap();
        let part = &tuned.parts[0];
        let (before, after) = (part.base["loss"], part.adapted["loss"]);
        assert!(after < before, "{before} {after}");
        assert!(part.adapted.contains_key("accuracy@1"));
        let adapter = tuned.adapter.unwrap();
        let encoder = |adapter| {
            let request = EncoderRequest {
                model: config.model.clone(),
                adapter,
                max_length: None,
                quantize: Quantize::None,
            };
            let encoder = Encoder::open(&request, &Lookup::default(), &Device::flex()).unwrap();
            let texts = ["where is the apple and the river"];
            encoder
                .embed(&texts, &EmbedOptions::default(), &mut |_| true)
                .unwrap()
        };
        assert_ne!(encoder(Some(adapter)).values, encoder(None).values);
    }
}

#[test]
fn a_reranker_is_trained_and_puts_texts_in_order() {
    let folder = tempfile::tempdir().unwrap();
    for objective in ["", r#""lambda_loss""#] {
        let mut config = config(folder.path(), Task::Reranking, &pairs(), objective);
        config.out = folder.path().join(format!("run{}", objective.len()));
        let tuned = tuned(&config).unwrap();
        let part = &tuned.parts[0];
        assert!(part.adapted["loss"] < part.base["loss"], "{part:?}");
        assert!(part.adapted["mrr@10"] > 0.5);
        let lookup = Lookup::default();
        let model = config.model.as_str();
        let reranker = Reranker::open(model, tuned.adapter, "cpu", &lookup, &mut |_| {}).unwrap();
        let texts = ["the apple is here beside a river", "nothing about paper"];
        let scores = reranker
            .scores("where is the apple and the river", &texts, &mut |_| true)
            .unwrap();
        assert!(scores[0] > scores[1], "{scores:?}");
    }
}

#[test]
fn settings_that_a_run_on_several_texts_cannot_have_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let said = |task: Task, objective: &str, change: &dyn Fn(&mut TuneConfig)| -> String {
        let mut config = config(folder.path(), task, &pairs(), objective);
        change(&mut config);
        config
            .problems()
            .iter()
            .map(|(key, reason)| format!("{key}: {reason}\n"))
            .collect()
    };
    let none = |_: &mut TuneConfig| {};
    let error = said(Task::Embedding, r#""bce""#, &none);
    assert!(
        error.contains("does not fit `--task embedding`, which learns by info_nce, triplet"),
        "{error}"
    );
    let error = said(Task::Reranking, r#""info_nce""#, &none);
    assert!(
        error.contains("learns by pairwise, list_net, lambda_loss, bce"),
        "{error}"
    );
    let error = said(Task::Classification, r#""info_nce""#, &none);
    assert!(
        error.contains("does not fit a run that learns `classification`"),
        "{error}"
    );
    let error = said(Task::Embedding, "", &|c| {
        c.data.prompt_template = Some("{prompt}".into())
    });
    assert!(
        error.contains("data.prompt_template: it has no part"),
        "{error}"
    );
    let error = said(Task::Embedding, r#"{"name": "info_nce", "scle": 3}"#, &none);
    assert!(error.contains("scle"), "{error}");
    let mut wrong = config(
        folder.path(),
        Task::Embedding,
        "{\"text\": \"a\", \"label\": 1}\n",
        "",
    );
    wrong.data.validation_share = 0.0;
    let error = tuned(&wrong).unwrap_err().to_string();
    assert!(error.contains("no `anchor`"), "{error}");
    wrong.data.train = "sms-spam".into();
    let error = tuned(&wrong).unwrap_err().to_string();
    assert!(error.contains("not texts that belong together"), "{error}");
}
