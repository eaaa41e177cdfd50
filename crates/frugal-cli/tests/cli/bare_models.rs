//! A decoder without an output head, in the commands that need one and in those that do not.

use std::fs;

use serde_json::Value;

use crate::journey::{run, workshop};

#[test]
fn a_model_without_its_output_head_classifies_and_is_refused_where_text_is_asked_for() {
    let workshop = workshop();
    let folder = workshop.path();
    // The file has no head, since the configuration said that it is the token table.
    let path = folder.join("model/config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    assert_eq!(config["tie_word_embeddings"], true);
    config["tie_word_embeddings"] = false.into();
    fs::write(&path, config.to_string()).unwrap();

    let refused = [
        "generate --model model --prompt the",
        "eval --model model --tasks perplexity:text.txt",
        "tune --model model --data prompts.jsonl --task causal-lm --epochs 1 --out runs/lm --quiet",
        "export --model model --to gguf --out model.gguf",
    ];
    for words in refused {
        let names = if words.starts_with("export") {
            "tie_word_embeddings"
        } else {
            "lm_head.weight"
        };
        run(folder, words).fails(&[names]);
    }
    let words = "tune --model model --data train.tsv --epochs 1 --out runs/c --quiet";
    run(folder, words).ok();
    run(folder, "predict --adapter runs/c --data train.tsv").ok();
    run(folder, "merge --adapter runs/c --out merged").ok();
}
