//! The sequences that pixels on a grid are scanned in.

use std::sync::Arc;

use burn::prelude::*;
use frugal_kernels::gather_rows;
use serde::{Deserialize, Serialize};

/// Sequences of a scan over images.
pub(crate) const DIRECTIONS: usize = 4;

/// How a grid becomes four sequences.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScanPattern {
    /// Each sequence has every second pixel of every second line (Pei et al., *EfficientVMamba*, arXiv
    /// 2403.09977, with a step of 2 as in its code): those at (0, 0) by lines, at (1, 0) by columns, at
    /// (0, 1) by lines, at (1, 1) by columns; all go forward. Odd sides get a line or column of zeros.
    Atrous,
    /// Each sequence has all pixels (Liu et al., *VMamba*, arXiv 2401.10166): by lines, by columns, and
    /// both backward. What they give of a pixel is added.
    Cross,
}

impl ScanPattern {
    /// The pixels of each sequence, as their places line by line; `None` for padding.
    pub(crate) fn sequences(self, [height, width]: [usize; 2]) -> [Vec<Option<usize>>; DIRECTIONS] {
        let lines = |h: usize, w: usize| (0..h).flat_map(move |r| (0..w).map(move |c| (r, c)));
        let columns = |h: usize, w: usize| (0..w).flat_map(move |c| (0..h).map(move |r| (r, c)));
        match self {
            Self::Atrous => {
                let (h, w) = (height.div_ceil(2), width.div_ceil(2));
                let at = |down: usize, right: usize| {
                    move |(r, c): (usize, usize)| {
                        let (r, c) = (2 * r + down, 2 * c + right);
                        (r < height && c < width).then_some(r * width + c)
                    }
                };
                [
                    lines(h, w).map(at(0, 0)).collect(),
                    columns(h, w).map(at(1, 0)).collect(),
                    lines(h, w).map(at(0, 1)).collect(),
                    columns(h, w).map(at(1, 1)).collect(),
                ]
            }
            Self::Cross => {
                let place = |(r, c): (usize, usize)| Some(r * width + c);
                let by_line: Vec<_> = lines(height, width).map(place).collect();
                let by_column: Vec<_> = columns(height, width).map(place).collect();
                let reversed = |all: &[Option<usize>]| all.iter().rev().copied().collect();
                let (line_back, column_back) = (reversed(&by_line), reversed(&by_column));
                [by_line, by_column, line_back, column_back]
            }
        }
    }

    /// Pixels of all sequences of an image.
    pub fn tokens(self, grid: [usize; 2]) -> usize {
        self.sequences(grid).iter().map(Vec::len).sum()
    }
}

/// The sequences of a batch of images.
pub(crate) struct SubGrids {
    /// For each direction the row of each of its tokens, image by image; that behind the last pixel is
    /// one of zeros.
    rows: [Arc<[u32]>; DIRECTIONS],
    /// For each pixel the rows of its outputs among those of all directions, by direction.
    back: Vec<Arc<[u32]>>,
    /// Boundaries of the sequences of a direction.
    pub(crate) cu_seqlens: Arc<[usize]>,
    padded: bool,
}

impl SubGrids {
    /// The sequences of so many images.
    pub(crate) fn of(pattern: ScanPattern, grid: [usize; 2], images: usize) -> Self {
        let sequences = pattern.sequences(grid);
        let (pixels, length) = (grid[0] * grid[1], sequences[0].len());
        let zero = images * pixels;
        let rows = sequences.each_ref().map(|sequence| {
            let of_image = |image: usize| {
                let row = move |pixel: &Option<usize>| {
                    pixel.map_or(zero, |pixel| image * pixels + pixel) as u32
                };
                sequence.iter().map(row)
            };
            (0..images).flat_map(of_image).collect::<Arc<[u32]>>()
        });
        let mut places = vec![Vec::new(); pixels];
        for (direction, sequence) in sequences.iter().enumerate() {
            for (at, pixel) in sequence.iter().enumerate() {
                if let Some(pixel) = pixel {
                    places[*pixel].push((direction, at));
                }
            }
        }
        let outputs = places[0].len();
        let back = (0..outputs).map(|nth| {
            let of_image = |image: usize| {
                let row = move |places: &Vec<(usize, usize)>| {
                    let (direction, at) = places[nth];
                    (direction * images * length + image * length + at) as u32
                };
                places.iter().map(row)
            };
            (0..images).flat_map(of_image).collect::<Arc<[u32]>>()
        });
        Self {
            rows,
            back: back.collect(),
            cu_seqlens: (0..=images).map(|image| image * length).collect(),
            padded: sequences.iter().flatten().any(Option::is_none),
        }
    }

