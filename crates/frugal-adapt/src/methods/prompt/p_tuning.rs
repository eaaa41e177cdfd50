//! # P-tuning: a prompt that a small network makes
//!
//! ## What it does
//! Learns input embeddings that stand in front of every sequence, as prompt tuning does, but
//! through an encoder that ties them together while training. Afterwards only its output is kept.
//!
//! ## Update rule
//! `h₀ = [F(P); E(x)]` with `P [num_virtual_tokens, d_model]` and `F` a network of three linear
//! maps with ReLU between them (`MLP`), or a bidirectional LSTM of `encoder_num_layers` layers and
//! two linear layers (`LSTM`).
//!
//! ## When to use, when not
//! Where prompt tuning learns too slowly: the encoder lets few steps move all positions together.
//! The finished adapter is as small as that of prompt tuning, and as limited. A saved prompt can be
//! used, but its training cannot be taken up again.
//!
//! ## Cost
//! Trainable while training: the encoder, `num_virtual_tokens * d + 2 d h + h² + 2 h + d` numbers
//! for `MLP` with hidden size `h`. DerivedCache: `num_virtual_tokens * d`. Extra compute: that many
//! positions in every sequence, also after training; it cannot be merged.
//!
//! ## Defaults and where they come from
//! 20 positions and `MLP` with a hidden size of `d_model`, as in Hugging Face `peft`. Initial values
//! are PyTorch's, a standard normal table and uniform layers, but for the last layer: it starts as
//! the smallest one that makes the embeddings of `init_text`, repeated or cut to length, since rows
//! of another size than embeddings leave a decoder at chance. `init_text = ""` leaves it as it is
//! drawn. The paper uses the LSTM.
//!
//! ## Departures from the paper
//! All positions stand in front; the paper also places them inside templates. With an encoder whose
//! head reads the first token, the head reads the first real token; `peft` gives it the first
//! prompt position.
//!
//! ## References
//! - Liu, Zheng, Du, Ding, Qian, Yang, Tang: GPT Understands, Too, 2021, arXiv 2103.10385.

use burn::prelude::*;
use burn::tensor::activation::{relu, sigmoid};
use frugal_nn::{
    AdaptError, Adapter, BuildContext, Linear, Mode, Parameter, Pass, named_rng, standard_normal,
    to_vec,
};
use rand::Rng;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::method::{Family, Method, MethodConfig};
use crate::settings::Settings;
use crate::support::dense::Dense;
use crate::support::dropout::dropout;
use crate::support::prompt::{PromptPass, PromptShape, not_a_weight, of_inference};
use crate::support::text_start::{self, DEFAULT_TEXT};
use crate::support::values::object;

const NAME: &str = "p-tuning";

/// Registry entry.
pub const METHOD: Method = Method::of::<PTuningConfig>(
    Family::Prompt,
    "A prompt made by a small network, which is dropped after training",
    include_str!("p_tuning.rs"),
)
.aliases(&["prompt-encoder"])
.without_merge()
.without_identity()
.without_mixed_batch();

/// The network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum EncoderType {
    /// Three linear layers.
    #[default]
    Mlp,
    /// A bidirectional LSTM and two linear layers.
    Lstm,
}

/// Settings, with `peft`'s names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PTuningConfig {
    /// Positions in front of the input.
    pub num_virtual_tokens: usize,
    /// Network that makes them.
    pub encoder_reparameterization_type: EncoderType,
    /// Its width; by default that of the model.
    pub encoder_hidden_size: Option<usize>,
    /// Layers of the LSTM; the MLP always has three layers.
    pub encoder_num_layers: usize,
    /// Probability of dropping a value between two layers of the LSTM while training.
    pub encoder_dropout: f64,
    /// Text whose embeddings the positions start from; empty for what the network makes.
    pub init_text: String,
    /// Hold the finished positions only, as files do.
    pub inference_mode: bool,
}

