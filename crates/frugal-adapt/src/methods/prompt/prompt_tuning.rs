//! # Prompt tuning: trained positions in front of the input
//!
//! ## What it does
//! Learns a few input embeddings that stand in front of every sequence. Nothing inside the model
//! changes.
//!
//! ## Update rule
//! `h₀ = [P; E(x)]` with `P [num_virtual_tokens, d_model]`; positions start at 0 on the prompt.
//!
//! ## When to use, when not
//! When an adapter must be tiny (a few thousand numbers) or when one batch serves many tasks. It
//! learns slowly and is clearly weaker than LoRA on small models.
//!
//! ## Cost
//! Trainable: `num_virtual_tokens * d_model`. Extra compute: that many positions in every sequence,
//! also after training; it cannot be merged.
//!
//! ## Defaults and where they come from
//! 20 positions. They start from randomly chosen rows of the token table (`SAMPLE_VOCAB`), which
//! the paper found better than random values (`RANDOM`, standard normal, the default of Hugging
//! Face `peft`); `TEXT` starts from the embeddings of a text. Use a learning rate of 0.03 to 0.3.
//!
//! ## Departures from the paper
//! None in the update. Models that scale their embeddings (Gemma) get the rows unscaled, as in
//! `peft`. With an encoder whose head reads the first token, the head reads the first real token;
//! `peft` gives it the first prompt position.
//!
//! ## References
//! - Lester, Al-Rfou, Constant: The Power of Scale for Parameter-Efficient Prompt Tuning, 2021,
//!   arXiv 2104.08691.

use burn::prelude::*;
use frugal_nn::{
    AdaptError, Adapter, Backbone, BuildContext, Frozen, Linear, Mode, Parameter, Pass,
    SequenceLayout, SiteKind, named_rng, to_vec,
};
use rand::Rng;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::method::{Capabilities, Family, Method};
use crate::settings;

const NAME: &str = "prompt-tuning";

/// Registry entry.
pub const METHOD: Method = Method {
    name: NAME,
    aliases: &["prompt"],
    family: Family::Prompt,
    summary: "Trained positions in front of the input",
    default_lr: 3e-2,
    peft_type: "PROMPT_TUNING",
    peft_variant: None,
    load_rule: None,
    capabilities: Capabilities {
        merge: false,
        identity_at_init: false,
        mixed_batch: false,
    },
    source: include_str!("prompt_tuning.rs"),
    defaults: settings::defaults::<PromptTuningConfig>,
    check: |settings| settings::parse::<PromptTuningConfig>(NAME, settings)?.validate(),
    build: |settings, context| {
        Ok(Box::new(PromptTuning::new(
            settings::parse(NAME, settings)?,
            context,
        )?))
    },
    from_peft,
};

fn from_peft(config: &Map<String, Value>) -> Result<Map<String, Value>, AdaptError> {
    let rows = check_peft(NAME, config)?;
    // The rows come from the file, so how they were first made no longer matters.
    Ok(Map::from_iter([
        ("num_virtual_tokens".to_owned(), json!(rows)),
        ("prompt_tuning_init".to_owned(), json!("RANDOM")),
    ]))
}

/// What every prompt of `peft` must have; returns `num_virtual_tokens`.
pub(crate) fn check_peft(
    method: &'static str,
    config: &Map<String, Value>,
) -> Result<u64, AdaptError> {
    let bad = |field, reason: &str| AdaptError::Config {
        method,
        field,
        reason: reason.into(),
    };
    if config
        .get("num_transformer_submodules")
        .and_then(Value::as_u64)
        .is_some_and(|n| n != 1)
    {
        return Err(bad(
            "num_transformer_submodules",
            "only models of one stack are supported",
        ));
    }
    let rows = config.get("num_virtual_tokens").and_then(Value::as_u64);
    rows.ok_or_else(|| bad("num_virtual_tokens", "the key is missing"))
}

/// Why a method that adds positions cannot be merged.
pub(crate) fn not_a_weight(method: &'static str) -> AdaptError {
    let reason = "it adds positions, not weights; ship the adapter beside the model".into();
    AdaptError::Unsupported {
        method,
        action: "be merged",
        reason,
    }
}

/// Puts the rows of `prompt` in front of every sequence, unless they are in the cache already.
pub(crate) fn prepend(
    hidden_states: Tensor<2>,
    layout: &mut SequenceLayout,
    prompt: impl FnOnce() -> Tensor<2>,
) -> Tensor<2> {
    if layout.past.iter().any(|&past| past > 0) {
        return hidden_states;
    }
    let prompt = prompt();
    let parts = layout
        .cu_seqlens
        .windows(2)
        .flat_map(|w| [prompt.clone(), hidden_states.clone().slice(w[0]..w[1])])
        .collect();
    *layout = layout.prepend(prompt.dims()[0]);
    Tensor::cat(parts, 0)
}

/// Where the initial rows come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum PromptInit {
    /// Standard normal values.
    Random,
    /// Rows of the token table, drawn at random.
    #[default]
    SampleVocab,
    /// The embeddings of `prompt_tuning_init_text`, repeated or cut to length.
    Text,
}

/// Settings, with `peft`'s names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PromptTuningConfig {
    /// Positions in front of the input.
    pub num_virtual_tokens: usize,
    /// Initial rows.
    pub prompt_tuning_init: PromptInit,
    /// Text of the `TEXT` initialisation.
    pub prompt_tuning_init_text: Option<String>,
}

impl Default for PromptTuningConfig {
    fn default() -> Self {
        Self {
            num_virtual_tokens: 20,
            prompt_tuning_init: PromptInit::default(),
            prompt_tuning_init_text: None,
        }
    }
}

