//! Choosing the next token from its logits.

use std::collections::HashMap;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::DecodeError;

/// How tokens are chosen. The defaults choose the likeliest token.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SamplerConfig {
    /// Divisor of the logits; 0 always takes the likeliest token.
    pub temperature: f32,
    /// Only the k likeliest tokens; 0 for all.
    pub top_k: usize,
    /// Only the likeliest tokens that together reach this probability; 1 for all.
    pub top_p: f32,
    /// Only tokens at least this share as likely as the likeliest; 0 for all.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens that occurred; 1 for none.
    pub repetition_penalty: f32,
    /// Subtracted from the logits of tokens that were generated.
    pub presence_penalty: f32,
    /// Subtracted once for each time a token was generated.
    pub frequency_penalty: f32,
}

impl Default for SamplerConfig {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
        }
    }
}

impl SamplerConfig {
    /// Checks ranges.
    ///
    /// # Errors
    /// [`DecodeError::Config`] naming the field.
    pub fn validate(&self) -> Result<(), DecodeError> {
        let bad = |field, reason: &str| {
            Err(DecodeError::Config {
                field,
                reason: reason.into(),
            })
        };
        if !(self.temperature.is_finite() && self.temperature >= 0.0) {
            return bad("temperature", "must be 0 (the likeliest token) or more");
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return bad("top_p", "must be above 0 and at most 1");
        }
        if !(0.0..1.0).contains(&self.min_p) {
            return bad("min_p", "must be at least 0 and below 1");
        }
        if !(self.repetition_penalty.is_finite() && self.repetition_penalty > 0.0) {
            return bad("repetition_penalty", "must be above 0; 1 is none");
        }
        if !(self.presence_penalty.is_finite() && self.frequency_penalty.is_finite()) {
            return bad("presence_penalty", "penalties must be finite");
        }
        Ok(())
    }
}

/// Chooses tokens; equal seeds give equal choices.
pub struct Sampler {
    config: SamplerConfig,
    rng: ChaCha8Rng,
}

impl Sampler {
    /// A sampler.
    ///
    /// # Errors
    /// Settings out of range.
    pub fn new(config: SamplerConfig, seed: u64) -> Result<Self, DecodeError> {
        config.validate()?;
        Ok(Self {
            config,
            rng: ChaCha8Rng::seed_from_u64(seed),
        })
    }

    /// The next token after `context` (the prompt) and `generated`, from `logits` `[vocab]`, which
    /// are changed.
    pub fn next(&mut self, logits: &mut [f32], context: &[u32], generated: &[u32]) -> u32 {
        self.penalise(logits, context, generated);
        let c = &self.config;
        if c.temperature == 0.0 {
            return argmax(logits);
        }
        // Candidates by falling logit; equal logits by rising id, so that the order is fixed.
        let mut order: Vec<u32> = (0..logits.len() as u32).collect();
        let by_logit = |a: &u32, b: &u32| {
            logits[*b as usize]
                .total_cmp(&logits[*a as usize])
                .then(a.cmp(b))
        };
        if c.top_k > 0 && c.top_k < order.len() {
            order.select_nth_unstable_by(c.top_k - 1, by_logit);
            order.truncate(c.top_k);
        }
        order.sort_unstable_by(by_logit);
        let highest = logits[order[0] as usize];
        let mut weights: Vec<f64> = order
            .iter()
            .map(|&id| f64::from((logits[id as usize] - highest) / c.temperature).exp())
            .collect();
        if c.min_p > 0.0 {
            weights.truncate(weights.partition_point(|&w| w >= f64::from(c.min_p)).max(1));
        }
        if c.top_p < 1.0 {
            let target = f64::from(c.top_p) * weights.iter().sum::<f64>();
            let mut sum = 0.0;
            let kept = weights.iter().position(|w| {
                sum += w;
                sum >= target
            });
            weights.truncate(kept.map_or(weights.len(), |i| i + 1));
        }
        let mut left = self.rng.random::<f64>() * weights.iter().sum::<f64>();
        let chosen = weights.iter().position(|w| {
            left -= w;
            left < 0.0
        });
        order[chosen.unwrap_or(weights.len() - 1)]
    }

    fn penalise(&self, logits: &mut [f32], context: &[u32], generated: &[u32]) {
        let c = &self.config;
        if c.repetition_penalty != 1.0 {
            let mut seen: Vec<u32> = context.iter().chain(generated).copied().collect();
            seen.sort_unstable();
            seen.dedup();
            for id in seen {
                let logit = &mut logits[id as usize];
                *logit = if *logit > 0.0 {
                    *logit / c.repetition_penalty
                } else {
                    *logit * c.repetition_penalty
                };
            }
        }
        if c.presence_penalty != 0.0 || c.frequency_penalty != 0.0 {
            let mut counts: HashMap<u32, f32> = HashMap::new();
            generated
                .iter()
                .for_each(|&id| *counts.entry(id).or_default() += 1.0);
            for (id, count) in counts {
                logits[id as usize] -= c.presence_penalty + c.frequency_penalty * count;
            }
        }
    }
}

