//! One run: a new model, learnt from the text and measured on two parts of it.

use burn::prelude::{Device, Tensor};
use frugal_adapt::methods::full::{Full, FullConfig};
use frugal_core::encode::Tokenized;
use frugal_models::merge::Weights;
use frugal_models::{ModelConfig, build, merge, random_weights};
use frugal_nn::{Adapter, Backbone, BuildContext, Input, ModelError, Pass, StateOptions};
use serde_json::json;

use super::arms::Arm;
use super::size::Size;
use crate::run::study::pretraining::{Text, failed, learn, loss, schedule};
use crate::run::study::{StudyError, StudyRequest};
use crate::run::{PretrainConfig, Shape};

/// What a run came to.
pub(super) struct Found {
    pub tuning_loss: f64,
    pub test_loss: f64,
    /// Of expert choice, where steps take the highest scores as in training.
    pub top_k_loss: Option<f64>,
    pub parameters: usize,
    /// Rows that the shared layers computed, by those of all tokens in all steps.
    pub shared_rows: f64,
    /// What is kept of a token of a text that has been read.
    pub bytes_per_token: f64,
    pub seconds_per_step: f64,
}

/// What the runs share.
pub(super) struct Rig<'a> {
    pub request: &'a StudyRequest<'a>,
    pub text: &'a Text,
    pub size: &'a Size,
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
                intermediate_size: size.intermediate_size,
                num_hidden_layers: arm.layers,
                num_attention_heads: size.heads,
                num_key_value_heads: size.heads,
                max_position_embeddings: size.max_length,
                own: arm.own.clone(),
                ..Shape::default()
            },
            train: schedule(rate, arm.steps, size.batch_tokens, seed),
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
        let model = config.model(&self.text.tokenizer);
        let model = model.map_err(failed(arm.name))?;
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
        let merged = merge::weights(backbone.as_ref(), Some(&adapter as &dyn Adapter));
        let merged = merged.map_err(failed(arm.name))?;
        let trained = merged.build(&device).map_err(failed(arm.name))?;
        let (shared_rows, bytes_per_token) =
            self.read(trained.as_ref()).map_err(failed(arm.name))?;
        Ok(Some(Found {
            tuning_loss: self.loss(arm, trained.as_ref(), &self.text.tuning)?,
            test_loss: self.loss(arm, trained.as_ref(), &self.text.test)?,
            top_k_loss: match as_in_training(&merged, &device).map_err(failed(arm.name))? {
                Some(model) => Some(self.loss(arm, model.as_ref(), &self.text.test)?),
                None => None,
            },
            parameters: model.sites().num_parameters(),
            shared_rows,
            bytes_per_token,
            seconds_per_step,
        }))
    }

    fn loss(
        &self,
        arm: &Arm,
        model: &dyn Backbone,
        examples: &[Tokenized],
    ) -> Result<f64, StudyError> {
        let size = self.size.batch_tokens;
        loss(self.request, arm.name, (model, None), examples, size)
    }

    /// Reads some pieces as generation does: the share of rows that the layers between the first and
    /// the last computed, and the bytes that are kept of a token.
    fn read(&self, model: &dyn Backbone) -> Result<(f64, f64), ModelError> {
        let layers = model.info().num_hidden_layers;
        let mut rows = Rows {
            last: layers - 1,
            computed: 0,
        };
        let (mut tokens, mut bytes) = (0, 0);
        for piece in self.text.test.iter().take(self.size.read) {
            let ids = &piece.input_ids;
            let mut state = model.new_state(1, StateOptions::default())?;
            model.forward(&Input::new(ids, &[ids.len()]), &mut rows, Some(&mut state))?;
            tokens += ids.len();
            let held = state.sequences()[0].layers().iter().map(|layer| {
                let rows = layer.rows();
                rows.len() * rows.bytes_per_position()
            });
            bytes += held.sum::<usize>();
        }
        let all = (tokens * (layers - 2)).max(1) as f64;
        Ok((
            rows.computed as f64 / all,
            bytes as f64 / tokens.max(1) as f64,
        ))
    }
}

/// The same weights where steps take the highest scores of a text; none of other models.
fn as_in_training(
    trained: &Weights,
    device: &Device,
) -> Result<Option<std::sync::Arc<dyn Backbone>>, ModelError> {
    let mut raw = trained.config.raw.clone();
    if raw.get("mor_type") != Some(&json!("expert_choice")) {
        return Ok(None);
    }
    raw["inference_routing"] = json!("top_k");
    let config = ModelConfig::from_json(raw, "top_k")?;
    build(config, &trained.tensors, device).map(Some)
}

/// Counts the rows of the layers between the first and the last.
struct Rows {
    last: usize,
    computed: usize,
}

impl Pass for Rows {
    fn after_block(&mut self, layer: usize, hidden_states: &Tensor<2>) {
        if layer > 0 && layer < self.last {
            self.computed += hidden_states.dims()[0];
        }
    }
}