impl Default for PTuningConfig {
    fn default() -> Self {
        Self {
            num_virtual_tokens: 20,
            encoder_reparameterization_type: EncoderType::default(),
            encoder_hidden_size: None,
            encoder_num_layers: 2,
            encoder_dropout: 0.0,
            init_text: DEFAULT_TEXT.into(),
            inference_mode: false,
        }
    }
}

impl MethodConfig for PTuningConfig {
    const NAME: &'static str = NAME;
    const PEFT_TYPE: &'static str = "P_TUNING";

    fn validate(&self) -> Result<(), AdaptError> {
        let bad = |field, reason: &str| {
            Err(AdaptError::Config {
                method: NAME,
                field,
                reason: reason.into(),
            })
        };
        if self.num_virtual_tokens == 0 {
            return bad("num_virtual_tokens", "must be at least 1");
        }
        if self.encoder_hidden_size == Some(0) {
            return bad("encoder_hidden_size", "must be at least 1");
        }
        if self.encoder_num_layers == 0 {
            return bad("encoder_num_layers", "must be at least 1");
        }
        if !(0.0..=1.0).contains(&self.encoder_dropout) {
            return bad("encoder_dropout", "must be from 0 to 1");
        }
        Ok(())
    }

    fn build(self, context: &BuildContext<'_>) -> Result<Box<dyn Adapter>, AdaptError> {
        Ok(Box::new(PTuning::new(self, context)?))
    }

    fn from_peft(config: &Settings) -> Result<Settings, AdaptError> {
        let fields = [
            "num_virtual_tokens",
            "encoder_reparameterization_type",
            "encoder_hidden_size",
            "encoder_num_layers",
            "encoder_dropout",
        ];
        of_inference(NAME, config, &fields)
    }
}

/// One direction of one LSTM layer; gates stand in the order input, forget, cell, output.
struct Lstm {
    /// `[4 h, d_in]`.
    input: Dense,
    /// `[4 h, h]`.
    hidden: Dense,
}

impl Lstm {
    fn new(suffix: &str, d_in: usize, h: usize, context: &BuildContext<'_>) -> Self {
        let bound = 1.0 / (h as f32).sqrt();
        let parameter = |name: &str, shape: &[usize]| {
            let name = format!("lstm_head.{name}_{suffix}");
            let mut rng = named_rng(context.seed, &name);
            let values = (0..shape.iter().product())
                .map(|_| rng.random_range(-bound..bound))
                .collect();
            Parameter::new(name, shape, values, &context.device)
        };
        Self {
            input: Dense {
                weight: parameter("weight_ih", &[4 * h, d_in]),
                bias: Some(parameter("bias_ih", &[4 * h])),
            },
            hidden: Dense {
                weight: parameter("weight_hh", &[4 * h, h]),
                bias: Some(parameter("bias_hh", &[4 * h])),
            },
        }
    }

    /// `[rows, d_in]` to `[rows, h]`, from the last row to the first if `reverse`.
    fn forward(&self, x: Tensor<2>, reverse: bool, mode: Mode) -> Tensor<2> {
        let rows = x.dims()[0];
        let h = self.hidden.weight.shape()[1];
        let gates = self.input.forward(x, mode);
        let zero = Tensor::<2>::zeros([1, h], &gates.device().inner());
        let (mut state, mut cell) = (zero.clone(), zero);
        let mut out: Vec<Tensor<2>> = Vec::with_capacity(rows);
        for i in 0..rows {
            let row = if reverse { rows - 1 - i } else { i };
            let sum = gates.clone().slice(row..row + 1) + self.hidden.forward(state, mode);
            let gate = |k: usize| sum.clone().narrow(1, k * h, h);
            cell = sigmoid(gate(1)) * cell + sigmoid(gate(0)) * gate(2).tanh();
            state = sigmoid(gate(3)) * cell.clone().tanh();
            out.push(state.clone());
        }
        if reverse {
            out.reverse();
        }
        Tensor::cat(out, 0)
    }

