//! What rounding the weights of a language model costs, and what LoftQ's start of LoRA gives back
//! before any training.
//!
//! `cargo build --release --workspace --examples`, then
//! `target/release/examples/loftq MODEL TEXTS [LINES] [RANK] [TURNS]` prints one JSON line each for
//! the exact weights, for 4-bit NormalFloat, and for LoftQ after 1 to TURNS turns. TEXTS has one
//! text per line (behind a tab, if there is one).

#![allow(clippy::print_stdout, reason = "its output is the point")]

use std::error::Error;
use std::sync::atomic::AtomicBool;

use burn::prelude::Device;
use frugal::adapt::{Adapter, BuildContext, registry};
use frugal::model::load::{Lookup, ModelFiles};
use frugal::model::{Backbone, LoadOptions, Quantize};
use frugal::train::{CausalLm, Target, Tokenized, evaluate};
use serde_json::json;

fn examples(
    files: &ModelFiles,
    text: &str,
    lines: usize,
) -> Result<Vec<Tokenized>, Box<dyn Error>> {
    let tokenizer = files.tokenizer()?;
    let mut out = Vec::new();
    for line in text.lines().take(lines) {
        let input_ids = tokenizer.encode(line.rsplit('\t').next().unwrap_or(line), true)?;
        if input_ids.len() > 1 {
            let labels = Target::Tokens(
                input_ids[1..]
                    .iter()
                    .map(|&id| id as i32)
                    .chain([-100])
                    .collect(),
            );
            out.push(Tokenized {
                input_ids,
                token_type_ids: vec![],
                labels,
            });
        }
    }
    Ok(out)
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, texts, rest @ ..] = arguments.as_slice() else {
        return Err("give a model and a file of texts".into());
    };
    let number = |i: usize, default: usize| rest.get(i).map_or(Ok(default), |n| n.parse());
    let (lines, rank, turns) = (number(0, 200)?, number(1, 16)?, number(2, 5)?);
    let (device, files) = (Device::flex(), ModelFiles::open(model, &Lookup::default())?);
    let examples = examples(&files, &std::fs::read_to_string(texts)?, lines)?;
    let show = |what: &str,
                backbone: &dyn Backbone,
                adapter: Option<&dyn Adapter>|
     -> Result<(), Box<dyn Error>> {
        let found = evaluate(
            backbone,
            adapter,
            &CausalLm::default(),
            &examples,
            2048,
            &AtomicBool::new(false),
        )?;
        let loss = found.ok_or("the evaluation was stopped")?.metrics["loss"];
        println!(
            "{}",
            json!({"weights": what, "loss": loss, "perplexity": loss.exp()})
        );
        Ok(())
    };
    show("exact", files.load(&device)?.as_ref(), None)?;
    show(
        "nf4",
        files
            .load_with(
                &device,
                LoadOptions {
                    quantize: Quantize::Nf4,
                    ..LoadOptions::default()
                },
            )?
            .as_ref(),
        None,
    )?;
    let method = registry::find("lora")?;
    for turns in 1..=turns {
        let settings = json!({"r": rank, "lora_alpha": rank, "init_lora_weights": "loftq", "loftq_config": {"loftq_iter": turns}});
        let settings = settings.as_object().cloned().unwrap_or_default();
        let options = method.load_options(
            &settings,
            &files.sites(),
            Some(Quantize::Nf4),
            LoadOptions::default(),
        )?;
        let backbone = files.load_with(&device, options)?;
        let (info, sites) = (backbone.info(), backbone.sites());
        let context = BuildContext {
            info,
            sites,
            backbone: Some(backbone.as_ref()),
            device: device.clone(),
            seed: 0,
            tokenize: None,
        };
        let adapter = (method.build)(&settings, &context)?;
        show(
            &format!("nf4, loftq r = {rank}, {turns} turns"),
            backbone.as_ref(),
            Some(adapter.as_ref()),
        )?;
    }
    Ok(())
}
