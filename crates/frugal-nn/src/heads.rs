//! Classification heads: the part of a task that every method trains in full (`modules_to_save`).
//!
//! Names, shapes and arithmetic are those of Hugging Face's `*ForSequenceClassification` classes,
//! so that the files load there: `score` without bias on decoders, `classifier` on BERT,
//! `classifier.dense` + `classifier.out_proj` on RoBERTa. A head that labels every token is that of
//! the `*ForTokenClassification` classes: one layer with a bias.

use burn::prelude::*;
use serde::{Deserialize, Serialize};

use crate::backbone::{Backbone, BackboneInfo, HeadLayout};
use crate::error::ModelError;
use crate::layout::{Input, SequenceLayout};
use crate::problem::ProblemType;
use crate::rng::{named_rng, standard_normal};
use crate::rows::{mean_pool, select_rows};
use crate::seam::hooks::{Pass, Rows};
use crate::seam::parameter::{Mode, Parameter};

/// Which positions a head reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pooling {
    /// The last token of a sequence that is not the model's padding (decoders).
    Last,
    /// The first token, through the pooler where the model has one (encoders).
    Cls,
    /// The mean of all tokens.
    Mean,
    /// Every token by itself: the head labels tokens.
    Tokens,
}

impl Pooling {
    /// What Hugging Face's classes do for this architecture.
    pub fn default_for(info: &BackboneInfo) -> Self {
        if info.head == HeadLayout::MeanClassifier {
            Self::Mean
        } else if info.is_encoder {
            Self::Cls
        } else {
            Self::Last
        }
    }
}

/// What a head distinguishes and reads.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HeadConfig {
    /// Names of the classes in the order of the logits.
    pub labels: Vec<String>,
    /// Positions read.
    pub pooling: Pooling,
    /// What the logits mean.
    #[serde(default, skip_serializing_if = "ProblemType::is_single_label")]
    pub problem_type: ProblemType,
}

impl HeadConfig {
    /// Whether every token is labelled, and not the sequence.
    pub fn labels_tokens(&self) -> bool {
        self.pooling == Pooling::Tokens
    }

    /// Hugging Face's class whose head reads the same positions of such a model; none where there
    /// is no such class.
    pub fn class(&self, info: &BackboneInfo) -> Option<String> {
        if self.labels_tokens() {
            return info.token_classifier_class();
        }
        let is_theirs = self.pooling == Pooling::default_for(info);
        is_theirs.then(|| info.classifier_class.to_owned())
    }
}

/// A trained classification head.
#[derive(Clone)]
pub struct Head {
    config: HeadConfig,
    /// RoBERTa's extra layer.
    dense: Option<(Parameter, Parameter)>,
    weight: Parameter,
    bias: Option<Parameter>,
}

impl Head {
    /// A head with weights drawn from N(0, 0.02²) and zero biases, as Hugging Face initialises it.
    pub fn new(config: HeadConfig, info: &BackboneInfo, device: &Device, seed: u64) -> Self {
        let (d, labels) = (info.hidden_size, config.labels.len());
        let draw = |name: &str, n: usize| -> Vec<f32> {
            let mut rng = named_rng(seed, name);
            (0..n).map(|_| 0.02 * standard_normal(&mut rng)).collect()
        };
        let matrix = |name: &str, rows: usize| {
            Parameter::new(name, &[rows, d], draw(name, rows * d), device)
        };
        let vector = |name: &str, n: usize| Parameter::new(name, &[n], vec![0.0; n], device);
        if config.labels_tokens() {
            let module = info.head.of_tokens();
            return Self {
                dense: None,
                weight: matrix(&format!("{module}.weight"), labels),
                bias: Some(vector(&format!("{module}.bias"), labels)),
                config,
            };
        }
        match info.head {
            HeadLayout::Classifier | HeadLayout::MeanClassifier => Self {
                dense: None,
                weight: matrix("classifier.weight", labels),
                bias: Some(vector("classifier.bias", labels)),
                config,
            },
            HeadLayout::DenseOutProj => Self {
                dense: Some((
                    matrix("classifier.dense.weight", d),
                    vector("classifier.dense.bias", d),
                )),
                weight: matrix("classifier.out_proj.weight", labels),
                bias: Some(vector("classifier.out_proj.bias", labels)),
                config,
            },
            HeadLayout::Score | HeadLayout::ScoreOrClassifier => Self {
                dense: None,
                weight: matrix("score.weight", labels),
                bias: None,
                config,
            },
        }
    }

