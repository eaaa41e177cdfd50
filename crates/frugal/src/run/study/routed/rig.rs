//! One run: a new model, learnt from the text and measured on two parts of it.

use std::time::Instant;

use frugal_adapt::methods::full::{Full, FullConfig};
use frugal_core::encode::Tokenized;
use frugal_core::tokenizer::TextTokenizer;
use frugal_models::{build, merge, random_weights};
use frugal_nn::{Adapter, BuildContext};
use frugal_train::{
    CausalLm, Event, StopReason, TrainConfig, TrainError, TrainRun, evaluate_observed, train,
};

use super::arms::Arm;
use super::routes::{Routes, routes};
use super::size::Size;
use crate::run::corpus::Corpus;
use crate::run::study::{StudyError, StudyRequest};
use crate::run::{PretrainConfig, Shape};

/// The text as tokens.
pub(super) struct Text {
    tokenizer: TextTokenizer,
    training: Vec<Tokenized>,
    pub(super) tuning: Vec<Tokenized>,
    pub(super) test: Vec<Tokenized>,
}

/// Share of the text that is not learnt from.
const HELD_OUT: f64 = 0.1;
/// Pieces of the text whose routes are looked at.
const ROUTED: usize = 64;

impl Text {
    /// Reads it; which parts are which does not depend on the seed of a run.
    pub(super) fn read(request: &StudyRequest<'_>, size: &Size) -> Result<Self, StudyError> {
        let path = request.data("tinyshakespeare/input.txt")?;
        let config = PretrainConfig {
            data: path.display().to_string(),
            validation_share: HELD_OUT,
            max_length: size.max_length,
            shape: Shape {
                vocab_size: size.vocab_size,
                ..Shape::default()
            },
            ..PretrainConfig::default()
        };
        let corpus = Corpus::read(&config, &mut |_| {});
        let corpus = corpus.map_err(|error| StudyError::arm("the text", error))?;
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

/// What a run came to.
pub(super) struct Found {
    pub(super) tuning_loss: f64,
    pub(super) test_loss: f64,
    pub(super) parameters: usize,
    /// Multiply-adds of a token.
    pub(super) operations: f64,
    /// Of a model whose tokens choose.
    pub(super) routes: Option<Routes>,
    pub(super) seconds_per_step: f64,
}

/// What the runs share.
pub(super) struct Rig<'a> {
    pub(super) request: &'a StudyRequest<'a>,
    pub(super) text: &'a Text,
    pub(super) size: &'a Size,
}

impl Rig<'_> {
    fn config(&self, arm: &Arm, rate: f64, seed: u64) -> PretrainConfig {
        let size = self.size;
        let train = TrainConfig {
            lr: rate,
            max_steps: size.steps,
            max_tokens: size.batch_tokens,
            warmup_ratio: 0.1,
            min_lr_ratio: 0.1,
            load_best_model_at_end: false,
            logging_steps: size.steps,
            seed,
            ..PretrainConfig::default().train
        };
        PretrainConfig {
            seed,
            shape: Shape {
                arch: arm.arch.into(),
                vocab_size: size.vocab_size,
                hidden_size: size.hidden_size,
                intermediate_size: arm.intermediate_size,
                num_hidden_layers: arm.blocks,
                num_attention_heads: size.heads,
                num_key_value_heads: size.heads,
                max_position_embeddings: size.max_length,
                own: arm.own.clone(),
                ..Shape::default()
            },
            train,
            ..PretrainConfig::default()
        }
    }

    /// Trains and measures; nothing where the loss or a gradient was not finite.
    pub(super) fn trained(
        &self,
        arm: &Arm,
        rate: f64,
        seed: u64,
    ) -> Result<Option<Found>, StudyError> {
        self.request.check()?;
        fn failed<E>(arm: &'static str) -> impl Fn(E) -> StudyError
        where
            E: Into<Box<dyn std::error::Error + Send + Sync>>,
        {
            move |error| StudyError::arm(arm, error)
        }
        let config = self.config(arm, rate, seed);
        let device = crate::device::device(&config.device).map_err(failed(arm.name))?;
        let model = config
            .model(&self.text.tokenizer)
            .map_err(failed(arm.name))?;
        let weights = random_weights(&model, seed, &device);
        let backbone = build(model.clone(), &weights, &device).map_err(failed(arm.name))?;
        let context = BuildContext {
            info: &model.info(),
            sites: &model.sites(),
            backbone: Some(backbone.as_ref()),
            device: device.clone(),
            seed,
            tokenize: None,
        };
        let mut adapter = Full::new(FullConfig {}, &context).map_err(failed(arm.name))?;
        let mut observer = |_: &Event| {};
        let start = Instant::now();
        let ending = train(TrainRun {
            backbone: backbone.as_ref(),
            adapter: &mut adapter,
            head: None,
            train: &self.text.training,
            validation: None,
            config: &config.train,
            folder: None,
            resume: false,
            stop: self.request.stop,
            observer: &mut observer,
        });
        let seconds_per_step = start.elapsed().as_secs_f64() / self.size.steps as f64;
        match ending {
            Err(TrainError::NonFinite { .. }) => return Ok(None),
            Err(error) => return Err(StudyError::arm(arm.name, error)),
            Ok(summary) if summary.ending == StopReason::Interrupted => {
                return Err(StudyError::Stopped);
            }
            Ok(_) => {}
        }
        let merged = merge::weights(backbone.as_ref(), Some(&adapter as &dyn Adapter))
            .map_err(failed(arm.name))?;
        let trained = merged.build(&device).map_err(failed(arm.name))?;
        let loss = |examples: &[Tokenized]| {
            let found = evaluate_observed(
                trained.as_ref(),
                None,
                &CausalLm::default(),
                examples,
                4 * self.size.batch_tokens,
                self.request.stop,
                &mut |_, _| {},
            );
            match found {
                Ok(Some(evaluation)) => Ok(evaluation.metrics["loss"]),
                Ok(None) => Err(StudyError::Stopped),
                Err(error) => Err(StudyError::arm(arm.name, error)),
            }
        };
        let pieces = &self.text.test[..self.text.test.len().min(ROUTED)];
        Ok(Some(Found {
            tuning_loss: loss(&self.text.tuning)?,
            test_loss: loss(&self.text.test)?,
            parameters: model.sites().num_parameters(),
            operations: arm.operations,
            routes: routes(trained.as_ref(), pieces).map_err(failed(arm.name))?,
            seconds_per_step,
        }))
    }
}
