//! # Prefix tuning: trained keys and values in front of every block
//!
//! ## What it does
//! Learns a few keys and values for every block, which every token of a sequence can attend to.
//! Nothing inside the model changes.
//!
//! ## Update rule
//! Block `l` attends over `[P_K; K]` and `[P_V; V]` with
//! `P_K, P_V [num_virtual_tokens, kv_heads · head_dim]` of its own. For one head this equals
//! `(1 − λ) attn(q, K, V) + λ attn(q, P_K, P_V)`, where `λ` is the share of the softmax that falls
//! on the prefix. With `prefix_projection` the rows of all blocks come from
//! `tanh(E W₁ᵀ + b₁) W₂ᵀ + b₂`, of which only the result is kept.
//!
//! ## When to use, when not
//! When the model's weights must stay as they are and a prompt at the input is too weak. It reaches
//! every block, so it learns faster than prompt tuning; LoRA is usually better for the same number
//! of parameters. Without `prefix_projection` this is P-tuning v2.
//!
//! ## Cost
//! Trainable: `num_virtual_tokens * layers * 2 * kv_heads * head_dim` (with projection, while
//! training, the two layers and `num_virtual_tokens * kv_heads * head_dim`). Extra compute: attention
//! over that many more positions; no extra tokens pass the feed-forward layers. It cannot be merged.
//!
//! ## Defaults and where they come from
//! 20 positions, no projection, standard normal values, as in Hugging Face `peft`;
//! `init_weights = "zero"` starts at zero, which dilutes attention but adds nothing to it.
//! `encoder_hidden_size` is that of the keys. The paper uses 5 to 200 positions.
//!
//! ## Departures from the paper
//! Prefix keys are used as they are, without rotary rotation, and tokens take the positions after
//! them, as in `peft`. Rows are shaped for the key and value heads of the model, fewer than its
//! query heads where those are grouped.
//!
//! ## References
//! - Li, Liang: Prefix-Tuning: Optimizing Continuous Prompts for Generation, 2021, arXiv
//!   2101.00190.
//! - Liu, Ji, Fu, Tam, Du, Yang, Tang: P-Tuning v2: Prompt Tuning Can Be Comparable to Fine-tuning
//!   Universally Across Scales and Tasks, 2021, arXiv 2110.07602.

use burn::prelude::*;
use frugal_nn::{
    AdaptError, Adapter, BackboneInfo, BuildContext, KeyValue, Linear, Mode, Parameter, Pass,
    named_rng, standard_normal,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::method::{Family, Method, MethodConfig};
use crate::settings::Settings;
use crate::support::dense::Dense;
use crate::support::prompt::{check_peft, not_a_weight};

const NAME: &str = "prefix-tuning";

/// Registry entry.
pub const METHOD: Method = Method::of::<PrefixTuningConfig>(
    Family::Prompt,
    "Trained keys and values in front of every block",
    include_str!("prefix_tuning.rs"),
)
.aliases(&["p-tuning-v2", "prefix"])
.default_lr(3e-2)
.without_merge()
.without_identity()
.without_mixed_batch();

/// Settings, with `peft`'s names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PrefixTuningConfig {
    /// Positions in front of every block's keys and values.
    pub num_virtual_tokens: usize,
    /// Train the prefix through two linear layers.
    pub prefix_projection: bool,
    /// Width between these layers; by default that of the keys.
    pub encoder_hidden_size: Option<usize>,
    /// `"zero"`: start at zero instead of standard normal values.
    pub init_weights: Option<String>,
    /// Hold the finished prefix only, as files do.
    pub inference_mode: bool,
}

impl Default for PrefixTuningConfig {
    fn default() -> Self {
        Self {
            num_virtual_tokens: 20,
            prefix_projection: false,
            encoder_hidden_size: None,
            init_weights: None,
            inference_mode: false,
        }
    }
}

impl MethodConfig for PrefixTuningConfig {
    const NAME: &'static str = NAME;
    const PEFT_TYPE: &'static str = "PREFIX_TUNING";

    fn validate(&self) -> Result<(), AdaptError> {
        let bad = |field, reason: String| {
            Err(AdaptError::Config {
                method: NAME,
                field,
                reason,
            })
        };
        if self.num_virtual_tokens == 0 {
            return bad("num_virtual_tokens", "must be at least 1".into());
        }
        if self.encoder_hidden_size == Some(0) {
            return bad("encoder_hidden_size", "must be at least 1".into());
        }
        match &self.init_weights {
            Some(name) if name != "zero" => bad(
                "init_weights",
                format!("`{name}` is not supported; supported: \"zero\" or nothing"),
            ),
            _ => Ok(()),
        }
    }

    fn build(self, context: &BuildContext<'_>) -> Result<Box<dyn Adapter>, AdaptError> {
        Ok(Box::new(PrefixTuning::new(self, context)?))
    }

