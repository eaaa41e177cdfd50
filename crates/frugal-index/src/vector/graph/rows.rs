//! How far rows of a file of vectors are from something, in any encoding.

use half::f16;
use half::slice::HalfFloatSliceExt;

use super::super::error::VectorError;
use super::super::kind::{Encoding, Metric};
use super::super::layout::{BLOCK, Section};
use super::super::open::VectorIndex;
use super::super::simd;

/// What rows are compared with.
pub(super) struct Target {
    numbers: Vec<f32>,
    square: f32,
}

/// Rows one at a time, with room for one that has to be decoded.
pub(super) struct Rows<'a> {
    index: &'a VectorIndex,
    scratch: Vec<f32>,
}

impl<'a> Rows<'a> {
    pub(super) fn new(index: &'a VectorIndex) -> Self {
        Self {
            index,
            scratch: vec![0.0; index.dimension()],
        }
    }

    pub(super) fn target(&self, numbers: &[f32]) -> Target {
        Target {
            square: numbers.iter().map(|v| v * v).sum(),
            numbers: numbers.to_vec(),
        }
    }

    /// A row as something to compare others with.
    pub(super) fn row(&mut self, row: u32) -> Result<Target, VectorError> {
        let numbers = self.numbers(row)?.to_vec();
        Ok(self.target(&numbers))
    }

    /// Lower is nearer. It is the same from both sides.
    pub(super) fn distance(&mut self, target: &Target, row: u32) -> Result<f32, VectorError> {
        let mut product = [0.0];
        simd::products(self.numbers(row)?, &target.numbers, &mut product);
        Ok(match self.index.metric() {
            Metric::Ip | Metric::Cosine => -product[0],
            Metric::L2 => {
                let square = self.index.row(Section::Squares, row as usize);
                target.square + bytemuck::cast_slice::<u8, f32>(square)[0] - 2.0 * product[0]
            }
        })
    }

    fn numbers(&mut self, row: u32) -> Result<&[f32], VectorError> {
        let row = row as usize;
        self.index.check_block(row / BLOCK)?;
        let bytes = self.index.row(Section::Numbers, row);
        match self.index.encoding() {
            Encoding::F32 => return Ok(bytemuck::cast_slice(bytes)),
            Encoding::F16 => {
                bytemuck::cast_slice::<u8, f16>(bytes).convert_to_f32_slice(&mut self.scratch);
            }
            Encoding::Int8 | Encoding::Binary => {
                let scales = bytemuck::cast_slice(self.index.row(Section::Scales, row));
                let (codes, width) = (bytemuck::cast_slice(bytes), self.scratch.len());
                simd::dequantize(codes, scales, width, &mut self.scratch);
            }
        }
        Ok(&self.scratch)
    }
}
