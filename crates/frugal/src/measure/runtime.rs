//! Timing generation on a grid of prompt and answer lengths, for the fit of
//! `frugal_eval::runtime`.

use std::sync::Arc;
use std::time::Instant;

use burn::prelude::*;
use frugal_decode::{DecodeError, Session};
use frugal_eval::capacity::{LatentShape, Shape};
use frugal_eval::runtime::Timing;
use frugal_models::ModelConfig;
use frugal_nn::{
    ActiveAdapters, AdapterSet, Backbone, Frozen, Input, Mode, ModelError, NoAdapter,
    SequenceLayout, StateOptions,
};
use serde::Serialize;

/// What is timed.
#[derive(Clone, Debug)]
pub struct Grid {
    /// Prompt lengths in tokens.
    pub prompts: Vec<usize>,
    /// Numbers of generated tokens.
    pub outputs: Vec<usize>,
    /// Runs of each prompt length that are thrown away first.
    pub warmup: usize,
    /// Runs that count.
    pub trials: usize,
}

/// Times generation without sampling and without an early end. One run of each prompt length gives
/// the times of all answer lengths, since an answer begins as every longer one does. `step` is told
/// of each run and ends the work by false. Of an encoder, which writes nothing, reading is timed.
///
/// # Errors
/// Lengths beyond the model's positions.
pub fn profile(
    backbone: &Arc<dyn Backbone>,
    adapters: &Arc<AdapterSet>,
    choice: &ActiveAdapters,
    grid: &Grid,
    step: &mut dyn FnMut() -> bool,
) -> Result<Vec<Timing>, DecodeError> {
    let longest = grid.outputs.iter().copied().max().unwrap_or(1).max(1);
    let vocab = backbone.info().vocab_size;
    let mut timings = Vec::new();
    let reads_only = backbone.info().is_encoder;
    for &prompt in &grid.prompts {
        // Any tokens will do: the time does not depend on which they are.
        let ids: Vec<u32> = (0..prompt.max(1))
            .map(|i| ((i * 7919 + 13) % vocab) as u32)
            .collect();
        for run in 0..grid.warmup + grid.trials {
            let start = Instant::now();
            if reads_only {
                let seconds = read(backbone.as_ref(), adapters, choice, &ids)?;
                if run >= grid.warmup {
                    timings.push(Timing {
                        prompt: ids.len(),
                        output: 1,
                        seconds,
                    });
                }
                if !step() {
                    return Ok(timings);
                }
                continue;
            }
            let options = StateOptions::default();
            let mut session = Session::new(backbone.clone(), adapters.clone(), options)?;
            let sequence = session.add(choice.clone())?;
            let mut logits = session.append_to(sequence, &ids)?;
            for output in 1..=longest {
                let token = likeliest(&logits);
                let seconds = start.elapsed().as_secs_f64();
                if run >= grid.warmup && grid.outputs.contains(&output) {
                    timings.push(Timing {
                        prompt: ids.len(),
                        output,
                        seconds,
                    });
                }
                if output < longest {
                    logits = session.append_to(sequence, &[token])?;
                }
            }
            if !step() {
                return Ok(timings);
            }
        }
    }
    Ok(timings)
}

/// Seconds of one forward pass over a text.
fn read(
    backbone: &dyn Backbone,
    adapters: &AdapterSet,
    choice: &ActiveAdapters,
    ids: &[u32],
) -> Result<f64, DecodeError> {
    let start = Instant::now();
    let layout = SequenceLayout::new(&[ids.len()]);
    let mut pass = adapters.pass(choice, &layout, Mode::Eval)?;
    let input = Input::tokens(ids, layout);
    let hidden = backbone.forward(&input, pass.as_mut(), None)?;
    // One element is read, so that devices which work on their own are waited for.
    drop(hidden.slice([0..1, 0..1]).into_data());
    Ok(start.elapsed().as_secs_f64())
}

fn likeliest(logits: &[f32]) -> u32 {
    logits
        .iter()
        .enumerate()
        .fold((0, f32::NEG_INFINITY), |best, (i, &l)| {
            if l > best.1 { (i as u32, l) } else { best }
        })
        .0
}

/// What a model holds in memory while it generates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Footprint {
    /// Bytes of the weights as they are held.
    pub weight_bytes: usize,
    /// Bytes for keys and values, in single precision, of each token of one sequence.
    pub cache_bytes_per_token: usize,
}

/// Weighs a model's matrices and what it remembers of a sequence; an encoder remembers nothing.
///
/// # Errors
/// What running the model gives.
pub fn footprint(backbone: &dyn Backbone) -> Result<Footprint, ModelError> {
    let sites = backbone.sites();
    let numbers =
        |bias: &Option<Tensor<1>>| bias.as_ref().map_or(0, |b| b.dims()[0]) * size_of::<f32>();
    let mut weight_bytes = 0;
    backbone.visit_weights(&mut |part| {
        weight_bytes += match part {
            // A head that is the token table.
            Frozen::Linear(linear) if sites.info(linear.site).tied => 0,
            Frozen::Linear(linear) => linear.weight.bytes() + numbers(&linear.bias),
            Frozen::Embedding(table) => table.weight.bytes(),
            Frozen::Norm(norm) => norm.weight.dims()[0] * size_of::<f32>() + numbers(&norm.bias),
            Frozen::Conv(conv) => {
                conv.weight.dims().iter().product::<usize>() * size_of::<f32>()
                    + numbers(&conv.bias)
            }
            Frozen::Param(param) => param.value.dims().iter().product::<usize>() * size_of::<f32>(),
        }
    });
    let config = backbone.info();
    if config.is_encoder {
        return Ok(Footprint {
            weight_bytes,
            cache_bytes_per_token: 0,
        });
    }
    let mut state = backbone.new_state(1, StateOptions::default())?;
    backbone.forward(&Input::new(&[0], &[1]), &mut NoAdapter, Some(&mut state))?;
    Ok(Footprint {
        weight_bytes,
        cache_bytes_per_token: state.sequences()[0].bytes_per_token(),
    })
}

/// The sizes that the number of operations depends on; `None` for native sparse attention and
/// recurrences, whose operations depend on the length in another way, for attention to learnt tokens,
/// whose numbers are sizes of their own, and where routers decide by the text which tokens go through
/// a block.
pub fn shape(config: &ModelConfig) -> Option<Shape> {
    let cost = config.cost();
    if cost.routes_tokens {
        return None;
    }
    let latent = cost.latent.map(|latent| LatentShape {
        query_rank: latent.query_rank.map(|rank| rank as u64),
        rank: latent.rank as u64,
        plain: latent.plain as u64,
        rotated: latent.rotated as u64,
        value: latent.value as u64,
    });
    let counted = cost.param_tokens.is_none() && (latent.is_some() || cost.key_value_width > 0);
    counted.then_some(Shape {
        hidden: config.hidden_size as u64,
        layers: config.num_hidden_layers as u64,
        heads: config.num_attention_heads as u64,
        kv_heads: config.num_key_value_heads as u64,
        head_dim: config.head_dim as u64,
        intermediate: config.intermediate_size as u64,
        gated: cost.gated,
        experts: cost.experts as u64,
        active_experts: cost.active_experts as u64,
        vocab: config.vocab_size as u64,
        latent,
    })
}
