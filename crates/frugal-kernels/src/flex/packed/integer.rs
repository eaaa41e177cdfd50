//! Products of integers: x rounded to 8 bits for each group of the weight.

use rayon::prelude::*;

use super::super::matrix::{Matrix, MatrixMut};
use super::unpack::{TASK_BYTES, lanes_at};
use crate::packed::{Codes, Offset, PANEL};
use crate::simd::bytes::{Bytes, CODES, multiversion_bytes};
use crate::simd::{Isa, LANES, Lanes, multiversion};

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
const MR: usize = 8;

/// `out = x · weightᵀ`, with x rounded.
pub(super) fn integer_product(out: &mut MatrixMut, x: Matrix, weight: &Codes) {
    let x_rows = x.rows;
    let x = rounded(x, weight.group);
    let shared = out.share();
    let run = |panel: usize| {
        let mut first = 0;
        while first < x_rows {
            let count = x_rows - first;
            let mut y = [[0.0; LANES]; MR];
            let count = match count {
                MR.. => (panel_product_of::<MR>(&mut y, &x, first, weight, panel), MR).1,
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
    y: &mut [[f32; LANES]; MR],
    x: &Rounded,
    first: usize,
    weight: &Codes,
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
        y: &mut [[f32; LANES]; MR],
        x: &Rounded,
        first: usize,
        weight: &Codes,
        panel: usize,
    ) = panel_product_body
);

/// The products of `T` rows of x from `first` with the rows of a panel.
#[inline(always)]
fn panel_product_body<B: Bytes, const BITS: u32, const T: usize>(
    y: &mut [[f32; LANES]; MR],
    x: &Rounded,
    first: usize,
    weight: &Codes,
    panel: usize,
) {
    if T == MR && B::FEW_REGISTERS {
        let (low, high) = y.split_at_mut(MR / 2);
        rows_product::<B, BITS, { MR / 2 }>(low, x, first, weight, panel);
        rows_product::<B, BITS, { MR / 2 }>(high, x, first + MR / 2, weight, panel);
    } else {
        rows_product::<B, BITS, T>(y, x, first, weight, panel);
    }
}

#[inline(always)]
fn rows_product<B: Bytes, const BITS: u32, const T: usize>(
    y: &mut [[f32; LANES]],
    x: &Rounded,
    first: usize,
    weight: &Codes,
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
    use crate::simd::Baseline;

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
        let packed = Codes::int8(&weights, cols);
        let expected = |t: usize, row: usize| {
            (0..cols)
                .map(|k| x[t * cols + k] * weights[row * cols + k])
                .sum::<f32>()
        };
        let x_rows = rounded(Matrix::new(&x, 8, cols), packed.group);
        let check = |name: &str, y: &[[f32; LANES]; MR]| {
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
        let mut y = [[0.0; LANES]; MR];
        panel_product::<8, MR>(&mut y, &x_rows, 0, &packed, 0);
        check("the processor's", &y);
        let mut y = [[0.0; LANES]; MR];
        panel_product_body::<Baseline, 8, MR>(&mut y, &x_rows, 0, &packed, 0);
        check("baseline", &y);
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c")
        {
            #[target_feature(enable = "avx2,fma,f16c")]
            fn avx2<const BITS: u32>(y: &mut [[f32; LANES]; MR], x: &Rounded, weight: &Codes) {
                panel_product_body::<crate::simd::Avx2, BITS, MR>(y, x, 0, weight, 0);
            }
            let mut y = [[0.0; LANES]; MR];
            // SAFETY: the processor has the features, as just detected.
            unsafe { avx2::<8>(&mut y, &x_rows, &packed) };
            check("AVX2", &y);
            let quarter: Vec<f32> = weights.iter().map(|w| w / 127.0).collect();
            for ggml_type in [
                frugal_formats::gguf::GgmlType::Q4_0,
                frugal_formats::gguf::GgmlType::Q4_1,
            ] {
                let packed = Codes::to_ggml(ggml_type, &quarter, cols).unwrap();
                let x_rows = rounded(Matrix::new(&x, 8, cols), packed.group);
                let (mut y, mut baseline) = ([[0.0; LANES]; MR], [[0.0; LANES]; MR]);
                // SAFETY: the processor has AVX2, FMA and F16C, as asked at the top.
                unsafe { avx2::<4>(&mut y, &x_rows, &packed) };
                panel_product_body::<Baseline, 4, MR>(&mut baseline, &x_rows, 0, &packed, 0);
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
