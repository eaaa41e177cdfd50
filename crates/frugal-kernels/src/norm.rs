//! Root-mean-square and layer normalisation over the last dimension, and the residual sum before
//! them.

use burn::tensor::Tensor;

use crate::flex;

/// RMS normalisation of each row: `x / sqrt(mean(x^2) + eps) * weight` (Zhang and Sennrich, *Root
/// Mean Square Layer Normalization*, arXiv 1910.07467, equation 4; `torch.nn.functional.rms_norm`).
///
/// Per-head normalisation is the same call on `[tokens * heads, head_dim]`.
///
/// # Shapes
/// x: `[tokens, d] -> [tokens, d]`; weight: `[d]`
///
/// # Panics
/// When the shapes do not fit together.
pub fn rms_norm(x: Tensor<2>, weight: Tensor<1>, eps: f64) -> Tensor<2> {
    check(&x, &weight, None);
    flex::rms_norm(&x, &weight, eps).unwrap_or_else(|| portable::rms_norm(x, weight, eps))
}

/// Layer normalisation of each row: `(x - mean) / sqrt(var + eps) * weight + bias`, with the
/// variance over all `d` (Ba, Kiros and Hinton, *Layer Normalization*, arXiv 1607.06450, section 3;
/// `torch.nn.functional.layer_norm`).
///
/// # Shapes
/// x: `[tokens, d] -> [tokens, d]`; weight, bias: `[d]`
///
/// # Panics
/// When the shapes do not fit together.
pub fn layer_norm(x: Tensor<2>, weight: Tensor<1>, bias: Option<Tensor<1>>, eps: f64) -> Tensor<2> {
    check(&x, &weight, bias.as_ref());
    flex::layer_norm(&x, &weight, bias.as_ref(), eps)
        .unwrap_or_else(|| portable::layer_norm(x, weight, bias, eps))
}

/// The residual sum `x + y`.
///
/// # Shapes
/// x, y: `[tokens, d] -> [tokens, d]`
///
/// # Panics
/// When the shapes differ.
pub fn add(x: Tensor<2>, y: Tensor<2>) -> Tensor<2> {
    check_sum(&x, &y);
    flex::add(&x, &y).unwrap_or_else(|| portable::add(x, y))
}

/// The residual sum `x + y` and its [`rms_norm`], in one pass over memory. The gradient that the
/// sum gets from elsewhere is added up in the backward pass of the norm.
///
/// # Shapes
/// x, y: `[tokens, d] -> [tokens, d]` twice, the sum and the norm; weight: `[d]`
///
/// # Panics
/// When the shapes do not fit together.
pub fn add_rms_norm(x: Tensor<2>, y: Tensor<2>, weight: Tensor<1>, eps: f64) -> [Tensor<2>; 2] {
    check_sum(&x, &y);
    check(&x, &weight, None);
    flex::add_rms_norm(&x, &y, &weight, eps)
        .unwrap_or_else(|| portable::add_rms_norm(x, y, weight, eps))
}

/// The residual sum `x + y` and its [`layer_norm`], in one pass over memory. The gradient that the
/// sum gets from elsewhere is added up in the backward pass of the norm.
///
/// # Shapes
/// x, y: `[tokens, d] -> [tokens, d]` twice, the sum and the norm; weight, bias: `[d]`
///
/// # Panics
/// When the shapes do not fit together.
pub fn add_layer_norm(
    x: Tensor<2>,
    y: Tensor<2>,
    weight: Tensor<1>,
    bias: Option<Tensor<1>>,
    eps: f64,
) -> [Tensor<2>; 2] {
    check_sum(&x, &y);
    check(&x, &weight, bias.as_ref());
    flex::add_layer_norm(&x, &y, &weight, bias.as_ref(), eps)
        .unwrap_or_else(|| portable::add_layer_norm(x, y, weight, bias, eps))
}

fn check_sum(x: &Tensor<2>, y: &Tensor<2>) {
    assert!(
        x.dims() == y.dims(),
        "residual sum: {:?} and {:?} are not of one shape",
        x.dims(),
        y.dims()
    );
}

fn check(x: &Tensor<2>, weight: &Tensor<1>, bias: Option<&Tensor<1>>) {
    let [_, d] = x.dims();
    assert!(
        weight.dims() == [d] && bias.is_none_or(|bias| bias.dims() == [d]),
        "normalisation: weight {:?} and bias must have the {d} entries of a row",
        weight.dims()
    );
}

pub(crate) mod portable {
    use burn::tensor::Tensor;

    /// [`rms_norm`](crate::rms_norm) as a composition of Burn operations.
    pub fn rms_norm(x: Tensor<2>, weight: Tensor<1>, eps: f64) -> Tensor<2> {
        let rms = (x.clone() * x.clone()).mean_dim(1).add_scalar(eps).sqrt();
        x / rms * weight.unsqueeze::<2>()
    }

    /// [`layer_norm`](crate::layer_norm) as a composition of Burn operations.
    pub fn layer_norm(
        x: Tensor<2>,
        weight: Tensor<1>,
        bias: Option<Tensor<1>>,
        eps: f64,
    ) -> Tensor<2> {
        let centred = x.clone() - x.mean_dim(1);
        let deviation = (centred.clone() * centred.clone())
            .mean_dim(1)
            .add_scalar(eps)
            .sqrt();
        let y = centred / deviation * weight.unsqueeze::<2>();
        match bias {
            Some(bias) => y + bias.unsqueeze::<2>(),
            None => y,
        }
    }
    /// [`add`](crate::add) as a composition of Burn operations.
    pub fn add(x: Tensor<2>, y: Tensor<2>) -> Tensor<2> {
        x + y
    }

    /// [`add_rms_norm`](crate::add_rms_norm) as a composition of Burn operations.
    pub fn add_rms_norm(x: Tensor<2>, y: Tensor<2>, weight: Tensor<1>, eps: f64) -> [Tensor<2>; 2] {
        let sum = add(x, y);
        [sum.clone(), rms_norm(sum, weight, eps)]
    }

    /// [`add_layer_norm`](crate::add_layer_norm) as a composition of Burn operations.
    pub fn add_layer_norm(
        x: Tensor<2>,
        y: Tensor<2>,
        weight: Tensor<1>,
        bias: Option<Tensor<1>>,
        eps: f64,
    ) -> [Tensor<2>; 2] {
        let sum = add(x, y);
        [sum.clone(), layer_norm(sum, weight, bias, eps)]
    }
}
