//! New models with recurrent routers and shared blocks, and the experiments on them.

use std::fs;

use crate::support::{folder, frugal_in};

const TEXT: &str = "To be, or not to be, that is the question:\nWhether 'tis nobler in the mind to suffer\n\
                    The slings and arrows of outrageous fortune,\nOr to take arms against a sea of troubles\n";

fn run(folder: &std::path::Path, words: &str) -> crate::support::Run {
    frugal_in(folder, &words.split_whitespace().collect::<Vec<_>>())
}

#[test]
fn new_models_are_made_and_write_text() {
    let folder = folder();
    let folder = folder.path();
    fs::write(folder.join("data.txt"), TEXT.repeat(60)).unwrap();
    let shape = "--set shape.hidden_size=32 --set shape.intermediate_size=32 --set shape.num_hidden_layers=2 \
                 --set shape.num_attention_heads=4 --set shape.num_key_value_heads=2";
    let own = [
        ("rmoe", "--set shape.moe_router_rnn_hidden_size=8"),
        ("widenet", "--set shape.expert_capacity_factor=1.2"),
    ];
    for (arch, own) in own {
        let words = format!(
            "pretrain --data data.txt --out {arch} --arch {arch} --vocab-size 300 --max-length 32 --max-steps 3 \
             --batch-tokens 256 {shape} {own} --quiet"
        );
        run(folder, &words).ok();
        let written = fs::read_to_string(folder.join(arch).join("config.json")).unwrap();
        assert!(
            written.contains(&format!("\"model_type\": \"{arch}\"")),
            "{written}"
        );
        let words = format!("generate --model {arch} --prompt To --max-tokens 3");
        run(folder, &words).ok();
        let words = format!("export --model {arch} --to gguf --out {arch}.gguf");
        run(folder, &words).fails(&[arch]);
    }
    let words = format!(
        "pretrain --data data.txt --out other --arch widenet {shape} --set shape.moe_router_detach=true"
    );
    run(folder, &words).fails(&["moe_router_detach", "widenet"]);
}

#[test]
fn the_experiments_run_in_their_smallest_size() {
    let folder = folder();
    let folder = folder.path();
    fs::create_dir(folder.join("tinyshakespeare")).unwrap();
    fs::write(folder.join("tinyshakespeare/input.txt"), TEXT.repeat(100)).unwrap();
    for (suite, arms) in [
        ("rmoe", ["RMoE, detached", "wider experts"]),
        ("widenet", ["Own norms", "Dense, equal size"]),
    ] {
        let words = format!(
            "bench pretrain --suite {suite} --smoke --seeds 0 --data-dir . --out {suite} --quiet"
        );
        run(folder, &words).ok();
        let written = fs::read_to_string(folder.join(suite).join("results.md")).unwrap();
        for arm in arms {
            assert!(written.contains(arm), "{written}");
        }
        assert!(
            written.contains("perplexity") && written.contains("mutual information"),
            "{written}"
        );
    }
}
