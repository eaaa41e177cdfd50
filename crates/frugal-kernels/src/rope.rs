//! Rotary position embedding.

use burn::tensor::Tensor;

use crate::flex;

/// Rotary position embedding: rotates the pairs `(i, i + head_dim / 2)` of every head, `x1 * cos -
/// x2 * sin` and `x2 * cos + x1 * sin` (Su et al., *RoFormer*, arXiv 2104.09864, equation 34, with
/// the pairs of `rotate_half` in Hugging Face's `modeling_llama.py`).
///
/// # Shapes
/// x: `[tokens, heads * head_dim] -> [tokens, heads * head_dim]`;
/// cos, sin: `[tokens, head_dim / 2]`,
/// one row per token, already scaled where the model scales them
///
/// # Panics
/// When the shapes do not fit together or `head_dim` is odd.
pub fn rope(x: Tensor<2>, cos: Tensor<2>, sin: Tensor<2>, head_dim: usize) -> Tensor<2> {
    check(&x, &cos, &sin, head_dim);
    flex::rope(&x, &cos, &sin, head_dim).unwrap_or_else(|| portable::rope(x, cos, sin, head_dim))
}

fn check(x: &Tensor<2>, cos: &Tensor<2>, sin: &Tensor<2>, head_dim: usize) {
    let [tokens, width] = x.dims();
    assert!(
        head_dim > 0 && head_dim.is_multiple_of(2) && width.is_multiple_of(head_dim),
        "rope: head_dim {head_dim} must be even and divide the width {width} of x"
    );
    let expected = [tokens, head_dim / 2];
    assert!(
        cos.dims() == expected && sin.dims() == expected,
        "rope: cos {:?} and sin {:?} must be [tokens, head_dim / 2] = {expected:?}",
        cos.dims(),
        sin.dims()
    );
}

pub(crate) mod portable {
    use burn::tensor::Tensor;

    /// [`rope`](crate::rope) as a composition of Burn operations.
    pub fn rope(x: Tensor<2>, cos: Tensor<2>, sin: Tensor<2>, head_dim: usize) -> Tensor<2> {
        let [tokens, width] = x.dims();
        let (heads, half) = (width / head_dim, head_dim / 2);
        let x = x.reshape([tokens, heads, head_dim]);
        let first = x.clone().narrow(2, 0, half);
        let second = x.narrow(2, half, half);
        let cos = cos.reshape([tokens, 1, half]);
        let sin = sin.reshape([tokens, 1, half]);
        let rotated_first = first.clone() * cos.clone() - second.clone() * sin.clone();
        let rotated_second = second * cos + first * sin;
        Tensor::cat(vec![rotated_first, rotated_second], 2).reshape([tokens, width])
    }
}
