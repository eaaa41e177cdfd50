//! Running a part of a model's blocks: 0 to 3, not 4, 5 twice; then reading out.
//!
//! `cargo run --release --example blocks [MODEL] [TEXT]` prints the likeliest next token after all
//! blocks in order, and after these.

#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use std::error::Error;

use burn::prelude::Device;
use frugal::adapt::{NoAdapter, Rows, to_vec};
use frugal::model::load::{Lookup, ModelFiles};
use frugal::model::{Backbone, Input, select_rows};

/// The likeliest token after the last.
fn next(
    files: &ModelFiles,
    backbone: &dyn Backbone,
    hidden: burn::Tensor<2>,
) -> Result<String, Box<dyn Error>> {
    let last = hidden.dims()[0] - 1;
    let logits = backbone
        .logits(
            select_rows(hidden, &[last]),
            Rows::Sequences,
            &mut NoAdapter,
        )
        .ok_or("this model has no output over the vocabulary")?;
    let logits = to_vec(logits);
    let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b]));
    let id = best.ok_or("an empty vocabulary")? as u32;
    Ok(files.tokenizer()?.decode(&[id], false)?)
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let model = arguments.next().unwrap_or_else(|| "builtin".into());
    let text = arguments
        .next()
        .unwrap_or_else(|| "Once upon a time".into());
    let files = ModelFiles::open(&model, &Lookup::default())?;
    let backbone = files.load(&Device::flex())?;
    let ids = files.tokenizer()?.encode(&text, true)?;
    let input = Input::new(&ids, &[ids.len()]);

    let pass = &mut NoAdapter;
    let all = backbone.forward(&input, pass, None)?;
    println!(
        "all blocks:       {:?}",
        next(&files, backbone.as_ref(), all)?
    );

    let mut state = backbone.stem(&input, pass)?;
    for range in [0..4, 5..6, 5..6] {
        state = backbone.blocks(range, state, pass, None)?;
    }
    let some = backbone.readout(state, pass);
    println!(
        "0 to 3, 5 twice:  {:?}",
        next(&files, backbone.as_ref(), some)?
    );
    Ok(())
}
