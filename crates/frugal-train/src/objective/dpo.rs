//! Direct preference optimisation: the better of two answers to a prompt, without a model of rewards.
//!
//! Rafailov et al., *Direct Preference Optimization: Your Language Model is Secretly a Reward Model*,
//! arXiv 2305.18290, equation 7. With the log-probabilities `p` of an answer under the model and `r`
//! under the model without its adapter, which stays as it is:
//!
//! `loss = −ln σ(β ((p_w − r_w) − (p_l − r_l))) + α · (mean of −ln p over the tokens of the better answer)`
//!
//! Names of settings are those of TRL's `DPOConfig`. The log-probabilities of an answer are summed over
//! its tokens.

use burn::prelude::*;
use burn::tensor::activation::log_sigmoid;
use frugal_kernels::IGNORE_INDEX;
use frugal_nn::{Mode, ModelError, NoAdapter, select_rows, to_vec};
use serde::Deserialize;

use super::Objective;
use super::batch::{Forward, MicroBatch, ModelParts};
use super::causal_lm::{CausalLm, LOGIT_ROWS, token_loss};
use super::meter::{Evaluation, Meter, Metric, named};
use crate::{Target, Tokenized};

/// Settings of [`Dpo`].
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DpoConfig {
    /// How strongly the model is held to what it was.
    pub beta: f64,
    /// Weight `α` of the loss of the better answer as in supervised fine-tuning; 0 for none.
    pub rpo_alpha: f64,
}

impl Default for DpoConfig {
    fn default() -> Self {
        Self {
            beta: 0.1,
            rpo_alpha: 0.0,
        }
    }
}

/// Direct preference optimisation.
#[derive(Clone, Copy, Debug)]
pub struct Dpo {
    config: DpoConfig,
}

/// Of one example.
struct Pair {
    /// `(p_w − r_w) − (p_l − r_l)`, `[1]`.
    margin: Tensor<1>,
    /// Mean of `−ln p` over the tokens of the better answer, `[1]`.
    chosen_loss: Tensor<1>,
}

impl Dpo {
    /// From its settings.
    ///
    /// # Errors
    /// Settings out of range.
    pub fn new(config: DpoConfig) -> Result<Self, String> {
        let DpoConfig { beta, rpo_alpha } = config;
        if !(beta.is_finite() && beta > 0.0) {
            return Err(format!(
                "`beta` {beta} given, but it must be a positive number"
            ));
        }
        if !(rpo_alpha.is_finite() && rpo_alpha >= 0.0) {
            return Err(format!(
                "`rpo_alpha` {rpo_alpha} given, but it must be 0 or a positive number"
            ));
        }
        Ok(Self { config })
    }

    /// `−ln σ(β Δ)` of a margin of log-ratios `[n]`, elementwise.
    fn pair_loss(&self, margin: Tensor<1>) -> Tensor<1> {
        log_sigmoid(margin * self.config.beta).neg()
    }

    fn pairs(
        &self,
        examples: &[&Tokenized],
        forward: &mut Forward<'_>,
    ) -> Result<Vec<Pair>, ModelError> {
        let batch = MicroBatch::new(examples);
        let reference = {
            let mut plain = NoAdapter;
            let mut frozen = Forward {
                model: ModelParts::new(forward.model.backbone, None),
                pass: &mut plain,
                mode: Mode::Eval,
            };
            let losses = answer_losses(&batch, examples, &mut frozen)?;
            losses.into_iter().map(|loss| f64::from(to_vec(loss)[0]))
        };
        let reference: Vec<f64> = reference.collect();
        let policy = answer_losses(&batch, examples, forward)?;
        let pairs = examples.iter().enumerate().map(|(i, example)| {
            let [better, worse] = [&policy[2 * i], &policy[2 * i + 1]].map(Clone::clone);
            // Losses are negative log-probabilities.
            let of_reference = reference[2 * i + 1] - reference[2 * i];
            Pair {
                margin: worse - better.clone() - of_reference,
                chosen_loss: better / counts(example)[0] as f64,
            }
        });
        Ok(pairs.collect())
    }

    fn loss_of(&self, pair: &Pair) -> Tensor<1> {
        let loss = self.pair_loss(pair.margin.clone());
        match self.config.rpo_alpha {
            0.0 => loss,
            alpha => loss + pair.chosen_loss.clone() * alpha,
        }
    }
}

/// Target tokens of the better answer and of the worse one.
fn counts(example: &Tokenized) -> [usize; 2] {
    let Target::Preference { targets, chosen } = &example.labels else {
        return [0; 2];
    };
    let count = |part: &[i32]| part.iter().filter(|t| **t != IGNORE_INDEX).count();
    let (better, worse) = targets.split_at(*chosen);
    [count(better), count(worse)]
}