    fn parameters(&self) -> impl Iterator<Item = &Parameter> {
        self.input.parameters().chain(self.hidden.parameters())
    }

    fn parameters_mut(&mut self) -> impl Iterator<Item = &mut Parameter> {
        self.input
            .parameters_mut()
            .chain(self.hidden.parameters_mut())
    }
}

/// What makes the positions.
enum Source {
    /// `[rows, d]`: the positions themselves.
    Rows(Parameter),
    /// Rows, and the network that they go through.
    Encoded {
        embedding: Parameter,
        layers: Vec<[Lstm; 2]>,
        head: Vec<Dense>,
    },
}

impl Source {
    fn new(config: &PTuningConfig, context: &BuildContext<'_>) -> Result<Self, AdaptError> {
        let (rows, d) = (config.num_virtual_tokens, context.info.hidden_size);
        let h = config.encoder_hidden_size.unwrap_or(d);
        let mut rng = named_rng(context.seed, "embedding.weight");
        let values: Vec<f32> = (0..rows * d).map(|_| standard_normal(&mut rng)).collect();
        if config.inference_mode {
            return Ok(Self::Rows(Parameter::new(
                "prompt_embeddings",
                &[rows, d],
                values,
                &context.device,
            )));
        }
        let dense = |i: usize, d_in, d_out| {
            Dense::uniform(
                &format!("mlp_head.{i}"),
                d_in,
                d_out,
                context.seed,
                &context.device,
            )
        };
        let lstm = |layer: usize, suffix: &str| {
            Lstm::new(
                &format!("l{layer}{suffix}"),
                if layer == 0 { d } else { 2 * h },
                h,
                context,
            )
        };
        let (layers, head) = match config.encoder_reparameterization_type {
            EncoderType::Mlp => (
                Vec::new(),
                vec![dense(0, d, h), dense(2, h, h), dense(4, h, d)],
            ),
            EncoderType::Lstm => (
                (0..config.encoder_num_layers)
                    .map(|i| [lstm(i, ""), lstm(i, "_reverse")])
                    .collect(),
                vec![dense(0, 2 * h, 2 * h), dense(2, 2 * h, d)],
            ),
        };
        let text = text_start::embeddings(NAME, Some(config.init_text.as_str()), rows, context)?;
        let mut source = Self::Encoded {
            embedding: Parameter::new("embedding.weight", &[rows, d], values, &context.device),
            layers,
            head,
        };
        if let Some(text) = text {
            source.start_from(&text, rows);
        }
        Ok(source)
    }

    /// Sets the last layer so that the network makes `text [rows, d]`.
    fn start_from(&mut self, text: &[f32], rows: usize) {
        let hidden = self.hidden(0.0, Mode::Eval);
        let Self::Encoded { head, .. } = self else {
            return;
        };
        if let (Some(hidden), Some(last)) = (hidden, head.last_mut()) {
            last.weight
                .set(text_start::fit(&to_vec(hidden), text, rows));
            if let Some(bias) = &mut last.bias {
                bias.set(vec![0.0; bias.len()]);
            }
        }
    }

    /// `[rows, d]`.
    fn rows(&self, dropout_rate: f64, mode: Mode) -> Tensor<2> {
        match (self, self.hidden(dropout_rate, mode)) {
            (
                Self::Encoded {
                    embedding, head, ..
                },
                hidden,
            ) => {
                let hidden = hidden.unwrap_or_else(|| embedding.get::<2>(mode));
                match head.last() {
                    Some(last) => last.forward(hidden, mode),
                    None => hidden,
                }
            }
            (Self::Rows(rows), _) => rows.get::<2>(mode),
        }
    }

