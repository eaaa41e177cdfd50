//! Mixture-of-Recursions from text to text, and the experiment on it.

use std::fs;
use std::path::Path;

use crate::support::{folder, frugal, frugal_in};

fn write_text(path: &Path) {
    let words = ["house", "boat", "tree", "road", "bird", "coat", "lamp"];
    let line = |i: usize| {
        format!(
            "the {} by the {} has a {}\n\n",
            words[i % 7],
            words[i * i % 5],
            words[(i + i / 7) % 6]
        )
    };
    fs::write(path, (0..300).map(line).collect::<String>()).unwrap();
}

fn sizes(out: &str) -> Vec<String> {
    let args = "pretrain --data text.txt --arch mor --vocab-size 300 --max-length 32 --max-steps 4 --batch-tokens 128 \
        --set shape.hidden_size=16 --set shape.intermediate_size=24 --set shape.num_hidden_layers=4 \
        --set shape.num_attention_heads=2 --set shape.max_position_embeddings=32 --out";
    let args = args.split_whitespace().chain([out]);
    args.map(str::to_owned).collect()
}

#[test]
fn every_kind_is_trained_from_text_and_writes_text() {
    let workshop = folder();
    write_text(&workshop.path().join("text.txt"));
    let kinds: [(&str, &[&str]); 4] = [
        ("expert", &[]),
        (
            "token",
            &["shape.mor_type=token_choice", "shape.balancing=loss_free"],
        ),
        (
            "shared",
            &["shape.kv_sharing=true", "shape.sampling=aux_router"],
        ),
        ("recursive", &["shape.mor_type=none"]),
    ];
    for (name, keys) in kinds {
        let mut args = sizes(name);
        for key in keys {
            args.extend(["--set".to_owned(), (*key).to_owned()]);
        }
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        frugal_in(workshop.path(), &args).ok();
        let generate = [
            "generate",
            "--model",
            name,
            "--prompt",
            "the boat",
            "--max-tokens",
            "5",
        ];
        let (one, two) = (
            frugal_in(workshop.path(), &generate).ok().stdout,
            frugal_in(workshop.path(), &generate).ok().stdout,
        );
        assert_eq!(one, two, "{name}");
    }
    let export = [
        "export",
        "--model",
        "expert",
        "--gguf",
        "--out",
        "expert.gguf",
    ];
    frugal_in(workshop.path(), &export).fails(&["mor"]);
    let mut wrong = sizes("wrong");
    wrong.extend(["--set", "shape.num_recursions=3"].map(str::to_owned));
    let wrong: Vec<&str> = wrong.iter().map(String::as_str).collect();
    frugal_in(workshop.path(), &wrong).fails(&["num_recursions", "num_recursion"]);
}

#[test]
fn the_experiment_runs_at_its_smallest_size() {
    let workshop = folder();
    let data = workshop.path().join("data/tinyshakespeare");
    fs::create_dir_all(&data).unwrap();
    write_text(&data.join("input.txt"));
    let listed = frugal(&["bench", "pretrain", "--list"]).ok().stdout;
    assert!(listed.contains("mor:"), "{listed}");
    let args = [
        "bench",
        "pretrain",
        "--suite",
        "mor",
        "--data-dir",
        "data",
        "--out",
        "out",
        "--seeds",
        "0",
        "--smoke",
    ];
    frugal_in(workshop.path(), &args).ok();
    let text = fs::read_to_string(workshop.path().join("out/results.md")).unwrap();
    for arm in [
        "Llama",
        "Recursive",
        "MoR, expert choice",
        "MoR, token choice",
    ] {
        assert!(text.contains(&format!("| {arm} |")), "{text}");
    }
}
