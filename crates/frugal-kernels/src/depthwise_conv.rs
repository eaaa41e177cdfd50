//! Depth-wise convolution over images whose pixels are rows.

use burn::tensor::Tensor;

use crate::flex;

/// A convolution over images of each channel by itself, with zeros around them so that the size
/// stays: `y[i, r, c, e] = bias[e] + Σ_{a, b} weight[e, a k + b] x[i, r + a - k/2, c + b - k/2, e]`
/// (`torch.nn.functional.conv2d` with as many groups as channels and `k / 2` pixels of padding).
/// Pixels are rows: image by image, line by line.
///
/// # Shapes
/// x: `[images * height * width, d] -> [images * height * width, d]`; weight: `[d, k * k]`, k odd;
/// bias: `[d]`; grid: `[height, width]`
///
/// # Panics
/// When the shapes do not fit together.
pub fn depthwise_conv2d(
    x: Tensor<2>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
    grid: [usize; 2],
) -> Tensor<2> {
    let side = check(&x, &weight, bias.as_ref(), grid);
    flex::depthwise_conv2d(&x, &weight, bias.as_ref(), grid, side)
        .unwrap_or_else(|| portable::depthwise_conv2d(x, weight, bias, grid))
}

/// The side of the kernel.
fn check(
    x: &Tensor<2>,
    weight: &Tensor<2>,
    bias: Option<&Tensor<1>>,
    [height, width]: [usize; 2],
) -> usize {
    let ([rows, d], [channels, taps]) = (x.dims(), weight.dims());
    assert!(
        channels == d && bias.is_none_or(|bias| bias.dims() == [d]),
        "depth-wise convolution: weight {:?} and bias must be for the {d} channels of x",
        weight.dims()
    );
    let side = taps.isqrt();
    assert!(
        side * side == taps && side % 2 == 1,
        "depth-wise convolution: {taps} taps are no square of an odd side"
    );
    assert!(
        height * width > 0 && rows.is_multiple_of(height * width),
        "depth-wise convolution: {rows} rows are no whole number of images of {height} x {width}"
    );
    side
}

pub(crate) mod portable {
    use burn::tensor::Tensor;

    /// [`depthwise_conv2d`](crate::depthwise_conv2d) as a composition of Burn operations.
    pub fn depthwise_conv2d(
        x: Tensor<2>,
        weight: Tensor<2>,
        bias: Option<Tensor<1>>,
        [height, width]: [usize; 2],
    ) -> Tensor<2> {
        let ([rows, d], [_, taps], device) = (x.dims(), weight.dims(), x.device());
        let (images, side) = (rows / (height * width), taps.isqrt());
        let pad = side / 2;
        let x = x.reshape([images, height, width, d]);
        let x = if pad == 0 {
            x
        } else {
            let edge = Tensor::<4>::zeros([images, pad, width, d], &device);
            let x = Tensor::cat(vec![edge.clone(), x, edge], 1);
            let edge = Tensor::<4>::zeros([images, height + 2 * pad, pad, d], &device);
            Tensor::cat(vec![edge.clone(), x, edge], 2)
        };
        let term = |tap: usize| {
            let shifted = x.clone().narrow(1, tap / side, height);
            let shifted = shifted.narrow(2, tap % side, width);
            shifted * weight.clone().narrow(1, tap, 1).reshape([1, 1, 1, d])
        };
        let first = term(0);
        let sum = (1..taps).fold(first, |sum, tap| sum + term(tap));
        let y = sum.reshape([rows, d]);
        match bias {
            Some(bias) => y + bias.unsqueeze::<2>(),
            None => y,
        }
    }
}
