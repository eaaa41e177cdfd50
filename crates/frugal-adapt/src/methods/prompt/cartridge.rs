//! # Cartridge: a trained KV cache of a text
//!
//! ## What it does
//! Starts from the keys and values that the model computes of a text and trains them themselves, so
//! that a short cache comes to stand for a long text. The first position stays as it is.
//!
//! ## Update rule
//! Block `l` attends over `[Z_K; K]` and `[Z_V; V]` with `Z_K, Z_V [num_virtual_tokens, kv_heads · head_dim]`
//! of its own; the rows of the first `num_frozen_tokens` positions are not trained.
//!
//! ## When to use, when not
//! Where many questions are asked about the same text: train on answers that the model gives with
//! the text in front (see distillation in the training guide), then leave the text away. Its
//! difference from prefix tuning is the start, and that the attention sink at the first position stays.
//!
//! ## Cost
//! Trainable: `(num_virtual_tokens - num_frozen_tokens) * layers * 2 * kv_heads * head_dim`. Extra compute:
//! attention over that many more positions; no extra tokens pass the feed-forward layers. It cannot be
//! merged.
//!
//! ## Defaults and where they come from
//! 20 positions from `init_text`, repeated or cut to length, and `num_frozen_tokens = 1`: Hugging Face
//! `peft` (the paper trains thousands of positions for books). They are trained in units of the size of
//! the text's keys and values in each block, so that one rate suits models of any scale. `init_text = ""`
//! gives standard normal values, the start of `peft` before it is given a text.
//!
//! ## Departures from the paper
//! Self-study, the paper's way of making training data, is left to the user. Keys are used as they are,
//! without rotary rotation, and tokens take the positions after them, as in `peft`. An adapter that is
//! read from files keeps its first positions: they have no gradient, and each step puts them back.
//!
//! ## References
//! - Eyuboglu et al.: Cartridges: Lightweight and General-Purpose Long Context Representations via
//!   Self-Study, 2025, arXiv 2506.06266.

use burn::prelude::*;
use frugal_nn::{
    AdaptError, Adapter, BuildContext, GradientSum, KeyValue, Linear, Mode, Parameter, Pass,
    StepContext, named_rng, standard_normal, to_vec,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::method::{Family, Method, MethodConfig};
use crate::settings::Settings;
use crate::support::per_linear::bad;
use crate::support::prompt::{check_peft, not_a_weight};
use crate::support::text_start::{self, DEFAULT_TEXT};
use crate::support::values::object;

const NAME: &str = "cartridge";

/// Registry entry.
pub const METHOD: Method = Method::of::<CartridgeConfig>(
    Family::Prompt,
    "A trained KV cache that starts from a text",
    include_str!("cartridge.rs"),
)
.default_lr(1e-2)
.without_merge()
.without_identity()
.without_mixed_batch();

/// Settings, with `peft`'s names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CartridgeConfig {
    /// Positions in front of every block.
    pub num_virtual_tokens: usize,
    /// How many of them, from the first, are not trained.
    pub num_frozen_tokens: usize,
    /// Text whose keys and values they start from; empty for standard normal values.
    pub init_text: String,
    /// Hold the finished cache only, as files do.
    pub inference_mode: bool,
}

impl Default for CartridgeConfig {
    fn default() -> Self {
        Self {
            num_virtual_tokens: 20,
            num_frozen_tokens: 1,
            init_text: DEFAULT_TEXT.into(),
            inference_mode: false,
        }
    }
}

impl MethodConfig for CartridgeConfig {
    const NAME: &'static str = NAME;
    const PEFT_TYPE: &'static str = "CARTRIDGE";

    fn validate(&self) -> Result<(), AdaptError> {
        if self.num_virtual_tokens == 0 {
            return bad(NAME, "num_virtual_tokens", "must be at least 1");
        }
        // In files all may be frozen; there is nothing to train then.
        let most = self.num_virtual_tokens - usize::from(!self.inference_mode);
        if self.num_frozen_tokens > most {
            let reason = format!(
                "{} of {} positions leave none to train",
                self.num_frozen_tokens, self.num_virtual_tokens
            );
            return bad(NAME, "num_frozen_tokens", reason);
        }
        Ok(())
    }

