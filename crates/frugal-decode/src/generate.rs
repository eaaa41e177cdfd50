//! Continuing prompts.

use frugal_kernels::CacheType;
use frugal_nn::{ActiveAdapters, AdapterSet, Backbone, named_rng};
use serde::Serialize;

use crate::{DecodeError, Sampler, SamplerConfig, Session};

/// How long to generate and how to choose tokens.
#[derive(Clone, Debug)]
pub struct GenerateConfig {
    /// Most tokens to add to each prompt.
    pub max_tokens: usize,
    /// How tokens are chosen.
    pub sampler: SamplerConfig,
    /// Tokens that end a sequence.
    pub eos_token_ids: Vec<u32>,
    /// Decides the choices.
    pub seed: u64,
    /// How keys and values of earlier tokens are held.
    pub cache_type: CacheType,
}

/// Why a sequence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// The model ended it.
    Stop,
    /// `max_tokens` or the model's positions are used up.
    Length,
}

/// A continued prompt.
#[derive(Clone, Debug)]
pub struct Generation {
    /// New tokens, without the one that ended the sequence.
    pub tokens: Vec<u32>,
    /// Why it ended.
    pub finish: FinishReason,
}

/// What goes on after a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// The sequence.
    Sequence,
    /// The other sequences; this one is at its end, as if the model had ended it.
    Others,
    /// Nothing.
    Nothing,
}

/// Continues all prompts together; `on_token` sees each new token with its prompt's number as it is
/// chosen, and ends everything by returning false.
///
/// # Errors
/// As [`generate_until`].
pub fn generate(
    backbone: &dyn Backbone,
    adapters: &AdapterSet,
    choice: ActiveAdapters,
    prompts: &[Vec<u32>],
    config: &GenerateConfig,
    on_token: &mut dyn FnMut(usize, u32) -> bool,
) -> Result<Vec<Generation>, DecodeError> {
    let mut next = |prompt: usize, token: u32| match on_token(prompt, token) {
        true => Next::Sequence,
        false => Next::Nothing,
    };
    generate_until(backbone, adapters, choice, prompts, config, &mut next)
}

