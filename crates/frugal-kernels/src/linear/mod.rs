//! Linear layers, plain and with a low-rank correction.

mod spec;

use std::sync::Arc;

use burn::tensor::Tensor;

pub use spec::LowRankRows;

use crate::flex;
use crate::packed::Packed;

/// A linear layer: `x · weightᵀ + bias`, as `torch.nn.functional.linear`.
///
/// # Shapes
/// x: `[tokens, in] -> [tokens, out]`; weight: `[out, in]`; bias: `[out]`
///
/// # Panics
/// When the shapes do not fit together.
pub fn linear(x: Tensor<2>, weight: Tensor<2>, bias: Option<Tensor<1>>) -> Tensor<2> {
    check(&x, weight.dims(), bias.as_ref());
    flex::linear(&x, &flex::Weight::Dense(&weight), bias.as_ref())
        .unwrap_or_else(|| portable::linear(x, weight, bias))
}

/// [`linear`] with a packed weight, for which no gradient is formed.
///
/// # Shapes
/// x: `[tokens, in] -> [tokens, out]`; weight: `[out, in]`; bias: `[out]`
///
/// # Panics
/// When the shapes do not fit together.
pub fn quantized_linear(x: Tensor<2>, weight: &Arc<Packed>, bias: Option<Tensor<1>>) -> Tensor<2> {
    check(&x, weight.dims(), bias.as_ref());
    let fused = flex::linear(&x, &flex::Weight::Packed(weight), bias.as_ref());
    fused.unwrap_or_else(|| portable::linear(x.clone(), weight.dense(&x.device().inner()), bias))
}

/// A linear layer with a low-rank correction: `x · weightᵀ + bias + scale · (x · aᵀ) · bᵀ` (Hu et
/// al., *LoRA*, arXiv 2106.09685, equation 3, with `scale` for α / r; `LoraLayer.forward` of PEFT).
///
/// The weight is meant to be frozen and on the plain device; then no gradient is formed for it.
///
/// # Shapes
/// x: `[tokens, in] -> [tokens, out]`; weight: `[out, in]`; bias: `[out]`;
/// a: `[r, in]`; b: `[out, r]`
///
/// # Panics
/// When the shapes do not fit together.
pub fn lora_linear(
    x: Tensor<2>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
    a: Tensor<2>,
    b: Tensor<2>,
    scale: f32,
) -> Tensor<2> {
    check(&x, weight.dims(), bias.as_ref());
    check_pair(weight.dims(), &a, &b);
    flex::lora_linear(
        &x,
        &flex::Weight::Dense(&weight),
        bias.as_ref(),
        &a,
        &b,
        scale,
    )
    .unwrap_or_else(|| portable::lora_linear(x, weight, bias, a, b, scale))
}

/// [`lora_linear`] with a packed weight, for which no gradient is formed (Dettmers et al., *QLoRA*,
/// arXiv 2305.14314, equation 5).
///
/// # Shapes
/// x: `[tokens, in] -> [tokens, out]`; weight: `[out, in]`; bias: `[out]`;
/// a: `[r, in]`; b: `[out, r]`
///
/// # Panics
/// When the shapes do not fit together.
pub fn quantized_lora_linear(
    x: Tensor<2>,
    weight: &Arc<Packed>,
    bias: Option<Tensor<1>>,
    a: Tensor<2>,
    b: Tensor<2>,
    scale: f32,
) -> Tensor<2> {
    check(&x, weight.dims(), bias.as_ref());
    check_pair(weight.dims(), &a, &b);
    let fused = flex::lora_linear(
        &x,
        &flex::Weight::Packed(weight),
        bias.as_ref(),
        &a,
        &b,
        scale,
    );
    fused.unwrap_or_else(|| {
        portable::lora_linear(
            x.clone(),
            weight.dense(&x.device().inner()),
            bias,
            a,
            b,
            scale,
        )
    })
}

/// [`linear`] with a low-rank correction of its own for each of several ranges of rows, as when the
/// sequences of a batch use different adapters (Sheng et al., *S-LoRA*, arXiv 2311.03285): the
/// weight is read once for all of them. The ranges must ascend without an overlap; rows between
/// them get no correction.
///
/// # Shapes
/// x: `[tokens, in] -> [tokens, out]`; weight: `[out, in]`; bias: `[out]`;
/// each pair: a `[r, in]`, b `[out, r]`
///
/// # Panics
/// When the shapes do not fit together, or the ranges overlap or leave x.
pub fn multi_lora_linear(
    x: Tensor<2>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
    pairs: &[LowRankRows],
) -> Tensor<2> {
    check(&x, weight.dims(), bias.as_ref());
    check_rows(&x, weight.dims(), pairs);
    let fused = flex::multi_lora_linear(&x, &flex::Weight::Dense(&weight), bias.as_ref(), pairs);
    fused.unwrap_or_else(|| portable::multi_lora_linear(x, weight, bias, pairs))
}

