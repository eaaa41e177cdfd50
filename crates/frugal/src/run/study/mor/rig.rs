//! One run: a new model, learnt from the text and measured on two parts of it.

use std::time::Instant;

use burn::prelude::{Device, Tensor};
use frugal_adapt::methods::full::{Full, FullConfig};
use frugal_core::encode::Tokenized;
use frugal_core::tokenizer::TextTokenizer;
use frugal_models::merge::Weights;
use frugal_models::{ModelConfig, build, merge, random_weights};
use frugal_nn::{Adapter, Backbone, BuildContext, Input, ModelError, Pass, StateOptions};
use frugal_train::{
    CausalLm, Event, StopReason, TrainConfig, TrainError, TrainRun, evaluate_observed, train,
};
use serde_json::json;

use super::arms::Arm;
use super::size::Size;
use crate::run::corpus::Corpus;
use crate::run::study::{StudyError, StudyRequest};
use crate::run::{PretrainConfig, Shape};

/// The text as tokens.
pub(super) struct Text {
    tokenizer: TextTokenizer,
    training: Vec<Tokenized>,
    tuning: Vec<Tokenized>,
    test: Vec<Tokenized>,
}

/// Share of the text that is not learnt from.
const HELD_OUT: f64 = 0.1;

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
        let (tuning, test) = corpus
            .validation
            .into_iter()
            .enumerate()
            .partition::<Vec<_>, _>(|(i, _)| i % 2 == 0);
        let pieces = |part: Vec<(usize, Tokenized)>| part.into_iter().map(|(_, p)| p).collect();
        Ok(Self {
            tokenizer: corpus.tokenizer,
            training: corpus.training,
            tuning: pieces(tuning),
            test: pieces(test),
        })
    }
}

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

fn failed<E>(arm: &'static str) -> impl Fn(E) -> StudyError
where
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    move |error| StudyError::arm(arm, error)
}

impl Rig<'_> {
    fn config(&self, arm: &Arm, rate: f64, seed: u64) -> PretrainConfig {
        let size = self.size;
        let train = TrainConfig {
            lr: rate,
            max_steps: arm.steps,
            max_tokens: size.batch_tokens,
            warmup_ratio: 0.1,
            min_lr_ratio: 0.1,
            load_best_model_at_end: false,
            logging_steps: arm.steps,
            seed,
            ..PretrainConfig::default().train
        };
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
            observer: &mut |_: &Event| {},
        });
        let seconds_per_step = start.elapsed().as_secs_f64() / arm.steps as f64;
        match ending {
            Err(TrainError::NonFinite { .. }) => return Ok(None),
            Err(error) => return Err(StudyError::arm(arm.name, error)),
            Ok(summary) if summary.ending == StopReason::Interrupted => {
                return Err(StudyError::Stopped);
            }
            Ok(_) => {}
        }
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
        let found = evaluate_observed(
            model,
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
