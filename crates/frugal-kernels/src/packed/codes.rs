//! Matrices in codes of 4 or 8 bits.

use frugal_formats::gguf::{GgmlType, unpack_codes};
use half::f16;
use rayon::prelude::*;

use crate::blockwise::Blockwise;

/// Rows that are stored together: one lane of a vector each.
pub(crate) const PANEL: usize = 16;

/// The 16 values of 4-bit NormalFloat, which split a normal distribution into equal shares (QLoRA,
/// appendix E).
pub(crate) const NF4: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// Elements of a row that share a scale in NF4.
const NF4_GROUP: usize = 64;

/// Scales or minima, one for each group and row: `[panels, groups, PANEL]`.
pub(crate) enum Numbers {
    F16(Vec<f16>),
    F32(Vec<f32>),
    /// How far each is from the mean of all, in a byte: the double quantisation of QLoRA.
    Byte(Blockwise, f32),
}

impl Numbers {
    fn double(values: Vec<f32>) -> Self {
        let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / values.len().max(1) as f64;
        let mut codes = Blockwise::zeros(values.len(), true);
        codes.set(&values.iter().map(|v| v - mean as f32).collect::<Vec<_>>());
        Self::Byte(codes, mean as f32)
    }

    fn at(&self, i: usize) -> f32 {
        match self {
            Self::F16(values) => values[i].to_f32(),
            Self::F32(values) => values[i],
            Self::Byte(codes, mean) => codes.at(i) + mean,
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::F16(values) => 2 * values.len(),
            Self::F32(values) => 4 * values.len(),
            Self::Byte(codes, _) => codes.len() + 4 * codes.absmax().len(),
        }
    }
}

/// What 0 is coded as, or that every group has a minimum.
pub(crate) enum Offset {
    Zero(u8),
    Minimum(Numbers),
    /// Codes are places in a table.
    Table,
}

/// A frozen matrix `[rows, cols]` in codes of 4 or 8 bits with scales for groups of neighbours in a
/// row.
///
/// Rows lie in panels of 16, so that one vector holds the same place of 16 rows. Codes of 5 and 6
/// bits take a byte.
pub(crate) struct Codes {
    format: String,
    rows: usize,
    cols: usize,
    /// Elements of a group; the last group of a row may be filled up with zeros.
    pub(crate) group: usize,
    /// 4 or 8.
    pub(crate) bits: u32,
    /// `[panels, groups, group / 4, PANEL, 4]` bytes; of 4-bit codes, the low halves hold the first
    /// half of the group.
    pub(crate) codes: Vec<u8>,
    pub(crate) scales: Numbers,
    pub(crate) offset: Offset,
}

/// What [`Codes::build`] makes room for.
struct Layout {
    group: usize,
    bits: u32,
    half: bool,
    minimum: bool,
}

/// One row on its way into a panel.
struct Row {
    codes: Vec<u8>,
    scales: Vec<f32>,
    minima: Vec<f32>,
}

fn assert_rows(values: &[f32], cols: usize) {
    assert!(
        cols > 0 && values.len().is_multiple_of(cols),
        "{} values are no whole rows of {cols}",
        values.len()
    );
}

impl Codes {
    /// A matrix of GGUF blocks with `cols` columns; row `i` is row `order[i]` of the file, or row
    /// `i`.
    ///
    /// `None` for floating-point types.
    ///
    /// # Panics
    /// When the bytes are not whole rows, or a row is no whole number of blocks.
    pub(crate) fn from_ggml(
        ggml_type: GgmlType,
        bytes: &[u8],
        cols: usize,
        order: Option<&[usize]>,
    ) -> Option<Self> {
        let codes = ggml_type.code_layout()?;
        let row_bytes = cols / ggml_type.block_len() * ggml_type.block_bytes();
        assert!(
            cols.is_multiple_of(ggml_type.block_len())
                && row_bytes > 0
                && bytes.len().is_multiple_of(row_bytes)
        );
        let rows = bytes.len() / row_bytes;
        assert!(
            order.is_none_or(|order| order.len() == rows),
            "an order of other than {rows} rows"
        );
        let layout = Layout {
            group: codes.group,
            bits: if codes.bits == 4 { 4 } else { 8 },
            half: codes.half,
            minimum: codes.minimum,
        };
        let offset = if codes.minimum {
            None
        } else {
            Some(Offset::Zero(codes.zero))
        };
        Some(Self::build(
            ggml_type.to_string(),
            [rows, cols],
            layout,
            offset,
            |i, row| {
                let bytes = &bytes[order.map_or(i, |order| order[i]) * row_bytes..][..row_bytes];
                unpack_codes(
                    ggml_type,
                    bytes,
                    &mut row.codes,
                    &mut row.scales,
                    &mut row.minima,
                );
            },
        ))
    }

