//! What every kernel is put through.

use burn::tensor::{Device, Tensor, TensorData};
use rayon::ThreadPoolBuilder;

/// A matrix of test data; vectors are `[1, n]`.
#[derive(Clone, Debug)]
pub(crate) struct Array {
    pub(crate) data: Vec<f32>,
    pub(crate) shape: [usize; 2],
}

/// Reproducible values spread over [-scale, scale].
pub(crate) fn random(rows: usize, cols: usize, scale: f32, seed: u64) -> Array {
    let mut state = seed
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .wrapping_add(0x1234_5678_9abc_def1);
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        ((state >> 40) as f32 / (1u64 << 24) as f32 * 2.0 - 1.0) * scale
    };
    Array {
        data: (0..rows * cols).map(|_| next()).collect(),
        shape: [rows, cols],
    }
}

impl Array {
    pub(crate) fn tensor(&self, device: &Device) -> Tensor<2> {
        Tensor::from_data(TensorData::new(self.data.clone(), self.shape), device)
    }

    /// The same values with columns contiguous instead of rows.
    fn column_major(&self, device: &Device) -> Tensor<2> {
        let [rows, cols] = self.shape;
        let data: Vec<f32> = (0..cols)
            .flat_map(|j| (0..rows).map(move |i| self.data[i * cols + j]))
            .collect();
        Tensor::<2>::from_data(TensorData::new(data, [cols, rows]), device).transpose()
    }

    /// The same values as a window of a wider matrix.
    fn window(&self, device: &Device) -> Tensor<2> {
        let [rows, cols] = self.shape;
        let mut data = vec![f32::NAN; (rows + 2) * (cols + 5)];
        for i in 0..rows {
            data[(i + 1) * (cols + 5) + 3..][..cols]
                .copy_from_slice(&self.data[i * cols..][..cols]);
        }
        Tensor::<2>::from_data(TensorData::new(data, [rows + 2, cols + 5]), device)
            .narrow(0, 1, rows)
            .narrow(1, 3, cols)
    }
}

/// A function of matrices, by the kernel or by its portable form.
pub(crate) type Op<'a> = &'a (dyn Fn(&[Tensor<2>]) -> Tensor<2> + Sync);
/// The same function in double precision on row-major data.
pub(crate) type Reference<'a> = &'a dyn Fn(&[Vec<f64>]) -> Vec<f64>;

/// The values and, for each input, the gradient of the sum of the values weighted by `weights`.
#[derive(Debug, PartialEq)]
pub(crate) struct Outcome {
    pub(crate) values: Vec<f32>,
    pub(crate) grads: Vec<Option<Vec<f32>>>,
}

fn vec(tensor: Tensor<2>) -> Vec<f32> {
    tensor.into_data().try_into_vec().unwrap()
}

/// Weights of the outputs in the loss whose gradient is taken: anything that is not constant.
fn loss_weights(len: usize) -> Vec<f32> {
    random(1, len, 1.0, 99).data
}

fn build(
    inputs: &[Array],
    tracked: &[bool],
    make: fn(&Array, &Device) -> Tensor<2>,
) -> Vec<Tensor<2>> {
    let plain = Device::flex();
    let tensor = |(input, &tracked): (&Array, &bool)| {
        if tracked {
            // A view of a tracked leaf would not be a leaf: views are made first.
            Tensor::from_inner(make(input, &plain)).require_grad()
        } else {
            make(input, &plain)
        }
    };
    inputs.iter().zip(tracked).map(tensor).collect()
}

fn outcome(op: Op, inputs: &[Tensor<2>], tracked: &[bool]) -> Outcome {
    let y = op(inputs);
    let shape = y.dims();
    let values = vec(y.clone());
    let weights = Array {
        data: loss_weights(values.len()),
        shape,
    }
    .tensor(&Device::flex());
    let grads = if tracked.contains(&true) && !values.is_empty() {
        let grads = (y * weights).sum().backward();
        inputs
            .iter()
            .zip(tracked)
            .map(|(input, tracked)| tracked.then(|| vec(input.grad(&grads).expect("a gradient"))))
            .collect()
    } else {
        vec![None; inputs.len()]
    };
    Outcome { values, grads }
}

#[track_caller]
pub(crate) fn assert_close(what: &str, actual: &[f32], expected: &[f64], tolerance: f64) {
    assert_eq!(actual.len(), expected.len(), "{what}: lengths");
    let scale = expected.iter().fold(0.0f64, |a, b| a.max(b.abs())).max(0.1);
    for (i, (a, e)) in actual.iter().zip(expected).enumerate() {
        let error = (f64::from(*a) - e).abs();
        assert!(
            error <= tolerance * (scale * 0.1 + e.abs()),
            "{what}[{i}]: {a} is not {e} (error {error:e}, tolerance {tolerance:e})"
        );
    }
}

fn widen(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&v| f64::from(v)).collect()
}

fn double(inputs: &[Array]) -> Vec<Vec<f64>> {
    inputs.iter().map(|input| widen(&input.data)).collect()
}

/// The gradient of the weighted sum of the reference by central differences in double precision.
fn finite_differences(reference: Reference, inputs: &[Array]) -> Vec<Vec<f64>> {
    let base = double(inputs);
    let weights = widen(&loss_weights(reference(&base).len()));
    let loss = |inputs: &[Vec<f64>]| {
        reference(inputs)
            .iter()
            .zip(&weights)
            .map(|(y, w)| y * w)
            .sum::<f64>()
    };
    let mut grads = Vec::new();
    for input in 0..base.len() {
        let mut point = base.clone();
        let mut grad = Vec::new();
        for i in 0..base[input].len() {
            let step = 1e-5 * base[input][i].abs().max(1.0);
            point[input][i] = base[input][i] + step;
            let up = loss(&point);
            point[input][i] = base[input][i] - step;
            grad.push((up - loss(&point)) / (2.0 * step));
            point[input][i] = base[input][i];
        }
        grads.push(grad);
    }
    grads
}

