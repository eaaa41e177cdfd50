//! Several sequences write at once, each with a LoRA of its own over one model, beside each of them
//! writing alone.
//!
//! `cargo run --release --example many_adapters MODEL [SEQUENCES] [TOKENS]` prints one JSON object.
//! Both ways must write the same tokens: the adapters are drawn at random, so the texts mean
//! nothing.

#![allow(clippy::print_stdout, reason = "its output is the point")]

use std::error::Error;
use std::sync::Arc;
use std::time::Instant;

use frugal::adapt::{ActiveAdapters, AdapterSet, BuildContext, LoadedAdapter, registry};
use frugal::decode::{Session, StateOptions};
use frugal::model::load::{Lookup, ModelFiles};
use frugal::model::{Backbone, LoadOptions};
use serde_json::{Map, json};

/// The likeliest token.
fn best(logits: &[f32]) -> u32 {
    let largest = logits
        .iter()
        .enumerate()
        .fold((0, f32::NEG_INFINITY), |best, (i, &v)| {
            if v > best.1 { (i, v) } else { best }
        });
    largest.0 as u32
}

/// A LoRA of rank 8 on all linear layers that has learned something, though nobody knows what.
fn adapter(backbone: &dyn Backbone, seed: u64) -> Result<LoadedAdapter, Box<dyn Error>> {
    let context = BuildContext {
        info: backbone.info(),
        sites: backbone.sites(),
        backbone: Some(backbone),
        device: backbone.device().clone(),
        seed,
        tokenize: None,
    };
    let mut adapter =
        (registry::find("lora")?.build)(&Map::from_iter([("r".to_owned(), json!(8))]), &context)?;
    for parameter in adapter.parameters_mut() {
        let scale = if parameter.name().contains("lora_B") {
            0.01
        } else {
            0.1
        };
        parameter.set(
            (0..parameter.len())
                .map(|k| scale * (0.37 * k as f32 + seed as f32).sin())
                .collect(),
        );
    }
    Ok(LoadedAdapter {
        adapter,
        head: None,
    })
}

/// What each sequence writes behind the prompt, and the seconds for all tokens but the first.
fn write(
    mut session: Session,
    adapters: &[String],
    prompt: &[u32],
    tokens: usize,
) -> Result<(Vec<Vec<u32>>, f64), Box<dyn Error>> {
    let mut texts = vec![Vec::new(); adapters.len()];
    let ids = adapters
        .iter()
        .map(|name| session.add(ActiveAdapters::One(name.clone())))
        .collect::<Result<Vec<_>, _>>()?;
    let begin: Vec<_> = ids.iter().map(|id| (*id, prompt)).collect();
    let mut logits = session.append(&begin)?;
    let start = Instant::now();
    loop {
        texts
            .iter_mut()
            .zip(&logits)
            .for_each(|(text, logits)| text.push(best(logits)));
        if texts[0].len() == tokens {
            return Ok((texts, start.elapsed().as_secs_f64()));
        }
        let last = texts.iter().map(|text| &text[text.len() - 1..]);
        logits = session.append(&ids.iter().copied().zip(last).collect::<Vec<_>>())?;
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    frugal::device::keep_freed_memory();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (model, counts) = arguments
        .split_first()
        .ok_or("usage: many_adapters MODEL [SEQUENCES] [TOKENS]")?;
    let count = |i: usize, default: usize| counts.get(i).map_or(Ok(default), |count| count.parse());
    let (sequences, tokens) = (count(0, 8)?, count(1, 32)?);
    let files = ModelFiles::open(model, &Lookup::default())?;
    let backbone = files.load_with(
        &frugal::device::device("cpu")?,
        LoadOptions::for_generation(),
    )?;
    let names: Vec<String> = (0..sequences).map(|i| format!("adapter-{i}")).collect();
    let mut adapters = AdapterSet::default();
    for (name, seed) in names.iter().zip(1..) {
        adapters.insert(name, adapter(backbone.as_ref(), seed)?);
    }
    let prompt = files
        .tokenizer()?
        .encode("The capital of France is", false)?;
    let adapters = Arc::new(adapters);
    let session = || Session::new(backbone.clone(), adapters.clone(), StateOptions::default());
    let (texts, seconds) = write(session()?, &names, &prompt, tokens)?;
    let (mut alone, mut seconds_alone) = (Vec::new(), 0.0);
    for name in names.chunks(1) {
        let (text, seconds) = write(session()?, name, &prompt, tokens)?;
        alone.extend(text);
        seconds_alone += seconds;
    }
    let rate = |seconds: f64| (sequences * (tokens - 1)) as f64 / seconds;
    println!(
        "{}",
        json!({ "same_tokens": texts == alone, "together": rate(seconds), "alone": rate(seconds_alone) })
    );
    Ok(())
}