    /// The head whose logits are the sum of those of these heads with these weights.
    ///
    /// # Errors
    /// Why there is none: other classes, other positions, a layer that is not linear.
    pub fn weighted_sum(heads: &[(&Self, f32)]) -> Result<Self, String> {
        let Some((first, _)) = heads.first() else {
            return Err("there is none".into());
        };
        for (other, _) in heads {
            let (a, b) = (&first.config, &other.config);
            if a.labels != b.labels {
                return Err(format!(
                    "one tells {} apart, another {}: give adapters of one task",
                    a.labels.join(", "),
                    b.labels.join(", ")
                ));
            }
            if a.problem_type != b.problem_type {
                return Err(format!(
                    "one is trained for {}, another for {}: give adapters of one task",
                    a.problem_type.name(),
                    b.problem_type.name()
                ));
            }
            if a.pooling != b.pooling {
                let name = |pooling: Pooling| format!("`pooling = {}`", serde_json::json!(pooling));
                return Err(format!(
                    "one has {}, another {}: give adapters that were trained alike",
                    name(a.pooling),
                    name(b.pooling)
                ));
            }
        }
        if first.dense.is_some() {
            return Err("there is a layer that is not linear in them (`classifier.dense`): convert the adapters one at a time".into());
        }
        let mut sum = (*first).clone();
        for (i, parameter) in sum.parameters_mut().into_iter().enumerate() {
            let mut values = vec![0.0; parameter.len()];
            for (head, weight) in heads {
                values
                    .iter_mut()
                    .zip(head.parameters()[i].to_vec())
                    .for_each(|(sum, value)| *sum += weight * value);
            }
            parameter.set(values);
        }
        Ok(sum)
    }

    /// Classes and pooling.
    pub fn config(&self) -> &HeadConfig {
        &self.config
    }

    /// Name under which `peft` lists it in `modules_to_save`.
    pub fn module_name(&self) -> &'static str {
        if self.weight.name().starts_with("classifier.") {
            "classifier"
        } else {
            "score"
        }
    }

    /// All parameters in a fixed order.
    pub fn parameters(&self) -> Vec<&Parameter> {
        let dense = self.dense.iter().flat_map(|(w, b)| [w, b]);
        dense.chain([&self.weight]).chain(&self.bias).collect()
    }

    /// The same, to update.
    pub fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        let dense = self.dense.iter_mut().flat_map(|(w, b)| [w, b]);
        dense
            .chain([&mut self.weight])
            .chain(&mut self.bias)
            .collect()
    }

    /// Logits `[sequences, labels]` of an input, `[tokens, labels]` where every token is labelled.
    ///
    /// A head of the last token looks past tokens that are the model's `pad_token_id`, even where they
    /// are text. A head of the first token reads the first position, as the reference does: where a method
    /// puts a prompt in front of the sequences, that is the prompt's. Of images it reads the positions
    /// that the last block gives, which are not those of the pixels.
    ///
    /// # Errors
    /// Those of [`Backbone::forward`].
    pub fn classify(
        &self,
        input: &Input<'_>,
        backbone: &dyn Backbone,
        pass: &mut dyn Pass,
        mode: Mode,
    ) -> Result<Tensor<2>, ModelError> {
        let of_text = backbone.info().image.is_none();
        if self.config.pooling != Pooling::Cls && of_text {
            let hidden_states = backbone.forward(input, pass, None)?;
            if self.config.pooling == Pooling::Last {
                let last = input.last_tokens_but(backbone.info().pad_token_id);
                return Ok(self.of_pooled(select_rows(hidden_states, &last), mode));
            }
            return Ok(self.forward(hidden_states, &input.layout, backbone, pass, mode));
        }
        let state = backbone.stem(input, pass)?;
        let all = 0..backbone.info().num_hidden_layers;
        let mut state = backbone.blocks(all, state, pass, None)?;
        // What was put in front counts as tokens from here on.
        state.layout.prepended = 0;
        let layout = state.layout.clone();
        let hidden_states = backbone.readout(state, pass);
        Ok(self.forward(hidden_states, &layout, backbone, pass, mode))
    }

    /// Logits `[sequences, labels]`, or `[tokens, labels]`, from final hidden states
    /// `[tokens, d_model]`.
    pub fn forward(
        &self,
        hidden_states: Tensor<2>,
        layout: &SequenceLayout,
        backbone: &dyn Backbone,
        pass: &mut dyn Pass,
        mode: Mode,
    ) -> Tensor<2> {
        let pooled = match self.config.pooling {
            Pooling::Last => select_rows(hidden_states, &layout.last_tokens()),
            Pooling::Mean => mean_pool(hidden_states, &layout.cu_seqlens),
            Pooling::Tokens => hidden_states,
            Pooling::Cls => {
                let first = select_rows(hidden_states, &layout.cu_seqlens[..layout.sequences()]);
                match backbone.pooler() {
                    Some(pooler) => pass.linear_rows(pooler, first, Rows::Sequences).tanh(),
                    None => first,
                }
            }
        };
        self.of_pooled(pooled, mode)
    }

    /// Logits of pooled states `[rows, d_model]`.
    fn of_pooled(&self, pooled: Tensor<2>, mode: Mode) -> Tensor<2> {
        let pooled = match &self.dense {
            Some((weight, bias)) => {
                frugal_kernels::linear(pooled, weight.get::<2>(mode), Some(bias.get::<1>(mode)))
                    .tanh()
            }
            None => pooled,
        };
        frugal_kernels::linear(
            pooled,
            self.weight.get::<2>(mode),
            self.bias.as_ref().map(|b| b.get::<1>(mode)),
        )
    }
}