/// Puts a kernel through everything: value against `reference`, gradients of the inputs listed in
/// `differentiable` against finite differences (small cases) and against `portable`, the same bits
/// for any number of threads, on the plain and the autodiff device, whichever inputs are tracked;
/// views as inputs.
#[track_caller]
pub(crate) fn check(
    name: &str,
    inputs: &[Array],
    differentiable: &[bool],
    kernel: Op,
    portable: Op,
    reference: Reference,
    tolerance: f64,
) {
    let none = vec![false; inputs.len()];
    let all = differentiable.to_vec();
    let plain = outcome(kernel, &build(inputs, &none, Array::tensor), &none);
    assert_close(
        &format!("{name}: value"),
        &plain.values,
        &reference(&double(inputs)),
        tolerance,
    );

    let full = outcome(kernel, &build(inputs, &all, Array::tensor), &all);
    assert!(
        full.values == plain.values,
        "{name}: the autodiff device computes other values"
    );
    let elements: usize = inputs.iter().map(|input| input.data.len()).sum();
    if elements <= 400 {
        for (i, expected) in finite_differences(reference, inputs).iter().enumerate() {
            if let Some(grad) = &full.grads[i] {
                assert_close(
                    &format!("{name}: gradient of input {i}"),
                    grad,
                    expected,
                    tolerance.max(1e-5),
                );
            }
        }
    }
    let expected = outcome(portable, &build(inputs, &all, Array::tensor), &all);
    assert_close(
        &format!("{name}: portable value"),
        &plain.values,
        &widen(&expected.values),
        5.0 * tolerance,
    );
    for (i, (grad, expected)) in full.grads.iter().zip(&expected.grads).enumerate() {
        if let (Some(grad), Some(expected)) = (grad, expected) {
            assert_close(
                &format!("{name}: portable gradient of input {i}"),
                grad,
                &widen(expected),
                5.0 * tolerance,
            );
        }
    }

    for only in (0..inputs.len()).filter(|&i| all[i]) {
        let tracked: Vec<bool> = (0..inputs.len()).map(|i| i == only).collect();
        let one = outcome(kernel, &build(inputs, &tracked, Array::tensor), &tracked);
        assert!(
            one.values == plain.values,
            "{name}: tracking input {only} alone changes the values"
        );
        assert!(
            one.grads[only] == full.grads[only],
            "{name}: tracking input {only} alone changes its gradient"
        );
    }
    for threads in [1, 3] {
        let pool = ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        let again = pool.install(|| outcome(kernel, &build(inputs, &all, Array::tensor), &all));
        assert!(
            again == full,
            "{name}: {threads} threads give other results"
        );
    }
    for make in [
        Array::column_major as fn(&Array, &Device) -> Tensor<2>,
        Array::window,
    ] {
        let view = outcome(kernel, &build(inputs, &all, make), &all);
        assert_close(
            &format!("{name}: value from views"),
            &view.values,
            &widen(&plain.values),
            tolerance,
        );
        for (i, (grad, expected)) in view.grads.iter().zip(&full.grads).enumerate() {
            if let (Some(grad), Some(expected)) = (grad, expected) {
                assert_close(
                    &format!("{name}: gradient of input {i} from views"),
                    grad,
                    &widen(expected),
                    tolerance,
                );
            }
        }
    }
}

/// Asserts that values and gradients are finite.
#[track_caller]
pub(crate) fn check_finite(name: &str, inputs: &[Array], differentiable: &[bool], kernel: Op) {
    let result = outcome(
        kernel,
        &build(inputs, differentiable, Array::tensor),
        differentiable,
    );
    assert!(
        result.values.iter().all(|v| v.is_finite()),
        "{name}: a value is not finite"
    );
    for (i, grad) in result.grads.iter().enumerate() {
        assert!(
            grad.iter().flatten().all(|v| v.is_finite()),
            "{name}: a gradient of input {i} is not finite"
        );
    }
}

/// A `[1, n]` matrix as a vector.
pub(crate) fn row(tensor: &Tensor<2>) -> Tensor<1> {
    let n = tensor.dims()[1];
    tensor.clone().reshape([n])
}

/// `a · bᵀ` of row-major matrices with inner size `k`.
pub(crate) fn matmul_t(a: &[f64], b: &[f64], k: usize) -> Vec<f64> {
    a.chunks(k)
        .flat_map(|a| {
            b.chunks(k)
                .map(move |b| a.iter().zip(b).map(|(a, b)| a * b).sum())
        })
        .collect()
}

/// Rows of width `d`, each divided by the root of its mean square plus `eps`, the mean taken off
/// before with `center`.
pub(crate) fn normalized(x: &[f64], d: usize, center: bool, eps: f64) -> Vec<f64> {
    let rows = x.chunks(d).flat_map(|row| {
        let mean = if center {
            row.iter().sum::<f64>() / d as f64
        } else {
            0.0
        };
        let square = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / d as f64;
        row.iter().map(move |x| (x - mean) / (square + eps).sqrt())
    });
    rows.collect()
}
