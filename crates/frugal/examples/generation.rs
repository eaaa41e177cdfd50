//! Times reading and writing text: the Frugal side of `benches/peers/generate.py`.
//!
//! `cargo build --release --workspace --examples`, then
//! `target/release/examples/generation MODEL PROMPT PREFILL DECODE` prints one JSON object.

#![allow(clippy::print_stdout, reason = "its output is the point")]

use std::error::Error;
use std::sync::Arc;
use std::time::Instant;

use frugal::adapt::ActiveAdapters;
use frugal::decode::{CacheType, DecodeError, SequenceId, Session, StateOptions};
use frugal::model::LoadOptions;
use frugal::model::load::{Lookup, ModelFiles};
use serde_json::json;

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

fn main() -> Result<(), Box<dyn Error>> {
    frugal::device::keep_freed_memory();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, prompt, prefill, decode] = arguments.as_slice() else {
        return Err("usage: generation MODEL PROMPT PREFILL DECODE".into());
    };
    let (prefill, decode): (usize, usize) = (prefill.parse()?, decode.parse()?);
    let device = frugal::device::device("cpu")?;
    let files = ModelFiles::open(model, &Lookup::default())?;
    let backbone = files.load_with(&device, LoadOptions::for_generation())?;
    let session = || -> Result<(Session, SequenceId), DecodeError> {
        let options = StateOptions {
            cache_type: CacheType::F16,
            ..StateOptions::default()
        };
        let mut session = Session::new(backbone.clone(), Arc::default(), options)?;
        let sequence = session.add(ActiveAdapters::Base)?;
        Ok((session, sequence))
    };
    let prompt = files.tokenizer()?.encode(prompt, false)?;
    let vocab_size = files.config().vocab_size;
    let ids: Vec<u32> = (0..prefill)
        .map(|i| ((i * 7919 + 13) % vocab_size) as u32)
        .collect();
    let (mut read, mut written, mut tokens) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..3 {
        let (mut reading, sequence) = session()?;
        let start = Instant::now();
        reading.append_to(sequence, &ids)?;
        read.push(prefill as f64 / start.elapsed().as_secs_f64());
        let (mut writing, sequence) = session()?;
        tokens = vec![best(&writing.append_to(sequence, &prompt)?)];
        let start = Instant::now();
        for i in 1..decode {
            let logits = writing.append_to(sequence, &[tokens[i - 1]])?;
            tokens.push(best(&logits));
        }
        written.push((decode - 1) as f64 / start.elapsed().as_secs_f64());
    }
    println!(
        "{}",
        json!({ "prompt": prompt, "tokens": tokens, "prefill": read, "decode": written })
    );
    Ok(())
}