/// Continues all prompts together; `on_token` sees each new token with its prompt's number as it is
/// chosen and says what goes on.
///
/// A prompt's choices follow from the seed and the prompt, not from its place or the other prompts;
/// equal prompts differ.
///
/// # Errors
/// Empty prompts, prompts longer than the model allows, models without a head.
pub fn generate_until(
    backbone: &dyn Backbone,
    adapters: &AdapterSet,
    choice: ActiveAdapters,
    prompts: &[Vec<u32>],
    config: &GenerateConfig,
    on_token: &mut dyn FnMut(usize, u32) -> Next,
) -> Result<Vec<Generation>, DecodeError> {
    let _span = tracing::debug_span!("generate", prompts = prompts.len()).entered();
    if let Some(index) = prompts.iter().position(Vec::is_empty) {
        return Err(DecodeError::EmptyPrompt { index });
    }
    let mut session =
        Session::with_cache(backbone, adapters, choice, prompts.len(), config.cache_type)?;
    let seed_of = |i: usize| {
        let equal_before = prompts[..i]
            .iter()
            .filter(|prompt| **prompt == prompts[i])
            .count();
        rand::Rng::random(&mut named_rng(
            config.seed,
            &format!("generate {equal_before} {:?}", prompts[i]),
        ))
    };
    let mut samplers = (0..prompts.len())
        .map(|i| Sampler::new(config.sampler.clone(), seed_of(i)))
        .collect::<Result<Vec<_>, _>>()?;
    let mut out: Vec<Generation> = prompts
        .iter()
        .map(|_| Generation {
            tokens: Vec::new(),
            finish: FinishReason::Length,
        })
        .collect();
    if config.max_tokens == 0 || prompts.is_empty() {
        return Ok(out);
    }
    let mut active: Vec<usize> = (0..prompts.len()).collect();
    let mut logits = session.append(&prompts.iter().map(Vec::as_slice).collect::<Vec<_>>())?;
    loop {
        let mut keep = Vec::with_capacity(active.len());
        let mut next = Vec::new();
        for ((&i, logits), room) in active.iter().zip(&mut logits).zip(session.remaining_each()) {
            let token = samplers[i].next(logits, &prompts[i], &out[i].tokens);
            let mut ended = config.eos_token_ids.contains(&token);
            if !ended {
                out[i].tokens.push(token);
                match on_token(i, token) {
                    Next::Sequence => {}
                    Next::Others => ended = true,
                    Next::Nothing => return Ok(out),
                }
            }
            if ended {
                out[i].finish = FinishReason::Stop;
            }
            let goes_on = !ended && room > 0 && out[i].tokens.len() < config.max_tokens;
            keep.push(goes_on);
            if goes_on {
                next.push([token]);
            }
        }
        session.retain(&keep);
        let mut kept = keep.iter();
        active.retain(|_| *kept.next().unwrap_or(&false));
        if active.is_empty() {
            return Ok(out);
        }
        logits = session.append(&next.iter().map(<[u32; 1]>::as_slice).collect::<Vec<_>>())?;
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use burn::prelude::Device;

    use super::*;
    use frugal_models::load::{SafetensorsSource, read_json};
    use frugal_models::{ModelConfig, build};

    fn backbone() -> Arc<dyn Backbone> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/models/llama");
        let model =
            ModelConfig::from_json(read_json(&folder.join("config.json")).unwrap(), "llama")
                .unwrap();
        build(
            model,
            &SafetensorsSource::open(&folder).unwrap(),
            &Device::flex(),
        )
        .unwrap()
    }

    fn prompt(length: usize) -> Vec<u32> {
        (0..length).map(|i| (i % 40) as u32 + 3).collect()
    }

    /// The new tokens of each prompt.
    fn generated(backbone: &dyn Backbone, temperature: f32, prompts: &[Vec<u32>]) -> Vec<Vec<u32>> {
        let config = GenerateConfig {
            max_tokens: 20,
            sampler: SamplerConfig {
                temperature,
                ..SamplerConfig::default()
            },
            eos_token_ids: Vec::new(),
            seed: 3,
            cache_type: CacheType::F32,
        };
        let found = generate(
            backbone,
            &AdapterSet::default(),
            ActiveAdapters::Base,
            prompts,
            &config,
            &mut |_, _| true,
        )
        .unwrap();
        found.into_iter().map(|g| g.tokens).collect()
    }

    #[test]
    fn what_is_drawn_does_not_depend_on_the_place_of_a_prompt() {
        let backbone = backbone();
        let drawn = |lengths: &[usize]| {
            generated(
                backbone.as_ref(),
                1.0,
                &lengths.iter().map(|n| prompt(*n)).collect::<Vec<_>>(),
            )
        };
        let (alone, together) = (drawn(&[5]), drawn(&[7, 5, 5]));
        assert_eq!(alone[0], together[1]);
        assert_ne!(
            together[1], together[2],
            "a prompt that is given twice gets two answers"
        );
        assert_eq!(
            drawn(&[5, 5, 7]),
            [
                together[1].clone(),
                together[2].clone(),
                together[0].clone()
            ]
        );
    }

    #[test]
    fn a_full_sequence_does_not_end_the_others() {
        let backbone = backbone();
        let limit = backbone.info().max_sequence;
        let lengths = |prompts: &[Vec<u32>]| {
            generated(backbone.as_ref(), 0.0, prompts)
                .iter()
                .map(Vec::len)
                .collect::<Vec<_>>()
        };
        // The last token of a full sequence needs no room of its own.
        assert_eq!(
            lengths(&[prompt(limit - 4), prompt(5), prompt(limit)]),
            [5, 20, 1]
        );
        assert_eq!(lengths(&[prompt(5)]), [20]);
    }
}
