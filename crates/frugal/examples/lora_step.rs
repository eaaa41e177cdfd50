//! Times training steps on a real model: the Frugal side of `benches/peers/lora_step.py` and of
//! `benches/peers/moe_step.py`.
//!
//! `cargo build --release --workspace --examples`, then
//! `target/release/examples/lora_step MODEL STEPS [method=lora] [memory=low] [quantize=int8] [activations=int8] [batch=4] [length=256]`
//! prints one JSON object; the method is `lora`, or `full` for all weights. With `products` in place of STEPS it times nothing but the matrix
//! products that a step makes with the model's weights.

#![allow(clippy::print_stdout, reason = "its output is the point")]

use std::error::Error;
use std::hint::black_box;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use burn::prelude::*;
use frugal::adapt::{BuildContext, registry};
use frugal::model::load::{Lookup, ModelFiles};
use frugal::model::{Backbone, Frozen, LoadOptions};
use frugal::train::{Event, Scheduler, Target, Tokenized, TrainConfig, TrainRun, train};
use serde_json::{Map, Value, json};

/// Token ids that both sides compute: spread over the vocabulary, without a pattern that is easy to
/// learn.
fn ids(sequence: usize, length: usize, vocab_size: usize) -> Vec<u32> {
    (0..length)
        .map(|i| (((sequence * length + i) * 7919 + 13) % vocab_size) as u32)
        .collect()
}

/// Logits that are held at a time, as in the loss.
const MAX_LOGITS: usize = 1 << 24;

/// Floating-point operations a second of the products of `tokens` rows with every weight, towards
/// the output and back towards the input, and nothing else. The weights come from memory, as in a
/// step; the median of three rounds.
fn products(backbone: &dyn Backbone, tokens: usize) -> f64 {
    let mut weights = Vec::new();
    backbone.visit_weights(&mut |part| {
        if let Frozen::Linear(linear) = part {
            weights.push(linear.weight.dense());
        }
    });
    let round = |_| {
        let (mut operations, mut seconds) = (0, 0.0);
        for weight in &weights {
            let [d_out, d_in] = weight.dims();
            let rows = tokens.min(MAX_LOGITS / d_out);
            let [x, dy] =
                [d_in, d_out].map(|width| Tensor::<2>::ones([rows, width], backbone.device()));
            let start = Instant::now();
            for _ in 0..tokens / rows {
                black_box(frugal_kernels::linear(x.clone(), weight.clone(), None));
                black_box(frugal_kernels::linear(
                    dy.clone(),
                    weight.clone().transpose(),
                    None,
                ));
                operations += 4 * rows * d_in * d_out;
            }
            seconds += start.elapsed().as_secs_f64();
        }
        operations as f64 / seconds
    };
    let mut rates = [0, 1, 2].map(round);
    rates.sort_by(f64::total_cmp);
    rates[1]
}

fn main() -> Result<(), Box<dyn Error>> {
    frugal::device::keep_freed_memory();
    frugal::device::on_pool(|| run().map_err(|error| error.to_string())).map_err(Into::into)
}

fn run() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, steps, options @ ..] = arguments.as_slice() else {
        return Err("usage: lora_step MODEL STEPS [KEY=VALUE ...]".into());
    };
    let option = |key: &str| {
        options
            .iter()
            .find_map(|option| option.strip_prefix(key)?.strip_prefix('='))
    };
    let count = |key: &str, default: usize| option(key).map_or(Ok(default), str::parse);
    let (batch, length) = (count("batch", 4)?, count("length", 256)?);
    let device = frugal::device::device("cpu")?;
    let options = LoadOptions {
        quantize: option("quantize").unwrap_or("none").parse()?,
        activations: serde_json::from_value(Value::from(option("activations").unwrap_or("exact")))?,
        ..LoadOptions::default()
    };
    let backbone = ModelFiles::open(model, &Lookup::default())?.load_with(&device, options)?;
    if steps == "products" {
        println!(
            "{}",
            json!({ "operations_per_second": products(backbone.as_ref(), batch * length) })
        );
        return Ok(());
    }
    let context = BuildContext {
        info: backbone.info(),
        sites: backbone.sites(),
        backbone: Some(backbone.as_ref()),
        device,
        seed: 0,
        tokenize: None,
    };
    let method = option("method").unwrap_or("lora");
    let settings = match method {
        "lora" => Map::from_iter([
            ("r".to_owned(), json!(8)),
            ("lora_alpha".to_owned(), json!(16)),
        ]),
        _ => Map::new(),
    };
    let mut adapter = (registry::find(method)?.build)(&settings, &context)?;
    let of_lora = |name: &str| name.contains("lora_A") || name.contains("lora_B");
    let parameters = adapter.parameters_mut().into_iter();
    for parameter in parameters.filter(|p| of_lora(p.name())) {
        let scale = if parameter.name().contains("lora_A") {
            1.0 / (parameter.shape()[1] as f64).sqrt()
        } else {
            0.0
        };
        parameter.set(
            (0..parameter.len())
                .map(|k| (scale * (0.37 * k as f64).sin()) as f32)
                .collect(),
        );
    }
    let example = |s: usize| {
        let input_ids = ids(s, length, backbone.info().vocab_size);
        let targets = input_ids[1..]
            .iter()
            .map(|&id| id as i32)
            .chain([-100])
            .collect();
        Tokenized {
            input_ids,
            token_type_ids: vec![],
            labels: Target::Tokens(targets),
        }
    };
    let examples: Vec<Tokenized> = (0..batch).map(example).collect();
    let config = TrainConfig {
        lr: 1e-3,
        max_steps: steps.parse()?,
        batch_size: batch,
        memory: serde_json::from_value(Value::from(option("memory").unwrap_or("balanced")))?,
        max_grad_norm: 0.0,
        lr_scheduler_type: Scheduler::Constant,
        warmup_ratio: 0.0,
        logging_steps: 1,
        load_best_model_at_end: false,
        ..TrainConfig::default()
    };
    let (mut losses, mut seconds, mut last) = (Vec::new(), Vec::new(), Instant::now());
    let mut observer = |event: &Event| {
        if let Event::Step { loss, .. } = event {
            losses.push(*loss);
            seconds.push(last.elapsed().as_secs_f64());
            last = Instant::now();
        }
    };
    train(TrainRun {
        backbone: backbone.as_ref(),
        adapter: adapter.as_mut(),
        head: None,
        train: &examples,
        validation: None,
        config: &config,
        folder: None,
        resume: false,
        stop: &AtomicBool::new(false),
        observer: &mut observer,
    })?;
    let peak = frugal_core::events::peak_rss_bytes();
    println!(
        "{}",
        json!({ "tokens": batch * length, "losses": losses, "seconds": seconds, "peak_rss_bytes": peak })
    );
    Ok(())
}