    fn from_peft(config: &Settings) -> Result<Settings, AdaptError> {
        check_peft(NAME, config)?;
        let fields = [
            "num_virtual_tokens",
            "prefix_projection",
            "encoder_hidden_size",
            "init_weights",
        ];
        let mut settings: Map<String, Value> = fields
            .into_iter()
            .filter_map(|f| {
                Some((
                    f.to_owned(),
                    config.get(f).filter(|v| !v.is_null())?.clone(),
                ))
            })
            .collect();
        settings.insert("inference_mode".into(), json!(true));
        Ok(settings)
    }
}

/// Values before training.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Start {
    /// As the settings say.
    Settings,
    /// Random keys and zero values, so that positions differ and add nothing; through layers as the
    /// settings say.
    ZeroValues,
}

/// Keys and values of all blocks; shared with the methods that combine a prefix with something
/// else.
pub(crate) struct Prefix {
    source: Source,
    rows: usize,
    layers: usize,
    /// `kv_heads * head_dim`.
    width: usize,
}

enum Source {
    /// `[rows, layers * 2 * width]`.
    Table(Parameter),
    /// `[rows, width]`, then two layers.
    Projected {
        embedding: Parameter,
        first: Dense,
        last: Dense,
    },
}

impl Prefix {
    pub fn new(config: &PrefixTuningConfig, start: Start, context: &BuildContext<'_>) -> Self {
        let c = context.info;
        let (rows, layers, width) = (config.num_virtual_tokens, c.num_hidden_layers, width(c));
        let (device, total) = (&context.device, layers * 2 * width);
        let zero = config.init_weights.is_some();
        let mut rng = named_rng(context.seed, "prompt_embeddings");
        let mut draw = |n: usize| {
            (0..n)
                .map(|_| standard_normal(&mut rng))
                .collect::<Vec<f32>>()
        };
        let source = if config.prefix_projection && !config.inference_mode {
            let hidden = config.encoder_hidden_size.unwrap_or(width);
            Source::Projected {
                embedding: Parameter::new(
                    "embedding.weight",
                    &[rows, width],
                    draw(rows * width),
                    device,
                ),
                first: Dense::uniform("transform.0", width, hidden, context.seed, device),
                last: if zero {
                    Dense::zero("transform.2", hidden, total, device)
                } else {
                    Dense::uniform("transform.2", hidden, total, context.seed, device)
                },
            }
        } else {
            let values: Vec<f32> = match start {
                Start::ZeroValues => (0..rows * layers)
                    .flat_map(|_| {
                        draw(width)
                            .into_iter()
                            .chain(std::iter::repeat_n(0.0, width))
                    })
                    .collect(),
                Start::Settings if zero => vec![0.0; rows * total],
                Start::Settings => draw(rows * total),
            };
            Source::Table(Parameter::new(
                "prompt_embeddings",
                &[rows, total],
                values,
                device,
            ))
        };
        Self {
            source,
            rows,
            layers,
            width,
        }
    }

    /// `[rows, layers * 2 * width]`.
    pub fn table(&self, mode: Mode) -> Tensor<2> {
        match &self.source {
            Source::Table(table) => table.get::<2>(mode),
            Source::Projected {
                embedding,
                first,
                last,
            } => last.forward(first.forward(embedding.get::<2>(mode), mode).tanh(), mode),
        }
    }

    /// Number of positions.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// A block's part of [`Prefix::table`].
    pub fn key_value(&self, table: &Tensor<2>, layer: usize) -> KeyValue {
        let part = |i: usize| {
            table
                .clone()
                .narrow(1, (2 * layer + i) * self.width, self.width)
        };
        KeyValue {
            key: part(0),
            value: part(1),
        }
    }

    /// The same prefix without the layers that made it; `None` if there are none.
    pub fn to_inference(&self) -> Option<Self> {
        let Source::Projected { embedding, .. } = &self.source else {
            return None;
        };
        let device = embedding.get::<2>(Mode::Eval).device();
        let shape = [self.rows, self.layers * 2 * self.width];
        let table = Parameter::new(
            "prompt_embeddings",
            &shape,
            frugal_nn::to_vec(self.table(Mode::Eval)),
            &device,
        );
        Some(Self {
            source: Source::Table(table),
            ..*self
        })
    }

    pub fn parameters(&self) -> Vec<&Parameter> {
        match &self.source {
            Source::Table(table) => vec![table],
            Source::Projected {
                embedding,
                first,
                last,
            } => std::iter::once(embedding)
                .chain(first.parameters())
                .chain(last.parameters())
                .collect(),
        }
    }

    pub fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        match &mut self.source {
            Source::Table(table) => vec![table],
            Source::Projected {
                embedding,
                first,
                last,
            } => std::iter::once(embedding)
                .chain(first.parameters_mut())
                .chain(last.parameters_mut())
                .collect(),
        }
    }
}

