use burn::tensor::{Device, Tensor};
use frugal_kernels::portable;

use crate::support::{Array, check, check_finite, random};

const SHAPES: [(usize, usize); 4] = [(1, 1), (3, 7), (5, 33), (40, 1030)];

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// The error function by its Maclaurin series, and 1 where that needs too many terms.
fn erf(x: f64) -> f64 {
    if x.abs() > 6.0 {
        return x.signum();
    }
    let (mut term, mut sum) = (x, x);
    for n in 1..200 {
        term *= -x * x / n as f64;
        sum += term / (2 * n + 1) as f64;
    }
    sum * 2.0 / std::f64::consts::PI.sqrt()
}

fn silu(x: f64) -> f64 {
    x * sigmoid(x)
}

fn gelu(x: f64) -> f64 {
    x * (1.0 + erf(x / 2f64.sqrt())) / 2.0
}

fn gelu_tanh(x: f64) -> f64 {
    x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh()) / 2.0
}

type Gated = fn(Tensor<2>, Tensor<2>) -> Tensor<2>;
type Plain = fn(Tensor<2>) -> Tensor<2>;
/// Name, kernel, portable form and the function in double precision.
type Kind<F> = (&'static str, F, F, fn(f64) -> f64);

#[test]
fn gated_activations_match_the_reference() {
    let kinds: [Kind<Gated>; 2] = [
        ("swiglu", frugal_kernels::swiglu, portable::swiglu, silu),
        (
            "geglu_tanh",
            frugal_kernels::geglu_tanh,
            portable::geglu_tanh,
            gelu_tanh,
        ),
    ];
    for (name, kernel, composed, f) in kinds {
        for (rows, cols) in SHAPES {
            let inputs = [random(rows, cols, 5.0, 1), random(rows, cols, 2.0, 2)];
            check(
                &format!("{name} {rows}x{cols}"),
                &inputs,
                &[true, true],
                &|t| kernel(t[0].clone(), t[1].clone()),
                &|t| composed(t[0].clone(), t[1].clone()),
                &|v| {
                    v[0].iter()
                        .zip(&v[1])
                        .map(|(gate, up)| f(*gate) * up)
                        .collect()
                },
                2e-6,
            );
        }
    }
}

#[test]
fn plain_activations_match_the_reference() {
    let kinds: [Kind<Plain>; 3] = [
        ("silu", frugal_kernels::silu, portable::silu, silu),
        ("gelu", frugal_kernels::gelu, portable::gelu, gelu),
        (
            "gelu_tanh",
            frugal_kernels::gelu_tanh,
            portable::gelu_tanh,
            gelu_tanh,
        ),
    ];
    for (name, kernel, composed, f) in kinds {
        for (rows, cols) in SHAPES {
            check(
                &format!("{name} {rows}x{cols}"),
                &[random(rows, cols, 5.0, 3)],
                &[true],
                &|t| kernel(t[0].clone()),
                &|t| composed(t[0].clone()),
                &|v| v[0].iter().map(|x| f(*x)).collect(),
                2e-6,
            );
        }
    }
}

#[test]
fn extreme_inputs_give_finite_results() {
    let x = Array {
        data: vec![
            -3e38, -1e20, -200.0, -88.0, -13.0, -0.0, 0.0, 13.0, 88.0, 200.0, 1e20, 3e38,
        ],
        shape: [1, 12],
    };
    let up = random(1, 12, 1.0, 1);
    for (name, kernel) in [
        ("swiglu", frugal_kernels::swiglu as Gated),
        ("geglu_tanh", frugal_kernels::geglu_tanh),
    ] {
        check_finite(name, &[x.clone(), up.clone()], &[true, true], &|t| {
            kernel(t[0].clone(), t[1].clone())
        });
    }
    for (name, kernel) in [
        ("silu", frugal_kernels::silu as Plain),
        ("gelu", frugal_kernels::gelu),
        ("gelu_tanh", frugal_kernels::gelu_tanh),
    ] {
        check_finite(name, std::slice::from_ref(&x), &[true], &|t| {
            kernel(t[0].clone())
        });
        let y = kernel(x.tensor(&Device::flex()))
            .into_data()
            .try_into_vec::<f32>()
            .unwrap();
        assert_eq!((y[0], y[11]), (-0.0, 3e38), "{name} saturates");
    }
}

#[test]
fn no_rows_give_no_rows() {
    let empty = Array {
        data: Vec::new(),
        shape: [0, 8],
    }
    .tensor(&Device::flex());
    assert_eq!(
        frugal_kernels::swiglu(empty.clone(), empty.clone()).dims(),
        [0, 8]
    );
    assert_eq!(frugal_kernels::gelu(empty).dims(), [0, 8]);
}
