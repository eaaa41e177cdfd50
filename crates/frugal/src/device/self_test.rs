//! A few operations compared with the CPU: a driver that computes zeros or garbage trains a model
//! that looks like one.

use burn::prelude::*;
use burn::tensor::activation::softmax;

use super::DeviceError;

/// Largest difference that rounding explains, relative to the largest value.
const TOLERANCE: f32 = 1e-3;

/// What a step of training is made of; each gives the same numbers on every device.
const OPERATIONS: &[(&str, fn(&Device) -> Vec<f32>)] = &[
    ("copy to the device and back", |device| {
        values(matrix(7, 5, 1, device))
    }),
    ("sum of two matrices", |device| {
        values(matrix(65, 33, 1, device) + matrix(65, 33, 2, device))
    }),
    ("matrix product", |device| {
        values(matrix(33, 70, 1, device).matmul(matrix(70, 129, 2, device)))
    }),
    // Libraries choose another kernel for it.
    ("large matrix product", |device| {
        let [a, b] = [matrix(512, 384, 1, device), matrix(384, 256, 2, device)];
        values(a.matmul(b))
    }),
    ("product with a transposed matrix", |device| {
        values(matrix(40, 24, 1, device).matmul(matrix(56, 24, 2, device).transpose()))
    }),
    ("softmax", |device| {
        values(softmax(matrix(19, 257, 1, device) * 8.0, 1))
    }),
    ("mean and variance of rows", |device| {
        let (variance, mean) = matrix(21, 300, 1, device).var_mean_bias(1);
        values(Tensor::cat(vec![variance, mean], 1))
    }),
    ("exponential and hyperbolic tangent", |device| {
        let x = matrix(9, 64, 1, device);
        values(x.clone().exp() + x.tanh())
    }),
    ("selection of rows", |device| {
        let rows = Tensor::<1, Int>::from_ints([4, 0, 4, 11, 2], device);
        values(matrix(12, 31, 1, device).select(0, rows))
    }),
    ("slice", |device| {
        values(matrix(30, 20, 1, device).slice([3..17, 5..13]))
    }),
    ("gradient of a product", |device| {
        let device = device.clone().autodiff();
        let a = matrix(18, 26, 1, &device).require_grad();
        let b = matrix(26, 15, 2, &device);
        let loss = a.clone().matmul(b).powi_scalar(2).sum();
        let gradients = loss.backward();
        a.grad(&gradients).map_or_else(Vec::new, values)
    }),
    ("gradient of a selection of rows", |device| {
        let device = device.clone().autodiff();
        let table = matrix(10, 16, 1, &device).require_grad();
        let rows = Tensor::<1, Int>::from_ints([1, 7, 1, 1, 9], &device);
        let loss = table.clone().select(0, rows).powi_scalar(3).sum();
        let gradients = loss.backward();
        table.grad(&gradients).map_or_else(Vec::new, values)
    }),
];

/// `[rows, cols]` of numbers between -1 and 1 without a pattern that a wrong stride would keep.
fn matrix(rows: usize, cols: usize, seed: usize, device: &Device) -> Tensor<2> {
    let number = |i: usize| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.0 - 1.0;
    let numbers: Vec<f32> = (0..rows * cols).map(number).collect();
    Tensor::from_data(TensorData::new(numbers, [rows, cols]), device)
}

fn values(tensor: Tensor<2>) -> Vec<f32> {
    frugal_nn::to_vec(tensor)
}

/// Compares a few operations on a device with the CPU's.
///
/// # Errors
/// [`DeviceError::Wrong`] with the first operation that differs.
pub fn self_test(name: &'static str, device: &Device) -> Result<(), DeviceError> {
    let cpu = Device::flex();
    for (operation, compute) in OPERATIONS {
        let difference = difference(&compute(&cpu), &compute(device));
        if difference.is_nan() || difference > TOLERANCE {
            return Err(DeviceError::Wrong {
                name,
                operation,
                difference,
            });
        }
    }
    Ok(())
}

/// Largest difference relative to the largest value that is right.
fn difference(right: &[f32], found: &[f32]) -> f32 {
    if right.len() != found.len() {
        return f32::INFINITY;
    }
    let largest = right.iter().fold(f32::MIN_POSITIVE, |m, v| m.max(v.abs()));
    let off = right.iter().zip(found).map(|(r, f)| (r - f).abs());
    // Not `f32::max`, which drops what is not a number.
    let larger = |m: f32, d: f32| if d > m || d.is_nan() { d } else { m };
    off.fold(0.0, larger) / largest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_agrees_with_itself_and_every_operation_computes_something() {
        let cpu = Device::flex();
        assert_eq!(self_test("cpu", &cpu), Ok(()));
        for (operation, compute) in OPERATIONS {
            let right = compute(&cpu);
            assert!(right.iter().all(|v| v.is_finite()), "{operation}");
            // Zeros, the values of a neighbor and nothing at all are noticed.
            assert!(
                difference(&right, &vec![0.0; right.len()]) > 0.5,
                "{operation}"
            );
            let mut turned = right.clone();
            turned.rotate_left(1);
            assert!(difference(&right, &turned) > TOLERANCE, "{operation}");
            assert!(difference(&right, &[]) > TOLERANCE, "{operation}");
        }
    }

    #[test]
    fn a_result_that_is_not_a_number_is_a_difference() {
        assert!(difference(&[1.0, 2.0, 3.0], &[1.0, f32::NAN, 3.0]).is_nan());
        assert!(difference(&[1.0, 2.0], &[1.0, f32::INFINITY]) > TOLERANCE);
        assert!(difference(&[1.0, 2.0], &[1.0, 2.000_01]) < TOLERANCE);
    }
}