/// Width of one position's keys.
fn width(info: &BackboneInfo) -> usize {
    info.num_key_value_heads * info.head_dim
}

/// A prefix-tuning adapter.
pub struct PrefixTuning {
    config: PrefixTuningConfig,
    prefix: Prefix,
    num_key_value_heads: usize,
}

impl PrefixTuning {
    /// Builds the prefix.
    ///
    /// # Errors
    /// Bad settings.
    pub fn new(config: PrefixTuningConfig, context: &BuildContext<'_>) -> Result<Self, AdaptError> {
        config.validate()?;
        Ok(Self {
            prefix: Prefix::new(&config, Start::Settings, context),
            num_key_value_heads: context.info.num_key_value_heads,
            config,
        })
    }
}

struct PrefixPass<'a> {
    prefix: &'a Prefix,
    table: Tensor<2>,
}

impl Pass for PrefixPass<'_> {
    fn key_value(&mut self, layer: usize) -> Option<KeyValue> {
        Some(self.prefix.key_value(&self.table, layer))
    }

    fn prefix_length(&self) -> usize {
        self.prefix.rows()
    }
}

impl Adapter for PrefixTuning {
    fn method(&self) -> &'static str {
        NAME
    }

    fn parameters(&self) -> Vec<&Parameter> {
        self.prefix.parameters()
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        self.prefix.parameters_mut()
    }

    fn pass(&self, mode: Mode) -> Box<dyn Pass + '_> {
        Box::new(PrefixPass {
            prefix: &self.prefix,
            table: self.prefix.table(mode),
        })
    }

    fn to_inference(&self) -> Option<Box<dyn Adapter>> {
        let prefix = self.prefix.to_inference()?;
        let config = PrefixTuningConfig {
            inference_mode: true,
            ..self.config.clone()
        };
        Some(Box::new(Self {
            config,
            prefix,
            num_key_value_heads: self.num_key_value_heads,
        }))
    }

    fn peft_config(&self) -> Map<String, Value> {
        let c = &self.config;
        let fields = json!({
            "peft_type": "PREFIX_TUNING", "num_virtual_tokens": c.num_virtual_tokens, "token_dim": self.prefix.width,
            "num_transformer_submodules": 1, "num_attention_heads": self.num_key_value_heads, "num_layers": self.prefix.layers,
            "encoder_hidden_size": c.encoder_hidden_size.unwrap_or(self.prefix.width), "prefix_projection": c.prefix_projection,
            "init_weights": c.init_weights, "modules_to_save": null,
        });
        let Value::Object(fields) = fields else {
            unreachable!("a literal object")
        };
        fields
    }

    fn weight_delta(&self, _base: &Linear) -> Result<Option<Tensor<2>>, AdaptError> {
        Err(not_a_weight(NAME))
    }

    fn supports_mixed_batch(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use frugal_models::ModelConfig;

    use super::*;
    use frugal_nn::to_vec;

    /// Two positions before training, for two blocks with keys of width 8.
    fn prefix(settings: Value, start: Start) -> Prefix {
        let raw = json!({"model_type": "llama", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 64});
        let config = ModelConfig::from_json(raw, "test").unwrap();
        let sites = config.sites();
        let context = BuildContext {
            info: &config.info(),
            sites: &sites,
            backbone: None,
            device: Device::default(),
            seed: 1,
            tokenize: None,
        };
        Prefix::new(&serde_json::from_value(settings).unwrap(), start, &context)
    }

    fn table(settings: Value, start: Start) -> Vec<f32> {
        to_vec(prefix(settings, start).table(Mode::Eval))
    }

    #[test]
    fn zero_values_come_with_keys_that_differ() {
        let prefix = prefix(json!({"num_virtual_tokens": 2}), Start::ZeroValues);
        let table = prefix.table(Mode::Eval);
        for layer in 0..2 {
            let KeyValue { key, value } = prefix.key_value(&table, layer);
            assert_eq!(to_vec(value), [0.0; 2 * 8]);
            let keys = to_vec(key);
            assert!(
                keys[..8]
                    .iter()
                    .zip(&keys[8..])
                    .all(|(first, second)| *first != 0.0 && first != second)
            );
        }
    }

    #[test]
    fn settings_decide_otherwise() {
        let zero = table(
            json!({"num_virtual_tokens": 2, "init_weights": "zero"}),
            Start::Settings,
        );
        assert_eq!(zero, [0.0; 2 * 2 * 2 * 8]);
        let projected = json!({"num_virtual_tokens": 2, "prefix_projection": true});
        assert_eq!(
            table(projected.clone(), Start::ZeroValues),
            table(projected, Start::Settings)
        );
    }
}
