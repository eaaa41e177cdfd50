//! The selective scan and its convolution, against recurrences in double precision.

use burn::tensor::{Device, Tensor};
use frugal_kernels::{
    SelectiveScan, causal_conv1d, causal_conv1d_state, portable, selective_scan,
    selective_scan_with_state,
};

use crate::support::{Array, assert_close, check, check_finite, random, row};

/// Sizes of a case: `[d_inner, d_state]` and the lengths of the sequences.
type Case = (usize, usize, &'static [usize]);

/// Small ones, whose gradients are compared with finite differences, and such with tails of
/// vectors, of chunks and of both, of one and of many groups of channels.
const CASES: [Case; 8] = [
    (3, 2, &[5]),
    (2, 4, &[3, 1, 4]),
    (5, 3, &[2, 0, 3]),
    (16, 16, &[40]),
    (17, 16, &[33, 1, 64]),
    (37, 5, &[31, 32, 66]),
    (300, 16, &[70, 9]),
    (33, 1, &[7, 7, 7]),
];

fn boundaries(lengths: &[usize]) -> Vec<usize> {
    let mut cu = vec![0];
    lengths.iter().for_each(|n| cu.push(cu[cu.len() - 1] + n));
    cu
}

/// Which of the inputs that may be absent a case has.
#[derive(Clone, Copy)]
struct Form {
    d: bool,
    z: bool,
    bias: bool,
    softplus: bool,
    initial: bool,
    /// One decay for all numbers of a channel's state.
    shared: bool,
}

const ALL: Form = Form {
    d: true,
    z: true,
    bias: true,
    softplus: true,
    initial: true,
    shared: false,
};
const LEAST: Form = Form {
    d: false,
    z: false,
    bias: false,
    softplus: true,
    initial: false,
    shared: false,
};

/// x, delta, a, b, c, and those of d, z, delta_bias, initial state that the form has.
fn inputs((d_inner, d_state, lengths): Case, form: Form) -> Vec<Array> {
    let tokens = lengths.iter().sum();
    let decays = if form.shared { 1 } else { d_state };
    let mut a = random(d_inner, decays, 1.0, 3);
    // Decays from slow to fast.
    a.data
        .iter_mut()
        .enumerate()
        .for_each(|(i, a)| *a = -(a.abs() + 0.05) * (1 + i % d_state) as f32);
    let mut delta = random(tokens, d_inner, 1.5, 2);
    if !form.softplus {
        delta.data.iter_mut().for_each(|v| *v = v.abs() * 0.3);
    }
    let mut all = vec![
        random(tokens, d_inner, 1.0, 1),
        delta,
        a,
        random(tokens, d_state, 1.0, 4),
        random(tokens, d_state, 1.0, 5),
    ];
    let optional = [
        (form.d, random(1, d_inner, 1.0, 6)),
        (form.z, random(tokens, d_inner, 2.0, 7)),
        (form.bias, random(1, d_inner, 1.0, 8)),
        (
            form.initial,
            random(lengths.len() * d_state, d_inner, 1.0, 9),
        ),
    ];
    all.extend(optional.into_iter().filter(|(has, _)| *has).map(|(_, a)| a));
    all
}

/// The optional ones of a list, in the order of [`inputs`].
fn optional<T>(rest: &[T], form: Form) -> [Option<&T>; 4] {
    let mut rest = rest.iter();
    [form.d, form.z, form.bias, form.initial].map(|has| if has { rest.next() } else { None })
}

fn scan(t: &[Tensor<2>], form: Form, lengths: &[usize]) -> SelectiveScan {
    let [d, z, bias, initial] = optional(&t[5..], form);
    SelectiveScan {
        x: t[0].clone(),
        delta: t[1].clone(),
        a: t[2].clone(),
        b: t[3].clone(),
        c: t[4].clone(),
        d: d.map(row),
        z: z.cloned(),
        delta_bias: bias.map(row),
        softplus: form.softplus,
        initial_state: initial.cloned(),
        cu_seqlens: boundaries(lengths).into(),
    }
}

/// The recurrence as it is written, channel by channel and state by state: outputs, then the last
/// states.
fn reference(v: &[Vec<f64>], form: Form, (d_inner, d_state, lengths): Case) -> Vec<f64> {
    let [d, z, bias, initial] = optional(&v[5..], form);
    let tokens: usize = lengths.iter().sum();
    let mut y = vec![0.0; tokens * d_inner];
    let mut last = vec![0.0; lengths.len() * d_state * d_inner];
    for (s, w) in boundaries(lengths).windows(2).enumerate() {
        for e in 0..d_inner {
            let at = |n: usize| (s * d_state + n) * d_inner + e;
            let mut h: Vec<f64> = (0..d_state)
                .map(|n| initial.map_or(0.0, |initial| initial[at(n)]))
                .collect();
            for t in w[0]..w[1] {
                let raw = v[1][t * d_inner + e] + bias.map_or(0.0, |bias| bias[e]);
                let delta = if form.softplus {
                    raw.max(0.0) + (-raw.abs()).exp().ln_1p()
                } else {
                    raw
                };
                let x = v[0][t * d_inner + e];
                let mut sum = d.map_or(0.0, |d| d[e] * x);
                for (n, h) in h.iter_mut().enumerate() {
                    let a = if form.shared {
                        v[2][e]
                    } else {
                        v[2][e * d_state + n]
                    };
                    *h = (delta * a).exp() * *h + delta * v[3][t * d_state + n] * x;
                    sum += v[4][t * d_state + n] * *h;
                }
                let gate = z.map_or(1.0, |z| {
                    let z = z[t * d_inner + e];
                    z / (1.0 + (-z).exp())
                });
                y[t * d_inner + e] = sum * gate;
            }
            (0..d_state).for_each(|n| last[at(n)] = h[n]);
        }
    }
    y.extend(last);
    y
}

#[test]
fn selective_scan_matches_the_recurrence() {
    for case in CASES {
        let (d_inner, d_state, lengths) = case;
        let plain = Form {
            softplus: false,
            d: true,
            ..LEAST
        };
        let shared = Form {
            shared: true,
            ..ALL
        };
        for (name, form) in [
            ("all", ALL),
            ("least", LEAST),
            ("without softplus", plain),
            ("with shared decays", shared),
        ] {
            let inputs = inputs(case, form);
            let tracked = vec![true; inputs.len()];
            let name = format!("selective scan {d_inner}x{d_state} of {lengths:?}, {name}");
            let outputs = lengths.iter().sum::<usize>() * d_inner;
            check(
                &name,
                &inputs,
                &tracked,
                &|t| selective_scan(scan(t, form, lengths)),
                &|t| portable::selective_scan(scan(t, form, lengths)),
                &|v| reference(v, form, case)[..outputs].to_vec(),
                3e-5,
            );
            check(
                &format!("{name}, with states"),
                &inputs,
                &tracked,
                &|t| Tensor::cat(selective_scan_with_state(scan(t, form, lengths)).into(), 0),
                &|t| {
                    let both = portable::selective_scan_with_state(scan(t, form, lengths));
                    Tensor::cat(both.into(), 0)
                },
                &|v| reference(v, form, case),
                3e-5,
            );
        }
    }
}

fn values(tensor: &Tensor<2>) -> Vec<f64> {
    let values: Vec<f32> = tensor.clone().into_data().try_into_vec().unwrap();
    values.into_iter().map(f64::from).collect()
}

#[test]
fn a_sequence_in_parts_is_the_whole_sequence() {
    let case = (21, 16, &[90][..]);
    let form = Form {
        initial: false,
        ..ALL
    };
    let device = Device::flex();
    let tensors: Vec<Tensor<2>> = inputs(case, form)
        .iter()
        .map(|a| a.tensor(&device))
        .collect();
    let [whole, last] = selective_scan_with_state(scan(&tensors, form, case.2));
    let (mut outputs, mut state) = (Vec::new(), None);
    for (start, end) in [(0, 37), (37, 38), (38, 39), (39, 90)] {
        let part = |t: &Tensor<2>| t.clone().slice(start..end);
        let whole = scan(&tensors, form, &[90]);
        let [y, next] = selective_scan_with_state(SelectiveScan {
            x: part(&whole.x),
            delta: part(&whole.delta),
            b: part(&whole.b),
            c: part(&whole.c),
            z: whole.z.as_ref().map(part),
            initial_state: state,
            cu_seqlens: [0, end - start].into(),
            ..whole
        });
        outputs.push(y);
        state = Some(next);
    }
    let found = Tensor::cat(outputs, 0);
    assert_eq!(values(&found), values(&whole), "outputs");
    assert_eq!(values(&state.unwrap()), values(&last), "states");
}

/// The worked example of EfficientVMamba's scan core: one channel, one state, `a = -1`, `d = 1`,
/// steps given as they are.
#[test]
fn three_steps_by_hand() {
    let device = Device::flex();
    let column = |data: &[f32]| {
        Array {
            data: data.to_vec(),
            shape: [data.len(), 1],
        }
        .tensor(&device)
    };
    let y = selective_scan(SelectiveScan {
        x: column(&[1.0, 2.0, -1.0]),
        delta: column(&[0.5, 0.25, 1.0]),
        a: column(&[-1.0]),
        b: column(&[1.0, 0.5, 1.0]),
        c: column(&[1.0, 2.0, 0.5]),
        d: Some(row(&column(&[1.0]))),
        z: None,
        delta_bias: None,
        softplus: false,
        initial_state: None,
        cu_seqlens: [0, 3].into(),
    });
    let found: Vec<f32> = y.into_data().try_into_vec().unwrap();
    assert_close("y", &found, &[1.5, 3.278_800_8, -1.382_388_9], 1e-6);
}

#[test]
fn extreme_steps_give_finite_results() {
    let case = (18, 16, &[40][..]);
    let mut inputs = inputs(case, ALL);
    // Steps from none at all to such that forget everything at once.
    inputs[1]
        .data
        .iter_mut()
        .enumerate()
        .for_each(|(i, v)| *v = [-100.0, 100.0, -20.0, 30.0][i % 4]);
    let tracked = vec![true; inputs.len()];
    check_finite("selective scan", &inputs, &tracked, &|t| {
        selective_scan(scan(t, ALL, case.2))
    });
}

fn convolution(v: &[Vec<f64>], [d, k]: [usize; 2], lengths: &[usize], form: [bool; 2]) -> Vec<f64> {
    let tokens: usize = lengths.iter().sum();
    let bias = form[0].then(|| &v[2]);
    let state = form[1].then(|| &v[2 + usize::from(form[0])]);
    let mut y = vec![0.0; tokens * d];
    for (s, w) in boundaries(lengths).windows(2).enumerate() {
        for t in w[0]..w[1] {
            for e in 0..d {
                let mut sum = bias.map_or(0.0, |bias| bias[e]);
                for j in 0..k {
                    // Counted from before the state in front of the sequence.
                    let place = t - w[0] + j;
                    let x = if place >= k - 1 {
                        v[0][(w[0] + place + 1 - k) * d + e]
                    } else {
                        state.map_or(0.0, |state| state[(s * (k - 1) + place) * d + e])
                    };
                    sum += v[1][e * k + j] * x;
                }
                y[t * d + e] = sum;
            }
        }
    }
    y
}

#[test]
fn causal_conv1d_matches_the_definition() {
    let cases: [(usize, usize, &[usize]); 6] = [
        (3, 4, &[6]),
        (2, 2, &[1, 0, 3]),
        (5, 1, &[4, 2]),
        (17, 4, &[1, 2, 3, 40]),
        (300, 4, &[70, 65]),
        (16, 7, &[3, 30]),
    ];
    for (d, k, lengths) in cases {
        let (tokens, cu) = (lengths.iter().sum(), boundaries(lengths));
        for form @ [bias, state] in [[true, true], [true, false], [false, false], [false, true]] {
            if k == 1 && state {
                continue;
            }
            let mut inputs = vec![random(tokens, d, 1.0, 1), random(d, k, 1.0, 2)];
            if bias {
                inputs.push(random(1, d, 1.0, 3));
            }
            if state {
                inputs.push(random(lengths.len() * (k - 1), d, 1.0, 4));
            }
            let parts = |t: &[Tensor<2>]| {
                let bias = bias.then(|| row(&t[2]));
                let state = state.then(|| t[t.len() - 1].clone());
                (t[0].clone(), t[1].clone(), bias, state)
            };
            check(
                &format!("causal convolution {d}x{k} of {lengths:?}, {form:?}"),
                &inputs,
                &vec![true; inputs.len()],
                &|t| {
                    let (x, weight, bias, state) = parts(t);
                    causal_conv1d(x, weight, bias, state, &cu)
                },
                &|t| {
                    let (x, weight, bias, state) = parts(t);
                    portable::causal_conv1d(x, weight, bias, state, &cu)
                },
                &|v| convolution(v, [d, k], lengths, form),
                2e-5,
            );
        }
    }
}

#[test]
fn a_convolution_in_parts_is_the_whole_convolution() {
    let (device, k) = (Device::flex(), 4);
    let (x, weight) = (random(20, 6, 1.0, 1), random(6, k, 1.0, 2));
    let (x, weight) = (x.tensor(&device), weight.tensor(&device));
    let whole = causal_conv1d(x.clone(), weight.clone(), None, None, &[0, 20]);
    let (mut outputs, mut state) = (Vec::new(), None);
    for (start, end) in [(0, 2), (2, 3), (3, 4), (4, 15), (15, 20)] {
        let (part, cu) = (x.clone().slice(start..end), [0, end - start]);
        outputs.push(causal_conv1d(
            part.clone(),
            weight.clone(),
            None,
            state.clone(),
            &cu,
        ));
        state = Some(causal_conv1d_state(part, state, k, &cu));
    }
    assert_eq!(values(&Tensor::cat(outputs, 0)), values(&whole));
    assert_eq!(values(&state.unwrap()), values(&x.slice(17..20)));
}
