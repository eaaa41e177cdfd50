//! One run: a new model, learnt from the text and measured on two parts of it.

use frugal_adapt::methods::full::{Full, FullConfig};
use frugal_core::encode::Tokenized;
use frugal_models::{build, merge, random_weights};
use frugal_nn::{Adapter, BuildContext};

use super::arms::Arm;
use super::routes::{Routes, routes};
use super::size::Size;
use crate::run::study::pretraining::{Text, failed, learn, loss, schedule};
use crate::run::study::{StudyError, StudyRequest};
use crate::run::{PretrainConfig, Shape};

/// Pieces of the text whose routes are looked at.
const ROUTED: usize = 64;

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
            train: schedule(rate, size.steps, size.batch_tokens, seed),
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
            device: device.clone(),
            seed,
            tokenize: None,
        };
        let mut adapter = Full::new(FullConfig {}, &context).map_err(failed(arm.name))?;
        let (request, train) = (self.request, &config.train);
        let base = backbone.as_ref();
        let Some(seconds_per_step) =
            learn(request, arm.name, base, &mut adapter, self.text, train)?
        else {
            return Ok(None);
        };
        let merged = merge::weights(backbone.as_ref(), Some(&adapter as &dyn Adapter))
            .map_err(failed(arm.name))?;
        let trained = merged.build(&device).map_err(failed(arm.name))?;
        let loss = |examples: &[Tokenized]| {
            let model = (trained.as_ref(), None);
            loss(request, arm.name, model, examples, self.size.batch_tokens)
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
