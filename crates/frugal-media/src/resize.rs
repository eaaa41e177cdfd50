//! Changing the size of an image exactly as Pillow's `Image.resize` does.
//!
//! Each output pixel is a sum over the input pixels within the reach of the filter, which grows with
//! the factor when an image is made smaller; first along rows, then along columns, in whole numbers
//! of 22 fractional bits, rounded to 8 bits after each (Pillow, `src/libImaging/Resample.c`).

use serde::{Deserialize, Serialize};

use crate::picture::Picture;

/// A filter, under the numbers of `PIL.Image.Resampling`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub enum Resample {
    /// The pixel at the place (0).
    Nearest,
    /// Windowed sinc of reach 3 (1).
    Lanczos,
    /// A tent of reach 1 (2).
    #[default]
    Bilinear,
    /// The cubic convolution with a = -0.5 (3).
    Bicubic,
    /// The mean of what a pixel covers (4).
    Box,
    /// Hamming's window of reach 1 (5).
    Hamming,
}

impl From<Resample> for u8 {
    fn from(filter: Resample) -> Self {
        filter as u8
    }
}

impl TryFrom<u8> for Resample {
    type Error = String;

    fn try_from(number: u8) -> Result<Self, String> {
        Ok(match number {
            0 => Self::Nearest,
            1 => Self::Lanczos,
            2 => Self::Bilinear,
            3 => Self::Bicubic,
            4 => Self::Box,
            5 => Self::Hamming,
            _ => {
                return Err(format!(
                    "{number} is none of 0 nearest, 1 lanczos, 2 bilinear, 3 bicubic, 4 box, 5 hamming"
                ));
            }
        })
    }
}

impl Resample {
    fn reach(self) -> f64 {
        match self {
            Self::Nearest | Self::Box => 0.5,
            Self::Bilinear | Self::Hamming => 1.0,
            Self::Bicubic => 2.0,
            Self::Lanczos => 3.0,
        }
    }

    fn at(self, x: f64) -> f64 {
        let sinc = |x: f64| match x == 0.0 {
            true => 1.0,
            false => (x * std::f64::consts::PI).sin() / (x * std::f64::consts::PI),
        };
        match self {
            Self::Nearest | Self::Box if x > -0.5 && x <= 0.5 => 1.0,
            Self::Nearest | Self::Box => 0.0,
            Self::Bilinear => (1.0 - x.abs()).max(0.0),
            Self::Hamming if x.abs() >= 1.0 => 0.0,
            Self::Hamming => sinc(x) * (0.54 + 0.46 * (x * std::f64::consts::PI).cos()),
            Self::Bicubic => {
                const A: f64 = -0.5;
                match x.abs() {
                    x if x < 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
                    x if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * A,
                    _ => 0.0,
                }
            }
            Self::Lanczos if (-3.0..3.0).contains(&x) => sinc(x) * sinc(x / 3.0),
            Self::Lanczos => 0.0,
        }
    }
}

/// Fractional bits of the weights.
const BITS: u32 = 32 - 8 - 2;

/// For each output pixel the first input pixel and the weights from there on.
fn weights(filter: Resample, from: usize, to: usize) -> Vec<(usize, Vec<i64>)> {
    let scale = from as f64 / to as f64;
    let stretch = scale.max(1.0);
    let reach = filter.reach() * stretch;
    let of_pixel = |i: usize| {
        let center = (i as f64 + 0.5) * scale;
        let first = ((center - reach + 0.5) as i64).max(0);
        let end = ((center + reach + 0.5) as i64).min(from as i64);
        let at = |n: i64| filter.at(((n + first) as f64 - center + 0.5) / stretch);
        let values: Vec<f64> = (0..end - first).map(at).collect();
        let sum: f64 = values.iter().sum();
        let fixed = |value: &f64| {
            let value = if sum == 0.0 { *value } else { value / sum };
            let half = if value < 0.0 { -0.5 } else { 0.5 };
            (half + value * f64::from(1u32 << BITS)) as i64
        };
        (first as usize, values.iter().map(fixed).collect())
    };
    (0..to).map(of_pixel).collect()
}

fn rounded(sum: i64) -> u8 {
    ((sum + (1 << (BITS - 1))) >> BITS).clamp(0, 255) as u8
}

/// The image in another size.
///
/// # Panics
/// When `width` or `height` is 0: an image has pixels.
pub fn resize(picture: &Picture, width: usize, height: usize, filter: Resample) -> Picture {
    assert!(width > 0 && height > 0, "an image has pixels");
    let (from_width, from_height) = (picture.width(), picture.height());
    if (width, height) == (from_width, from_height) {
        return picture.clone();
    }
    let made = |width, height, rgb| {
        Picture::new(width, height, rgb).unwrap_or_else(|| unreachable!("the sizes fit"))
    };
    if filter == Resample::Nearest {
        let places = |from: usize, to: usize| -> Vec<usize> {
            let scale = from as f64 / to as f64;
            let place = |i: usize| ((i as f64 + 0.5) * scale) as usize;
            (0..to).map(|i| place(i).min(from - 1)).collect()
        };
        let columns = places(from_width, width);
        let mut rgb = Vec::with_capacity(width * height * 3);
        for y in places(from_height, height) {
            for x in &columns {
                let at = (y * from_width + x) * 3;
                rgb.extend(&picture.rgb()[at..at + 3]);
            }
        }
        return made(width, height, rgb);
    }
    let mut narrowed = picture.clone();
    if width != from_width {
        let columns = weights(filter, from_width, width);
        let mut rgb = Vec::with_capacity(width * from_height * 3);
        for row in picture.rgb().chunks_exact(3 * from_width) {
            for (first, weights) in &columns {
                let mut sums = [0i64; 3];
                for (pixel, weight) in row[3 * first..].chunks_exact(3).zip(weights) {
                    for (sum, value) in sums.iter_mut().zip(pixel) {
                        *sum += i64::from(*value) * weight;
                    }
                }
                rgb.extend(sums.map(rounded));
            }
        }
        narrowed = made(width, from_height, rgb);
    }
    if height == from_height {
        return narrowed;
    }
    let (line, source) = (3 * width, narrowed.rgb());
    let mut rgb = Vec::with_capacity(line * height);
    let mut sums = vec![0i64; line];
    for (first, weights) in weights(filter, from_height, height) {
        sums.fill(0);
        for (row, weight) in source[first * line..].chunks_exact(line).zip(&weights) {
            for (sum, value) in sums.iter_mut().zip(row) {
                *sum += i64::from(*value) * weight;
            }
        }
        rgb.extend(sums.iter().map(|sum| rounded(*sum)));
    }
    made(width, height, rgb)
}
