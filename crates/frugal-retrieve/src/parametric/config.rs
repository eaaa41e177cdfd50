//! Settings of documents' parameters, of their training and of the translator.

use serde::{Deserialize, Serialize};

use super::error::ParametricError;

/// Largest rank and width that are taken: far above any use, so that no file makes a size overflow.
const LARGEST: usize = 4096;

fn positive(field: &'static str, value: f64) -> Result<(), ParametricError> {
    if value > 0.0 && value.is_finite() {
        return Ok(());
    }
    Err(ParametricError::Settings {
        field,
        reason: format!("it is {value}, but must be a positive number"),
    })
}

fn size(field: &'static str, value: usize) -> Result<(), ParametricError> {
    if (1..=LARGEST).contains(&value) {
        return Ok(());
    }
    Err(ParametricError::Settings {
        field,
        reason: format!("it is {value}, but must be from 1 to {LARGEST}"),
    })
}

/// What the parameters of a document are, in PEFT's words.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ParametricConfig {
    /// Rank of a document's change.
    pub r: usize,
    /// α: a change is `α / r · B A`.
    pub lora_alpha: f64,
    /// Whether α/r also holds where changes are injected for the translator. Official DyPRAG leaves it
    /// out there (`false`), so that its targets act r/α times as much as they were trained to.
    pub scale_in_delta: bool,
    /// Decides the start that all documents have in common.
    pub seed: u64,
}

impl Default for ParametricConfig {
    fn default() -> Self {
        Self {
            r: 2,
            lora_alpha: 32.0,
            scale_in_delta: true,
            seed: 0,
        }
    }
}

impl ParametricConfig {
    /// Whether the numbers can be used.
    ///
    /// # Errors
    /// The field at fault.
    pub fn validate(&self) -> Result<(), ParametricError> {
        size("r", self.r)?;
        positive("lora_alpha", self.lora_alpha)
    }

    /// α/r: the factor of trained changes.
    pub fn scale(&self) -> f32 {
        (self.lora_alpha / self.r as f64) as f32
    }

    /// The factor of changes in the translator's training and use.
    pub fn translated_scale(&self) -> f32 {
        if self.scale_in_delta {
            self.scale()
        } else {
            1.0
        }
    }
}

/// How a document's parameters are trained (stage B).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EncodeOptions {
    /// Learning rate of AdamW.
    pub lr: f64,
    /// Passes over a document's sequences, each a step for each sequence, in their order.
    pub epochs: usize,
    /// Decoupled weight decay; PyTorch's default, which the official code leaves as it is.
    pub weight_decay: f64,
    /// Whether the tokens of the prompt are learnt too, as in the official code, or the answer alone.
    pub label_prompt: bool,
    /// Most tokens of a sequence.
    pub max_tokens: usize,
}

impl Default for EncodeOptions {
    fn default() -> Self {
        Self {
            lr: 3e-4,
            epochs: 1,
            weight_decay: 0.01,
            label_prompt: true,
            max_tokens: 3000,
        }
    }
}

impl EncodeOptions {
    /// Whether the numbers can be used.
    ///
    /// # Errors
    /// The field at fault.
    pub fn validate(&self) -> Result<(), ParametricError> {
        positive("lr", self.lr)?;
        not_negative("weight_decay", self.weight_decay)?;
        at_least_one("epochs", self.epochs)?;
        at_least_one("max_tokens", self.max_tokens)
    }
}

fn not_negative(field: &'static str, value: f64) -> Result<(), ParametricError> {
    if value >= 0.0 && value.is_finite() {
        return Ok(());
    }
    Err(ParametricError::Settings {
        field,
        reason: format!("it is {value}, but must not be negative"),
    })
}

fn at_least_one(field: &'static str, value: usize) -> Result<(), ParametricError> {
    if value > 0 {
        return Ok(());
    }
    Err(ParametricError::Settings {
        field,
        reason: "it is 0, but must be at least 1".into(),
    })
}

/// Where the translator's weights begin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TranslatorInit {
    /// Normal with deviation `1e-2 / sqrt(fan_in)`, and zero in the last layer of B: no change.
    #[default]
    NoChange,
    /// All normal with deviation 1e-7, as in the official code.
    Official,
}

/// What a translator is.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TranslatorConfig {
    /// The parameters that it writes.
    pub parameters: ParametricConfig,
    /// Width p of the hidden layers.
    pub width: usize,
    /// Where its weights begin.
    pub init: TranslatorInit,
}

impl Default for TranslatorConfig {
    fn default() -> Self {
        Self {
            parameters: ParametricConfig::default(),
            width: 32,
            init: TranslatorInit::default(),
        }
    }
}

impl TranslatorConfig {
    /// Whether the numbers can be used.
    ///
    /// # Errors
    /// The field at fault.
    pub fn validate(&self) -> Result<(), ParametricError> {
        self.parameters.validate()?;
        size("width", self.width)
    }
}

/// What the divergence of the translated model from the trained one is divided by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KlReduction {
    /// The number of tokens.
    #[default]
    Mean,
    /// Nothing, as in the official code (which adds its padding).
    Sum,
}

/// How a translator is trained (stage C).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TranslatorTraining {
    /// Learning rate of AdamW.
    pub lr: f64,
    /// Passes over the documents, a step for each.
    pub epochs: usize,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Weight of the divergence: 1 of a mean is about the official 0.01 of a sum over a hundred
    /// tokens.
    pub kl_weight: f64,
    /// What the divergence is divided by.
    pub kl_reduction: KlReduction,
    /// Weight of the squared difference from the trained parameters.
    pub mse_weight: f64,
    /// Whether a pass takes another of a document's sequences each time, or, as the official code, the
    /// first one always.
    pub all_sequences: bool,
    /// Decides the order of the documents.
    pub seed: u64,
}

impl Default for TranslatorTraining {
    fn default() -> Self {
        Self {
            lr: 1e-4,
            epochs: 1,
            weight_decay: 0.01,
            kl_weight: 1.0,
            kl_reduction: KlReduction::Mean,
            mse_weight: 100.0,
            all_sequences: false,
            seed: 0,
        }
    }
}

impl TranslatorTraining {
    /// The numbers of the official code.
    pub fn official() -> Self {
        Self {
            lr: 1e-5,
            kl_weight: 0.01,
            kl_reduction: KlReduction::Sum,
            ..Self::default()
        }
    }

    /// Whether the numbers can be used.
    ///
    /// # Errors
    /// The field at fault.
    pub fn validate(&self) -> Result<(), ParametricError> {
        positive("lr", self.lr)?;
        not_negative("weight_decay", self.weight_decay)?;
        not_negative("kl_weight", self.kl_weight)?;
        not_negative("mse_weight", self.mse_weight)?;
        at_least_one("epochs", self.epochs)
    }
}
