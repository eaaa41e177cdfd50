//! Gated and plain activations of the feed-forward block.

use burn::tensor::Tensor;

use crate::flex;

/// SwiGLU: `silu(gate) * up` (Shazeer, *GLU Variants Improve Transformer*, arXiv 2002.05202,
/// equation 5).
///
/// # Shapes
/// gate, up: `[tokens, d_ff] -> [tokens, d_ff]`
///
/// # Panics
/// When the shapes differ.
pub fn swiglu(gate: Tensor<2>, up: Tensor<2>) -> Tensor<2> {
    check(&gate, &up);
    flex::gated::<flex::Silu>(&gate, &up).unwrap_or_else(|| portable::swiglu(gate, up))
}

/// GeGLU with the tanh approximation of GELU: `gelu_tanh(gate) * up` (Shazeer, *GLU Variants
/// Improve Transformer*, arXiv 2002.05202, equation 5, with the GELU of Gemma).
///
/// # Shapes
/// gate, up: `[tokens, d_ff] -> [tokens, d_ff]`
///
/// # Panics
/// When the shapes differ.
pub fn geglu_tanh(gate: Tensor<2>, up: Tensor<2>) -> Tensor<2> {
    check(&gate, &up);
    flex::gated::<flex::GeluTanh>(&gate, &up).unwrap_or_else(|| portable::geglu_tanh(gate, up))
}

/// GELU by the error function: `x * (1 + erf(x / sqrt(2))) / 2` (Hendrycks and Gimpel, arXiv
/// 1606.08415, section 2; `torch.nn.functional.gelu`).
///
/// # Shapes
/// x: `[tokens, d] -> [tokens, d]`
pub fn gelu(x: Tensor<2>) -> Tensor<2> {
    flex::activation::<flex::Gelu>(&x).unwrap_or_else(|| portable::gelu(x))
}

/// GELU by its tanh approximation: `x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x^3))) / 2`
/// (Hendrycks and Gimpel, arXiv 1606.08415, section 2; `torch.nn.functional.gelu` with
/// `approximate="tanh"`).
///
/// # Shapes
/// x: `[tokens, d] -> [tokens, d]`
pub fn gelu_tanh(x: Tensor<2>) -> Tensor<2> {
    flex::activation::<flex::GeluTanh>(&x).unwrap_or_else(|| portable::gelu_tanh(x))
}

/// SiLU: `x * sigmoid(x)` (Hendrycks and Gimpel, arXiv 1606.08415, section 2;
/// `torch.nn.functional.silu`).
///
/// # Shapes
/// x: `[tokens, d] -> [tokens, d]`
pub fn silu(x: Tensor<2>) -> Tensor<2> {
    flex::activation::<flex::Silu>(&x).unwrap_or_else(|| portable::silu(x))
}

fn check(gate: &Tensor<2>, up: &Tensor<2>) {
    assert!(
        gate.dims() == up.dims(),
        "gated activation: gate {:?} and up {:?} must have one shape",
        gate.dims(),
        up.dims()
    );
}

pub(crate) mod portable {
    use burn::tensor::{Tensor, activation};

    /// [`swiglu`](crate::swiglu) as a composition of Burn operations.
    pub fn swiglu(gate: Tensor<2>, up: Tensor<2>) -> Tensor<2> {
        activation::silu(gate) * up
    }

    /// [`geglu_tanh`](crate::geglu_tanh) as a composition of Burn operations.
    pub fn geglu_tanh(gate: Tensor<2>, up: Tensor<2>) -> Tensor<2> {
        gelu_tanh(gate) * up
    }

    /// [`silu`](crate::silu) as a composition of Burn operations.
    pub fn silu(x: Tensor<2>) -> Tensor<2> {
        activation::silu(x)
    }

    /// [`gelu`](crate::gelu) as a composition of Burn operations.
    pub fn gelu(x: Tensor<2>) -> Tensor<2> {
        activation::gelu(x)
    }

    /// [`gelu_tanh`](crate::gelu_tanh) as a composition of Burn operations.
    pub fn gelu_tanh(x: Tensor<2>) -> Tensor<2> {
        let cubic = x.clone() * x.clone() * x.clone() * 0.044715 + x.clone();
        let inner = (cubic * (2.0 / std::f64::consts::PI).sqrt()).tanh();
        x * (inner + 1.0) * 0.5
    }
}
