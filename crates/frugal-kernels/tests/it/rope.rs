use burn::tensor::Device;
use frugal_kernels::portable;

use crate::support::{Array, assert_close, check, random};

/// Tables of angles that differ by position and pair.
fn tables(tokens: usize, half: usize) -> [Array; 2] {
    let angle = |i: usize| (i / half) as f32 * 0.37 + (i % half) as f32 * 0.11;
    let table = |f: fn(f32) -> f32| Array {
        data: (0..tokens * half).map(|i| f(angle(i))).collect(),
        shape: [tokens, half],
    };
    [table(f32::cos), table(f32::sin)]
}

fn rotated(x: &[f64], cos: &[f64], sin: &[f64], width: usize, head_dim: usize) -> Vec<f64> {
    let half = head_dim / 2;
    let mut y = vec![0.0; x.len()];
    for (i, value) in y.iter_mut().enumerate() {
        let (token, j) = (i / width, i % width % head_dim);
        let pair = token * half + j % half;
        *value = if j < half {
            x[i] * cos[pair] - x[i + half] * sin[pair]
        } else {
            x[i] * cos[pair] + x[i - half] * sin[pair]
        };
    }
    y
}

#[test]
fn rope_matches_the_reference() {
    for (tokens, heads, head_dim) in [(1, 1, 2), (3, 2, 6), (5, 3, 10), (200, 3, 64), (7, 2, 36)] {
        let [cos, sin] = tables(tokens, head_dim / 2);
        check(
            &format!("rope {tokens} tokens, {heads} heads of {head_dim}"),
            &[random(tokens, heads * head_dim, 1.0, 1), cos, sin],
            &[true, false, false],
            &|t| frugal_kernels::rope(t[0].clone(), t[1].clone(), t[2].clone(), head_dim),
            &|t| portable::rope(t[0].clone(), t[1].clone(), t[2].clone(), head_dim),
            &|v| rotated(&v[0], &v[1], &v[2], heads * head_dim, head_dim),
            1e-6,
        );
    }
}

#[test]
fn turning_back_restores_the_input() {
    let device = Device::flex();
    let x = random(9, 32, 1.0, 1);
    let [cos, sin] = tables(9, 8);
    let turned = frugal_kernels::rope(
        x.tensor(&device),
        cos.tensor(&device),
        sin.tensor(&device),
        16,
    );
    let back = frugal_kernels::rope(turned, cos.tensor(&device), sin.tensor(&device).neg(), 16);
    let expected: Vec<f64> = x.data.iter().map(|&x| f64::from(x)).collect();
    assert_close(
        "rotated back",
        &back.into_data().try_into_vec::<f32>().unwrap(),
        &expected,
        1e-6,
    );
}
