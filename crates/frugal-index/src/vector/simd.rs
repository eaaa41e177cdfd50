//! The inner loops, compiled for each instruction set and chosen at run time.

use pulp::{Arch, Simd, WithSimd};

/// Inner products of each row with the query.
pub(super) fn products(rows: &[f32], query: &[f32], out: &mut [f32]) {
    Arch::new().dispatch(Products { rows, query, out });
}

struct Products<'a> {
    rows: &'a [f32],
    query: &'a [f32],
    out: &'a mut [f32],
}

impl WithSimd for Products<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let rows = self.rows.chunks_exact(self.query.len());
        for (row, out) in rows.zip(self.out) {
            *out = product(simd, row, self.query);
        }
    }
}

#[inline(always)]
fn product<S: Simd>(simd: S, a: &[f32], b: &[f32]) -> f32 {
    let (a, a_rest) = S::as_simd_f32s(a);
    let (b, b_rest) = S::as_simd_f32s(b);
    // Four sums, so that an addition need not wait for the one before.
    let mut sums = [simd.splat_f32s(0.0); 4];
    let (a_fours, a_ones) = pulp::as_arrays::<4, _>(a);
    let (b_fours, b_ones) = pulp::as_arrays::<4, _>(b);
    for (a, b) in a_fours.iter().zip(b_fours) {
        for i in 0..4 {
            sums[i] = simd.mul_add_e_f32s(a[i], b[i], sums[i]);
        }
    }
    for (a, b) in a_ones.iter().zip(b_ones) {
        sums[0] = simd.mul_add_e_f32s(*a, *b, sums[0]);
    }
    let even = simd.add_f32s(sums[0], sums[1]);
    let odd = simd.add_f32s(sums[2], sums[3]);
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    simd.reduce_sum_f32s(simd.add_f32s(even, odd)) + rest
}

/// Eight-bit numbers as they are worth, one scale for each row.
pub(super) fn dequantize(codes: &[i8], scales: &[f32], dimension: usize, out: &mut [f32]) {
    Arch::new().dispatch(Dequantize {
        codes,
        scales,
        dimension,
        out,
    });
}

struct Dequantize<'a> {
    codes: &'a [i8],
    scales: &'a [f32],
    dimension: usize,
    out: &'a mut [f32],
}

impl WithSimd for Dequantize<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let rows = self.codes.chunks_exact(self.dimension);
        let outs = self.out.chunks_exact_mut(self.dimension);
        for ((row, out), scale) in rows.zip(outs).zip(self.scales) {
            for (code, out) in row.iter().zip(out) {
                *out = f32::from(*code) * scale;
            }
        }
    }
}

/// In how many signs each row differs from the query.
pub(super) fn differences(rows: &[u64], query: &[u64], out: &mut [u32]) {
    Arch::new().dispatch(Differences { rows, query, out });
}

struct Differences<'a> {
    rows: &'a [u64],
    query: &'a [u64],
    out: &'a mut [u32],
}

impl WithSimd for Differences<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let rows = self.rows.chunks_exact(self.query.len());
        for (row, out) in rows.zip(self.out) {
            let words = row.iter().zip(self.query);
            *out = words.map(|(a, b)| (a ^ b).count_ones()).sum();
        }
    }
}
