//! `frugal pretrain` with less memory, and the experiment on it.

use std::fs;

use serde_json::json;

use crate::support::{folder, frugal, frugal_in};

const DRY: [&str; 7] = [
    "pretrain",
    "--data",
    "text.txt",
    "--out",
    "out",
    "--dry-run",
    "--json",
];

fn dry(more: &[&str]) -> crate::support::Run {
    frugal(&[&DRY, more].concat())
}

#[test]
fn optimizers_and_layers_are_chosen_by_flags() {
    let more = [
        "--optim",
        "galore",
        "--set",
        "optim.rank=128",
        "--set",
        "train.optim.scale=1",
        "--reparam",
        "sltrain",
        "--set",
        "reparam.rank=8",
        "--set",
        "reparam.restart_steps=20",
    ];
    let config = dry(&more).ok().json();
    assert_eq!(
        config["train"]["optim"],
        json!({ "name": "galore", "rank": 128, "scale": 1 })
    );
    assert_eq!(
        config["reparam"],
        json!({ "name": "sltrain", "rank": 8, "restart_steps": 20 })
    );
    assert_eq!(config["train"]["moment_reset_steps"], 20);
    let config = dry(&["--set", "optim=adam-mini"]).ok().json();
    assert_eq!(
        config["train"]["optim"],
        json!({ "name": "adam-mini", "head_dim": 32 })
    );
}

#[test]
fn wrong_names_and_settings_are_refused_with_those_that_there_are() {
    dry(&["--optim", "galor"]).fails(&["galor", "adam_mini", "stable_spam", "loro"]);
    dry(&["--optim", "galore", "--set", "optim.rnk=3"])
        .fails(&["rnk", "all projections have rank"]);
    dry(&["--reparam", "sltrian"]).fails(&["sltrian", "did you mean `sltrain`", "relora"]);
    dry(&["--reparam", "low_rank", "--set", "reparam.rank=0"]).fails(&["`rank`", "positive"]);
}

#[test]
fn a_model_of_thin_matrices_is_written_dense() {
    let workshop = folder();
    let line = |i: usize| format!("the {} and the {}\n", ["cat", "dog", "owl"][i % 3], i % 17);
    let text: String = (0..300).map(line).collect();
    fs::write(workshop.path().join("text.txt"), text).unwrap();
    let args = "pretrain --data text.txt --out out --vocab-size 300 --max-length 32 --max-steps 4 --batch-tokens 128 \
        --reparam low_rank --optim loro --lr 0.05 --set optim.update_k=2 --set reparam.rank=4 --set shape.hidden_size=16 \
        --set shape.intermediate_size=24 --set shape.num_hidden_layers=1 --set shape.num_attention_heads=2 \
        --set shape.max_position_embeddings=32";
    let args: Vec<&str> = args.split_whitespace().collect();
    let shown = frugal_in(workshop.path(), &args).ok().stdout;
    assert!(
        shown.contains("weights") && shown.contains("optimizer"),
        "{shown}"
    );
    let generate = [
        "generate",
        "--model",
        "out",
        "--prompt",
        "the cat",
        "--max-tokens",
        "3",
    ];
    frugal_in(workshop.path(), &generate).ok();
}

#[test]
fn the_experiment_is_listed_and_takes_no_part_of_a_grid() {
    let listed = frugal(&["bench", "pretrain", "--list"]).ok().stdout;
    assert!(
        listed.contains("step-law:") && listed.contains("low-memory:"),
        "{listed}"
    );
    let refused = |more: &[&str]| frugal(&[&["bench", "pretrain", "--suite"], more].concat());
    refused(&["low-memory", "--only", "AdamW"]).fails(&["--only"]);
    refused(&["low-memory"]).fails(&["tinyshakespeare", "--data-dir"]);
    refused(&["step-law", "--smoke"]).fails(&["--smoke"]);
}

#[test]
fn sizes_that_no_memory_holds_are_refused_by_key_before_anything_is_made() {
    let refused = |set: &str, words: &[&str]| dry(&["--set", set]).fails(words);
    let shape = "shape.head_dim=1000000000";
    refused(shape, &["`shape.head_dim`", "1000000000"]);
    let shape = "shape.hidden_size=1000000000";
    refused(shape, &["`shape.hidden_size`", "1000000000"]);
    let many = [
        "--set",
        "shape.hidden_size=983040",
        "--set",
        "shape.num_hidden_layers=4000",
    ];
    dry(&many).fails(&["`shape.hidden_size`", "parameters", "available"]);
    for arch in ["mamba", "mamba2", "rmoe", "widenet", "mor", "tokenformer"] {
        let large = ["--arch", arch, "--set", "shape.num_hidden_layers=1000000"];
        dry(&large).fails(&["`shape.num_hidden_layers`"]);
    }
}

#[test]
fn numbers_that_are_not_finite_are_not_taken_for_the_default() {
    for (arch, set) in [
        ("llama", "shape.rope_theta=nan"),
        ("mor", "shape.router_threshold=nan"),
        ("mor", "shape.router_alpha=inf"),
        ("mor", "shape.capacity_factors=[1.0, nan]"),
        ("widenet", "shape.expert_capacity_factor=nan"),
        ("mamba", "shape.time_step_scale=-inf"),
    ] {
        let key = set.split('=').next().unwrap();
        dry(&["--arch", arch, "--set", set]).fails(&[&format!("`{key}`"), "finite"]);
    }
    let scale = ["--optim", "galore", "--set", "optim.scale=nan"];
    dry(&scale).fails(&["optim", "`scale`", "finite"]);
}

#[test]
fn keys_that_would_change_nothing_are_refused_or_named() {
    dry(&["--set", "shape.pad_token_id=3"]).fails(&["`shape.pad_token_id`", "tokenizer"]);
    let none = ["--arch", "mor", "--set", "shape.mor_type=none"];
    let alpha = ["--set", "shape.router_alpha=0.3"];
    dry(&[&none[..], &alpha[..]].concat()).fails(&["`shape.router_alpha`", "mor_type"]);
    let named = |arch: &str, set: &str| {
        let run = dry(&["--arch", arch, "--set", set]).ok();
        assert!(run.stderr.contains("has no effect"), "{}", run.stderr);
        run.stderr
    };
    let groups = named("tokenformer", "shape.num_key_value_heads=3");
    assert!(groups.contains("`shape.num_key_value_heads`"), "{groups}");
    let heads = named("mamba", "shape.num_attention_heads=3");
    assert!(heads.contains("`shape.num_attention_heads`"), "{heads}");
    let usual = dry(&["--arch", "tokenformer"]).ok().stderr;
    assert!(!usual.contains("has no effect"), "{usual}");
}
