//! The convolution over images, against its definition in double precision.

use burn::tensor::Tensor;
use frugal_kernels::{depthwise_conv2d, portable};

use crate::support::{check, random, row};

/// Images, sides, channels, side of the kernel.
const CASES: [([usize; 4], usize); 7] = [
    ([1, 1, 1, 3], 3),
    ([2, 2, 3, 2], 3),
    ([1, 3, 2, 4], 1),
    ([2, 4, 3, 2], 5),
    ([3, 7, 5, 17], 3),
    ([2, 16, 16, 48], 3),
    ([1, 9, 20, 130], 3),
];

fn definition(v: &[Vec<f64>], [images, height, width, d]: [usize; 4], side: usize) -> Vec<f64> {
    let half = side as isize / 2;
    let mut y = vec![0.0; images * height * width * d];
    for (at, y) in y.iter_mut().enumerate() {
        let (e, pixel) = (at % d, at / d);
        let (column, line) = (pixel % width, pixel / width % height);
        let first = pixel - line * width - column;
        let mut sum = v.get(2).map_or(0.0, |bias| bias[e]);
        for (a, b) in (0..side).flat_map(|a| (0..side).map(move |b| (a, b))) {
            let line = line as isize + a as isize - half;
            let column = column as isize + b as isize - half;
            if (0..height as isize).contains(&line) && (0..width as isize).contains(&column) {
                let other = first + line as usize * width + column as usize;
                sum += v[1][e * side * side + a * side + b] * v[0][other * d + e];
            }
        }
        *y = sum;
    }
    y
}

#[test]
fn depthwise_conv2d_matches_the_definition() {
    for (sizes @ [images, height, width, d], side) in CASES {
        for with_bias in [true, false] {
            let mut inputs = vec![
                random(images * height * width, d, 1.0, 1),
                random(d, side * side, 1.0, 2),
            ];
            if with_bias {
                inputs.push(random(1, d, 1.0, 3));
            }
            let bias = |t: &[Tensor<2>]| with_bias.then(|| row(&t[2]));
            check(
                &format!("depth-wise convolution {sizes:?} by {side}"),
                &inputs,
                &vec![true; inputs.len()],
                &|t| depthwise_conv2d(t[0].clone(), t[1].clone(), bias(t), [height, width]),
                &|t| {
                    let (x, weight) = (t[0].clone(), t[1].clone());
                    portable::depthwise_conv2d(x, weight, bias(t), [height, width])
                },
                &|v| definition(v, sizes, side),
                2e-5,
            );
        }
    }
}
