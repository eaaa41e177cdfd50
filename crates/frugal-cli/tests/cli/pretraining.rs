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
