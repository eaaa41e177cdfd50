//! Meta-gradients against brute force in double precision.

use std::convert::Infallible;

use super::unroll::*;

/// `Σ_k c_k(ψ) log cosh(a_k · φ − b_k) + 0.05 (φ · φ)²` with `c_k = 1 + ψ_1 sin(k) + ψ_0 (a_k · φ)² / 4`:
/// no part of it is quadratic, and the other parameters act on value and curvature.
struct Bent {
    other: [f64; 2],
}

const DIM: usize = 5;

impl Bent {
    fn row(k: usize) -> [f64; DIM] {
        std::array::from_fn(|i| ((3 * k + 2 * i + 1) as f64 * 0.7).sin())
    }
}

impl InnerLoss<f64> for Bent {
    type Error = Infallible;

    fn gradient(&mut self, fast: &[Vec<f64>]) -> Result<InnerGradient<f64>, Infallible> {
        let phi: Vec<f64> = fast.iter().flatten().copied().collect();
        let square: f64 = phi.iter().map(|x| x * x).sum();
        let (mut loss, mut by_phi) = (0.05 * square * square, vec![0.0; DIM]);
        let mut by_other = vec![0.0; 2];
        for (g, x) in by_phi.iter_mut().zip(&phi) {
            *g = 0.2 * square * x;
        }
        for k in 0..7 {
            let (row, b) = (Self::row(k), (k as f64 * 1.3).cos());
            let z: f64 = row.iter().zip(&phi).map(|(a, x)| a * x).sum();
            let c = 1.0 + self.other[1] * (k as f64).sin() + self.other[0] * z * z / 4.0;
            let (value, slope) = ((z - b).cosh().ln(), (z - b).tanh());
            loss += c * value;
            by_other[0] += z * z / 4.0 * value;
            by_other[1] += (k as f64).sin() * value;
            for (g, a) in by_phi.iter_mut().zip(row) {
                *g += a * (c * slope + self.other[0] * z / 2.0 * value);
            }
        }
        // Two tensors, of 2 and 3 values.
        let last = by_phi.split_off(2);
        Ok(InnerGradient {
            loss,
            fast: vec![by_phi, last],
            other: vec![by_other],
        })
    }
}

/// Gives the first gradients as they were, whatever the weights.
struct Replayed {
    inner: Bent,
    known: Vec<InnerGradient<f64>>,
    calls: usize,
}

impl InnerLoss<f64> for Replayed {
    type Error = Infallible;

    fn gradient(&mut self, fast: &[Vec<f64>]) -> Result<InnerGradient<f64>, Infallible> {
        self.calls += 1;
        match self.known.get(self.calls - 1) {
            Some(known) => Ok(known.clone()),
            None => self.inner.gradient(fast),
        }
    }
}

fn outer(fast: &[Vec<f64>]) -> (f64, Tensors<f64>) {
    let mut i = 0.0;
    let mut value = 0.0;
    let gradient = fast
        .iter()
        .map(|tensor| {
            tensor
                .iter()
                .map(|x| {
                    i += 1.0;
                    value += (x * i - 0.3).sin() + 0.5 * x * x;
                    i * (x * i - 0.3).cos() + x
                })
                .collect()
        })
        .collect();
    (value, gradient)
}

const OTHER: [f64; 2] = [0.4, 0.3];

fn start() -> Tensors<f64> {
    vec![vec![0.9, -0.6], vec![0.35, 1.2, -0.8]]
}

fn rates() -> Vec<Vec<f64>> {
    vec![
        vec![0.05, 0.04, 0.06, 0.03, 9.0],
        vec![0.02, 0.07, 0.05, 0.05, 9.0],
    ]
}

fn unroll(retained: usize) -> Unroll {
    Unroll {
        optimizer: InnerOptimizer::ADAMW,
        steps: 4,
        retained,
    }
}

/// The outer loss as a function of start, rates and the other parameters, with the gradients of the
/// steps that are not retained held as they were.
fn brute(unroll: &Unroll, known: &[InnerGradient<f64>], at: &[f64]) -> f64 {
    let start = vec![at[..2].to_vec(), at[2..5].to_vec()];
    let rates = vec![at[5..9].to_vec(), at[9..13].to_vec()];
    let mut loss = Replayed {
        inner: Bent {
            other: [at[13], at[14]],
        },
        known: known.to_vec(),
        calls: 0,
    };
    let (fast, _) = unroll.adapt_only(&mut loss, &start, &rates).unwrap();
    outer(&fast).0
}

