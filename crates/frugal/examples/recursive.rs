//! A recursive model that begins with a Llama's weights, to be trained on.
//!
//! `cargo run --release --example recursive MODEL FOLDER [KEYS] [WAY]` writes it: `KEYS` is a JSON
//! object of what a Llama's `config.json` has not, `{"num_recursion": 2}` by default; `WAY` is
//! stepwise, average, lower or upper. The folder must be new.

#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use std::error::Error;
use std::path::Path;

use burn::prelude::Device;
use frugal::model::load::{Lookup, ModelFiles};
use frugal::model::save::write_model;
use frugal::model::{RecursiveInit, merge, mor_from_llama};
use serde_json::{Map, Value};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let usage = "usage: recursive MODEL FOLDER [KEYS] [WAY]";
    let (model, folder) = arguments.next().zip(arguments.next()).ok_or(usage)?;
    let keys = arguments.next();
    let keys: Map<String, Value> =
        serde_json::from_str(keys.as_deref().unwrap_or("{\"num_recursion\": 2}"))?;
    let way = arguments.next().unwrap_or_else(|| "stepwise".into());
    let way: RecursiveInit = serde_json::from_value(way.into())?;

    let (files, device) = (
        ModelFiles::open(&model, &Lookup::default())?,
        Device::flex(),
    );
    let base = merge::weights(files.load(&device)?.as_ref(), None)?;
    let (config, tensors) = mor_from_llama(&base.config, &base.tensors, &keys, way, 0, &device)?;
    std::fs::create_dir(&folder)?;
    files.tokenizer()?.save(Path::new(&folder))?;
    write_model(Path::new(&folder), &config, &tensors, Default::default())?;
    println!(
        "{model}: {} parameters, {folder}: {} in {} unrolled layers",
        base.config.sites().num_parameters(),
        config.sites().num_parameters(),
        config.num_hidden_layers
    );
    Ok(())
}
