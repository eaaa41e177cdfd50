//! How much memory a run will take, before any weight is read.

use burn::prelude::*;
use frugal_adapt::registry;
use frugal_models::architecture::RecurrenceCost;
use frugal_models::load::ModelFiles;
use frugal_models::{ModelConfig, Quantize};
use frugal_nn::{BuildContext, Head, Parameter, SiteInfo, SiteKind, SiteTable};
use frugal_train::{Batches, Optimizer, TrainError, Unreached};
use serde::Serialize;
use serde_json::Value;

use super::prepare::Prepared;
use super::{RunError, TuneConfig};

const F32: u64 = 4;

/// Predicted memory by part, in bytes.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Memory {
    /// The program with tokenizer and data, as measured now.
    pub process: u64,
    /// Frozen weights in f32, and the pages of a file that has to be converted.
    pub weights: u64,
    /// What is trained: values, gradients, what the optimizer remembers, and the copy that is kept
    /// of the best.
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

/// What a run trains, in numbers of elements.
pub(super) struct Sizes {
    /// Trained parameters as they are counted: method and head.
    pub(super) trainable: u64,
    /// Elements that get gradients and moments.
    trained: u64,
    /// Bytes of the tensors that the optimizer keeps.
    states: u64,
    /// Elements of the method, trained or not.
    values: u64,
    /// Sum of the ranks of low-rank changes.
    low_rank: usize,
    /// Elements of trained matrices of the method, for the time.
    pub(super) matrices: usize,
    /// Whether every weight is trained.
    pub(super) full: bool,
    /// Training examples that teach the method nothing.
    pub(super) unreached: Option<Unreached>,
}

impl Sizes {
    pub(super) fn new(
        config: &TuneConfig,
        prepared: &Prepared,
        sites: &SiteTable,
        device: &Device,
    ) -> Result<Self, RunError> {
        let method = registry::find(&config.method.name)?;
        let info = prepared.files.info();
        let head = prepared.head.clone();
        let head = head.map(|head| Head::new(head, info, device, config.seed));
        let of_head = || head.iter().flat_map(Head::parameters);
        let optimizer = frugal_train::optim::made(&config.train).map_err(TrainError::Setup)?;
        let kept = |p: &Parameter| optimizer.state_bytes(p.name(), p.shape());
        let head_states: u64 = of_head().map(kept).sum();
        let head: u64 = of_head().map(|p| p.len() as u64).sum();
        if method.name == "full" {
            // Known without a copy of all weights.
            (method.check)(&config.method.settings)?;
            let all = sites.num_parameters() as u64;
            return Ok(Self {
                trainable: all + head,
                trained: all + head,
                states: head_states + full_states(sites, optimizer.as_ref()),
                values: all,
                low_rank: 0,
                matrices: 0,
                full: true,
                unreached: None,
            });
        }
        let tokenizer = prepared.files.tokenizer()?;
        let tokenize = |text: &str| tokenizer.encode(text, false).unwrap_or_default();
        let context = BuildContext {
            info,
            sites,
            backbone: None,
            device: device.clone(),
            seed: config.seed,
            tokenize: Some(&tokenize),
        };
        let adapter = method.make(&prepared.method_settings(config, sites)?, &context)?;
        let parameters = adapter.parameters();
        let trained = || parameters.iter().filter(|p| p.is_trainable());
        Ok(Self {
            trainable: adapter.num_trainable() as u64 + head,
            trained: trained().map(|p| p.len() as u64).sum::<u64>() + head,
            states: head_states + trained().map(|p| kept(p)).sum::<u64>(),
            values: parameters.iter().map(|p| p.len() as u64).sum(),
            low_rank: adapter
                .low_rank_factors()
                .iter()
                .flatten()
                .map(|f| f.a.shape()[0])
                .sum(),
            matrices: trained()
                .filter(|p| p.shape().len() == 2)
                .map(|p| Parameter::len(p))
                .sum(),
            full: false,
            unreached: Unreached::among(adapter.as_ref(), prepared.train.examples()),
        })
    }
}

/// Bytes of an optimizer that trains every weight, by names and shapes alone.
fn full_states(sites: &SiteTable, optimizer: &dyn Optimizer) -> u64 {
    let of = |site: &SiteInfo| {
        let weight = match site.kind {
            _ if site.tied => 0,
            SiteKind::Linear | SiteKind::Conv1d => {
                optimizer.state_bytes(&site.weight_name(), &[site.d_out, site.d_in])
            }
            _ => optimizer.state_bytes(&site.weight_name(), &site.stored_shape()),
        };
        let bias = format!("{}.bias", site.path);
        weight
            + if site.has_bias {
                optimizer.state_bytes(&bias, &[site.d_out])
            } else {
                0
            }
    };
    sites.iter().map(|(_, site)| of(site)).sum()
}