fn point() -> Vec<f64> {
    let rates = rates();
    let mut at: Vec<f64> = start().concat();
    at.extend(rates.iter().flat_map(|of| of[..4].to_vec()));
    at.extend(OTHER);
    at
}

/// By Richardson's extrapolation of central differences.
fn by_brute_force(unroll: &Unroll, known: &[InnerGradient<f64>]) -> Vec<f64> {
    let at = point();
    let slope = |i: usize, h: f64| {
        let value = |h: f64| {
            let mut at = at.clone();
            at[i] += h;
            brute(unroll, known, &at)
        };
        (value(h) - value(-h)) / (2.0 * h)
    };
    (0..at.len())
        .map(|i| (4.0 * slope(i, 5e-5) - slope(i, 1e-4)) / 3.0)
        .collect()
}

fn by_adjoint(unroll: &Unroll) -> (Vec<f64>, Vec<InnerGradient<f64>>) {
    let mut loss = Bent { other: OTHER };
    let tape = unroll.adapt(&mut loss, &start(), &rates()).unwrap();
    let found = unroll
        .backward(
            &mut loss,
            &tape,
            &rates(),
            &outer(&tape.fast).1,
            &mut Differences::fixed(1e-4),
        )
        .unwrap();
    let mut all = found.fast.concat();
    all.extend(found.rates.concat());
    all.extend(match found.other.is_empty() {
        true => vec![0.0; 2],
        false => found.other.concat(),
    });
    // The gradients of the steps that are not retained.
    let mut fast = start();
    let mut known = Vec::new();
    for step in 0..unroll.steps - unroll.retained {
        known.push(loss.gradient(&fast).unwrap());
        let upto = Unroll {
            steps: step + 1,
            retained: 0,
            ..*unroll
        };
        fast = upto.adapt_only(&mut loss, &start(), &rates()).unwrap().0;
    }
    (all, known)
}

fn relative(a: &[f64], b: &[f64]) -> f64 {
    let apart: f64 = a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum();
    (apart / b.iter().map(|b| b * b).sum::<f64>()).sqrt()
}

#[test]
fn perk_the_gradient_of_the_test_function_is_its_slope() {
    let mut loss = Bent { other: OTHER };
    let at = start();
    let found = loss.gradient(&at).unwrap();
    for (t, i) in [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)] {
        let mut value = |h: f64| {
            let mut at = at.clone();
            at[t][i] += h;
            loss.gradient(&at).unwrap().loss
        };
        let slope = (value(1e-5) - value(-1e-5)) / 2e-5;
        assert!((slope - found.fast[t][i]).abs() < 1e-8);
    }
}

#[test]
fn perk_meta_gradients_are_those_of_brute_force_at_every_truncation() {
    for retained in 0..=4 {
        for optimizer in [InnerOptimizer::ADAMW, InnerOptimizer::Sgd] {
            let unroll = Unroll {
                optimizer,
                ..unroll(retained)
            };
            let (found, known) = by_adjoint(&unroll);
            let expected = by_brute_force(&unroll, &known);
            for (what, part) in [("start", 0..5), ("rates", 5..13), ("all", 0..15)] {
                let apart = relative(&found[part.clone()], &expected[part]);
                assert!(
                    apart < 1e-7,
                    "{optimizer:?}, {retained} retained, {what}: {apart:e}"
                );
            }
            if retained > 0 {
                let apart = relative(&found[13..], &expected[13..]);
                assert!(apart < 1e-6, "{retained} retained, others: {apart:e}");
            }
        }
    }
}

#[test]
fn perk_more_retained_steps_come_nearer_to_the_full_gradient() {
    let all: Vec<Vec<f64>> = (0..=4)
        .map(|retained| by_adjoint(&unroll(retained)).0[..5].to_vec())
        .collect();
    let cosine = |a: &[f64], b: &[f64]| {
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
    };
    let cosines: Vec<f64> = all.iter().map(|g| cosine(g, &all[4])).collect();
    assert!(
        cosines[0] < cosines[3] && cosines[1] < cosines[4],
        "{cosines:?}"
    );
    assert!(cosines[0] > 0.9, "{cosines:?}");
}

/// `φ²`, so that each step of SGD with rate 0.1 multiplies by 0.8.
struct Parabola;

