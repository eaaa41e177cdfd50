//! Element-wise non-linearities, as configurations name them.

use serde::{Deserialize, Deserializer, Serialize};

/// Element-wise non-linearity of the feed-forward layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// `x * sigmoid(x)`.
    Silu,
    /// GELU with the error function.
    Gelu,
    /// GELU in its tanh approximation.
    GeluTanh,
    /// Rectified linear.
    Relu,
}

impl<'de> Deserialize<'de> for Activation {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        Ok(match name.as_str() {
            "silu" | "swish" => Self::Silu,
            "gelu" | "gelu_python" => Self::Gelu,
            "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" | "gelu_python_tanh" => Self::GeluTanh,
            "relu" => Self::Relu,
            other => {
                return Err(serde::de::Error::custom(format!(
                    "activation `{other}` is not supported; silu, gelu, gelu_new, gelu_pytorch_tanh and relu are"
                )));
            }
        })
    }
}
