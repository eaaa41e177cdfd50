//! Products with packed matrices: of integers, or in single precision against the matrix unpacked
//! piece by piece.

use std::ops::Range;

use rayon::prelude::*;

use super::matrix::{Matrix, MatrixMut, Shared, Threads};
use super::scratch::Scratch;
use crate::packed::{NF4, Numbers, Offset, PANEL, Packed};
use crate::simd::bytes::{Bytes, CODES, multiversion_bytes};
use crate::simd::{Isa, LANES, Lanes, multiversion};

/// Elements unpacked at a time: 4 MiB, which the second-level cache nearly holds.
const TILE: usize = 1 << 20;
/// Up to this many rows of x, a panel is unpacked and used by the thread that unpacked it.
const FEW_ROWS: usize = 8;
/// Bytes of codes that are worth a thread.
const TASK_BYTES: usize = 1 << 16;

/// `x · weightᵀ + bias`, `[tokens, rows]`.
pub(crate) fn affine(x: Matrix, weight: &Packed, bias: Option<&[f32]>) -> Vec<f32> {
    let rows = weight.dims()[0];
    let mut y = vec![0.0; x.rows * rows];
    let mut out = MatrixMut::new(&mut y, x.rows, rows);
    product(&mut out, x, weight);
    if let Some(bias) = bias {
        y.par_chunks_mut(rows.max(1))
            .with_min_len(16)
            .for_each(|row| row.iter_mut().zip(bias).for_each(|(y, bias)| *y += bias));
    }
    y
}

/// `out = x · weightᵀ`.
pub(crate) fn product(out: &mut MatrixMut, x: Matrix, weight: &Packed) {
    let [_, cols] = weight.dims();
    assert!(
        x.cols == cols,
        "x has {} columns and the packed matrix {cols}",
        x.cols
    );
    let dense;
    let x = if x.has_dense_rows() {
        x
    } else {
        dense = x.to_rows();
        Matrix::new(&dense, x.rows, x.cols)
    };
    if x.rows == 0 || weight.dims()[0] == 0 {
    } else if cols == 0 {
        out.clear();
    } else if weight.computes_in_integers() {
        integer_product(out, x, weight);
    } else if x.rows <= FEW_ROWS {
        few_rows(out, x, weight);
    } else {
        for_tiles(weight, |tile, rows| {
            out.narrow_cols(&rows).set(x, tile, 1.0, Threads::All)
        });
    }
}

/// `out = y · weight`, for y `[tokens, rows]`.
pub(crate) fn transposed_product(out: &mut MatrixMut, y: Matrix, weight: &Packed) {
    if weight.dims()[0] == 0 {
        out.clear();
    }
    for_tiles(weight, |tile, rows| {
        let y = y.window(0, y.rows, rows.start, rows.len());
        if rows.start == 0 {
            out.set(y, tile.t(), 1.0, Threads::All)
        } else {
            out.add(y, tile.t(), 1.0, Threads::All)
        }
    });
}

/// Calls `f` with some rows of the matrix at a time, transposed: `[cols, rows]`.
fn for_tiles(weight: &Packed, mut f: impl FnMut(Matrix, Range<usize>)) {
    let [rows, cols] = weight.dims();
    let per_tile = (TILE / (cols * PANEL).max(1)).clamp(1, weight.panels().max(1));
    let mut scratch = Scratch::new(per_tile * PANEL * cols);
    for first in (0..weight.panels()).step_by(per_tile) {
        let panels = first..(first + per_tile).min(weight.panels());
        let width = panels.len() * PANEL;
        let tile = &mut scratch[..width * cols];
        let shared = Shared::new(tile);
        panels.clone().into_par_iter().for_each(|panel| {
            // SAFETY: each panel has columns of its own.
            let out = unsafe { shared.window((panel - first) * PANEL, cols, PANEL, width) };
            unpack(out, weight, panel);
        });
        let valid = first * PANEL..(panels.end * PANEL).min(rows);
        f(
            Matrix::new(tile, cols, width).window(0, cols, 0, valid.len()),
            valid,
        );
    }
}

