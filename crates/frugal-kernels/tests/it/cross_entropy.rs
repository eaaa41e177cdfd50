use burn::tensor::{Device, Tensor};
use frugal_kernels::{
    CrossEntropyOptions, IGNORE_INDEX, linear_cross_entropy, portable, token_log_probs,
};

use crate::support::{assert_close, check, check_finite, matmul_t, random, row};

/// Targets over the whole vocabulary; every `ignore`-th token is not counted.
fn targets(tokens: usize, vocab: usize, ignore: usize) -> Vec<i32> {
    (0..tokens)
        .map(|i| {
            if ignore > 0 && i % ignore == 0 {
                IGNORE_INDEX
            } else {
                (i * 7919 % vocab) as i32
            }
        })
        .collect()
}

fn reference(
    hidden: &[f64],
    weight: &[f64],
    bias: &[f64],
    d: usize,
    targets: &[i32],
    opts: &CrossEntropyOptions,
) -> f64 {
    let vocab = bias.len();
    let logits = matmul_t(hidden, weight, d);
    let mut loss = 0.0;
    for (logits, &target) in logits.chunks(vocab).zip(targets) {
        if target == IGNORE_INDEX {
            continue;
        }
        let cap = opts.logit_softcap.map(f64::from);
        let logits: Vec<f64> = logits
            .iter()
            .zip(bias)
            .map(|(l, b)| cap.map_or(l + b, |cap| cap * ((l + b) / cap).tanh()))
            .collect();
        let max = logits.iter().copied().fold(f64::MIN, f64::max);
        let lse = max + logits.iter().map(|l| (l - max).exp()).sum::<f64>().ln();
        let (smoothing, z_loss) = (f64::from(opts.label_smoothing), f64::from(opts.z_loss));
        let mean = logits.iter().sum::<f64>() / vocab as f64;
        loss += lse - (1.0 - smoothing) * logits[target as usize] - smoothing * mean
            + z_loss * lse * lse;
    }
    loss
}

fn variants() -> [CrossEntropyOptions; 5] {
    let plain = CrossEntropyOptions::default();
    [
        plain,
        CrossEntropyOptions {
            label_smoothing: 0.1,
            ..plain
        },
        CrossEntropyOptions {
            z_loss: 0.01,
            ..plain
        },
        CrossEntropyOptions {
            logit_softcap: Some(3.0),
            ..plain
        },
        CrossEntropyOptions {
            label_smoothing: 0.2,
            z_loss: 0.02,
            logit_softcap: Some(2.0),
        },
    ]
}

#[test]
fn loss_and_gradients_match_the_reference() {
    for (tokens, d, vocab, ignore) in [
        (1, 3, 2, 0),
        (5, 4, 17, 2),
        (6, 3, 33, 0),
        (70, 40, 301, 3),
        (9, 24, 20_011, 4),
    ] {
        for opts in variants() {
            let targets = targets(tokens, vocab, ignore);
            check(
                &format!("{tokens} tokens, {vocab} classes, {opts:?}"),
                &[
                    random(tokens, d, 1.0, 1),
                    random(vocab, d, 1.0, 2),
                    random(1, vocab, 1.0, 3),
                ],
                &[true; 3],
                &|t| {
                    linear_cross_entropy(
                        t[0].clone(),
                        t[1].clone(),
                        Some(row(&t[2])),
                        &targets,
                        &opts,
                    )
                    .reshape([1, 1])
                },
                &|t| {
                    portable::linear_cross_entropy(
                        t[0].clone(),
                        t[1].clone(),
                        Some(row(&t[2])),
                        &targets,
                        &opts,
                    )
                    .reshape([1, 1])
                },
                &|v| vec![reference(&v[0], &v[1], &v[2], d, &targets, &opts)],
                3e-5,
            );
        }
    }
}

/// More tokens than fit one piece of logits.
#[test]
fn pieces_add_up() {
    let (tokens, d, vocab) = (1200, 5, 50);
    let targets = targets(tokens, vocab, 0);
    let opts = CrossEntropyOptions::default();
    check(
        "several pieces",
        &[random(tokens, d, 1.0, 1), random(vocab, d, 1.0, 2)],
        &[true; 2],
        &|t| {
            linear_cross_entropy(t[0].clone(), t[1].clone(), None, &targets, &opts).reshape([1, 1])
        },
        &|t| {
            portable::linear_cross_entropy(t[0].clone(), t[1].clone(), None, &targets, &opts)
                .reshape([1, 1])
        },
        &|v| {
            vec![reference(
                &v[0],
                &v[1],
                &vec![0.0; vocab],
                d,
                &targets,
                &opts,
            )]
        },
        3e-5,
    );
}

#[test]
fn no_counted_token_gives_zero_loss_and_zero_gradients() {
    let (hidden, weight) = (random(4, 3, 1.0, 1), random(7, 3, 1.0, 2));
    let device = Device::flex();
    let [hidden, weight] =
        [hidden, weight].map(|a| Tensor::from_inner(a.tensor(&device)).require_grad());
    let loss = linear_cross_entropy(
        hidden.clone(),
        weight.clone(),
        None,
        &[IGNORE_INDEX; 4],
        &CrossEntropyOptions::default(),
    );
    assert_eq!(
        loss.clone().into_data().try_into_vec::<f32>().unwrap(),
        [0.0]
    );
    let grads = loss.backward();
    for input in [hidden, weight] {
        let grad = input.grad(&grads).unwrap();
        assert_eq!(grad.dims(), input.dims());
        assert!(
            grad.into_data()
                .try_into_vec::<f32>()
                .unwrap()
                .iter()
                .all(|&g| g == 0.0)
        );
    }
}

#[test]
fn large_logits_stay_finite() {
    let targets = targets(6, 40, 3);
    for opts in variants() {
        check_finite(
            &format!("{opts:?}"),
            &[random(6, 8, 1e4, 1), random(40, 8, 1e4, 2)],
            &[true; 2],
            &|t| {
                linear_cross_entropy(t[0].clone(), t[1].clone(), None, &targets, &opts)
                    .reshape([1, 1])
            },
        );
    }
}

#[test]
fn token_log_probs_match_the_loss() {
    let (tokens, d, vocab) = (37, 9, 130);
    let (hidden, weight, bias) = (
        random(tokens, d, 1.0, 1),
        random(vocab, d, 1.0, 2),
        random(1, vocab, 1.0, 3),
    );
    let targets = targets(tokens, vocab, 4);
    let device = Device::flex();
    let actual = token_log_probs(
        hidden.tensor(&device),
        weight.tensor(&device),
        Some(row(&bias.tensor(&device))),
        &targets,
    );
    let [h, w, b] =
        [hidden, weight, bias].map(|a| a.data.iter().map(|&v| f64::from(v)).collect::<Vec<_>>());
    let opts = CrossEntropyOptions::default();
    let expected: Vec<f64> = (0..tokens)
        .map(|i| -reference(&h[i * d..][..d], &w, &b, d, &targets[i..=i], &opts))
        .collect();
    assert_close("log-probabilities", &actual, &expected, 1e-5);
    assert!(
        targets
            .iter()
            .zip(&actual)
            .all(|(target, value)| *target != IGNORE_INDEX || *value == 0.0)
    );
}