/// [`multi_lora_linear`] with a packed weight, for which no gradient is formed.
///
/// # Shapes
/// x: `[tokens, in] -> [tokens, out]`; weight: `[out, in]`; bias: `[out]`;
/// each pair: a `[r, in]`, b `[out, r]`
///
/// # Panics
/// When the shapes do not fit together, or the ranges overlap or leave x.
pub fn quantized_multi_lora_linear(
    x: Tensor<2>,
    weight: &Arc<Packed>,
    bias: Option<Tensor<1>>,
    pairs: &[LowRankRows],
) -> Tensor<2> {
    check(&x, weight.dims(), bias.as_ref());
    check_rows(&x, weight.dims(), pairs);
    let fused = flex::multi_lora_linear(&x, &flex::Weight::Packed(weight), bias.as_ref(), pairs);
    fused.unwrap_or_else(|| {
        portable::multi_lora_linear(x.clone(), weight.dense(&x.device().inner()), bias, pairs)
    })
}

fn check_rows(x: &Tensor<2>, dims: [usize; 2], pairs: &[LowRankRows]) {
    let mut end = 0;
    for LowRankRows { rows, a, b, .. } in pairs {
        check_pair(dims, a, b);
        assert!(
            rows.start >= end && rows.end >= rows.start,
            "multi_lora_linear: the rows {rows:?} start before those in front of them end"
        );
        end = rows.end;
    }
    assert!(
        end <= x.dims()[0],
        "multi_lora_linear: x has {} rows, the pairs ask for {end}",
        x.dims()[0]
    );
}

fn check_pair([out, d]: [usize; 2], a: &Tensor<2>, b: &Tensor<2>) {
    let ([r, a_d], [b_out, b_r]) = (a.dims(), b.dims());
    assert!(
        a_d == d && b_out == out && b_r == r,
        "lora_linear: a [{r}, {a_d}] and b [{b_out}, {b_r}] do not fit the weight [{out}, {d}]"
    );
}

pub(crate) fn check(x: &Tensor<2>, [out, d]: [usize; 2], bias: Option<&Tensor<1>>) {
    let [tokens, x_d] = x.dims();
    assert!(
        x_d == d,
        "linear: x [{tokens}, {x_d}] does not fit the weight [{out}, {d}]"
    );
    assert!(
        bias.is_none_or(|b| b.dims() == [out]),
        "linear: the bias must have {out} entries, one per row of the weight"
    );
}

pub(crate) mod portable {
    use burn::tensor::Tensor;

    use super::LowRankRows;

    /// [`linear`](crate::linear) as a composition of Burn operations.
    pub fn linear(x: Tensor<2>, weight: Tensor<2>, bias: Option<Tensor<1>>) -> Tensor<2> {
        let y = x.matmul(weight.transpose());
        match bias {
            Some(bias) => y + bias.unsqueeze::<2>(),
            None => y,
        }
    }

    /// [`lora_linear`](crate::lora_linear) as a composition of Burn operations.
    pub fn lora_linear(
        x: Tensor<2>,
        weight: Tensor<2>,
        bias: Option<Tensor<1>>,
        a: Tensor<2>,
        b: Tensor<2>,
        scale: f32,
    ) -> Tensor<2> {
        let low = x.clone().matmul(a.transpose()).matmul(b.transpose());
        linear(x, weight, bias) + low * scale
    }

    /// [`multi_lora_linear`](crate::multi_lora_linear) as a composition of Burn operations.
    pub fn multi_lora_linear(
        x: Tensor<2>,
        weight: Tensor<2>,
        bias: Option<Tensor<1>>,
        pairs: &[LowRankRows],
    ) -> Tensor<2> {
        let mut y = linear(x.clone(), weight, bias);
        for LowRankRows { rows, a, b, scale } in pairs.iter().filter(|pair| !pair.rows.is_empty()) {
            let low = x
                .clone()
                .slice(rows.clone())
                .matmul(a.clone().transpose())
                .matmul(b.clone().transpose());
            let part = y.clone().slice(rows.clone()) + low * *scale;
            y = y.slice_assign([rows.clone()], part);
        }
        y
    }
}