fn unpack(out: MatrixMut<'_>, weight: &Packed, panel: usize) {
    if weight.bits == 4 {
        unpack_bits::<4>(out, weight, panel)
    } else {
        unpack_bits::<8>(out, weight, panel)
    }
}

multiversion_bytes!(fn unpack_bits<const BITS: u32>(out: MatrixMut<'_>, weight: &Packed, panel: usize) = unpack_body);

/// Writes a panel transposed, `[cols, PANEL]`.
#[inline(always)]
fn unpack_body<B: Bytes, const BITS: u32>(mut out: MatrixMut<'_>, weight: &Packed, panel: usize) {
    let (group, groups) = (weight.group, weight.groups());
    let codes = weight.codes[panel * weight.panel_bytes()..][..weight.panel_bytes()]
        .as_chunks::<CODES>()
        .0;
    let per_group = codes.len() / groups;
    for (g, codes) in codes.chunks_exact(per_group).enumerate() {
        let at = (panel * groups + g) * PANEL;
        let scales = lanes_at::<B>(&weight.scales, at);
        let none = B::Lanes::splat(0.0);
        let terms = match &weight.offset {
            Offset::Zero(zero) => Terms::Codes {
                zero: B::Lanes::splat(-f32::from(*zero)),
                scales,
                minima: none,
            },
            Offset::Minimum(minima) => Terms::Codes {
                zero: none,
                scales,
                minima: lanes_at::<B>(minima, at),
            },
            Offset::Table => Terms::Table { scales },
        };
        for (j, codes) in codes.iter().enumerate() {
            let codes = B::load(codes);
            let first = g * group + 4 * j;
            if BITS == 4 {
                unpack_vector::<B>(&mut out, first, B::low(codes), &terms);
                unpack_vector::<B>(&mut out, first + 4 * per_group, B::high(codes), &terms);
            } else {
                unpack_vector::<B>(&mut out, first, codes, &terms);
            }
        }
    }
}

/// What codes of a group stand for.
enum Terms<L> {
    /// `(code + zero) · scale + minimum`.
    Codes { zero: L, scales: L, minima: L },
    /// The number of a table at that place, times the scale.
    Table { scales: L },
}

/// Writes four columns from `first`, as far as there are so many.
#[inline(always)]
fn unpack_vector<B: Bytes>(
    out: &mut MatrixMut<'_>,
    first: usize,
    codes: B::Codes,
    terms: &Terms<B::Lanes>,
) {
    for i in 0..4 {
        if first + i < out.rows() {
            let values = match terms {
                Terms::Codes {
                    zero,
                    scales,
                    minima,
                } => B::code(codes, i).add(*zero).mul_add(*scales, *minima),
                Terms::Table { scales } => B::look_up(&NF4, codes, i).mul(*scales),
            };
            values.store(
                out.row_mut(first + i)
                    .try_into()
                    .expect("a panel has sixteen rows"),
            );
        }
    }
}

/// Each panel is unpacked once and meets all rows of x.
fn few_rows(out: &mut MatrixMut, x: Matrix, weight: &Packed) {
    let [rows, cols] = weight.dims();
    let shared = out.share();
    (0..weight.panels())
        .into_par_iter()
        .with_min_len((TASK_BYTES / weight.panel_bytes()).max(1))
        .for_each(|panel| {
            let mut tile = Scratch::new(cols * PANEL);
            unpack(MatrixMut::new(&mut tile, cols, PANEL), weight, panel);
            for i in 0..x.rows {
                let mut y = [0.0; LANES];
                row_times_tile(&mut y, x.row(i), &tile);
                let valid = PANEL.min(rows - panel * PANEL);
                // SAFETY: each panel has columns of its own.
                unsafe { shared.write(i, panel * PANEL, &y[..valid]) };
            }
        });
}

multiversion!(fn row_times_tile(out: &mut [f32; LANES], x: &[f32], tile: &[f32]) = row_times_tile_body);

#[inline(always)]
fn row_times_tile_body<I: Isa>(out: &mut [f32; LANES], x: &[f32], tile: &[f32]) {
    let (x_quads, x_rest) = x.as_chunks::<4>();
    let (tile_quads, tile_rest) = tile.as_chunks::<LANES>().0.as_chunks::<4>();
    let mut sums = [I::Lanes::splat(0.0); 4];
    for (x, tile) in x_quads.iter().zip(tile_quads) {
        for (sum, (x, row)) in sums.iter_mut().zip(x.iter().zip(tile)) {
            *sum = I::Lanes::load(row).mul_add(I::Lanes::splat(*x), *sum);
        }
    }
    for (x, row) in x_rest.iter().zip(tile_rest) {
        sums[0] = I::Lanes::load(row).mul_add(I::Lanes::splat(*x), sums[0]);
    }
    sums[0].add(sums[1]).add(sums[2].add(sums[3])).store(out);
}

/// Rows of x in 8 bits, with a scale for each group.
struct Rounded {
    /// `[rows, groups * group]`.
    codes: Vec<i8>,
    /// `[rows, groups]`.
    scales: Vec<f32>,
    /// Sums of the codes, `[rows, groups]`.
    sums: Vec<i32>,
}

fn rounded(x: Matrix, group: usize) -> Rounded {
    let groups = x.cols.div_ceil(group);
    let width = groups * group;
    let mut codes = vec![0; x.rows * width];
    let (mut scales, mut sums) = (vec![0.0; x.rows * groups], vec![0; x.rows * groups]);
    let rows = codes
        .par_chunks_mut(width)
        .zip(scales.par_chunks_mut(groups))
        .zip(sums.par_chunks_mut(groups))
        .enumerate();
    // One row is not worth a thread.
    rows.with_min_len(16)
        .for_each(|(i, ((codes, scales), sums))| round_row(codes, scales, sums, x.row(i), group));
    Rounded {
        codes,
        scales,
        sums,
    }
}

multiversion!(fn round_row(codes: &mut [i8], scales: &mut [f32], sums: &mut [i32], x: &[f32], group: usize) = round_row_body);

#[inline(always)]
fn round_row_body<I: Isa>(
    codes: &mut [i8],
    scales: &mut [f32],
    sums: &mut [i32],
    x: &[f32],
    group: usize,
) {
    // 1.5 * 2^23: adding it rounds to the nearest integer and leaves that integer in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let outputs = codes.chunks_exact_mut(group).zip(scales).zip(sums);
    for (x, ((codes, scale), sum)) in x.chunks(group).zip(outputs) {
        let mut largest = [0.0f32; LANES];
        let (blocks, rest) = x.as_chunks::<LANES>();
        for block in blocks {
            for (max, x) in largest.iter_mut().zip(block) {
                *max = if x.abs() > *max { x.abs() } else { *max };
            }
        }
        let largest = largest
            .iter()
            .chain(rest)
            .fold(0.0f32, |max, x| max.max(x.abs()));
        // What is not a number has no code, and must not pass for one.
        *scale = if x.iter().fold(false, |found, x| found | x.is_nan()) {
            f32::NAN
        } else {
            largest / 127.0
        };
        let inverse = if largest > 0.0 { 127.0 / largest } else { 0.0 };
        let mut total = 0;
        for (code, x) in codes.iter_mut().zip(x) {
            *code = (x * inverse + ROUND).to_bits() as u8 as i8;
            total += i32::from(*code);
        }
        *sum = total;
    }
}

/// Rows of x that share a reading of the codes.
const ROWS: usize = 8;

fn integer_product(out: &mut MatrixMut, x: Matrix, weight: &Packed) {
    let x_rows = x.rows;
    let x = rounded(x, weight.group);
    let shared = out.share();
    let run = |panel: usize| {
        let mut first = 0;
        while first < x_rows {
            let count = x_rows - first;
            let mut y = [[0.0; LANES]; ROWS];
            let count = match count {
                ROWS.. => {
                    (
                        panel_product_of::<ROWS>(&mut y, &x, first, weight, panel),
                        ROWS,
                    )
                        .1
                }
                4.. => (panel_product_of::<4>(&mut y, &x, first, weight, panel), 4).1,
                _ => (panel_product_of::<1>(&mut y, &x, first, weight, panel), 1).1,
            };
            let valid = PANEL.min(weight.dims()[0] - panel * PANEL);
            for (i, y) in y.iter().take(count).enumerate() {
                // SAFETY: each panel has columns of its own.
                unsafe { shared.write(first + i, panel * PANEL, &y[..valid]) };
            }
            first += count;
        }
    };
    let work = weight.panel_bytes() * x_rows;
    if work * weight.panels() <= TASK_BYTES {
        (0..weight.panels()).for_each(run);
    } else {
        (0..weight.panels())
            .into_par_iter()
            .with_min_len((TASK_BYTES / work.max(1)).max(1))
            .for_each(run);
    }
}

fn panel_product_of<const T: usize>(
    y: &mut [[f32; LANES]; ROWS],
    x: &Rounded,
    first: usize,
    weight: &Packed,
    panel: usize,
) {
    if weight.bits == 4 {
        panel_product::<4, T>(y, x, first, weight, panel)
    } else {
        panel_product::<8, T>(y, x, first, weight, panel)
    }
}

multiversion_bytes!(
    fn panel_product<const BITS: u32, const T: usize>(
        y: &mut [[f32; LANES]; ROWS],
        x: &Rounded,
        first: usize,
        weight: &Packed,
        panel: usize,
    ) = panel_product_body
);

/// Sixteen scales or minima. A function rather than a closure, which would not be compiled for the
/// instruction set.
#[inline(always)]
fn lanes_at<B: Bytes>(numbers: &Numbers, at: usize) -> B::Lanes {
    match numbers {
        Numbers::F16(values) => B::halves(values[at..][..LANES].try_into().expect("sixteen")),
        Numbers::F32(values) => B::Lanes::load(values[at..][..LANES].try_into().expect("sixteen")),
        Numbers::Byte(codes, mean) => {
            B::Lanes::load(&std::array::from_fn(|lane| codes.at(at + lane) + mean))
        }
    }
}

/// The products of `T` rows of x from `first` with the rows of a panel.
#[inline(always)]
fn panel_product_body<B: Bytes, const BITS: u32, const T: usize>(
    y: &mut [[f32; LANES]; ROWS],
    x: &Rounded,
    first: usize,
    weight: &Packed,
    panel: usize,
) {
    if T == ROWS && B::FEW_REGISTERS {
        let (low, high) = y.split_at_mut(ROWS / 2);
        rows_product::<B, BITS, { ROWS / 2 }>(low, x, first, weight, panel);
        rows_product::<B, BITS, { ROWS / 2 }>(high, x, first + ROWS / 2, weight, panel);
    } else {
        rows_product::<B, BITS, T>(y, x, first, weight, panel);
    }
}

#[inline(always)]
fn rows_product<B: Bytes, const BITS: u32, const T: usize>(
    y: &mut [[f32; LANES]],
    x: &Rounded,
    first: usize,
    weight: &Packed,
    panel: usize,
) {
    let (group, groups) = (weight.group, weight.groups());
    let width = group * groups;
    let steps = group / 4;
    let codes = weight.codes[panel * weight.panel_bytes()..][..weight.panel_bytes()]
        .as_chunks::<CODES>()
        .0;
    let per_group = codes.len() / groups;
    // The inner loop reads without checks: these are the bounds it keeps to.
    assert!(
        per_group * groups == codes.len()
            && per_group == if BITS == 4 { steps / 2 } else { steps }
            && first + T <= x.scales.len() / groups
    );
    let rows: [&[[i8; 4]]; T] =
        std::array::from_fn(|t| x.codes[(first + t) * width..][..width].as_chunks::<4>().0);
    let zero = match &weight.offset {
        Offset::Zero(zero) => i32::from(*zero),
        Offset::Minimum(_) | Offset::Table => 0,
    } - if BITS == 8 { B::BYTE_BIAS } else { 0 };
    let mut totals = [B::Lanes::splat(0.0); T];
    for g in 0..groups {
        let mut sums = [B::zero(); T];
        for j in 0..per_group {
            // SAFETY: `g < groups` and `j < per_group`, whose product is the number of vectors.
            let vector = B::load(unsafe { codes.get_unchecked(g * per_group + j) });
            for t in 0..T {
                // SAFETY: rows have `groups * steps` quadruples, and `j` is below `steps`, or half
                // of it where two are read.
                unsafe {
                    if BITS == 4 {
                        sums[t] = B::dot_nibble(
                            sums[t],
                            B::low(vector),
                            *rows[t].get_unchecked(g * steps + j),
                        );
                        sums[t] = B::dot_nibble(
                            sums[t],
                            B::high(vector),
                            *rows[t].get_unchecked(g * steps + j + per_group),
                        );
                    } else {
                        sums[t] =
                            B::dot_byte(sums[t], vector, *rows[t].get_unchecked(g * steps + j));
                    }
                }
            }
        }
        let at = (panel * groups + g) * PANEL;
        let scales = lanes_at::<B>(&weight.scales, at);
        for t in 0..T {
            let (scale, sum) = (
                x.scales[(first + t) * groups + g],
                x.sums[(first + t) * groups + g],
            );
            let dot = B::float(sums[t], zero * sum);
            totals[t] = dot.mul_add(scales.mul(B::Lanes::splat(scale)), totals[t]);
        }
        if let Offset::Minimum(minima) = &weight.offset {
            let minima = lanes_at::<B>(minima, at);
            for (t, total) in totals.iter_mut().enumerate() {
                let (scale, sum) = (
                    x.scales[(first + t) * groups + g],
                    x.sums[(first + t) * groups + g],
                );
                *total = minima.mul_add(B::Lanes::splat(scale * sum as f32), *total);
            }
        }
    }
    for (y, total) in y.iter_mut().zip(totals) {
        total.store(y);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packed::Activations;
    use crate::simd::Baseline;

    /// Every instruction set unpacks the numbers that a row read by itself has, for all formats and
    /// widths with a rest.
    #[test]
    fn every_instruction_set_unpacks_the_same_numbers() {
        use frugal_formats::gguf::GgmlType;
        let values = |cols: usize| -> Vec<f32> {
            (0..3 * PANEL * cols)
                .map(|i| (0.37 * i as f32).sin() * (1.0 + (i % 5) as f32))
                .collect()
        };
        let ggml = |ggml_type| Packed::to_ggml(ggml_type, &values(64), 64).unwrap();
        let packings = [
            Packed::int8(&values(70), 70),
            Packed::nf4(&values(150), 150),
            Packed::nf4_double(&values(150), 150),
            ggml(GgmlType::Q8_0),
            ggml(GgmlType::Q4_0),
            ggml(GgmlType::Q4_1),
        ];
        for packed in packings {
            let cols = packed.dims()[1];
            let expected = packed.to_vec();
            let check = |name: &str, unpack: &dyn Fn(MatrixMut<'_>, usize)| {
                for panel in 0..3 {
                    let mut tile = vec![f32::NAN; cols * PANEL];
                    unpack(MatrixMut::new(&mut tile, cols, PANEL), panel);
                    for (i, row) in expected
                        .chunks(cols)
                        .skip(panel * PANEL)
                        .take(PANEL)
                        .enumerate()
                    {
                        let found: Vec<f32> = (0..cols).map(|k| tile[k * PANEL + i]).collect();
                        assert_eq!(found, row, "{name}: {packed:?}");
                    }
                }
            };
            check("the processor's", &|out, panel| unpack(out, &packed, panel));
            let baseline = |out: MatrixMut<'_>, panel| match packed.bits {
                4 => unpack_body::<Baseline, 4>(out, &packed, panel),
                _ => unpack_body::<Baseline, 8>(out, &packed, panel),
            };
            check("baseline", &baseline);
            #[cfg(target_arch = "x86_64")]
            if is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c")
            {
                #[target_feature(enable = "avx2,fma,f16c")]
                fn avx2<const BITS: u32>(out: MatrixMut<'_>, weight: &Packed, panel: usize) {
                    unpack_body::<crate::simd::Avx2, BITS>(out, weight, panel);
                }
                // SAFETY: the processor has the features, as just detected.
                check("AVX2", &|out, panel| unsafe {
                    if packed.bits == 4 {
                        avx2::<4>(out, &packed, panel)
                    } else {
                        avx2::<8>(out, &packed, panel)
                    }
                });
            }
        }
    }

    /// Large codes and inputs, where sums of pairs are largest.
    #[test]
    fn every_instruction_set_adds_up_the_same_integers() {
        let (rows, cols) = (PANEL, 64);
        let weights: Vec<f32> = (0..rows * cols)
            .map(|i| {
                if i % 3 == 0 {
                    127.0
                } else {
                    -127.0 + (i % 7) as f32
                }
            })
            .collect();
        let x: Vec<f32> = (0..8 * cols)
            .map(|i| if i % 3 == 0 { 127.0 } else { -127.0 })
            .collect();
        let packed = Packed::int8(&weights, cols).with_activations(Activations::Int8);
        let expected = |t: usize, row: usize| {
            (0..cols)
                .map(|k| x[t * cols + k] * weights[row * cols + k])
                .sum::<f32>()
        };
        let x_rows = rounded(Matrix::new(&x, 8, cols), packed.group);
        let check = |name: &str, y: &[[f32; LANES]; ROWS]| {
            for (t, y) in y.iter().enumerate() {
                for (row, y) in y.iter().enumerate() {
                    assert!(
                        (y - expected(t, row)).abs() <= 1e-5 * expected(t, row).abs(),
                        "{name}: {y} instead of {}",
                        expected(t, row)
                    );
                }
            }
        };
        let mut y = [[0.0; LANES]; ROWS];
        panel_product::<8, ROWS>(&mut y, &x_rows, 0, &packed, 0);
        check("the processor's", &y);
        let mut y = [[0.0; LANES]; ROWS];
        panel_product_body::<Baseline, 8, ROWS>(&mut y, &x_rows, 0, &packed, 0);
        check("baseline", &y);
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c")
        {
            #[target_feature(enable = "avx2,fma,f16c")]
            fn avx2<const BITS: u32>(y: &mut [[f32; LANES]; ROWS], x: &Rounded, weight: &Packed) {
                panel_product_body::<crate::simd::Avx2, BITS, ROWS>(y, x, 0, weight, 0);
            }
            let mut y = [[0.0; LANES]; ROWS];
            // SAFETY: the processor has the features, as just detected.
            unsafe { avx2::<8>(&mut y, &x_rows, &packed) };
            check("AVX2", &y);
            let quarter: Vec<f32> = weights.iter().map(|w| w / 127.0).collect();
            for ggml_type in [
                frugal_formats::gguf::GgmlType::Q4_0,
                frugal_formats::gguf::GgmlType::Q4_1,
            ] {
                let packed = Packed::to_ggml(ggml_type, &quarter, cols).unwrap();
                let x_rows = rounded(Matrix::new(&x, 8, cols), packed.group);
                let (mut y, mut baseline) = ([[0.0; LANES]; ROWS], [[0.0; LANES]; ROWS]);
                // SAFETY: as above.
                unsafe { avx2::<4>(&mut y, &x_rows, &packed) };
                panel_product_body::<Baseline, 4, ROWS>(&mut baseline, &x_rows, 0, &packed, 0);
                for (y, baseline) in y.iter().flatten().zip(baseline.iter().flatten()) {
                    assert!(
                        (y - baseline).abs() <= 1e-5 * baseline.abs().max(1.0),
                        "{ggml_type}: {y} instead of {baseline}"
                    );
                }
            }
        }
    }
}