    /// Rounds a dense row-major matrix to the blocks of a GGUF type: Q8_0, Q4_0 or Q4_1.
    ///
    /// `None` for other types, and where a row is no whole number of blocks.
    pub(crate) fn to_ggml(ggml_type: GgmlType, values: &[f32], cols: usize) -> Option<Self> {
        if cols == 0 || !cols.is_multiple_of(ggml_type.block_len()) {
            return None;
        }
        let rows: Option<Vec<Vec<u8>>> = values
            .par_chunks(cols)
            .map(|row| frugal_formats::gguf::quantize(ggml_type, row).ok())
            .collect();
        Self::from_ggml(ggml_type, &rows?.concat(), cols, None)
    }

    /// Rounds a dense row-major matrix to 8 bits with one scale per row, `max |w| / 127`; rows of
    /// more than 32,768 elements have one for each so many.
    ///
    /// # Panics
    /// When the values are not whole rows of at least one column.
    pub(crate) fn int8(values: &[f32], cols: usize) -> Self {
        /// Sums of products of so many codes stay within 32 bits.
        const LONGEST: usize = 1 << 15;
        assert_rows(values, cols);
        let group = cols.next_multiple_of(8).min(LONGEST);
        let layout = Layout {
            group,
            bits: 8,
            half: false,
            minimum: false,
        };
        Self::build(
            "int8".into(),
            [values.len() / cols, cols],
            layout,
            Some(Offset::Zero(128)),
            |i, row| {
                let groups = values[i * cols..][..cols]
                    .chunks(group)
                    .zip(row.codes.chunks_mut(group));
                for (scale, (values, codes)) in row.scales.iter_mut().zip(groups) {
                    *scale = values.iter().fold(0.0f32, |max, v| max.max(v.abs())) / 127.0;
                    let inverse = if *scale > 0.0 { 1.0 / *scale } else { 0.0 };
                    codes
                        .iter_mut()
                        .zip(values)
                        .for_each(|(code, v)| *code = (v * inverse).round() as i8 as u8 ^ 0x80);
                }
            },
        )
    }

    /// Rounds a dense row-major matrix to 4-bit NormalFloat with one scale, `max |w|`, for 64
    /// elements.
    ///
    /// # Panics
    /// When the values are not whole rows of at least one column.
    pub(crate) fn nf4(values: &[f32], cols: usize) -> Self {
        Self::normal_float("nf4", values, cols)
    }

    /// [`Codes::nf4`] with the scales in a byte each, less their mean: 4.13 bits for an element
    /// instead of 4.5.
    ///
    /// # Panics
    /// When the values are not whole rows of at least one column.
    pub(crate) fn nf4_double(values: &[f32], cols: usize) -> Self {
        let packed = Self::normal_float("nf4_double", values, cols);
        let scales = match packed.scales {
            Numbers::F32(scales) => Numbers::double(scales),
            other => other,
        };
        Self { scales, ..packed }
    }

    fn normal_float(name: &str, values: &[f32], cols: usize) -> Self {
        let layout = Layout {
            group: NF4_GROUP,
            bits: 4,
            half: false,
            minimum: false,
        };
        // Between two neighbours, the nearer one.
        let borders: [f32; 15] = std::array::from_fn(|i| f32::midpoint(NF4[i], NF4[i + 1]));
        assert_rows(values, cols);
        Self::build(
            name.into(),
            [values.len() / cols, cols],
            layout,
            Some(Offset::Table),
            |i, row| {
                let groups = values[i * cols..][..cols]
                    .chunks(NF4_GROUP)
                    .zip(row.codes.chunks_mut(NF4_GROUP));
                for (scale, (values, codes)) in row.scales.iter_mut().zip(groups) {
                    *scale = values.iter().fold(0.0f32, |max, v| max.max(v.abs()));
                    let inverse = if *scale > 0.0 { 1.0 / *scale } else { 0.0 };
                    codes.iter_mut().zip(values).for_each(|(code, v)| {
                        *code = borders.partition_point(|border| v * inverse > *border) as u8
                    });
                }
            },
        )
    }