    fn build(self, context: &BuildContext<'_>) -> Result<Box<dyn Adapter>, AdaptError> {
        Ok(Box::new(Cartridge::new(self, context)?))
    }

    fn from_peft(config: &Settings) -> Result<Settings, AdaptError> {
        let rows = check_peft(NAME, config)?;
        let frozen = config.get("num_frozen_tokens").filter(|n| !n.is_null());
        // The values come from the file.
        Ok(object(json!({
            "num_virtual_tokens": rows,
            "num_frozen_tokens": frozen.cloned().unwrap_or(json!(1)),
            "init_text": "",
            "inference_mode": true,
        })))
    }
}

/// Where the cache is held.
enum Held {
    /// As it is trained.
    Parts {
        /// `[num_frozen_tokens, layers * 2 * width]`, where there are any.
        frozen: Option<Parameter>,
        /// `[num_virtual_tokens - num_frozen_tokens, layers * 2 * width]`.
        trained: Parameter,
        /// What both count in, `[1, layers * 2 * width]`.
        unit: Option<Tensor<2>>,
    },
    /// As files hold it.
    Whole {
        /// `[num_virtual_tokens, layers * 2 * width]`.
        all: Parameter,
        /// The first `num_frozen_tokens` rows while the optimiser takes a step, which decays them too.
        kept: Vec<f32>,
    },
}

/// A trained KV cache.
struct Cartridge {
    held: Held,
    rows: usize,
    frozen: usize,
    layers: usize,
    /// `kv_heads * head_dim`.
    width: usize,
    num_key_value_heads: usize,
}

impl Cartridge {
    fn new(config: CartridgeConfig, context: &BuildContext<'_>) -> Result<Self, AdaptError> {
        config.validate()?;
        let info = context.info;
        if info.is_attention_only && info.key_value_width == 0 {
            return Err(AdaptError::Unsupported {
                method: NAME,
                action: "be used here",
                reason: format!(
                    "`{}` models have no attention that keys and values could be put in front of: use `prompt-tuning`, or a \
                     method that changes linear layers",
                    info.model_type
                ),
            });
        }
        let (layers, width) = (
            info.num_hidden_layers,
            info.num_key_value_heads * info.head_dim,
        );
        let (rows, total) = (config.num_virtual_tokens, layers * 2 * width);
        let text = Some(config.init_text.as_str()).filter(|_| !config.inference_mode);
        let found = text_start::key_values(NAME, text, (rows, width), context)?;
        let (mut values, unit) = match found {
            Some(text) => {
                // A block whose keys are all zero keeps its unit.
                let size = |size: &f32| if *size > 0.0 { *size } else { 1.0 };
                let sizes = text.sizes.iter().map(size);
                let unit: Vec<f32> = sizes.flat_map(|s| std::iter::repeat_n(s, width)).collect();
                let values = text.values.iter().zip(unit.iter().cycle());
                let values: Vec<f32> = values.map(|(v, u)| v / u).collect();
                let unit = Tensor::from_data(TensorData::new(unit, [1, total]), &context.device);
                (values, Some(unit))
            }
            None => {
                let mut rng = named_rng(context.seed, "cartridge");
                let values = (0..rows * total).map(|_| standard_normal(&mut rng));
                (values.collect(), None)
            }
        };
        let frozen = config.num_frozen_tokens;
        let held = if config.inference_mode {
            let name = "prompt_embeddings";
            Held::Whole {
                all: Parameter::new(name, &[rows, total], values, &context.device),
                kept: Vec::new(),
            }
        } else {
            let trained = values.split_off(frozen * total);
            let kept = |values| {
                let shape = [frozen, total];
                Parameter::frozen("frozen_embedding", &shape, values, &context.device)
            };
            Held::Parts {
                frozen: (frozen > 0).then(|| kept(values)),
                trained: Parameter::new(
                    "trainable_embedding",
                    &[rows - frozen, total],
                    trained,
                    &context.device,
                ),
                unit,
            }
        };
        Ok(Self {
            held,
            rows,
            frozen,
            layers,
            width,
            num_key_value_heads: info.num_key_value_heads,
        })
    }

