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
    AdaptError, Adapter, BuildContext, Linear, Mode, Parameter, Pass, named_rng, to_vec,
};
use rand::Rng;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::method::{Family, Method, MethodConfig};
use crate::settings::Settings;
use crate::support::prompt::{PromptPass, PromptShape, check_peft, not_a_weight, token_table};
use crate::support::values::object;

const NAME: &str = "prompt-tuning";

/// Registry entry.
pub const METHOD: Method = Method::of::<PromptTuningConfig>(
    Family::Prompt,
    "Trained positions in front of the input",
    include_str!("prompt_tuning.rs"),
)
.aliases(&["prompt"])
.default_lr(3e-2)
.without_merge()
.without_identity()
.without_mixed_batch();

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

impl MethodConfig for PromptTuningConfig {
    const NAME: &'static str = NAME;
    const PEFT_TYPE: &'static str = "PROMPT_TUNING";

    fn validate(&self) -> Result<(), AdaptError> {
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

    fn build(self, context: &BuildContext<'_>) -> Result<Box<dyn Adapter>, AdaptError> {
        Ok(Box::new(PromptTuning::new(self, context)?))
    }

    fn from_peft(config: &Settings) -> Result<Settings, AdaptError> {
        let rows = check_peft(NAME, config)?;
        // The rows come from the file, so how they were first made no longer matters.
        Ok(Map::from_iter([
            ("num_virtual_tokens".to_owned(), json!(rows)),
            ("prompt_tuning_init".to_owned(), json!("RANDOM")),
        ]))
    }
}

/// A prompt-tuning adapter.
pub struct PromptTuning {
    config: PromptTuningConfig,
    /// `[num_virtual_tokens, d_model]`.
    prompt_embeddings: Parameter,
    shape: PromptShape,
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
            shape: PromptShape::of(context.info),
            config,
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
            rows: move || self.prompt_embeddings.get::<2>(mode),
        })
    }

    fn peft_config(&self) -> Map<String, Value> {
        let c = &self.config;
        let mut fields = self.shape.fields("PROMPT_TUNING", c.num_virtual_tokens);
        fields.extend(object(json!({
            "prompt_tuning_init": c.prompt_tuning_init,
            "prompt_tuning_init_text": c.prompt_tuning_init_text,
            "tokenizer_name_or_path": null,
            "tokenizer_kwargs": null,
        })));
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
