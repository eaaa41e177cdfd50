//! A model of images from a folder of them to its measures.

use std::fs;
use std::path::Path;

use crate::support::{folder, frugal_in};

/// They were put aside without a word.
#[test]
fn flags_of_text_were_ignored_where_images_are_measured() {
    let workshop = folder();
    let folder = workshop.path();
    let images = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/media");
    for class in ["cat", "dog"] {
        let class = folder.join("images").join(class);
        fs::create_dir_all(&class).unwrap();
        for name in ["source.png", "grey.png", "plain.bmp", "still.gif"] {
            fs::copy(Path::new(images).join(name), class.join(name)).unwrap();
        }
    }
    let run = |words: &str| frugal_in(folder, &words.split_whitespace().collect::<Vec<_>>());
    let shape = "--set shape.hidden_size=16 --set shape.intermediate_size=32 --set shape.num_hidden_layers=1 \
                 --set shape.num_attention_heads=2 --set shape.image_size=8 --set shape.patch_size=4";
    let train = "--max-steps 2 --set train.batch_size=4 --set validation_share=0.25 --set train.warmup_steps=5";
    let made = run(&format!(
        "pretrain --arch vit --data images --out seen {shape} {train}"
    ));
    let made = made.ok();
    assert!(
        made.stderr.contains("`train.warmup_steps`"),
        "{}",
        made.stderr
    );
    let eval = |more: &str| run(&format!("eval --model seen/run/model --data images {more}"));
    let found = eval("--max-rows 4 --json").ok().json();
    assert_eq!(found["examples"], 4);
    for flags in [
        "--max-length 64",
        "--truncate",
        "--batch-tokens 64",
        "--column text=path",
        "--template none",
        "--whole-text",
        "--dump-logits logits.safetensors",
    ] {
        let flag = flags.split(' ').next().unwrap();
        eval(&format!("{flags} --out kept")).fails(&[&format!("`{flag}`"), "reads images"]);
        assert!(!folder.join("kept").exists(), "{flag}");
    }
    let predict = |more: &str| {
        run(&format!(
            "predict --model seen/run/model --data images {more}"
        ))
    };
    predict("").ok();
    for flag in ["--max-length 64", "--truncate", "--column text=path"] {
        let name = flag.split(' ').next().unwrap();
        predict(flag).fails(&[&format!("`{name}`"), "reads images"]);
    }
}
