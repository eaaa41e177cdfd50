//! Pre-trains a small decoder from a text file with the library alone.
//!
//! `cargo run --release -p frugal --example pretrain -- TEXT OUT [dotted overrides such as train.max_steps=100]`

#![allow(clippy::print_stdout, reason = "its output is the point")]

use std::error::Error;
use std::sync::atomic::AtomicBool;

use frugal::run::{PretrainConfig, Progress, pretrain};

fn main() -> Result<(), Box<dyn Error>> {
    frugal::device::keep_freed_memory();
    let command: Vec<String> = std::env::args().collect();
    let [_, data, out, overrides @ ..] = command.as_slice() else {
        return Err("usage: pretrain TEXT OUT [KEY=VALUE ...]".into());
    };
    let mut config: PretrainConfig = frugal_core::config::load(None, overrides)?;
    (config.data, config.out) = (data.clone(), out.into());
    config.resolve();
    if let Some((key, reason)) = config.problems().first() {
        return Err(format!("{key}: {reason}").into());
    }
    let resume = config.out.join("pretrain.toml").exists();
    let mut print =
        |progress: &Progress| println!("{}", serde_json::to_string(progress).unwrap_or_default());
    let done = pretrain(
        &config,
        &command,
        resume,
        &AtomicBool::new(false),
        &mut print,
    )?;
    println!("{}", serde_json::to_string_pretty(&done)?);
    Ok(())
}