/// `−Σ ln p` over the tokens of each answer, the better one of an example first: each `[1]`.
fn answer_losses(
    batch: &MicroBatch,
    examples: &[&Tokenized],
    forward: &mut Forward<'_>,
) -> Result<Vec<Tensor<1>>, ModelError> {
    let (hidden_states, _) = batch.hidden_states(forward)?;
    let max_rows = match forward.mode.is_train() {
        true => usize::MAX,
        false => LOGIT_ROWS,
    };
    let (mut losses, mut first) = (Vec::new(), 0);
    for example in examples {
        let Target::Preference { targets, chosen } = &example.labels else {
            continue;
        };
        for part in [0..*chosen, *chosen..targets.len()] {
            let rows: Vec<usize> = part.clone().map(|i| first + i).collect();
            let own = select_rows(hidden_states.clone(), &rows);
            losses.push(token_loss(own, &targets[part], forward, 0.0, max_rows));
        }
        first += targets.len();
    }
    Ok(losses)
}

impl Objective for Dpo {
    fn name(&self) -> &'static str {
        "dpo"
    }

    fn check_model(&self, model: ModelParts<'_>) -> Result<(), String> {
        CausalLm::default().check_model(model)
    }

    fn check_example(&self, model: ModelParts<'_>, example: &Tokenized) -> Result<(), String> {
        let Target::Preference { targets, chosen } = &example.labels else {
            return Err("it has no better and worse answer: `dpo` needs the columns prompt, chosen and rejected".into());
        };
        let (tokens, vocab) = (example.input_ids.len(), model.backbone.info().vocab_size);
        if targets.len() != tokens || *chosen == 0 || *chosen >= tokens {
            return Err(format!(
                "{} targets for {tokens} tokens, {chosen} of the better answer",
                targets.len()
            ));
        }
        let bad = |t: &&i32| **t != IGNORE_INDEX && !(0..vocab as i64).contains(&i64::from(**t));
        targets.iter().find(bad).map_or(Ok(()), |t| {
            Err(format!("target {t} is outside the vocabulary of {vocab}"))
        })
    }

    fn num_targets(&self, _model: ModelParts<'_>, _example: &Tokenized) -> f64 {
        1.0
    }

    fn loss(
        &self,
        examples: &[&Tokenized],
        forward: &mut Forward<'_>,
    ) -> Result<Tensor<1>, ModelError> {
        let pairs = self.pairs(examples, forward)?;
        let losses = pairs.iter().map(|pair| self.loss_of(pair)).collect();
        Ok(Tensor::cat(losses, 0).sum())
    }

    fn metrics(&self) -> &'static [Metric] {
        const METRICS: &[Metric] = &[
            Metric::larger("accuracy"),
            Metric::larger("reward_margin"),
            Metric::smaller("loss"),
        ];
        METRICS
    }

    fn meter<'a>(&'a self, _model: ModelParts<'a>) -> Box<dyn Meter + 'a> {
        Box::new(PairMeter {
            objective: *self,
            loss: 0.0,
            margin: 0.0,
            right: 0,
            pairs: 0,
        })
    }
}

struct PairMeter {
    objective: Dpo,
    loss: f64,
    margin: f64,
    right: usize,
    pairs: usize,
}

impl Meter for PairMeter {
    fn add(
        &mut self,
        examples: &[&Tokenized],
        forward: &mut Forward<'_>,
    ) -> Result<(), ModelError> {
        for pair in self.objective.pairs(examples, forward)? {
            let margin = f64::from(to_vec(pair.margin.clone())[0]);
            self.loss += f64::from(to_vec(self.objective.loss_of(&pair))[0]);
            self.margin += margin;
            self.right += usize::from(margin > 0.0);
            self.pairs += 1;
        }
        Ok(())
    }

    fn finish(self: Box<Self>) -> Evaluation {
        let pairs = self.pairs as f64;
        Evaluation {
            metrics: named([
                ("accuracy", self.right as f64 / pairs),
                (
                    "reward_margin",
                    self.objective.config.beta * self.margin / pairs,
                ),
                ("loss", self.loss / pairs),
            ]),
            targets: self.pairs,
            ..Evaluation::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By hand: ln 2 without a margin; 0.1 (2 − (−1)) = 0.3, of which −ln σ is 0.554355.
    #[test]
    fn the_loss_of_a_margin_is_that_of_the_formula() {
        let dpo = Dpo::new(DpoConfig::default()).unwrap();
        let margins = Tensor::from_floats([0.0, 2.0 - (-1.0)], &Device::flex());
        let found = to_vec(dpo.pair_loss(margins));
        assert!(
            (found[0] - std::f32::consts::LN_2).abs() < 1e-6,
            "{found:?}"
        );
        assert!((found[1] - 0.554_355_2).abs() < 1e-6, "{found:?}");
    }

    #[test]
    fn settings_out_of_range_are_named() {
        let new = |beta, rpo_alpha| Dpo::new(DpoConfig { beta, rpo_alpha });
        assert!(new(0.0, 0.0).unwrap_err().contains("`beta` 0"));
        assert!(new(0.1, -1.0).unwrap_err().contains("`rpo_alpha` -1"));
        assert!(new(f64::NAN, 0.0).is_err() && new(0.5, 0.5).is_ok());
    }
}
