//! What a run will cost, before any weight is read.

use std::time::Duration;

use frugal_models::ModelConfig;
use frugal_models::load::Lookup;
use frugal_nn::SiteTable;
use frugal_train::{TrainError, Unreached};
use serde::Serialize;

use super::estimate::{Memory, Sizes, Work, predicted, process_bytes};
use super::fit::{available, fitting};
use super::prepare::prepare;
use super::start::Start;
use super::{RunError, TuneConfig};

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
    /// What this process can have of the machine's memory, or of its control group's; none where
    /// the system does not say.
    pub available_memory_bytes: Option<u64>,
    /// Flags with which the run fits; none if it fits as it is, or with no flags.
    pub fitting_flags: Vec<String>,
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
    /// What of the data is hardly meant.
    pub warnings: Vec<String>,
}

/// Predicts parameters, memory and time of a run.
///
/// # Errors
/// Anything wrong with the model's files, the data or the settings.
pub fn plan(config: &TuneConfig, lookup: &Lookup) -> Result<Plan, RunError> {
    let device = crate::device::device(&config.device)?;
    let (config, start) = Start::resolve(config)?;
    let config = &config;
    let prepared = prepare(config, lookup)?;
    // What the run itself would refuse.
    frugal_train::check_settings(&config.train, prepared.validation.is_some())?;
    if prepared.files.info().image.is_some() {
        return Err(RunError::Invalid(format!(
            "`{}`: what a run on images costs is not predicted: leave out the plan",
            config.model
        )));
    }
    let sites = prepared.files.sites();
    start.map_or(Ok(()), |start| start.check_targets(&sites))?;
    let process = process_bytes();
    let sizes = Sizes::new(config, &prepared, &sites, &device)?;
    let warnings = sizes.unreached.as_ref().map(unreached).transpose()?;
    let work = Work::new(config, &prepared);
    let tokens = work.micro_batch_tokens;
    let memory = predicted(&prepared, &sites, &sizes, config, tokens, process);
    let available_memory_bytes = available(process);
    let fits = available_memory_bytes.is_none_or(|bytes| memory.peak() <= bytes);
    let fitting_flags = match available_memory_bytes.filter(|_| !fits) {
        Some(bytes) => fitting(config, &prepared, &sites, &sizes, process, bytes, false)
            .map(|fitted| fitted.flags)
            .unwrap_or_default(),
        None => Vec::new(),
    };
    let train_tokens = (prepared.train.encoded.total_tokens as f64 * work.epochs) as u64;
    let lm_head = prepared.head.is_none();
    let flops_per_token = flops_per_token(prepared.files.config(), &sites, &sizes, lm_head);
    let [gemm_gflops, _] =
        crate::measure::machine::gemm_gflops(&device, Duration::from_millis(300));
    let train_flops = flops_per_token * train_tokens as f64;
    Ok(Plan {
        model_parameters: sites.num_parameters() as u64,
        trainable_parameters: sizes.trainable,
        peak_memory_bytes: memory.peak(),
        memory,
        available_memory_bytes,
        fitting_flags,
        total_steps: work.total_steps,
        train_tokens,
        micro_batch_tokens: tokens,
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
        warnings: warnings.into_iter().collect(),
    })
}

/// What is said of examples that teach the method nothing.
///
/// # Errors
/// There are no others.
pub(super) fn unreached(found: &Unreached) -> Result<String, RunError> {
    match found.is_all() {
        true => Err(TrainError::Setup(found.to_string()).into()),
        false => Ok(found.to_string()),
    }
}

/// Forward, gradient to the inputs, and gradients of what is trained.
fn flops_per_token(c: &ModelConfig, sites: &SiteTable, sizes: &Sizes, lm_head: bool) -> f64 {
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
    let base = 2.0 * (inner + head) as f64;
    if sizes.full {
        3.0 * base
    } else {
        2.0 * base + 6.0 * sizes.matrices as f64
    }
}
