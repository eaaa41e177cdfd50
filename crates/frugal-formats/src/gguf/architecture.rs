//! The model families that GGUF files are read and written for.

use super::GgufProblem;

/// A model family that GGUF files are read and written for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    /// `llama`, which also holds Mistral models.
    Llama,
    /// `qwen2`.
    Qwen2,
    /// `qwen3`.
    Qwen3,
    /// `gemma3`, text only.
    Gemma3,
    /// `gpt2`.
    Gpt2,
}

impl Architecture {
    /// The value of `general.architecture`, also the prefix of the family's metadata keys.
    pub fn gguf_name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::Gemma3 => "gemma3",
            Self::Gpt2 => "gpt2",
        }
    }

    /// The family of a value of `general.architecture`.
    ///
    /// # Errors
    /// [`GgufProblem::Unsupported`] for another family.
    pub fn from_gguf(name: &str) -> Result<Self, GgufProblem> {
        [
            Self::Llama,
            Self::Qwen2,
            Self::Qwen3,
            Self::Gemma3,
            Self::Gpt2,
        ]
        .into_iter()
        .find(|a| a.gguf_name() == name)
        .ok_or_else(|| {
            GgufProblem::Unsupported(format!(
                "architecture {name:?} is not supported; llama, qwen2, qwen3, gemma3 and gpt2 are"
            ))
        })
    }

    /// The family of a Hugging Face `model_type`.
    ///
    /// # Errors
    /// [`GgufProblem::Unsupported`] for another family.
    pub fn from_model_type(model_type: &str) -> Result<Self, GgufProblem> {
        match model_type {
            "llama" | "mistral" => Ok(Self::Llama),
            "qwen2" => Ok(Self::Qwen2),
            "qwen3" => Ok(Self::Qwen3),
            "gemma3_text" => Ok(Self::Gemma3),
            "gpt2" => Ok(Self::Gpt2),
            other => Err(GgufProblem::Unsupported(format!(
                "model_type {other:?} has no GGUF form here; llama, mistral, qwen2, qwen3, gemma3_text and gpt2 have"
            ))),
        }
    }
}
