//! Training and measuring models in memory.

use burn::prelude::Device;
use frugal_adapt::methods::full::{Full, FullConfig};
use frugal_models::merge::{self, Weights};
use frugal_models::random_weights;
use frugal_nn::{Adapter, BuildContext};

use super::size::Size;
use crate::run::study::pretraining::{Text, failed, learn, loss, schedule};
use crate::run::study::{StudyError, StudyRequest};

/// The text as tokens, and how long is learnt from it.
pub(super) struct Rig<'a> {
    request: &'a StudyRequest<'a>,
    size: &'a Size,
    text: Text,
    device: Device,
}

/// Which part of what is held out.
#[derive(Clone, Copy)]
pub(super) enum Part {
    Tuning,
    Test,
}

impl<'a> Rig<'a> {
    /// Reads the text; which parts are which does not depend on the seed of a run.
    pub(super) fn new(request: &'a StudyRequest<'a>, size: &'a Size) -> Result<Self, StudyError> {
        Ok(Self {
            request,
            size,
            text: Text::read(request, size.vocab_size, size.max_length)?,
            device: Device::flex(),
        })
    }

    /// Tokens to learn from.
    pub(super) fn tokens(&self) -> usize {
        self.text.tokens()
    }

    /// A new model with these numbers of tokens around attention and in feed-forward layers.
    pub(super) fn fresh(&self, tokens: [usize; 2], seed: u64) -> Result<Weights, StudyError> {
        let config = self.size.config(tokens).model(&self.text.tokenizer);
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
        let config = schedule(rate, steps, self.size.batch_tokens, seed);
        let (request, base) = (self.request, backbone.as_ref());
        if learn(request, arm, base, &mut adapter, &self.text, &config)?.is_none() {
            return Ok(None);
        }
        let trained = merge::weights(backbone.as_ref(), Some(&adapter as &dyn Adapter));
        trained.map(Some).map_err(failed(arm))
    }

    /// Mean loss of the next token.
    pub(super) fn loss(&self, arm: &str, model: &Weights, part: Part) -> Result<f64, StudyError> {
        let backbone = model.build(&self.device).map_err(failed(arm))?;
        let examples = match part {
            Part::Tuning => &self.text.tuning,
            Part::Test => &self.text.test,
        };
        let size = self.size.batch_tokens;
        loss(self.request, arm, (backbone.as_ref(), None), examples, size)
    }
}
