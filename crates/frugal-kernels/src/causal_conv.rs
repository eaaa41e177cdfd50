//! Depth-wise causal convolution over ragged batches.

use burn::tensor::Tensor;

use crate::flex;

/// A convolution over time of each channel by itself, in which a token sees itself and the `k - 1`
/// before it: `y[t, e] = bias[e] + Σ_j weight[e, j] x[t - k + 1 + j, e]`
/// (`torch.nn.functional.conv1d` with as many groups as channels, `k - 1` positions of padding in
/// front, and the same number cut off behind).
///
/// What a sequence has before its first token is 0, or the rows of `state`, the oldest first;
/// [`causal_conv1d_state`] gives those for the call that goes on. Gradients flow through it too.
///
/// # Shapes
/// x: `[tokens, d] -> [tokens, d]`; weight: `[d, k]`; bias: `[d]`;
/// state: `[sequences * (k - 1), d]`; `cu_seqlens`: `[sequences + 1]`, from 0 to `tokens`
///
/// # Panics
/// When the shapes do not fit together.
pub fn causal_conv1d(
    x: Tensor<2>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
    state: Option<Tensor<2>>,
    cu_seqlens: &[usize],
) -> Tensor<2> {
    check(&x, &weight, bias.as_ref(), state.as_ref(), cu_seqlens);
    flex::causal_conv1d(&x, &weight, bias.as_ref(), state.as_ref(), cu_seqlens)
        .unwrap_or_else(|| portable::causal_conv1d(x, weight, bias, state, cu_seqlens))
}

/// The last `k - 1` rows of each sequence, those of `state` in front of it included; 0 where there
/// are fewer.
///
/// # Shapes
/// x: `[tokens, d] -> [sequences * (k - 1), d]`; state as the result
///
/// # Panics
/// When the shapes do not fit together.
pub fn causal_conv1d_state(
    x: Tensor<2>,
    state: Option<Tensor<2>>,
    k: usize,
    cu_seqlens: &[usize],
) -> Tensor<2> {
    let ([_, d], kept) = (x.dims(), k - 1);
    let device = x.device();
    if kept == 0 || cu_seqlens.len() == 1 {
        return Tensor::zeros([0, d], &device);
    }
    let parts = cu_seqlens.windows(2).enumerate().map(|(i, w)| {
        let len = w[1] - w[0];
        if len >= kept {
            return x.clone().narrow(0, w[1] - kept, kept);
        }
        let before = kept - len;
        let old = match &state {
            Some(state) => state.clone().narrow(0, i * kept + len, before),
            None => Tensor::zeros([before, d], &device),
        };
        if len == 0 {
            return old;
        }
        Tensor::cat(vec![old, x.clone().narrow(0, w[0], len)], 0)
    });
    Tensor::cat(parts.collect(), 0)
}

fn check(
    x: &Tensor<2>,
    weight: &Tensor<2>,
    bias: Option<&Tensor<1>>,
    state: Option<&Tensor<2>>,
    cu: &[usize],
) {
    let ([tokens, d], [channels, k]) = (x.dims(), weight.dims());
    assert!(
        channels == d && k > 0 && bias.is_none_or(|bias| bias.dims() == [d]),
        "causal convolution: weight {:?} and bias must be for the {d} channels of x",
        weight.dims()
    );
    assert!(
        cu.first() == Some(&0) && cu.last() == Some(&tokens) && cu.is_sorted(),
        "causal convolution: cu_seqlens {cu:?} must go from 0 to the {tokens} rows of x without decreasing"
    );
    let expected = [(cu.len() - 1) * (k - 1), d];
    assert!(
        state.is_none_or(|state| state.dims() == expected),
        "causal convolution: the state must be [sequences * (k - 1), d] = {expected:?}"
    );
}

pub(crate) mod portable {
    use burn::tensor::Tensor;

    /// [`causal_conv1d`](crate::causal_conv1d) as a composition of Burn operations.
    pub fn causal_conv1d(
        x: Tensor<2>,
        weight: Tensor<2>,
        bias: Option<Tensor<1>>,
        state: Option<Tensor<2>>,
        cu_seqlens: &[usize],
    ) -> Tensor<2> {
        let ([d, k], device) = (weight.dims(), x.device());
        let mut outputs = Vec::new();
        for (i, w) in cu_seqlens.windows(2).enumerate() {
            let len = w[1] - w[0];
            if len == 0 {
                continue;
            }
            let own = x.clone().narrow(0, w[0], len);
            let all = if k == 1 {
                own
            } else {
                let before = match &state {
                    Some(state) => state.clone().narrow(0, i * (k - 1), k - 1),
                    None => Tensor::zeros([k - 1, d], &device),
                };
                Tensor::cat(vec![before, own], 0)
            };
            let y = (0..k)
                .map(|j| {
                    let tap = weight.clone().narrow(1, j, 1).reshape([1, d]);
                    all.clone().narrow(0, j, len) * tap
                })
                .reduce(|sum, term| sum + term);
            outputs.extend(y);
        }
        let y = if outputs.is_empty() {
            x
        } else {
            Tensor::cat(outputs, 0)
        };
        match bias {
            Some(bias) => y + bias.unsqueeze::<2>(),
            None => y,
        }
    }
}