impl InnerLoss<f64> for Parabola {
    type Error = Infallible;

    fn gradient(&mut self, fast: &[Vec<f64>]) -> Result<InnerGradient<f64>, Infallible> {
        let x = fast[0][0];
        Ok(InnerGradient {
            loss: x * x,
            fast: vec![vec![2.0 * x]],
            other: Vec::new(),
        })
    }
}

#[test]
fn perk_a_parabola_has_the_gradients_of_the_closed_form() {
    // 0.8⁴ = 0.4096; the slope of ½(φ − ¼)² there is 0.1596, times 0.8 for each retained step.
    for (retained, expected) in [(4, 0.065_372_16), (2, 0.102_144), (0, 0.1596)] {
        let unroll = Unroll {
            optimizer: InnerOptimizer::Sgd,
            steps: 4,
            retained,
        };
        let rates = vec![vec![0.1; 4]];
        let tape = unroll.adapt(&mut Parabola, &[vec![1.0]], &rates).unwrap();
        assert!((tape.fast[0][0] - 0.4096).abs() < 1e-12);
        let outer = vec![vec![tape.fast[0][0] - 0.25]];
        let found = unroll
            .backward(
                &mut Parabola,
                &tape,
                &rates,
                &outer,
                &mut Differences::fixed(1e-3),
            )
            .unwrap();
        assert!(
            (found.fast[0][0] - expected).abs() < 1e-10,
            "{retained}: {}",
            found.fast[0][0]
        );
    }
}

/// The same gradient everywhere.
struct Slope(Vec<f64>);

impl InnerLoss<f64> for Slope {
    type Error = Infallible;

    fn gradient(&mut self, _: &[Vec<f64>]) -> Result<InnerGradient<f64>, Infallible> {
        Ok(InnerGradient {
            loss: 1.0,
            fast: vec![self.0.clone()],
            other: Vec::new(),
        })
    }
}

#[test]
fn perk_the_first_step_is_the_rate_whatever_the_gradient() {
    let gradients = vec![3e-3, -40.0, 1e-7, 0.0];
    let unroll = Unroll {
        steps: 1,
        ..unroll(0)
    };
    let start = vec![vec![0.0, 0.0, 0.0, 2.0]];
    let (fast, _) = unroll
        .adapt_only(&mut Slope(gradients.clone()), &start, &[vec![0.01]])
        .unwrap();
    for (value, g) in fast[0].iter().zip(&gradients).take(3) {
        let expected = -0.01 * g / (g.abs() + 1e-8);
        assert!((value - expected).abs() < 1e-9, "{value} {expected}");
    }
    // Decay alone: 2 (1 − 0.01 · 0.01).
    assert!((fast[0][3] - 1.9998).abs() < 1e-12);
}

#[test]
fn perk_bad_inner_steps_are_refused_by_name() {
    let refused = |unroll: Unroll, loss: &mut Slope, rates: &[Vec<f64>]| {
        let error = unroll.adapt(loss, &[vec![0.0]], rates).unwrap_err();
        error.to_string()
    };
    let short = refused(unroll(0), &mut Slope(vec![1.0]), &[vec![0.1; 3]]);
    assert!(short.contains("learning rate"), "{short}");
    let wide = refused(unroll(0), &mut Slope(vec![1.0; 2]), &[vec![0.1; 4]]);
    assert!(wide.contains("shapes"), "{wide}");
    let nan = refused(unroll(0), &mut Slope(vec![f64::NAN]), &[vec![0.1; 4]]);
    assert!(nan.contains("step 1"), "{nan}");
    let many = refused(unroll(5), &mut Slope(vec![1.0]), &[vec![0.1; 4]]);
    assert!(many.contains("retained"), "{many}");
}

#[test]
fn perk_a_distance_for_differences_is_found_from_a_bad_start() {
    let direction = vec![vec![0.3, -0.2], vec![0.1, 0.5, -0.4]];
    let mut loss = Bent { other: OTHER };
    let h = stable_difference(&mut loss, &start(), &direction, 8.0, 1e-2).unwrap();
    assert!(h < 0.5, "{h}");
    // Where halving changes nothing, the start is kept.
    let h = stable_difference(&mut Parabola, &[vec![1.0]], &[vec![1.0]], 0.25, 1e-2).unwrap();
    assert_eq!(h, 0.125);
}