impl PromptTuningConfig {
    /// Checks ranges.
    ///
    /// # Errors
    /// [`AdaptError::Config`] naming the field.
    pub fn validate(&self) -> Result<(), AdaptError> {
        if self.num_virtual_tokens == 0 {
            return Err(AdaptError::Config {
                method: NAME,
                field: "num_virtual_tokens",
                reason: "must be at least 1".into(),
            });
        }
        let has_text = self
            .prompt_tuning_init_text
            .as_ref()
            .is_some_and(|t| !t.trim().is_empty());
        if (self.prompt_tuning_init == PromptInit::Text) != has_text {
            return Err(AdaptError::Config {
                method: NAME,
                field: "prompt_tuning_init_text",
                reason: "give a text exactly when `prompt_tuning_init = \"TEXT\"`".into(),
            });
        }
        Ok(())
    }
}

/// A prompt-tuning adapter.
pub struct PromptTuning {
    config: PromptTuningConfig,
    /// `[num_virtual_tokens, d_model]`.
    prompt_embeddings: Parameter,
    token_dim: usize,
    num_layers: usize,
    num_attention_heads: usize,
}

impl PromptTuning {
    /// Builds the prompt.
    ///
    /// # Errors
    /// Bad settings.
    pub fn new(config: PromptTuningConfig, context: &BuildContext<'_>) -> Result<Self, AdaptError> {
        config.validate()?;
        let (rows, d) = (config.num_virtual_tokens, context.info.hidden_size);
        let mut rng = named_rng(context.seed, "prompt_embeddings");
        let table = context.backbone.and_then(token_table);
        let values = match (config.prompt_tuning_init, table) {
            (PromptInit::Random, _) | (_, None) => (0..rows * d)
                .map(|_| frugal_nn::standard_normal(&mut rng))
                .collect(),
            (PromptInit::SampleVocab, Some(table)) => {
                let ids: Vec<u32> = (0..rows)
                    .map(|_| rng.random_range(0..context.info.vocab_size as u32))
                    .collect();
                to_vec(frugal_nn::lookup(table, &ids))
            }
            (PromptInit::Text, Some(table)) => {
                let text = config
                    .prompt_tuning_init_text
                    .as_deref()
                    .unwrap_or_default();
                let ids = context.tokenize.map(|f| f(text)).unwrap_or_default();
                if ids.is_empty() {
                    return Err(AdaptError::Config {
                        method: NAME,
                        field: "prompt_tuning_init_text",
                        reason: "the text has no tokens".into(),
                    });
                }
                let ids: Vec<u32> = ids.into_iter().cycle().take(rows).collect();
                to_vec(frugal_nn::lookup(table, &ids))
            }
        };
        Ok(Self {
            prompt_embeddings: Parameter::new(
                "prompt_embeddings",
                &[rows, d],
                values,
                &context.device,
            ),
            token_dim: d,
            num_layers: context.info.num_hidden_layers,
            num_attention_heads: context.info.num_attention_heads,
            config,
        })
    }
}

fn token_table(backbone: &dyn Backbone) -> Option<Tensor<2>> {
    let (first, _) = backbone
        .sites()
        .iter()
        .find(|(_, s)| s.kind == SiteKind::Embedding)?;
    let mut found = None;
    backbone.visit_weights(&mut |part| {
        if let Frozen::Embedding(table) = part
            && table.site == first
        {
            found = Some(table.weight.dense());
        }
    });
    found
}

struct PromptPass<'a> {
    adapter: &'a PromptTuning,
    mode: Mode,
}

impl Pass for PromptPass<'_> {
    fn embed(&mut self, hidden_states: Tensor<2>, layout: &mut SequenceLayout) -> Tensor<2> {
        prepend(hidden_states, layout, || {
            self.adapter.prompt_embeddings.get::<2>(self.mode)
        })
    }
}

impl Adapter for PromptTuning {
    fn method(&self) -> &'static str {
        NAME
    }

    fn parameters(&self) -> Vec<&Parameter> {
        vec![&self.prompt_embeddings]
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        vec![&mut self.prompt_embeddings]
    }

    fn pass(&self, mode: Mode) -> Box<dyn Pass + '_> {
        Box::new(PromptPass {
            adapter: self,
            mode,
        })
    }

    fn peft_config(&self) -> Map<String, Value> {
        let c = &self.config;
        let fields = json!({
            "peft_type": "PROMPT_TUNING", "num_virtual_tokens": c.num_virtual_tokens, "token_dim": self.token_dim,
            "num_transformer_submodules": 1, "num_attention_heads": self.num_attention_heads, "num_layers": self.num_layers,
            "prompt_tuning_init": c.prompt_tuning_init, "prompt_tuning_init_text": c.prompt_tuning_init_text,
            "tokenizer_name_or_path": null, "tokenizer_kwargs": null, "modules_to_save": null,
        });
        let Value::Object(mut fields) = fields else {
            unreachable!("a literal object")
        };
        // The rows are in the file. `peft` would make them of the text again, for which it needs a
        // tokenizer that the file does not name.
        if c.prompt_tuning_init == PromptInit::Text {
            fields.insert("prompt_tuning_init".into(), json!(PromptInit::Random));
            fields.insert("prompt_tuning_init_text".into(), Value::Null);
        }
        fields
    }

    fn weight_delta(&self, _base: &Linear) -> Result<Option<Tensor<2>>, AdaptError> {
        Err(not_a_weight(NAME))
    }

    fn supports_mixed_batch(&self) -> bool {
        false
    }
}
