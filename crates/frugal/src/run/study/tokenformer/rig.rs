//! Training and measuring models in memory.

use burn::prelude::Device;
use frugal_adapt::methods::full::{Full, FullConfig};
use frugal_core::encode::Tokenized;
use frugal_core::tokenizer::TextTokenizer;
use frugal_models::merge::{self, Weights};
use frugal_models::random_weights;
use frugal_nn::{Adapter, BuildContext};
use frugal_train::{
    CausalLm, Event, StopReason, TrainConfig, TrainError, TrainRun, evaluate_observed, train,
};

use super::size::Size;
use crate::run::PretrainConfig;
use crate::run::corpus::Corpus;
use crate::run::study::{StudyError, StudyRequest};

/// Share of the text that is not learnt from.
const HELD_OUT: f64 = 0.1;

/// The text as tokens, and how long is learnt from it.
pub(super) struct Rig<'a> {
    request: &'a StudyRequest<'a>,
    size: &'a Size,
    tokenizer: TextTokenizer,
    training: Vec<Tokenized>,
    /// What rates are picked by, and what is reported.
    held_out: [Vec<Tokenized>; 2],
    device: Device,
}

/// Which part of what is held out.
#[derive(Clone, Copy)]
pub(super) enum Part {
    Tuning,
    Test,
}

fn failed<E>(arm: &str) -> impl Fn(E) -> StudyError
where
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    move |error| StudyError::arm(arm, error)
}

impl<'a> Rig<'a> {
    /// Reads the text; which parts are which does not depend on the seed of a run.
    pub(super) fn new(request: &'a StudyRequest<'a>, size: &'a Size) -> Result<Self, StudyError> {
        let path = request.data("tinyshakespeare/input.txt")?;
        let config = PretrainConfig {
            data: path.display().to_string(),
            validation_share: HELD_OUT,
            max_length: size.max_length,
            ..size.config([1, 1])
        };
        let corpus = Corpus::read(&config, &mut |_| {}).map_err(failed("the text"))?;
        let mut held_out = [Vec::new(), Vec::new()];
        for (i, piece) in corpus.validation.into_iter().enumerate() {
            held_out[i % 2].push(piece);
        }
        Ok(Self {
            request,
            size,
            tokenizer: corpus.tokenizer,
            training: corpus.training,
            held_out,
            device: Device::flex(),
        })
    }

    /// Tokens to learn from.
    pub(super) fn tokens(&self) -> usize {
        self.training.iter().map(Tokenized::len).sum()
    }

    /// A new model with these numbers of tokens around attention and in feed-forward layers.
    pub(super) fn fresh(&self, tokens: [usize; 2], seed: u64) -> Result<Weights, StudyError> {
        let config = self.size.config(tokens).model(&self.tokenizer);
        let config = config.map_err(failed("a new model"))?;
        let tensors = random_weights(&config, seed, &self.device);
        Ok(Weights { config, tensors })
    }

    pub(super) fn device(&self) -> &Device {
        &self.device
    }

    /// The model trained on; nothing where the loss or a gradient was not finite.
    pub(super) fn trained(
        &self,
        arm: &str,
        start: &Weights,
        rate: f64,
        steps: u64,
        seed: u64,
    ) -> Result<Option<Weights>, StudyError> {
        self.request.check()?;
        let backbone = start.build(&self.device).map_err(failed(arm))?;
        let context = BuildContext {
            info: backbone.info(),
            sites: backbone.sites(),
            backbone: Some(backbone.as_ref()),
            device: self.device.clone(),
            seed,
            tokenize: None,
        };
        let mut adapter = Full::new(FullConfig {}, &context).map_err(failed(arm))?;
        let config = TrainConfig {
            lr: rate,
            max_steps: steps,
            max_tokens: self.size.batch_tokens,
            warmup_ratio: 0.1,
            min_lr_ratio: 0.1,
            load_best_model_at_end: false,
            logging_steps: steps,
            seed,
            ..PretrainConfig::default().train
        };
        let ending = train(TrainRun {
            backbone: backbone.as_ref(),
            adapter: &mut adapter,
            head: None,
            train: &self.training,
            validation: None,
            config: &config,
            folder: None,
            resume: false,
            stop: self.request.stop,
            observer: &mut |_: &Event| {},
        });
        match ending {
            Err(TrainError::NonFinite { .. }) => return Ok(None),
            Err(error) => return Err(StudyError::arm(arm, error)),
            Ok(summary) if summary.ending == StopReason::Interrupted => {
                return Err(StudyError::Stopped);
            }
            Ok(_) => {}
        }
        let trained = merge::weights(backbone.as_ref(), Some(&adapter as &dyn Adapter));
        trained.map(Some).map_err(failed(arm))
    }

    /// Mean loss of the next token.
    pub(super) fn loss(&self, arm: &str, model: &Weights, part: Part) -> Result<f64, StudyError> {
        let backbone = model.build(&self.device).map_err(failed(arm))?;
        let found = evaluate_observed(
            backbone.as_ref(),
            None,
            &CausalLm::default(),
            &self.held_out[part as usize],
            4 * self.size.batch_tokens,
            self.request.stop,
            &mut |_, _| {},
        );
        match found {
            Ok(Some(evaluation)) => Ok(evaluation.metrics["loss"]),
            Ok(None) => Err(StudyError::Stopped),
            Err(error) => Err(StudyError::arm(arm, error)),
        }
    }
}
