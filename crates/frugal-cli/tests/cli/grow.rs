//! A TokenFormer from text to a larger one that is trained on, evaluated, adapted and continued.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::support::{Run, folder, frugal_in};

const TEXT: &str = "The river rose in the night, and by morning the lower fields lay under water. Nobody had seen it so high.\n";
const SHAPE: &str = "--set shape.hidden_size=32 --set shape.intermediate_size=64 --set shape.num_hidden_layers=1 \
                     --set shape.num_attention_heads=4 --vocab-size 300";
const TRAIN: &str =
    "--data text.txt --max-length 32 --max-steps 4 --batch-tokens 256 --set dtype=\"f32\" --quiet";

fn run(folder: &Path, words: &str) -> Run {
    frugal_in(folder, &words.split_whitespace().collect::<Vec<_>>())
}

fn small(folder: &Path) {
    fs::write(folder.join("text.txt"), TEXT.repeat(100)).unwrap();
    let words = format!("pretrain --arch tokenformer --out small {SHAPE} {TRAIN}");
    run(folder, &words).ok();
}

#[test]
fn a_model_grows_writes_the_same_text_and_is_trained_on() {
    let folder = folder();
    let folder = folder.path();
    small(folder);
    run(
        folder,
        "grow --model small --tokens 2x --out large --dry-run",
    )
    .ok();
    assert!(!folder.join("large").exists());
    let grown = run(folder, "grow --model small --tokens 2x --out large --json").ok();
    let grown: Value = serde_json::from_str(&grown.stdout).unwrap();
    assert_eq!(grown["tokens"], serde_json::json!([64, 64, 128]));
    assert_eq!(grown["keeps_outputs"], true);
    // Four layers of 32 more pairs and one of 64, 32 wide.
    let number = |key: &str| grown[key].as_u64().unwrap();
    assert_eq!(
        number("parameters") - number("parameters_before"),
        2 * 32 * (4 * 32 + 64)
    );
    let text = |model: &str| {
        let words = format!(
            "generate --model {model} --prompt river --max-tokens 12 --temperature 0 --quiet"
        );
        run(folder, &words).ok().stdout
    };
    assert_eq!(text("small"), text("large"));
    run(
        folder,
        &format!("pretrain --from large --out longer {TRAIN}"),
    )
    .ok();
    let config = fs::read_to_string(folder.join("longer/config.json")).unwrap();
    assert!(config.contains("\"ffn_slot_num\": 128") && config.contains("\"ffn_zoom_dim\": 64"));
    run(folder, "grow --model small --tokens 2x --out large").fails(&["large"]);
    run(folder, "export --model large --to gguf --out large.gguf").fails(&["tokenformer", "GGUF"]);
}

#[test]
fn growth_and_beginnings_that_do_not_fit_are_refused() {
    let folder = folder();
    let folder = folder.path();
    small(folder);
    for (tokens, said) in [
        ("0.5x", ["qkv_slot_num", "only grows"]),
        ("1.01x", ["qkv_slot_num", "whole"]),
        ("1x", ["qkv_slot_num", "nothing would grow"]),
        ("many", ["many", "2x"]),
    ] {
        let words = format!("grow --model small --tokens {tokens} --out large");
        run(folder, &words).fails(&said);
        assert!(!folder.join("large").exists(), "{tokens}");
    }
    run(folder, "grow --model builtin --tokens 2x --out large")
        .fails(&["model_type", "tokenformer"]);
    let from = format!("pretrain --from small --out longer {TRAIN}");
    run(folder, &format!("{from} --arch llama")).fails(&["--from", "--arch"]);
    run(folder, &format!("{from} --set shape.hidden_size=64")).fails(&["shape", "leave it out"]);
    run(
        folder,
        &format!("pretrain --from minilm-none --out longer {TRAIN}"),
    )
    .fails(&["minilm-none"]);
}
