//! Root-mean-square and layer normalisation over the last dimension.

use burn::tensor::Tensor;

use crate::flex;

/// RMS normalisation of each row: `x / sqrt(mean(x^2) + eps) * weight`, x `[tokens, d]`, weight `[d]`.
///
/// Per-head normalisation is the same call on `[tokens * heads, head_dim]`.
///
/// # Panics
/// When the shapes do not fit together.
pub fn rms_norm(x: Tensor<2>, weight: Tensor<1>, eps: f64) -> Tensor<2> {
    check(&x, &weight, None);
    flex::rms_norm(&x, &weight, eps).unwrap_or_else(|| portable::rms_norm(x, weight, eps))
}

/// Layer normalisation of each row: `(x - mean) / sqrt(var + eps) * weight + bias`, x `[tokens, d]`,
/// weight and bias `[d]`.
///
/// # Panics
/// When the shapes do not fit together.
pub fn layer_norm(x: Tensor<2>, weight: Tensor<1>, bias: Option<Tensor<1>>, eps: f64) -> Tensor<2> {
    check(&x, &weight, bias.as_ref());
    flex::layer_norm(&x, &weight, bias.as_ref(), eps).unwrap_or_else(|| portable::layer_norm(x, weight, bias, eps))
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
    pub fn layer_norm(x: Tensor<2>, weight: Tensor<1>, bias: Option<Tensor<1>>, eps: f64) -> Tensor<2> {
        let centred = x.clone() - x.mean_dim(1);
        let deviation = (centred.clone() * centred.clone()).mean_dim(1).add_scalar(eps).sqrt();
        let y = centred / deviation * weight.unsqueeze::<2>();
        match bias {
            Some(bias) => y + bias.unsqueeze::<2>(),
            None => y,
        }
    }
}