/// Batches of a run, as far as its memory and time depend on them.
pub(super) struct Work {
    /// Optimiser steps.
    pub(super) total_steps: u64,
    /// Passes over the data.
    pub(super) epochs: f64,
    /// Tokens of the largest micro-batch.
    pub(super) micro_batch_tokens: u64,
}

impl Work {
    pub(super) fn new(config: &TuneConfig, prepared: &Prepared) -> Self {
        let batches = Batches::new(prepared.train.examples(), &config.train);
        let total_steps = batches.total_steps(&config.train);
        let epochs = if config.train.max_steps > 0 {
            total_steps as f64 / batches.epoch(0).steps().max(1) as f64
        } else {
            config.train.epochs
        };
        Self {
            total_steps,
            epochs,
            micro_batch_tokens: at_once(config, largest_batch(&batches, prepared, epochs)),
        }
    }
}

/// Tokens of a micro-batch that the model computes together: an objective may divide it.
fn at_once(config: &TuneConfig, tokens: u64) -> u64 {
    let settings = &config.train.objective.settings;
    let part = settings.get("mini_batch_size").and_then(Value::as_u64);
    let batch = config.train.batch_size as u64;
    match part.filter(|part| *part > 0 && *part < batch) {
        Some(part) => tokens.saturating_mul(part).div_ceil(batch),
        None => tokens,
    }
}

