use burn::tensor::{Device, Tensor};
use frugal_kernels::{
    AttentionSpec, SavePolicy, attention, linear, lora_linear, rms_norm, rope, swiglu,
};

use crate::support::random;

const TOKENS: usize = 40;
const D: usize = 32;
const FF: usize = 48;

fn tracked(rows: usize, cols: usize, seed: u64) -> Tensor<2> {
    Tensor::from_inner(random(rows, cols, 0.5, seed).tensor(&Device::flex())).require_grad()
}

fn frozen(rows: usize, cols: usize, seed: u64) -> Tensor<2> {
    random(rows, cols, 0.5, seed).tensor(&Device::flex())
}

/// Two blocks with everything that a decoder has, and the gradients of what they were given.
fn gradients(memory: SavePolicy) -> Vec<Vec<f32>> {
    let [x, a, b, gain] = [
        tracked(TOKENS, D, 1),
        tracked(4, D, 2),
        tracked(D, 4, 3),
        tracked(1, D, 4),
    ];
    let spec = AttentionSpec {
        num_heads: 4,
        num_kv_heads: 4,
        head_dim: D / 4,
        scale: 0.35,
        causal: true,
        window: None,
        cu_q: [0, 15, TOKENS].into(),
        cu_k: [0, 15, TOKENS].into(),
        softcap: None,
    };
    let loss = memory.scope(|| {
        let mut h = x.clone();
        for block in 0..2 {
            let y = rms_norm(h.clone(), gain.clone().reshape([D]), 1e-5);
            let map = |seed: u64| {
                lora_linear(
                    y.clone(),
                    frozen(D, D, 10 * block + seed),
                    None,
                    a.clone(),
                    b.clone(),
                    0.7,
                )
            };
            let turn =
                |q: Tensor<2>| rope(q, frozen(TOKENS, D / 8, 5), frozen(TOKENS, D / 8, 6), D / 4);
            h = h + attention(turn(map(1)), turn(map(2)), map(3), &spec);
            // A norm without a trained gain reads its input from the residual stream alone.
            let y = rms_norm(h.clone(), frozen(1, D, 7).reshape([D]), 1e-5);
            let wide = |seed: u64| linear(y.clone(), frozen(FF, D, 10 * block + seed), None);
            h = h + linear(
                swiglu(wide(4), wide(5)),
                frozen(D, FF, 10 * block + 6),
                None,
            );
        }
        // A result that is used twice and by an operation of Burn.
        (h.clone() * h * frozen(TOKENS, D, 8)).sum()
    });
    let found = loss.backward();
    [x, a, b, gain]
        .iter()
        .map(|t| t.grad(&found).unwrap().into_data().try_into_vec().unwrap())
        .collect()
}

#[test]
fn gradients_are_the_same_bits_whatever_is_kept() {
    let kept = gradients(SavePolicy::Fast);
    assert!(
        kept.iter().flatten().all(|g| g.is_finite())
            && kept.iter().all(|g| g.iter().any(|g| *g != 0.0))
    );
    assert_eq!(gradients(SavePolicy::Balanced), kept);
    assert_eq!(gradients(SavePolicy::Low), kept);
}