    /// What the last layer of the network reads.
    fn hidden(&self, dropout_rate: f64, mode: Mode) -> Option<Tensor<2>> {
        let Self::Encoded {
            embedding,
            layers,
            head,
        } = self
        else {
            return None;
        };
        let mut x = embedding.get::<2>(mode);
        for (i, [forward, backward]) in layers.iter().enumerate() {
            if let Mode::Train { seed } = mode
                && i > 0
                && dropout_rate > 0.0
            {
                x = dropout(x, dropout_rate, seed, &format!("lstm_head.{i}"));
            }
            x = Tensor::cat(
                vec![
                    forward.forward(x.clone(), false, mode),
                    backward.forward(x, true, mode),
                ],
                1,
            );
        }
        let (_, inner) = head.split_last()?;
        for layer in inner {
            x = relu(layer.forward(x, mode));
        }
        Some(x)
    }
}

/// A P-tuning adapter.
pub struct PTuning {
    config: PTuningConfig,
    source: Source,
    shape: PromptShape,
}

impl PTuning {
    /// Builds the prompt and its encoder.
    ///
    /// # Errors
    /// Bad settings.
    pub fn new(config: PTuningConfig, context: &BuildContext<'_>) -> Result<Self, AdaptError> {
        config.validate()?;
        Ok(Self {
            source: Source::new(&config, context)?,
            shape: PromptShape::of(context.info),
            config,
        })
    }

    fn rows(&self, mode: Mode) -> Tensor<2> {
        self.source.rows(self.config.encoder_dropout, mode)
    }
}

impl Adapter for PTuning {
    fn method(&self) -> &'static str {
        NAME
    }

    fn parameters(&self) -> Vec<&Parameter> {
        match &self.source {
            Source::Rows(rows) => vec![rows],
            Source::Encoded {
                embedding,
                layers,
                head,
            } => {
                let lstm = layers.iter().flatten().flat_map(Lstm::parameters);
                std::iter::once(embedding)
                    .chain(lstm)
                    .chain(head.iter().flat_map(Dense::parameters))
                    .collect()
            }
        }
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        match &mut self.source {
            Source::Rows(rows) => vec![rows],
            Source::Encoded {
                embedding,
                layers,
                head,
            } => {
                let lstm = layers.iter_mut().flatten().flat_map(Lstm::parameters_mut);
                std::iter::once(embedding)
                    .chain(lstm)
                    .chain(head.iter_mut().flat_map(Dense::parameters_mut))
                    .collect()
            }
        }
    }

    fn pass(&self, mode: Mode) -> Box<dyn Pass + '_> {
        Box::new(PromptPass {
            rows: move || self.rows(mode),
        })
    }

    fn to_inference(&self) -> Option<Box<dyn Adapter>> {
        let Source::Encoded { .. } = &self.source else {
            return None;
        };
        let rows = self.rows(Mode::Eval);
        let (shape, device) = (rows.dims(), rows.device());
        Some(Box::new(Self {
            config: PTuningConfig {
                inference_mode: true,
                ..self.config.clone()
            },
            source: Source::Rows(Parameter::new(
                "prompt_embeddings",
                &shape,
                to_vec(rows),
                &device,
            )),
            shape: self.shape,
        }))
    }

    fn peft_config(&self) -> Map<String, Value> {
        let c = &self.config;
        let mut fields = self.shape.fields("P_TUNING", c.num_virtual_tokens);
        fields.extend(object(json!({
            "encoder_reparameterization_type": c.encoder_reparameterization_type,
            "encoder_hidden_size": c.encoder_hidden_size.unwrap_or(self.shape.token_dim),
            "encoder_num_layers": c.encoder_num_layers,
            "encoder_dropout": c.encoder_dropout,
        })));
        fields
    }

    fn weight_delta(&self, _base: &Linear) -> Result<Option<Tensor<2>>, AdaptError> {
        Err(not_a_weight(NAME))
    }

    fn supports_mixed_batch(&self) -> bool {
        false
    }
}