/// The memory of the program as it is now, with tokenizer and data.
pub(super) fn process_bytes() -> u64 {
    // What reading the data has freed again serves the tensors, as far as it is not in small
    // pieces: half of it, as measured.
    frugal_core::events::current_rss_bytes()
        .unwrap_or(0)
        .saturating_sub(frugal_kernels::freed_memory() / 2)
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

/// The memory of a run with these settings.
pub(super) fn predicted(
    prepared: &Prepared,
    sites: &SiteTable,
    sizes: &Sizes,
    config: &TuneConfig,
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
    let kept = kept_per_token(model, sizes.low_rank, config.train.memory);
    let widest = model.intermediate_size.max(model.hidden_size) as u64;
    let logits = if prepared.head.is_some() || config.task.is_ranked() {
        0
    } else {
        LOGIT_ROWS.min(tokens) * model.vocab_size as u64 * F32
    };
    Memory {
        process,
        weights: held + converted,
        // Gradients, the best weights and a checkpoint in the making, beside the values, and what
        // the optimizer remembers.
        trainable: (sizes.values + 3 * sizes.trained) * F32 + sizes.states,
        activations: kept.between as u64 * tokens * F32,
        workspace: (4 * widest + kept.again as u64) * tokens * F32 + 2 * logits,
    }
}

/// Bytes of the frozen weights in memory.
fn held_bytes(sites: &SiteTable, quantize: Quantize, files: &ModelFiles) -> u64 {
    let of = |site: &SiteInfo| match site.kind {
        _ if site.tied => 0,
        SiteKind::Norm | SiteKind::Conv | SiteKind::Conv2d | SiteKind::Param => {
            site.num_parameters() * F32 as usize
        }
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

fn kept_per_token(c: &ModelConfig, low_rank: usize, memory: frugal_train::Memory) -> Kept {
    let (d, ff) = (c.hidden_size, c.intermediate_size);
    let (q, kv) = (
        c.num_attention_heads * c.head_dim,
        c.num_key_value_heads * c.head_dim,
    );
    // Inputs of the two norms, the attention's output and one number per head of its softmax.
    let cost = c.cost();
    if let Some(recurrence) = cost.recurrence {
        return kept_of_recurrence(c, recurrence, low_rank, memory);
    }
    // Scores of learnt tokens, these normalised, and what the values are weighed by.
    let tokens = cost
        .param_tokens
        .map_or(0, |tokens| 3 * (3 * tokens.qkv + tokens.proj + ff));
    let stream = (2 + cost.extra_norms) * d + q + c.num_attention_heads + tokens;
    // Queries, keys, values, twice where they are normalised, and what goes into the activation.
    let normalised = if cost.normalizes_heads { q + kv } else { 0 };
    let feed_forward = match (cost.gated, cost.param_tokens) {
        (true, _) => 2 * ff,
        (false, None) => ff,
        (false, Some(_)) => 0,
    };
    let maps = q + 2 * kv + normalised + feed_forward;
    // Outputs of norms and of the activation.
    let light = 2 * d + if cost.param_tokens.is_none() { ff } else { 0 };
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

/// Tokens between the states that the scan keeps.
const SCAN_CHUNK: usize = 32;

/// The same of blocks with one mixer each.
fn kept_of_recurrence(
    c: &ModelConfig,
    recurrence: RecurrenceCost,
    low_rank: usize,
    memory: frugal_train::Memory,
) -> Kept {
    let (d, inner) = (c.hidden_size, recurrence.channels);
    // The input of the norm, the scan's output and its states; what goes in and out of the state.
    let stream = d + inner + recurrence.state * inner / SCAN_CHUNK + 2 * recurrence.state;
    // Both halves of the way in, what is projected from the channels, and the steps.
    let maps = 2 * inner + recurrence.projected + inner;
    // The norm's output, the convolution's, and the activation's, which the scan reads.
    let light = d + 2 * inner;
    // A feed-forward layer behind it: its norm's input and output, both ways up, the activation's.
    let (stream, maps, light) = match recurrence.feed_forward {
        0 => (stream, maps, light),
        ff => (stream + d, maps + 2 * ff, light + d + ff),
    };
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::{DataConfig, prepare};
    use frugal_adapt::methods::full::{Full, FullConfig};
    use frugal_models::load::Lookup;
    use frugal_nn::Adapter;

    /// The adapter that would be trained is the oracle of what is known without it.
    #[test]
    fn optimizers_of_whole_models_are_counted_by_names_and_shapes() {
        let text = r#"{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 96,
            "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "attention_bias": true, "max_position_embeddings": 32,
            "rms_norm_eps": 1e-6, "hidden_act": "silu", "tie_word_embeddings": true}"#;
        let config = ModelConfig::from_json(serde_json::from_str(text).unwrap(), "test").unwrap();
        let (sites, device) = (config.sites(), Device::flex());
        let weights = frugal_models::random_weights(&config, 0, &device);
        let backbone = frugal_models::build(config.clone(), &weights, &device).unwrap();
        let context = BuildContext {
            info: &config.info(),
            sites: &sites,
            backbone: Some(backbone.as_ref()),
            device: device.clone(),
            seed: 0,
            tokenize: None,
        };
        let built = Full::new(FullConfig {}, &context).unwrap();
        for entry in frugal_train::optim::OPTIMIZERS {
            let settings = match entry.name {
                "galore" | "golore" | "fira" | "apollo" => r#"{"rank": 8}"#,
                "adam_mini" => r#"{"head_dim": 6}"#,
                _ => "{}",
            };
            let train = frugal_train::TrainConfig {
                optim: frugal_train::Named {
                    name: entry.name.into(),
                    settings: serde_json::from_str(settings).unwrap(),
                },
                ..Default::default()
            };
            let optimizer = frugal_train::optim::made(&train).unwrap();
            let of_built = built.parameters().into_iter();
            let expected: u64 = of_built
                .map(|p| optimizer.state_bytes(p.name(), p.shape()))
                .sum();
            let found = full_states(&sites, optimizer.as_ref());
            assert_eq!(found, expected, "{}", entry.name);
        }
    }

    #[test]
    fn full_training_is_counted_without_a_copy_of_the_weights() {
        let mut config = TuneConfig {
            data: DataConfig {
                train: "sms-spam".into(),
                max_train_rows: 16,
                max_eval_rows: 4,
                ..DataConfig::default()
            },
            ..TuneConfig::default()
        };
        config.method.name = "full".into();
        let prepared = prepare(&config, &Lookup::default()).unwrap();
        let (sites, device) = (prepared.files.sites(), Device::flex());
        let sizes = Sizes::new(&config, &prepared, &sites, &device).unwrap();
        let context = BuildContext {
            info: prepared.files.info(),
            sites: &sites,
            backbone: None,
            device: device.clone(),
            seed: 0,
            tokenize: None,
        };
        let built = Full::new(FullConfig {}, &context).unwrap();
        let head = Head::new(
            prepared.head.clone().unwrap(),
            prepared.files.info(),
            &device,
            0,
        );
        let of_head: usize = head.parameters().into_iter().map(Parameter::len).sum();
        assert_eq!(sizes.values, built.num_trainable() as u64);
        assert_eq!(sizes.trainable, (built.num_trainable() + of_head) as u64);
    }
}