/// Index of the largest value, the first of equals.
fn argmax(values: &[f32]) -> u32 {
    let best = values
        .iter()
        .enumerate()
        .fold((0, f32::NEG_INFINITY), |best, (i, &v)| {
            if v > best.1 { (i, v) } else { best }
        });
    best.0 as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Probabilities 0.5, 0.25, 0.125, 0.125.
    fn logits() -> Vec<f32> {
        [0.5f32, 0.25, 0.125, 0.125].map(f32::ln).to_vec()
    }

    fn shares(config: SamplerConfig) -> [f64; 4] {
        let mut sampler = Sampler::new(config, 7).unwrap();
        let mut counts = [0.0; 4];
        for _ in 0..20_000 {
            counts[sampler.next(&mut logits(), &[], &[]) as usize] += 1.0 / 20_000.0;
        }
        counts
    }

    fn assert_shares(config: SamplerConfig, expected: [f64; 4]) {
        let found = shares(config);
        assert!(
            found
                .iter()
                .zip(expected)
                .all(|(f, e)| (f - e).abs() < 0.015),
            "{found:?} is not {expected:?}"
        );
    }

    fn hot() -> SamplerConfig {
        SamplerConfig {
            temperature: 1.0,
            ..SamplerConfig::default()
        }
    }

    #[test]
    fn the_default_takes_the_likeliest() {
        let mut sampler = Sampler::new(SamplerConfig::default(), 0).unwrap();
        assert_eq!(sampler.next(&mut [0.1, 3.0, 3.0, -1.0], &[], &[]), 1);
    }

    #[test]
    fn frequencies_follow_the_probabilities() {
        assert_shares(hot(), [0.5, 0.25, 0.125, 0.125]);
        // Temperature 0.5 squares the probabilities.
        assert_shares(
            SamplerConfig {
                temperature: 0.5,
                ..hot()
            },
            [16.0 / 22.0, 4.0 / 22.0, 1.0 / 22.0, 1.0 / 22.0],
        );
    }

    #[test]
    fn filters_keep_what_they_should() {
        assert_shares(
            SamplerConfig { top_k: 2, ..hot() },
            [2.0 / 3.0, 1.0 / 3.0, 0.0, 0.0],
        );
        assert_shares(
            SamplerConfig {
                top_p: 0.7,
                ..hot()
            },
            [2.0 / 3.0, 1.0 / 3.0, 0.0, 0.0],
        );
        assert_shares(
            SamplerConfig {
                min_p: 0.3,
                ..hot()
            },
            [2.0 / 3.0, 1.0 / 3.0, 0.0, 0.0],
        );
        assert_shares(
            SamplerConfig {
                top_p: 0.01,
                ..hot()
            },
            [1.0, 0.0, 0.0, 0.0],
        );
    }

    #[test]
    fn penalties_lower_what_occurred() {
        let mut sampler = Sampler::new(
            SamplerConfig {
                repetition_penalty: 2.0,
                ..SamplerConfig::default()
            },
            0,
        )
        .unwrap();
        let mut values = [4.0, 3.0, -1.0, 0.5];
        assert_eq!(sampler.next(&mut values, &[0, 2], &[0]), 1);
        assert_eq!(values, [2.0, 3.0, -2.0, 0.5]);
        let config = SamplerConfig {
            presence_penalty: 0.5,
            frequency_penalty: 1.0,
            ..SamplerConfig::default()
        };
        let mut values = [4.0, 3.0, 0.0, 0.0];
        assert_eq!(
            Sampler::new(config, 0)
                .unwrap()
                .next(&mut values, &[1], &[0, 0]),
            1
        );
        assert_eq!(values, [1.5, 3.0, 0.0, 0.0]);
    }

    #[test]
    fn bad_settings_name_their_field() {
        for (config, field) in [
            (
                SamplerConfig {
                    temperature: -1.0,
                    ..hot()
                },
                "temperature",
            ),
            (
                SamplerConfig {
                    top_p: 0.0,
                    ..hot()
                },
                "top_p",
            ),
            (
                SamplerConfig {
                    min_p: 1.0,
                    ..hot()
                },
                "min_p",
            ),
            (
                SamplerConfig {
                    repetition_penalty: 0.0,
                    ..hot()
                },
                "repetition_penalty",
            ),
        ] {
            assert!(config.validate().unwrap_err().to_string().contains(field));
        }
    }
}
