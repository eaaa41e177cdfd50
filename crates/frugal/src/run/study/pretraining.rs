//! What experiments on new models share: a text in parts, the schedule of a run, training and
//! measuring in memory, and the rate of an arm.

use std::time::Instant;

use frugal_core::encode::Tokenized;
use frugal_core::tokenizer::TextTokenizer;
use frugal_nn::{Adapter, Backbone};
use frugal_train::{
    CausalLm, Event, StopReason, TrainConfig, TrainError, TrainRun, evaluate_observed, train,
};

use super::{StudyError, StudyRequest};
use crate::run::corpus::Corpus;
use crate::run::{PretrainConfig, Shape};

/// Seed of the runs by which rates are picked; those that are reported have others.
pub(super) const TRIAL_SEED: u64 = 1_000_003;

/// Share of the text that is not learnt from.
const HELD_OUT: f64 = 0.1;

/// Tiny Shakespeare as tokens: what is learnt from, what rates are picked by, what is reported.
pub(super) struct Text {
    pub(super) tokenizer: TextTokenizer,
    pub(super) training: Vec<Tokenized>,
    pub(super) tuning: Vec<Tokenized>,
    pub(super) test: Vec<Tokenized>,
}

impl Text {
    /// Reads it, for a tokenizer of so many tokens and pieces of at most so many; which parts are
    /// which does not depend on the seed of a run.
    pub(super) fn read(
        request: &StudyRequest<'_>,
        vocab_size: usize,
        max_length: usize,
    ) -> Result<Self, StudyError> {
        let path = request.data("tinyshakespeare/input.txt")?;
        let config = PretrainConfig {
            data: path.display().to_string(),
            validation_share: HELD_OUT,
            max_length,
            shape: Shape {
                vocab_size,
                ..Shape::default()
            },
            ..PretrainConfig::default()
        };
        let corpus = Corpus::read(&config, &mut |_| {}).map_err(failed("the text"))?;
        let (mut tuning, mut test) = (Vec::new(), Vec::new());
        for (i, piece) in corpus.validation.into_iter().enumerate() {
            if i % 2 == 0 { &mut tuning } else { &mut test }.push(piece);
        }
        Ok(Self {
            tokenizer: corpus.tokenizer,
            training: corpus.training,
            tuning,
            test,
        })
    }

    /// Tokens to learn from.
    pub(super) fn tokens(&self) -> usize {
        self.training.iter().map(Tokenized::len).sum()
    }
}

/// An error of an arm.
pub(super) fn failed<E>(arm: &str) -> impl Fn(E) -> StudyError
where
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    move |error| StudyError::arm(arm, error)
}

/// Cosine with 10 % of warm-up down to a tenth, nothing kept of a best step.
pub(super) fn schedule(rate: f64, steps: u64, batch_tokens: usize, seed: u64) -> TrainConfig {
    TrainConfig {
        lr: rate,
        max_steps: steps,
        max_tokens: batch_tokens,
        warmup_ratio: 0.1,
        min_lr_ratio: 0.1,
        load_best_model_at_end: false,
        logging_steps: steps,
        seed,
        ..PretrainConfig::default().train
    }
}

/// Trains on the text: seconds per step, nothing where the loss or a gradient was not finite.
pub(super) fn learn(
    request: &StudyRequest<'_>,
    arm: &str,
    backbone: &dyn Backbone,
    adapter: &mut dyn Adapter,
    text: &Text,
    config: &TrainConfig,
) -> Result<Option<f64>, StudyError> {
    let start = Instant::now();
    let ending = train(TrainRun {
        backbone,
        adapter,
        head: None,
        train: &text.training,
        validation: None,
        config,
        folder: None,
        resume: false,
        stop: request.stop,
        observer: &mut |_: &Event| {},
    });
    let seconds = start.elapsed().as_secs_f64();
    match ending {
        Err(TrainError::NonFinite { .. }) => Ok(None),
        Err(error) => Err(StudyError::arm(arm, error)),
        Ok(summary) if summary.ending == StopReason::Interrupted => Err(StudyError::Stopped),
        Ok(_) => Ok(Some(seconds / config.max_steps as f64)),
    }
}