    fn build(
        format: String,
        [rows, cols]: [usize; 2],
        layout: Layout,
        offset: Option<Offset>,
        fill: impl Fn(usize, &mut Row) + Sync,
    ) -> Self {
        let Layout {
            group,
            bits,
            half,
            minimum,
        } = layout;
        let (panels, groups) = (rows.div_ceil(PANEL), cols.div_ceil(group));
        let panel_bytes = groups * group * PANEL * bits as usize / 8;
        let mut codes = vec![0; panels * panel_bytes];
        let per_panel = groups * PANEL;
        let (mut scales, mut minima) = (
            vec![0.0; panels * per_panel],
            vec![0.0; if minimum { panels * per_panel } else { 0 }],
        );
        // Every panel has its own part of the minima, if there are any.
        let mut minima_of: Vec<&mut [f32]> = if minimum {
            minima.chunks_mut(per_panel.max(1)).collect()
        } else {
            Vec::new()
        };
        minima_of.resize_with(panels, Default::default);
        let zero = match &offset {
            Some(Offset::Zero(zero)) => *zero,
            Some(Offset::Table) => 7,
            _ => 0,
        };
        let parts = codes
            .par_chunks_mut(panel_bytes.max(1))
            .zip(scales.par_chunks_mut(per_panel.max(1)))
            .zip(minima_of);
        parts
            .enumerate()
            .for_each(|(panel, ((codes, scales), minima))| {
                let mut row = Row {
                    codes: Vec::new(),
                    scales: vec![0.0; groups],
                    minima: vec![0.0; groups],
                };
                for lane in 0..PANEL.min(rows - panel * PANEL) {
                    row.codes.clear();
                    row.codes.resize(groups * group, zero);
                    fill(panel * PANEL + lane, &mut row);
                    place(codes, lane, &row.codes, group, bits);
                    scales
                        .iter_mut()
                        .skip(lane)
                        .step_by(PANEL)
                        .zip(&row.scales)
                        .for_each(|(to, from)| *to = *from);
                    minima
                        .iter_mut()
                        .skip(lane)
                        .step_by(PANEL)
                        .zip(&row.minima)
                        .for_each(|(to, from)| *to = *from);
                }
            });
        let numbers = |values: Vec<f32>| {
            if half {
                Numbers::F16(values.into_iter().map(f16::from_f32).collect())
            } else {
                Numbers::F32(values)
            }
        };
        let offset = offset.unwrap_or_else(|| Offset::Minimum(numbers(minima)));
        Self {
            format,
            rows,
            cols,
            group,
            bits,
            codes,
            scales: numbers(scales),
            offset,
        }
    }

    /// What it calls its format: a GGUF type, `int8`, `nf4` or `nf4_double`.
    pub(crate) fn format(&self) -> &str {
        &self.format
    }

    /// `[rows, cols]`.
    pub(crate) fn dims(&self) -> [usize; 2] {
        [self.rows, self.cols]
    }

    /// Bytes held.
    pub(crate) fn bytes(&self) -> usize {
        self.codes.len()
            + self.scales.bytes()
            + if let Offset::Minimum(minima) = &self.offset {
                minima.bytes()
            } else {
                0
            }
    }

    pub(crate) fn groups(&self) -> usize {
        self.cols.div_ceil(self.group)
    }

    /// Panels of rows; the last one may have rows of zeros at its end.
    pub(crate) fn panels(&self) -> usize {
        self.rows.div_ceil(PANEL)
    }

    /// Bytes of a panel's codes.
    pub(crate) fn panel_bytes(&self) -> usize {
        self.groups() * self.group * PANEL * self.bits as usize / 8
    }

    /// Writes row `row` to `out`, which has room for it.
    pub(crate) fn read_row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        let (panel, lane) = (row / PANEL, row % PANEL);
        let codes = &self.codes[panel * self.panel_bytes()..][..self.panel_bytes()];
        let at = |numbers: &Numbers, group: usize| {
            numbers.at((panel * self.groups() + group) * PANEL + lane)
        };
        for (k, out) in out.iter_mut().enumerate() {
            let (byte, shift) = position(k, lane, self.group, self.bits);
            let code = if self.bits == 4 {
                (codes[byte] >> shift) & 0x0f
            } else {
                codes[byte]
            };
            let scale = at(&self.scales, k / self.group);
            *out = match &self.offset {
                Offset::Zero(zero) => scale * f32::from(i16::from(code) - i16::from(*zero)),
                Offset::Minimum(minima) => scale * f32::from(code) + at(minima, k / self.group),
                Offset::Table => scale * NF4[usize::from(code)],
            };
        }
    }
}

/// Where the code of column `k` is in a panel: byte, and shift of a 4-bit code.
fn position(k: usize, lane: usize, group: usize, bits: u32) -> (usize, u32) {
    let (g, j, i) = (k / group, k % group / 4, k % 4);
    if bits == 8 {
        return (g * group * PANEL + j * 4 * PANEL + lane * 4 + i, 0);
    }
    let half = group / 8;
    (
        g * group * PANEL / 2 + j % half * 4 * PANEL + lane * 4 + i,
        if j < half { 0 } else { 4 },
    )
}

fn place(panel: &mut [u8], lane: usize, codes: &[u8], group: usize, bits: u32) {
    for (k, code) in codes.iter().enumerate() {
        let (byte, shift) = position(k, lane, group, bits);
        panel[byte] |= code << shift;
    }
}
