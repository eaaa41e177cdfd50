//! What a run will cost, before any weight is read.

use std::time::Duration;

use frugal_adapt::registry;
use frugal_models::load::{Lookup, ModelFiles};
use frugal_models::{ModelConfig, Quantize};
use frugal_nn::{Adapter, BuildContext, Head, Parameter, SiteInfo, SiteKind, SiteTable};
use frugal_train::{self, Batches, Optimizer};
use serde::Serialize;

use super::prepare::{Prepared, prepare};
use super::{RunError, TuneConfig};

const F32: u64 = 4;

/// Predicted memory by part, in bytes.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Memory {
    /// The program with tokenizer and data, as measured now.
    pub process: u64,
    /// Frozen weights in f32, and the pages of a file that has to be converted.
    pub weights: u64,
    /// What is trained: values, gradients, two moments, and the copy that is kept of the best.
    pub trainable: u64,
    /// What the forward pass of the largest micro-batch keeps for the backward pass.
    pub activations: u64,
    /// Working space of the largest operation.
    pub workspace: u64,
}

impl Memory {
    /// The sum.
    pub fn peak(&self) -> u64 {
        self.process + self.weights + self.trainable + self.activations + self.workspace
    }
}

/// A prediction.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    /// Parameters of the model.
    pub model_parameters: u64,
    /// Trained parameters: method and head.
    pub trainable_parameters: u64,
    /// Memory by part.
    pub memory: Memory,
    /// Sum of the parts.
    pub peak_memory_bytes: u64,
    /// Optimiser steps.
    pub total_steps: u64,
    /// Tokens read while training.
    pub train_tokens: u64,
    /// Largest micro-batch in tokens.
    pub micro_batch_tokens: u64,
    /// Floating-point operations of training.
    pub train_flops: f64,
    /// Rate of matrix products measured now, in 10⁹ operations per second.
    pub gemm_gflops: f64,
    /// Guess of the training time: the operations at half the measured rate.
    pub train_seconds: f64,
    /// Name, examples, tokens and longest example of each part of the data.
    pub parts: Vec<(String, usize, usize, usize)>,
    /// Examples that are cut.
    pub truncated: usize,
    /// One training example with what is trained marked.
    pub example: String,
}

/// Predicts parameters, memory and time of a run.
///
/// # Errors
/// Anything wrong with the model's files, the data or the settings.
pub fn plan(config: &TuneConfig, lookup: &Lookup) -> Result<Plan, RunError> {
    let device = crate::device::device(&config.device)?;
    let prepared = prepare(config, lookup)?;
    let method = registry::find(&config.method.name)?;
    let (model, sites) = (prepared.files.config(), prepared.files.sites());
    // What reading the data has freed again serves the tensors, as far as it is not in small
    // pieces: half of it, as measured.
    let process = frugal_core::events::current_rss_bytes()
        .unwrap_or(0)
        .saturating_sub(frugal_kernels::freed_memory() / 2);
    let context = BuildContext {
        info: prepared.files.info(),
        sites: &sites,
        backbone: None,
        device: device.clone(),
        seed: config.seed,
        tokenize: None,
    };
    let adapter = (method.build)(&config.method.settings, &context)?;
    let head = prepared
        .head
        .clone()
        .map(|head| Head::new(head, prepared.files.info(), &device, config.seed));
    let head_parameters: usize = head
        .iter()
        .flat_map(Head::parameters)
        .map(Parameter::len)
        .sum();
    let trainable = (adapter.num_trainable() + head_parameters) as u64;

    let batches = Batches::new(prepared.train.examples(), &config.train);
    let total_steps = batches.total_steps(&config.train);
    let epochs = if config.train.max_steps > 0 {
        total_steps as f64 / batches.epoch(0).steps().max(1) as f64
    } else {
        config.train.epochs
    };
    let micro_batch_tokens = largest_batch(&batches, &prepared, epochs);
    let train_tokens = (prepared.train.encoded.total_tokens as f64 * epochs) as u64;
    let trained: usize = adapter
        .parameters()
        .iter()
        .filter(|p| p.is_trainable())
        .map(|p| p.len())
        .sum();
    let trained = (trained + head_parameters) as u64;
    let memory = predicted(
        &prepared,
        &sites,
        adapter.as_ref(),
        config,
        trained,
        micro_batch_tokens,
        process,
    );
    let flops_per_token = flops_per_token(model, &sites, adapter.as_ref(), prepared.head.is_none());
    let [gemm_gflops, _] =
        crate::measure::machine::gemm_gflops(&device, Duration::from_millis(300));
    let train_flops = flops_per_token * train_tokens as f64;
    Ok(Plan {
        model_parameters: sites.num_parameters() as u64,
        trainable_parameters: trainable,
        peak_memory_bytes: memory.peak(),
        memory,
        total_steps,
        train_tokens,
        micro_batch_tokens,
        train_flops,
        gemm_gflops,
        train_seconds: train_flops / (0.5 * gemm_gflops * 1e9),
        parts: prepared
            .parts()
            .map(|p| {
                (
                    p.name.to_owned(),
                    p.examples().len(),
                    p.encoded.total_tokens,
                    p.encoded.longest,
                )
            })
            .collect(),
        truncated: prepared.parts().map(|p| p.encoded.truncated).sum(),
        example: prepared.shown_example()?,
    })
}

/// Epochs looked through for the largest micro-batch.
const LOOKED_THROUGH: f64 = 8.0;

