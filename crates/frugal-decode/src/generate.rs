//! Continuing prompts.

use std::sync::Arc;

use crate::config::{FinishReason, GenerateConfig};
use crate::{DecodeError, Generator, GeneratorOptions, SequenceId, SequenceOptions};
use frugal_nn::{
    ActiveAdapters, AdaptError, AdapterSet, Backbone, Mode, SequenceLayout, StateOptions, named_rng,
};

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
    backbone: &Arc<dyn Backbone>,
    adapters: &Arc<AdapterSet>,
    choice: &ActiveAdapters,
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
/// Empty prompts, prompts longer than the model allows, models without a head; adapters that one
/// pass cannot choose per sequence ([`Generator`] gives each of them a pass of its own).
pub fn generate_until(
    backbone: &Arc<dyn Backbone>,
    adapters: &Arc<AdapterSet>,
    choice: &ActiveAdapters,
    prompts: &[Vec<u32>],
    config: &GenerateConfig,
    on_token: &mut dyn FnMut(usize, u32) -> Next,
) -> Result<Vec<Generation>, DecodeError> {
    let _span = tracing::debug_span!("generate", prompts = prompts.len()).entered();
    if let Some(index) = prompts.iter().position(Vec::is_empty) {
        return Err(DecodeError::EmptyPrompt { index });
    }
    config.sampler.validate()?;
    let options = GeneratorOptions {
        batch_tokens: usize::MAX,
        max_sequences: usize::MAX,
        state: StateOptions {
            cache_type: config.cache_type,
            ..StateOptions::default()
        },
    };
    let mut generator = Generator::new(backbone.clone(), adapters.clone(), options)?;
    let choices = choices(choice, adapters, prompts.len())?;
    let mut out: Vec<Generation> = prompts
        .iter()
        .map(|_| Generation {
            tokens: Vec::new(),
            finish: FinishReason::Length,
        })
        .collect();
    if config.max_tokens == 0 {
        return Ok(out);
    }
    let mut ids: Vec<SequenceId> = Vec::with_capacity(prompts.len());
    for (i, (prompt, choice)) in prompts.iter().zip(choices).enumerate() {
        let options = SequenceOptions::of(config, seed_of(prompts, i, config.seed));
        ids.push(generator.add(prompt.clone(), choice, options)?);
    }
    while !generator.is_idle() {
        for produced in generator.step()? {
            // Numbers rise in the order of the prompts.
            let Ok(i) = ids.binary_search(&produced.sequence) else {
                continue;
            };
            if let Some(finish) = produced.finish {
                out[i].finish = finish;
            }
            let Some(token) = produced.token else {
                continue;
            };
            out[i].tokens.push(token);
            match on_token(i, token) {
                Next::Sequence => {}
                Next::Others => {
                    out[i].finish = FinishReason::Stop;
                    if produced.finish.is_none() {
                        generator.cancel(produced.sequence)?;
                    }
                }
                Next::Nothing => return Ok(out),
            }
        }
    }
    Ok(out)
}

/// The choice of each sequence; together they are one that a single pass can have.
fn choices(
    choice: &ActiveAdapters,
    adapters: &AdapterSet,
    sequences: usize,
) -> Result<Vec<ActiveAdapters>, AdaptError> {
    let layout = SequenceLayout::new(&vec![1; sequences]);
    adapters.pass(choice, &layout, Mode::Eval)?;
    Ok(match choice {
        ActiveAdapters::PerSequence(names) => {
            let choice = |name: &Option<String>| match name {
                Some(name) => ActiveAdapters::One(name.clone()),
                None => ActiveAdapters::Base,
            };
            names.iter().map(choice).collect()
        }
        same => vec![same.clone(); sequences],
    })
}

/// The seed of a prompt's choices: of its text, and of how often it came before.
fn seed_of(prompts: &[Vec<u32>], i: usize, seed: u64) -> u64 {
    let same = prompts[..i].iter().filter(|prompt| **prompt == prompts[i]);
    let name = format!("generate {} {:?}", same.count(), prompts[i]);
    rand::Rng::random(&mut named_rng(seed, &name))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

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
    fn generated(
        backbone: &Arc<dyn Backbone>,
        temperature: f32,
        prompts: &[Vec<u32>],
    ) -> Vec<Vec<u32>> {
        let config = GenerateConfig {
            max_tokens: 20,
            sampler: crate::SamplerConfig {
                temperature,
                ..crate::SamplerConfig::default()
            },
            eos_token_ids: Vec::new(),
            seed: 3,
            cache_type: crate::CacheType::F32,
        };
        let found = generate(
            backbone,
            &Arc::default(),
            &ActiveAdapters::Base,
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
                &backbone,
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
            generated(&backbone, 0.0, prompts)
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