    /// The tokens of each direction: `[images * pixels, d]` to `[images * length, d]` each.
    pub(crate) fn split(&self, x: Tensor<2>) -> [Tensor<2>; DIRECTIONS] {
        let x = match self.padded {
            true => {
                let zeros = Tensor::zeros([1, x.dims()[1]], &x.device());
                Tensor::cat(vec![x, zeros], 0)
            }
            false => x,
        };
        self.rows
            .each_ref()
            .map(|rows| gather_rows(x.clone(), rows))
    }

    /// What [`SubGrids::split`] took apart, where a pixel has several outputs their sum; padding is
    /// left out.
    pub(crate) fn merge(&self, outputs: [Tensor<2>; DIRECTIONS]) -> Tensor<2> {
        let all = Tensor::cat(outputs.into(), 0);
        let mut parts = self.back.iter().map(|rows| gather_rows(all.clone(), rows));
        let first = parts.next();
        let sum = parts.fold(first, |sum, part| sum.map(|sum| sum + part));
        sum.unwrap_or(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use frugal_nn::to_vec;

    fn numbers(sequence: &[Option<usize>]) -> Vec<i64> {
        sequence
            .iter()
            .map(|p| p.map_or(-1, |p| p as i64))
            .collect()
    }

    #[test]
    fn every_second_pixel_in_the_order_of_the_published_code() {
        let split = ScanPattern::Atrous.sequences([4, 4]).map(|s| numbers(&s));
        let expected = [[0, 2, 8, 10], [4, 12, 6, 14], [1, 3, 9, 11], [5, 13, 7, 15]];
        assert_eq!(split, expected.map(Vec::from));
        let odd = ScanPattern::Atrous.sequences([3, 3]).map(|s| numbers(&s));
        let expected = [
            [0, 2, 6, 8],
            [3, -1, 5, -1],
            [1, -1, 7, -1],
            [4, -1, -1, -1],
        ];
        assert_eq!(odd, expected.map(Vec::from));
    }

    #[test]
    fn all_pixels_in_the_order_of_vmamba() {
        let split = ScanPattern::Cross.sequences([2, 3]).map(|s| numbers(&s));
        let expected = [
            [0, 1, 2, 3, 4, 5],
            [0, 3, 1, 4, 2, 5],
            [5, 4, 3, 2, 1, 0],
            [5, 2, 4, 1, 3, 0],
        ];
        assert_eq!(split, expected.map(Vec::from));
        // Section 3.2 of EfficientVMamba at 56 x 56.
        assert_eq!(ScanPattern::Cross.tokens([56, 56]), 12_544);
        assert_eq!(ScanPattern::Atrous.tokens([56, 56]), 3_136);
    }

    #[test]
    fn merging_gives_back_what_was_split() {
        let device = Device::flex();
        for [height, width] in [
            [1, 1],
            [1, 2],
            [2, 1],
            [3, 3],
            [4, 4],
            [5, 2],
            [2, 7],
            [6, 9],
        ] {
            for images in [1, 3] {
                let count = images * height * width * 2;
                let values: Vec<f32> = (0..count).map(|i| i as f32 + 1.0).collect();
                let shape = [images * height * width, 2];
                let x = Tensor::<2>::from_data(TensorData::new(values.clone(), shape), &device);
                for (pattern, times) in [(ScanPattern::Atrous, 1.0), (ScanPattern::Cross, 4.0)] {
                    let grids = SubGrids::of(pattern, [height, width], images);
                    let merged = to_vec(grids.merge(grids.split(x.clone())));
                    let expected: Vec<f32> = values.iter().map(|v| v * times).collect();
                    assert_eq!(merged, expected, "{pattern:?} {height} x {width}");
                    let length = pattern.sequences([height, width])[0].len();
                    assert_eq!(grids.cu_seqlens.last(), Some(&(images * length)));
                }
            }
        }
    }
}