/// Tokens of the largest micro-batch.
fn largest_batch(batches: &Batches, prepared: &Prepared, epochs: f64) -> u64 {
    let examples = prepared.train.examples();
    let of_epoch = |epoch: u64| {
        let epoch = batches.epoch(epoch);
        let micro_batches = (0..epoch.steps()).flat_map(|step| epoch.step(step));
        micro_batches
            .map(|rows| {
                rows.iter()
                    .map(|&row| examples[row as usize].len())
                    .sum::<usize>()
            })
            .max()
            .unwrap_or(0)
    };
    (0..epochs.ceil().clamp(1.0, LOOKED_THROUGH) as u64)
        .map(of_epoch)
        .max()
        .unwrap_or(0) as u64
}

fn predicted(
    prepared: &Prepared,
    sites: &SiteTable,
    adapter: &dyn Adapter,
    config: &TuneConfig,
    trained: u64,
    tokens: u64,
    process: u64,
) -> Memory {
    let model = prepared.files.config();
    let held = held_bytes(sites, config.quantize, &prepared.files);
    let converted = if prepared.files.is_mapped() {
        0
    } else {
        prepared.files.stored_bytes()
    };
    let values: u64 = adapter
        .parameters()
        .iter()
        .map(|p| p.len() as u64 * F32)
        .sum();
    let kept = kept_per_token(model, adapter, config.train.memory);
    let widest = model.intermediate_size.max(model.hidden_size) as u64;
    let moment = match config.train.optim {
        Optimizer::AdamW => F32,
        Optimizer::AdamW8bit => 1,
    };
    let logits = if prepared.head.is_some() {
        0
    } else {
        LOGIT_ROWS.min(tokens) * model.vocab_size as u64 * F32
    };
    Memory {
        process,
        weights: held + converted,
        // Gradients, the best weights and a checkpoint in the making, beside the values, and two
        // moments.
        trainable: values + 3 * trained * F32 + 2 * trained * moment,
        activations: kept.between as u64 * tokens * F32,
        workspace: (4 * widest + kept.again as u64) * tokens * F32 + 2 * logits,
    }
}

/// Bytes of the frozen weights in memory.
fn held_bytes(sites: &SiteTable, quantize: Quantize, files: &ModelFiles) -> u64 {
    let of = |site: &SiteInfo| match site.kind {
        _ if site.tied => 0,
        SiteKind::Norm => site.num_parameters() * F32 as usize,
        SiteKind::Linear | SiteKind::Conv1d => {
            quantize.bytes(site.d_out, site.d_in, false)
                + if site.has_bias { 4 * site.d_out } else { 0 }
        }
        SiteKind::Embedding | SiteKind::LmHead => quantize.bytes(site.d_in, site.d_out, true),
    };
    match quantize {
        // Codes are copied as they are; a file of plain numbers stays single precision.
        Quantize::Stored if files.is_packed() => files.stored_bytes(),
        _ => sites.iter().map(|(_, site)| of(site) as u64).sum(),
    }
}

/// Rows of logits formed at a time.
const LOGIT_ROWS: u64 = 256;

/// Floats that a training step holds for each token.
struct Kept {
    /// From the forward pass to the backward pass.
    between: usize,
    /// Computed again for one block at a time, and let go after it.
    again: usize,
}

fn kept_per_token(c: &ModelConfig, adapter: &dyn Adapter, memory: frugal_train::Memory) -> Kept {
    let (d, ff) = (c.hidden_size, c.intermediate_size);
    let (q, kv) = (
        c.num_attention_heads * c.head_dim,
        c.num_key_value_heads * c.head_dim,
    );
    // Inputs of the two norms, the attention's output and one number per head of its softmax.
    let cost = c.cost();
    let stream = (2 + cost.extra_norms) * d + q + c.num_attention_heads;
    // Queries, keys, values, twice where they are normalised, and what goes into the activation.
    let normalised = if cost.normalizes_heads { q + kv } else { 0 };
    let feed_forward = if cost.gated { 2 * ff } else { ff };
    let maps = q + 2 * kv + normalised + feed_forward;
    // Outputs of norms and of the activation.
    let light = 2 * d + ff;
    let low_rank: usize = adapter
        .low_rank_factors()
        .iter()
        .flatten()
        .map(|f| f.a.shape()[0])
        .sum();
    let (block, again) = match memory {
        frugal_train::Memory::Low => (stream, maps + light),
        frugal_train::Memory::Balanced => (stream + maps, light),
        frugal_train::Memory::Fast => (stream + maps + light, 0),
    };
    Kept {
        between: c.num_hidden_layers * block + low_rank,
        again,
    }
}

/// Forward, gradient to the inputs, and gradients of what is trained.
fn flops_per_token(
    c: &ModelConfig,
    sites: &SiteTable,
    adapter: &dyn Adapter,
    lm_head: bool,
) -> f64 {
    let inner: usize = sites
        .iter()
        .filter(|(_, s)| s.kind.is_inner_linear())
        .map(|(_, s)| s.d_in * s.d_out)
        .sum();
    let head = if lm_head {
        c.vocab_size * c.hidden_size
    } else {
        0
    };
    let trained: usize = adapter
        .parameters()
        .iter()
        .filter(|p| p.is_trainable() && p.shape().len() == 2)
        .map(|p| p.len())
        .sum();
    let full = adapter.method() == "full";
    let base = 2.0 * (inner + head) as f64;
    if full {
        3.0 * base
    } else {
        2.0 * base + 6.0 * trained as f64
    }
}
