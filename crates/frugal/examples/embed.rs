//! Times sentence embeddings: the Frugal side of `benches/peers/encoder.py`.
//!
//! `cargo build --release --workspace --examples`, then `target/release/examples/embed MODEL FILE [QUANTIZE]`
//! reads a sentence from each line and prints one JSON object with the seconds of each of some
//! runs, tokenization included, and the first embedding. Batches are ragged: nothing is padded.

#![allow(clippy::print_stdout, reason = "its output is the point")]

use std::error::Error;
use std::time::Instant;

use frugal::adapt::{NoAdapter, to_vec};
use frugal::model::load::{Lookup, ModelFiles};
use frugal::model::{ActivationQuant, Input, LoadOptions, Quantize, mean_pool};
use serde_json::json;

const RUNS: usize = 4;
/// Tokens of a batch: as many as keep activations in the caches.
const BATCH: usize = 512;

fn main() -> Result<(), Box<dyn Error>> {
    frugal::device::keep_freed_memory();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (model, file, quantize) = match arguments.as_slice() {
        [model, file] => (model, file, Quantize::None),
        [model, file, quantize] => (model, file, quantize.parse()?),
        _ => return Err("usage: embed MODEL FILE [QUANTIZE]".into()),
    };
    let files = ModelFiles::open(model, &Lookup::default())?;
    let options = LoadOptions {
        quantize,
        // Products of integers where weights are integers.
        activations: match quantize {
            Quantize::Int8 => ActivationQuant::Int8,
            _ => ActivationQuant::Exact,
        },
        ..LoadOptions::default()
    };
    let backbone = files.load_with(&frugal::device::device("cpu")?, options)?;
    let tokenizer = files.tokenizer()?;
    let text = std::fs::read_to_string(file)?;
    let sentences: Vec<&str> = text.lines().collect();
    let (mut seconds, mut embeddings) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        let start = Instant::now();
        embeddings.clear();
        let ids: Vec<Vec<u32>> = sentences
            .iter()
            .map(|s| tokenizer.encode(s, true))
            .collect::<Result<_, _>>()?;
        let mut first = 0;
        while first < ids.len() {
            let mut tokens = 0;
            let fits = ids[first..]
                .iter()
                .take_while(|ids| (tokens += ids.len(), tokens <= BATCH).1)
                .count()
                .max(1);
            let batch = &ids[first..first + fits];
            let (all, lengths) = (
                batch.concat(),
                batch.iter().map(Vec::len).collect::<Vec<_>>(),
            );
            let input = Input::new(&all, &lengths);
            let pooled = mean_pool(
                backbone.forward(&input, &mut NoAdapter, None)?,
                &input.layout.cu_seqlens,
            );
            let width = pooled.dims()[1];
            for row in to_vec(pooled).chunks(width) {
                let length = row.iter().map(|v| v * v).sum::<f32>().sqrt();
                embeddings.push(row.iter().map(|v| v / length).collect::<Vec<f32>>());
            }
            first += fits;
        }
        seconds.push(start.elapsed().as_secs_f64());
    }
    println!(
        "{}",
        json!({ "sentences": sentences.len(), "seconds": seconds, "first": embeddings[0], "last": embeddings[embeddings.len() - 1] })
    );
    Ok(())
}
