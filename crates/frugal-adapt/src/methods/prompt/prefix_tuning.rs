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
//! 20 positions without projection. The prefix starts as the keys and values that the model computes
//! of `init_text`, repeated or cut to length, as the paper found best with little data; on a decoder
//! it is then the same as this text in front of the input. It is trained in units of the size of
//! these keys and values in each block, so that one rate suits models of any scale.
//! `init_text = ""` gives the start of Hugging Face `peft`: standard normal values, or zeros with
//! `init_weights = "zero"`, which dilutes attention but adds nothing to it. Such values are far from
//! those of a decoder, which then learns hardly better than chance. `encoder_hidden_size` is that of
//! the keys. The paper uses 5 to 200 positions.
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
    named_rng, standard_normal, to_vec,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::method::{Family, Method, MethodConfig};
use crate::settings::Settings;
use crate::support::dense::Dense;
use crate::support::prompt::{not_a_weight, of_inference};
use crate::support::text_start::{self, DEFAULT_TEXT, TextKeyValues};

const NAME: &str = "prefix-tuning";

/// Registry entry.
pub const METHOD: Method = Method::of::<PrefixTuningConfig>(
    Family::Prompt,
    "Trained keys and values in front of every block",
    include_str!("prefix_tuning.rs"),
)
.aliases(&["p-tuning-v2", "prefix"])
.default_lr(1e-2)
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
    /// `"zero"`: start at zero, whatever `init_text` is.
    pub init_weights: Option<String>,
    /// Text whose keys and values the prefix starts from; empty for standard normal values.
    pub init_text: String,
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
            init_text: DEFAULT_TEXT.into(),
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
        let fields = [
            "num_virtual_tokens",
            "prefix_projection",
            "encoder_hidden_size",
            "init_weights",
        ];
        of_inference(NAME, config, &fields)
    }
}

/// Values before training where there is no text to start from.
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
    /// `[rows, layers * 2 * width]`, and the unit `[1, layers * 2 * width]` that it counts in while
    /// it is trained from a text.
    Table {
        rows: Parameter,
        unit: Option<Tensor<2>>,
    },
    /// `[rows, width]`, then two layers.
    Projected {
        embedding: Parameter,
        first: Dense,
        last: Dense,
    },
}

impl Prefix {
    /// A prefix for `method`, from the text of the settings or else from `start`.
    ///
    /// # Errors
    /// A text without tokens, or longer than the model's positions.
    pub fn new(
        method: &'static str,
        config: &PrefixTuningConfig,
        start: Start,
        context: &BuildContext<'_>,
    ) -> Result<Self, AdaptError> {
        let c = context.info;
        if c.is_attention_only && c.key_value_width == 0 {
            let reason = format!(
                "`{}` models have no attention that keys and values could be put in front of: use `prompt-tuning`, or a method \
                 that changes linear layers",
                c.model_type
            );
            return Err(AdaptError::Unsupported {
                method,
                action: "be used here",
                reason,
            });
        }
        let (rows, layers, width) = (config.num_virtual_tokens, c.num_hidden_layers, width(c));
        let zero = config.init_weights.is_some();
        let text = Some(config.init_text.as_str()).filter(|_| !zero && !config.inference_mode);
        let text = text_start::key_values(method, text, (rows, width), context)?;
        let source = if config.prefix_projection && !config.inference_mode {
            projected(config, text, (rows, layers, width), context)
        } else {
            table(config, text, start, (rows, layers, width), context)
        };
        Ok(Self {
            source,
            rows,
            layers,
            width,
        })
    }