    /// `[num_virtual_tokens, layers * 2 * width]`.
    fn table(&self, mode: Mode) -> Tensor<2> {
        match &self.held {
            Held::Parts {
                frozen,
                trained,
                unit,
            } => {
                let frozen = frozen.iter().map(|p| p.get::<2>(Mode::Eval));
                let parts = frozen.chain([trained.get::<2>(mode)]).collect();
                let all = Tensor::cat(parts, 0);
                match unit {
                    Some(unit) => all * unit.clone(),
                    None => all,
                }
            }
            Held::Whole { all, .. } if self.frozen == 0 || !mode.is_train() => all.get::<2>(mode),
            Held::Whole { all, .. } => {
                let kept = all.get::<2>(Mode::Eval).narrow(0, 0, self.frozen);
                if self.frozen == self.rows {
                    return kept;
                }
                let trained = all.get::<2>(mode);
                let trained = trained.narrow(0, self.frozen, self.rows - self.frozen);
                Tensor::cat(vec![kept, trained], 0)
            }
        }
    }
}

struct CartridgePass {
    table: Tensor<2>,
    width: usize,
}

impl Pass for CartridgePass {
    fn key_value(&mut self, layer: usize) -> Option<KeyValue> {
        let part = |i: usize| {
            let table = self.table.clone();
            table.narrow(1, (2 * layer + i) * self.width, self.width)
        };
        Some(KeyValue {
            key: part(0),
            value: part(1),
        })
    }

    fn prefix_length(&self) -> usize {
        self.table.dims()[0]
    }
}

impl Adapter for Cartridge {
    fn method(&self) -> &'static str {
        NAME
    }

    fn parameters(&self) -> Vec<&Parameter> {
        match &self.held {
            Held::Parts {
                frozen, trained, ..
            } => frozen.iter().chain([trained]).collect(),
            Held::Whole { all, .. } => vec![all],
        }
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        match &mut self.held {
            Held::Parts {
                frozen, trained, ..
            } => frozen.iter_mut().chain([trained]).collect(),
            Held::Whole { all, .. } => vec![all],
        }
    }

    fn pass(&self, mode: Mode) -> Box<dyn Pass + '_> {
        Box::new(CartridgePass {
            table: self.table(mode),
            width: self.width,
        })
    }

    fn before_step(&mut self, _context: &StepContext, _gradients: &mut GradientSum) {
        if let Held::Whole { all, kept } = &mut self.held {
            let len = self.frozen * all.shape()[1];
            *kept = to_vec(all.value().narrow(0, 0, len.max(1)));
            kept.truncate(len);
        }
    }

    fn after_step(&mut self, _context: &StepContext) {
        if let Held::Whole { all, kept } = &mut self.held
            && !kept.is_empty()
        {
            let mut values = all.to_vec();
            values[..kept.len()].copy_from_slice(kept);
            all.set(values);
        }
    }

    fn needs_trainer(&self) -> bool {
        self.frozen > 0 && matches!(self.held, Held::Whole { .. })
    }

    fn to_inference(&self) -> Option<Box<dyn Adapter>> {
        if matches!(self.held, Held::Whole { .. }) {
            return None;
        }
        let table = self.table(Mode::Eval);
        let (shape, device) = (table.dims(), table.device());
        let all = Parameter::new("prompt_embeddings", &shape, to_vec(table), &device);
        Some(Box::new(Self {
            held: Held::Whole {
                all,
                kept: Vec::new(),
            },
            ..*self
        }))
    }

    fn peft_config(&self) -> Map<String, Value> {
        object(json!({
            "peft_type": "CARTRIDGE", "num_virtual_tokens": self.rows, "num_frozen_tokens": self.frozen,
            "token_dim": self.width, "num_transformer_submodules": 1,
            "num_attention_heads": self.num_key_value_heads, "num_layers": self.layers, "modules_to_save": null,
        }))
    }

    fn weight_delta(&self, _base: &Linear) -> Result<Option<Tensor<2>>, AdaptError> {
        Err(not_a_weight(NAME))
    }

    fn supports_mixed_batch(&self) -> bool {
        false
    }
}
