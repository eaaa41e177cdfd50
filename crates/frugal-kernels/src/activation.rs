//! Gated and plain activations of the feed-forward block.

use burn::tensor::Tensor;

/// SwiGLU: `silu(gate) * up`, both `[tokens, d_ff]`.
pub fn swiglu(gate: Tensor<2>, up: Tensor<2>) -> Tensor<2> {
    portable::swiglu(gate, up)
}

/// GeGLU with the tanh approximation of GELU: `gelu_tanh(gate) * up`, both `[tokens, d_ff]`.
pub fn geglu_tanh(gate: Tensor<2>, up: Tensor<2>) -> Tensor<2> {
    portable::geglu_tanh(gate, up)
}

/// GELU by the error function: `x * (1 + erf(x / sqrt(2))) / 2`, `[tokens, d]`.
pub fn gelu(x: Tensor<2>) -> Tensor<2> {
    portable::gelu(x)
}

/// GELU by its tanh approximation, `[tokens, d]`.
pub fn gelu_tanh(x: Tensor<2>) -> Tensor<2> {
    portable::gelu_tanh(x)
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
