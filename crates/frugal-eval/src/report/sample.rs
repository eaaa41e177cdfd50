//! A run made up for the tests: 1,000 steps with noise, evaluations, warm-up and decay.

use rand::{Rng, SeedableRng};
use serde_json::json;

use super::*;
use crate::baselines::class_baselines;
use frugal_core::events::names;

pub(crate) fn report() -> RunReport {
    let scores = |accuracy, macro_f1, matthews, loss| {
        [
            ("accuracy", accuracy),
            ("macro_f1", macro_f1),
            ("matthews_correlation", matthews),
            ("loss", loss),
        ]
        .map(|(n, v)| (n.to_owned(), v))
        .into()
    };
    let data = |split: &str, examples, sha256: &str| DatasetInfo {
        split: split.into(),
        source: format!("sst2/{split}.tsv"),
        examples,
        sha256: sha256.into(),
    };
    let hash = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";
    RunReport {
        title: "sst2-lora".into(),
        subtitle: "LoRA r=8 on smollm2-135m · classification of sst2".into(),
        record: RunRecord {
            run_info: RunInfo {
                created_at: frugal_core::human::utc(1_767_261_600),
                total_time: 1_384.0,
                experiment_name: "sst2-lora".into(),
                command: "frugal tune --model smollm2-135m --data sst2.tsv --task classification --method lora --r 8 --out runs/sst2".split(' ').map(str::to_owned).collect(),
                train_config: json!({
                    "model": "smollm2-135m", "seed": 42, "task": "classification",
                    "data": { "train": "sst2/train.tsv", "validation": "sst2/dev.tsv", "max_length": 128, "packing": false },
                    "adapter": { "method": "lora", "r": 8, "lora_alpha": 16, "lora_dropout": 0.0, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"], "bias": "none" },
                    "train": { "lr": 0.0002, "schedule": "cosine", "warmup_steps": 50, "batch_size": 8, "epochs": 1, "weight_decay": 0.01, "max_grad_norm": 1.0 },
                }),
                peft_config: json!({ "peft_type": "LORA", "r": 8 }),
                error_msg: String::new(),
                notes: Vec::new(),
            },
            train_info: TrainInfo {
                peak_memory: Some(1_180_000_000),
                train_time: 1_203.4,
                train_tokens: 438_016,
                file_size: 1_957_232,
                num_trainable_params: 487_424,
                num_total_params: 134_515_008,
                status: Status::Success,
                metrics: Vec::new(),
            },
            evaluation: vec![
                Evaluation { split: "validation".into(), examples: 436, base: scores(0.5183, 0.3414, 0.0, 0.8441), adapted: scores(0.8922, 0.8917, 0.7840, 0.2914), ..Evaluation::default() },
                Evaluation { split: "test".into(), examples: 436, base: scores(0.5206, 0.3424, 0.0, 0.8397), adapted: scores(0.8910, 0.8906, 0.7821, 0.2988), baselines: class_baselines(&[1_050, 950], &[216, 220]), confusion: Some(Confusion { labels: vec!["negative".into(), "positive".into()], counts: vec![vec![196, 20], vec![28, 192]] }) },
            ],
            forgetting: None,
            meta_info: MetaInfo {
                model_info: ModelInfo { name: "smollm2-135m".into(), model_type: "llama".into(), file_size: 98_173_792, sha256: Some(hash.into()), vocabulary: None },
                dataset_info: vec![data("train", 2_000, hash), data("validation", 436, hash), data("test", 436, hash)],
                package_info: [("frugal", "0.1.0"), ("burn", "0.22.1")].map(|(n, v)| (n.to_owned(), v.to_owned())).into(),
                system_info: SystemInfo {
                    system: "linux".into(),
                    release: Some("6.1.0".into()),
                    machine: "x86_64".into(),
                    processor: Some("Example CPU @ 2.50GHz".into()),
                    threads: 2,
                    memory: Some(16 << 30),
                    accelerator: "cpu".into(),
                },
            },
        },
        log: log(),
        example: Some(Example {
            segments: vec![
                Segment { text: "<|im_start|>user\nIs this review positive or negative?\nit 's a charming and often affecting journey .<|im_end|>\n<|im_start|>assistant\n".into(), trained: false },
                Segment { text: "positive<|im_end|>".into(), trained: true },
            ],
            tokens: 34,
            trained_tokens: 2,
            label: None,
        }),
    }
}

fn log() -> Vec<Scalars> {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(42);
    let mut records = Vec::new();
    let steps = 1_000;
    for step in 1..=steps {
        let (t, noise) = (f64::from(step), rng.random_range(-1.0..1.0));
        let rate = if step <= 50 {
            2e-4 * t / 50.0
        } else {
            1e-4 * (1.0 + (std::f64::consts::PI * (t - 50.0) / 950.0).cos())
        };
        let train = Scalars::new(step as u64)
            .with(names::LOSS, 0.27 + 0.6 * (-t / 120.0).exp() + 0.09 * noise)
            .with(names::LEARNING_RATE, rate)
            .with(
                names::TOKENS_PER_SECOND,
                365.0 + 22.0 * rng.random_range(-1.0..1.0)
                    - if step % 97 == 0 { 90.0 } else { 0.0 },
            )
            .with(
                names::MEMORY_BYTES,
                0.9e9 + 0.25e9 * (1.0 - (-t / 30.0).exp()),
            );
        records.push(train);
        if step % 100 == 0 {
            records.push(Scalars::new(step as u64).with(
                names::EVAL_LOSS,
                0.29 + 0.5 * (-t / 150.0).exp() + 0.02 * (t / 1000.0).powi(2),
            ));
        }
    }
    records
}
