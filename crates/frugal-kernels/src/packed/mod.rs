//! Frozen matrices in fewer bits than single precision.

mod bf16;
mod codes;

use std::fmt::{self, Debug, Formatter};

use burn::tensor::{Device, Tensor, TensorData};
use frugal_formats::gguf::GgmlType;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

pub(crate) use bf16::{Bf16, NR, Pair};
pub(crate) use codes::{Codes, NF4, Numbers, Offset, PANEL};

/// What the matrix product does with its other factor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ActivationQuant {
    /// Single precision, against the matrix unpacked piece by piece: the result is that of the
    /// dense matrix.
    #[default]
    Exact,
    /// Rounded to 8 bits for each group of the matrix, so that products are of integers: with one
    /// group to a row, as in [`Packed::int8`], that is W8A8 with a scale for each token. The
    /// backward pass is that of the exact product. NF4, whose values are no integers, computes as
    /// [`ActivationQuant::Exact`].
    Int8,
}

/// A frozen matrix `[rows, cols]` in codes of 4 or 8 bits with scales for groups of neighbours in a
/// row, or in bfloat16.
pub struct Packed {
    form: Form,
    activations: ActivationQuant,
}

/// What the bits of a matrix stand for.
pub(crate) enum Form {
    Codes(Codes),
    Bf16(Bf16),
}

impl Debug for Packed {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let [rows, cols] = self.dims();
        write!(f, "Packed({}, [{rows}, {cols}])", self.format())
    }
}

impl From<Codes> for Packed {
    fn from(codes: Codes) -> Self {
        Self::of(Form::Codes(codes))
    }
}

impl Packed {
    fn of(form: Form) -> Self {
        Self {
            form,
            activations: ActivationQuant::Exact,
        }
    }

    /// A matrix of GGUF blocks with `cols` columns; row `i` is row `order[i]` of the file, or row
    /// `i`.
    ///
    /// `None` for floating-point types.
    ///
    /// # Panics
    /// When the bytes are not whole rows, or a row is no whole number of blocks.
    pub fn from_ggml(
        ggml_type: GgmlType,
        bytes: &[u8],
        cols: usize,
        order: Option<&[usize]>,
    ) -> Option<Self> {
        Codes::from_ggml(ggml_type, bytes, cols, order).map(Self::from)
    }

    /// Rounds a dense row-major matrix to the blocks of a GGUF type: Q8_0, Q4_0 or Q4_1.
    ///
    /// `None` for other types, and where a row is no whole number of blocks.
    pub fn to_ggml(ggml_type: GgmlType, values: &[f32], cols: usize) -> Option<Self> {
        Codes::to_ggml(ggml_type, values, cols).map(Self::from)
    }

    /// Rounds a dense row-major matrix to 8 bits with one scale per row, `max |w| / 127`; rows of
    /// more than 32,768 elements have one for each so many.
    ///
    /// # Panics
    /// When the values are not whole rows of at least one column.
    pub fn int8(values: &[f32], cols: usize) -> Self {
        Codes::int8(values, cols).into()
    }

    /// Rounds a dense row-major matrix to 4-bit NormalFloat with one scale, `max |w|`, for 64
    /// elements.
    ///
    /// # Panics
    /// When the values are not whole rows of at least one column.
    pub fn nf4(values: &[f32], cols: usize) -> Self {
        Codes::nf4(values, cols).into()
    }

    /// [`Packed::nf4`] with the scales in a byte each, less their mean: 4.13 bits for an element
    /// instead of 4.5.
    ///
    /// # Panics
    /// When the values are not whole rows of at least one column.
    pub fn nf4_double(values: &[f32], cols: usize) -> Self {
        Codes::nf4_double(values, cols).into()
    }

    /// Rounds a dense row-major matrix to bfloat16, to the nearest and ties to even.
    ///
    /// Products round their other factor to bfloat16 too, forwards and backwards, and sum in single
    /// precision: with both factors as they were rounded, a sum of `n` products is off by at most
    /// `(n + 3) · 2⁻²⁴` times the sum of their magnitudes; rounding is off by at most `2⁻⁸` of each
    /// factor. Numbers below `2⁻¹²⁶` may count as 0. Biases and low-rank pairs stay in single
    /// precision. The result does not depend on the number of threads.
    ///
    /// # Panics
    /// When the values are not whole rows of at least one column.
    pub fn bf16(values: &[f32], cols: usize) -> Self {
        Self::of(Form::Bf16(Bf16::new(values, cols)))
    }

    /// The same matrix with another way to multiply.
    pub fn with_activations(self, activations: ActivationQuant) -> Self {
        Self {
            activations,
            ..self
        }
    }

    /// What it calls its format: a GGUF type, `int8`, `nf4`, `nf4_double` or `bf16`.
    pub fn format(&self) -> &str {
        match &self.form {
            Form::Codes(codes) => codes.format(),
            Form::Bf16(_) => "bf16",
        }
    }

    /// `[rows, cols]`.
    pub fn dims(&self) -> [usize; 2] {
        match &self.form {
            Form::Codes(codes) => codes.dims(),
            Form::Bf16(matrix) => matrix.dims(),
        }
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        match &self.form {
            Form::Codes(codes) => codes.bytes(),
            Form::Bf16(matrix) => matrix.bytes(),
        }
    }

    pub(crate) fn form(&self) -> &Form {
        &self.form
    }

    /// Whether products with these codes are of integers.
    pub(crate) fn computes_in_integers(&self, codes: &Codes) -> bool {
        self.activations == ActivationQuant::Int8 && !matches!(codes.offset, Offset::Table)
    }

    /// All elements, row by row.
    pub fn to_vec(&self) -> Vec<f32> {
        let rows: Vec<u32> = (0..self.dims()[0] as u32).collect();
        self.gather(&rows)
    }

    /// The elements of some rows.
    ///
    /// # Panics
    /// When there is no such row.
    pub fn gather(&self, rows: &[u32]) -> Vec<f32> {
        let [count, cols] = self.dims();
        let mut out = vec![0.0; rows.len() * cols];
        out.par_chunks_mut(cols.max(1))
            .zip(rows)
            .for_each(|(out, &row)| {
                let row = row as usize;
                assert!(row < count, "row {row} of {count}");
                match &self.form {
                    Form::Codes(codes) => codes.read_row(row, out),
                    Form::Bf16(matrix) => matrix.read_row(row, out),
                }
            });
        out
    }

    /// The dense matrix.
    pub fn dense(&self, device: &Device) -> Tensor<2> {
        Tensor::from_data(TensorData::new(self.to_vec(), self.dims()), device)
    }

    /// The dense rows at these places, `[rows, cols]`.
    ///
    /// # Panics
    /// When there is no such row.
    pub fn select(&self, rows: &[u32], device: &Device) -> Tensor<2> {
        let shape = [rows.len(), self.dims()[1]];
        Tensor::from_data(TensorData::new(self.gather(rows), shape), device)
    }
}
