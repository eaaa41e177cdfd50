//! One run: a new model, learnt from the text and measured on two parts of it.

use std::time::Instant;

use frugal_core::encode::Tokenized;
use frugal_core::tokenizer::TextTokenizer;
use frugal_models::{build, random_weights};
use frugal_nn::{Adapter, BuildContext};
use frugal_train::{
    CausalLm, Event, StopReason, TrainConfig, TrainError, TrainRun, evaluate_observed, train,
};

use super::arms::Arm;
use super::size::{Model, Size};
use crate::run::corpus::Corpus;
use crate::run::study::{StudyError, StudyRequest};
use crate::run::{PretrainConfig, Shape, TrainedMemory, trained_as};

/// The text as tokens.
pub(super) struct Text {
    tokenizer: TextTokenizer,
    training: Vec<Tokenized>,
    pub(super) tuning: Vec<Tokenized>,
    pub(super) test: Vec<Tokenized>,
}

/// Share of the text that is not learnt from.
const HELD_OUT: f64 = 0.1;
/// Steps over which the rate comes back after a reset.
const RECOVERY_STEPS: u64 = 5;

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

/// What is measured of a run.
#[derive(Clone, Copy)]
pub(super) enum Measure {
    Perplexity,
    /// Weights, gradients and states.
    Trained,
    States,
    Seconds,
    Rate,
}

impl Measure {
    pub(super) fn name(self, model: &Model) -> String {
        let what = match self {
            Self::Perplexity => "perplexity",
            Self::Trained => "MB trained",
            Self::States => "MB of states",
            Self::Seconds => "ms a step",
            Self::Rate => "rate",
        };
        format!("{what}, {}", model.label)
    }
}

/// What a run came to.
pub(super) struct Found {
    pub(super) tuning_loss: f64,
    pub(super) test_loss: f64,
    pub(super) memory: TrainedMemory,
    pub(super) seconds_per_step: f64,
}

/// What the runs of a model share.
pub(super) struct Rig<'a> {
    pub(super) request: &'a StudyRequest<'a>,
    pub(super) text: &'a Text,
    pub(super) size: &'a Size,
    pub(super) model: &'a Model,
}

impl Rig<'_> {
    fn config(&self, arm: &Arm, rate: f64, seed: u64) -> PretrainConfig {
        let (size, model) = (self.size, self.model);
        let train = TrainConfig {
            lr: rate,
            max_steps: size.steps,
            max_tokens: size.batch_tokens,
            weight_decay: 0.0,
            adam_beta2: 0.999,
            warmup_ratio: 0.1,
            min_lr_ratio: 0.1,
            optim: arm.optim.clone(),
            moment_reset_steps: arm.moment_reset_steps,
            reset_recovery_steps: RECOVERY_STEPS.min(size.restart_steps / 2),
            load_best_model_at_end: false,
            logging_steps: size.steps,
            seed,
            ..PretrainConfig::default().train
        };
        PretrainConfig {
            seed,
            shape: Shape {
                vocab_size: size.vocab_size,
                hidden_size: model.hidden_size,
                intermediate_size: model.intermediate_size,
                num_hidden_layers: model.num_hidden_layers,
                num_attention_heads: model.num_attention_heads,
                num_key_value_heads: model.num_attention_heads,
                max_position_embeddings: size.max_length,
                ..Shape::default()
            },
            reparam: arm.reparam.clone(),
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
            device,
            seed,
            tokenize: None,
        };
        let mut adapter = trained_as(&config.reparam, &context).map_err(failed(arm.name))?;
        let memory = TrainedMemory::of(&adapter, &config.train).map_err(failed(arm.name))?;
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
        let loss = |examples: &[Tokenized]| {
            let found = evaluate_observed(
                backbone.as_ref(),
                Some(&adapter as &dyn Adapter),
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
        Ok(Some(Found {
            tuning_loss: loss(&self.text.tuning)?,
            test_loss: loss(&self.text.test)?,
            memory,
            seconds_per_step,
        }))
    }
}
