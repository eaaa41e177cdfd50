//! One run: a new model, learnt from the text and measured on two parts of it.

use frugal_core::encode::Tokenized;
use frugal_models::{build, random_weights};
use frugal_nn::{Adapter, BuildContext};
use frugal_train::TrainConfig;

use super::arms::Arm;
use super::size::{Model, Size};
use crate::run::study::pretraining::{Text, failed, learn, loss, schedule};
use crate::run::study::{StudyError, StudyRequest};
use crate::run::{PretrainConfig, Shape, TrainedMemory, trained_as};

/// Steps over which the rate comes back after a reset.
const RECOVERY_STEPS: u64 = 5;

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
            weight_decay: 0.0,
            adam_beta2: 0.999,
            optim: arm.optim.clone(),
            moment_reset_steps: arm.moment_reset_steps,
            reset_recovery_steps: RECOVERY_STEPS.min(size.restart_steps / 2),
            ..schedule(rate, size.steps, size.batch_tokens, seed)
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
        let (request, train) = (self.request, &config.train);
        let base = backbone.as_ref();
        let Some(seconds_per_step) =
            learn(request, arm.name, base, &mut adapter, self.text, train)?
        else {
            return Ok(None);
        };
        let loss = |examples: &[Tokenized]| {
            let model = (base, Some(&adapter as &dyn Adapter));
            loss(request, arm.name, model, examples, self.size.batch_tokens)
        };
        Ok(Some(Found {
            tuning_loss: loss(&self.text.tuning)?,
            test_loss: loss(&self.text.test)?,
            memory,
            seconds_per_step,
        }))
    }
}