    /// `[rows, layers * 2 * width]`.
    pub fn table(&self, mode: Mode) -> Tensor<2> {
        match &self.source {
            Source::Table { rows, unit: None } => rows.get::<2>(mode),
            Source::Table {
                rows,
                unit: Some(unit),
            } => rows.get::<2>(mode) * unit.clone(),
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

    /// The same prefix without the layers or the unit that made it; `None` if there are none.
    pub fn to_inference(&self) -> Option<Self> {
        if matches!(&self.source, Source::Table { unit: None, .. }) {
            return None;
        }
        let device = self.table(Mode::Eval).device();
        let shape = [self.rows, self.layers * 2 * self.width];
        let table = Parameter::new(
            "prompt_embeddings",
            &shape,
            frugal_nn::to_vec(self.table(Mode::Eval)),
            &device,
        );
        Some(Self {
            source: Source::Table {
                rows: table,
                unit: None,
            },
            ..*self
        })
    }

    pub fn parameters(&self) -> Vec<&Parameter> {
        match &self.source {
            Source::Table { rows, .. } => vec![rows],
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
            Source::Table { rows, .. } => vec![rows],
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

/// Rows as they are, from the text in its units, or else from `start`.
fn table(
    config: &PrefixTuningConfig,
    text: Option<TextKeyValues>,
    start: Start,
    (rows, layers, width): (usize, usize, usize),
    context: &BuildContext<'_>,
) -> Source {
    let total = layers * 2 * width;
    let mut rng = named_rng(context.seed, "prompt_embeddings");
    let mut draw = |n: usize| -> Vec<f32> { (0..n).map(|_| standard_normal(&mut rng)).collect() };
    let (values, unit) = match (text, start) {
        (Some(text), _) => {
            // A block whose keys are all zero keeps its unit.
            let size = |size: &f32| if *size > 0.0 { *size } else { 1.0 };
            let unit: Vec<f32> = text
                .sizes
                .iter()
                .flat_map(|s| std::iter::repeat_n(size(s), width))
                .collect();
            let values = text
                .values
                .iter()
                .zip(unit.iter().cycle())
                .map(|(v, u)| v / u);
            (values.collect(), Some(unit))
        }
        (None, Start::ZeroValues) => {
            let pair = |_| draw(width).into_iter().chain(vec![0.0; width]);
            ((0..rows * layers).flat_map(pair).collect(), None)
        }
        (None, Start::Settings) if config.init_weights.is_some() => (vec![0.0; rows * total], None),
        (None, Start::Settings) => (draw(rows * total), None),
    };
    let unit =
        unit.map(|unit| Tensor::from_data(TensorData::new(unit, [1, total]), &context.device));
    Source::Table {
        rows: Parameter::new("prompt_embeddings", &[rows, total], values, &context.device),
        unit,
    }
}

/// Rows through two layers, of which the last gives the text at first.
fn projected(
    config: &PrefixTuningConfig,
    text: Option<TextKeyValues>,
    (rows, layers, width): (usize, usize, usize),
    context: &BuildContext<'_>,
) -> Source {
    let (device, total) = (&context.device, layers * 2 * width);
    let hidden = config.encoder_hidden_size.unwrap_or(width);
    let mut rng = named_rng(context.seed, "prompt_embeddings");
    let values = (0..rows * width)
        .map(|_| standard_normal(&mut rng))
        .collect();
    let embedding = Parameter::new("embedding.weight", &[rows, width], values, device);
    let first = Dense::uniform("transform.0", width, hidden, context.seed, device);
    let mut last = match config.init_weights {
        Some(_) => Dense::zero("transform.2", hidden, total, device),
        None => Dense::uniform("transform.2", hidden, total, context.seed, device),
    };
    if let Some(text) = text {
        let x = first
            .forward(embedding.get::<2>(Mode::Eval), Mode::Eval)
            .tanh();
        last.weight
            .set(text_start::fit(&to_vec(x), &text.values, rows));
        last.bias
            .iter_mut()
            .for_each(|bias| bias.set(vec![0.0; total]));
    }
    Source::Projected {
        embedding,
        first,
        last,
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
            prefix: Prefix::new(NAME, &config, Start::Settings, context)?,
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
        Prefix::new(
            NAME,
            &serde_json::from_value(settings).unwrap(),
            start,
            &context,
        )
        .unwrap()
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