/// Mean loss of the next token, in passes of four batches.
pub(super) fn loss(
    request: &StudyRequest<'_>,
    arm: &str,
    (backbone, adapter): (&dyn Backbone, Option<&dyn Adapter>),
    examples: &[Tokenized],
    batch_tokens: usize,
) -> Result<f64, StudyError> {
    let found = evaluate_observed(
        backbone,
        adapter,
        &CausalLm::default(),
        examples,
        4 * batch_tokens,
        request.stop,
        &mut |_, _| {},
    );
    match found {
        Ok(Some(evaluation)) => Ok(evaluation.metrics["loss"]),
        Ok(None) => Err(StudyError::Stopped),
        Err(error) => Err(StudyError::arm(arm, error)),
    }
}

/// The rate of an arm.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Picked {
    pub(super) rate: f64,
    /// Whether it is the lowest or the highest of several: others may do better.
    pub(super) is_edge: bool,
}

/// The rate with the lowest loss; the first one where none has a finite loss. `trial` gives the loss
/// at a rate, nothing where it was not finite.
pub(super) fn picked(
    rates: impl IntoIterator<Item = f64>,
    mut trial: impl FnMut(f64) -> Result<Option<f64>, StudyError>,
) -> Result<Picked, StudyError> {
    let rates: Vec<f64> = rates.into_iter().collect();
    let (mut best, mut least) = (0, f64::INFINITY);
    for (i, &rate) in rates.iter().enumerate() {
        if let Some(loss) = trial(rate)?
            && loss < least
        {
            (best, least) = (i, loss);
        }
    }
    Ok(Picked {
        rate: rates.get(best).copied().unwrap_or(f64::NAN),
        is_edge: rates.len() > 1 && (best == 0 || best + 1 == rates.len()),
    })
}

/// A number for people: products of decimal numbers have digits that nobody gave.
pub(super) fn shown(rate: f64) -> String {
    let rounded: f64 = format!("{rate:.5e}").parse().unwrap_or(rate);
    rounded.to_string()
}

/// The same of several.
pub(super) fn listed(rates: &[f64]) -> String {
    let all: Vec<String> = rates.iter().copied().map(shown).collect();
    all.join(", ")
}

/// What is said of arms whose best rate was the lowest or highest of those that were tried.
pub(super) fn edges_note(edges: &[String]) -> Option<String> {
    let said = |edges: &[String]| {
        format!(
            "The best rate was the lowest or highest of those tried for {}.",
            edges.join(", ")
        )
    };
    (!edges.is_empty()).then(|| said(edges))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_with_the_lowest_loss_is_picked_and_an_end_of_the_list_is_known() {
        let of = |losses: [Option<f64>; 3]| {
            let mut losses = losses.into_iter();
            let trial = |_| Ok(losses.next().unwrap());
            let Picked { rate, is_edge } = picked([1.0, 2.0, 3.0], trial).unwrap();
            (rate, is_edge)
        };
        assert_eq!(of([Some(2.0), Some(1.0), Some(3.0)]), (2.0, false));
        assert_eq!(of([Some(2.0), Some(2.0), None]), (1.0, true));
        assert_eq!(of([None, None, Some(9.0)]), (3.0, true));
        assert_eq!(of([None, Some(f64::NAN), None]), (1.0, true));
        let one = picked([0.5], |_| Ok(None)).unwrap();
        assert_eq!((one.rate, one.is_edge), (0.5, false));
        let stopped = picked([0.5, 1.0], |_| Err(StudyError::Stopped));
        assert!(matches!(stopped, Err(StudyError::Stopped)));
    }

    #[test]
    fn rates_are_written_without_the_error_of_their_last_digit() {
        assert_eq!((3e-3 * 3.0).to_string(), "0.009000000000000001");
        assert_eq!(shown(3e-3 * 3.0), "0.009");
        assert_eq!(shown(6e-3 / 3.0), "0.002");
        assert_eq!(shown(1e-3 / 3.0), "0.000333333");
        assert_eq!(listed(&[6e-3, 1.0]), "0.006, 1");
    }
}
