//! The linear recurrence, against the sums as they are written, in double precision and in PyTorch.

use std::sync::Arc;

use burn::tensor::{Device, Tensor};
use frugal_kernels::{LinearRecurrence, linear_recurrence, portable};

use crate::support::{Array, assert_close, check, check_finite, random};

/// Widths and the lengths of the sequences: small ones, whose gradients are compared with finite
/// differences, and such with tails of vectors, of tasks and of the portable form's chunks.
const CASES: [(usize, &[usize]); 7] = [
    (3, &[5]),
    (2, &[3, 1, 4]),
    (5, &[2, 0, 3]),
    (16, &[40]),
    (65, &[33, 1, 64]),
    (130, &[65, 64, 130]),
    (33, &[7, 7, 7]),
];

#[derive(Clone, Copy, Debug)]
struct Form {
    initial: bool,
    resets: bool,
    reverse: bool,
}

fn boundaries(lengths: &[usize]) -> Arc<[usize]> {
    let mut cu = vec![0];
    lengths.iter().for_each(|n| cu.push(cu[cu.len() - 1] + n));
    cu.into()
}

/// Every third token and the last.
fn resets(tokens: usize) -> Arc<[bool]> {
    (0..tokens).map(|t| t % 3 == 2 || t + 1 == tokens).collect()
}

fn inputs(d: usize, lengths: &[usize], form: Form) -> Vec<Array> {
    let tokens = lengths.iter().sum();
    let mut a = random(tokens, d, 1.0, 1);
    a.data.iter_mut().for_each(|a| *a = 0.5 + 0.5 * *a);
    let mut all = vec![a, random(tokens, d, 1.0, 2)];
    if form.initial {
        all.push(random(lengths.len(), d, 1.0, 3));
    }
    all
}

fn asked(t: &[Tensor<2>], lengths: &[usize], form: Form) -> LinearRecurrence {
    LinearRecurrence {
        a: t[0].clone(),
        b: t[1].clone(),
        initial_state: t.get(2).cloned(),
        resets: form.resets.then(|| resets(lengths.iter().sum())),
        reverse: form.reverse,
        cu_seqlens: boundaries(lengths),
    }
}

fn reference(v: &[Vec<f64>], d: usize, lengths: &[usize], form: Form) -> Vec<f64> {
    let tokens: usize = lengths.iter().sum();
    let is_reset = resets(tokens);
    let mut h = vec![0.0; tokens * d];
    for (s, w) in boundaries(lengths).windows(2).enumerate() {
        for e in 0..d {
            let mut state = v.get(2).map_or(0.0, |initial| initial[s * d + e]);
            let mut rows: Vec<usize> = (w[0]..w[1]).collect();
            if form.reverse {
                rows.reverse();
            }
            for t in rows {
                let a = if form.resets && is_reset[t] {
                    0.0
                } else {
                    v[0][t * d + e]
                };
                state = a * state + v[1][t * d + e];
                h[t * d + e] = state;
            }
        }
    }
    h
}

#[test]
fn linear_recurrence_matches_the_sums() {
    let both = [false, true];
    for (d, lengths) in CASES {
        for (initial, resets, reverse) in both
            .iter()
            .flat_map(|i| both.iter().map(move |r| (*i, *r)))
            .flat_map(|(i, r)| both.iter().map(move |v| (i, r, *v)))
        {
            let form = Form {
                initial,
                resets,
                reverse,
            };
            let inputs = inputs(d, lengths, form);
            check(
                &format!("linear recurrence {d} of {lengths:?}, {form:?}"),
                &inputs,
                &vec![true; inputs.len()],
                &|t| linear_recurrence(asked(t, lengths, form)),
                &|t| portable::linear_recurrence(asked(t, lengths, form)),
                &|v| reference(v, d, lengths, form),
                1e-5,
            );
        }
    }
}

/// The worked example of Birdie's bidirectional layer: `x = [1, 2, 3, 4, 5]`, every decay 0.5, a
/// prefix of three tokens.
#[test]
fn both_directions_of_the_worked_example() {
    let device = Device::flex();
    let column = |v: &[f32]| Array {
        data: v.to_vec(),
        shape: [v.len(), 1],
    };
    let halves = |reverse, resets: Option<Arc<[bool]>>| {
        let h = linear_recurrence(LinearRecurrence {
            a: column(&[0.5; 5]).tensor(&device),
            b: column(&[1.0, 2.0, 3.0, 4.0, 5.0]).tensor(&device),
            initial_state: None,
            resets,
            reverse,
            cu_seqlens: [0, 5].into(),
        });
        let found: Vec<f32> = h.into_data().try_into_vec().unwrap();
        found
    };
    assert_eq!(halves(false, None), [1.0, 2.5, 4.25, 6.125, 8.0625]);
    let labels = [false, false, false, true, true];
    assert_eq!(
        halves(true, Some(labels.into())),
        [3.25, 4.5, 5.0, 4.0, 5.0]
    );
}

#[test]
fn hostile_values_stay_where_they_are() {
    let form = Form {
        initial: true,
        resets: false,
        reverse: false,
    };
    let mut inputs = inputs(5, &[4], form);
    inputs[0].data[3] = 1e30;
    inputs[1].data[7] = -1e30;
    check_finite("linear recurrence", &inputs[..2], &[true, true], &|t| {
        linear_recurrence(asked(t, &[4], form)) * 1e-30
    });
}

#[test]
fn a_text_in_two_parts_is_the_text() {
    let device = Device::flex();
    let form = Form {
        initial: false,
        resets: false,
        reverse: false,
    };
    let tensors: Vec<Tensor<2>> = inputs(37, &[90], form)
        .iter()
        .map(|array| array.tensor(&device))
        .collect();
    let whole = linear_recurrence(asked(&tensors, &[90], form));
    let mut parts = Vec::new();
    let mut state = None;
    for range in [0..1, 1..50, 50..90] {
        let of = |t: &Tensor<2>| t.clone().slice(range.clone());
        let h = linear_recurrence(LinearRecurrence {
            a: of(&tensors[0]),
            b: of(&tensors[1]),
            initial_state: state,
            resets: None,
            reverse: false,
            cu_seqlens: [0, range.len()].into(),
        });
        state = Some(h.clone().narrow(0, range.len() - 1, 1));
        parts.push(h);
    }
    let values = |t: Tensor<2>| -> Vec<f32> { t.into_data().try_into_vec().unwrap() };
    let expected: Vec<f64> = values(whole).into_iter().map(f64::from).collect();
    assert_close("in parts", &values(Tensor::cat(parts, 0)), &expected, 1e-6);
}
