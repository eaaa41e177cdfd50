//! Scalar functions and reductions, written once for every instruction set.

use super::lanes::{Isa, LANES, Lanes, mul_add};

/// e^x with a relative error below 2e-7 for x in [-87.3, 88.3].
///
/// Below, the result falls to 0; above, it becomes infinite. NaN stays NaN.
#[inline(always)]
pub(crate) fn exp<I: Isa>(x: f32) -> f32 {
    // 1.5 * 2^23: adding it rounds to the nearest integer and leaves that integer in the low bits.
    const ROUND: f32 = 12_582_912.0;
    // ln 2 in two parts; the first has few bits, so that its multiples are exact.
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let x = x.clamp(-88.0, 89.0);
    let shifted = mul_add::<I>(x, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = mul_add::<I>(n, -LN_2_LOW, mul_add::<I>(n, -LN_2_HIGH, x));
    let mut p = 1.987_569_1e-4;
    for coefficient in [
        1.398_199_9e-3,
        8.333_452e-3,
        4.166_579_6e-2,
        0.166_666_65,
        0.5,
    ] {
        p = mul_add::<I>(p, r, coefficient);
    }
    let p = mul_add::<I>(p, r * r, r) + 1.0;
    p * f32::from_bits(shifted.to_bits().wrapping_add(127) << 23)
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
pub(crate) fn sigmoid<I: Isa>(x: f32) -> f32 {
    1.0 / (1.0 + exp::<I>(-x))
}

/// The hyperbolic tangent with an absolute error below 3e-7.
#[inline(always)]
pub(crate) fn tanh<I: Isa>(x: f32) -> f32 {
    1.0 - 2.0 / (exp::<I>(2.0 * x) + 1.0)
}

/// The largest value; negative infinity of none.
#[inline(always)]
pub(crate) fn max<I: Isa>(values: &[f32]) -> f32 {
    let (blocks, rest) = values.as_chunks::<LANES>();
    let mut lanes = I::Lanes::splat(f32::NEG_INFINITY);
    for block in blocks {
        lanes = I::Lanes::load(block).max(lanes);
    }
    rest.iter()
        .fold(lanes.largest(), |max, value| max.max(*value))
}

/// The sum, lane by lane and then over the lanes.
#[inline(always)]
pub(crate) fn sum<I: Isa>(values: &[f32]) -> f32 {
    let (blocks, rest) = values.as_chunks::<LANES>();
    let mut lanes = I::Lanes::splat(0.0);
    for block in blocks {
        lanes = lanes.add(I::Lanes::load(block));
    }
    lanes.add(I::Lanes::load_part(rest)).sum()
}

/// The dot product of two slices of one length, as four sums in flight.
#[inline(always)]
pub(crate) fn dot<I: Isa>(a: &[f32], b: &[f32]) -> f32 {
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b[..a.len()].as_chunks::<LANES>());
    let ((a_quads, a), (b_quads, b)) = (a.as_chunks::<4>(), b.as_chunks::<4>());
    let mut sums = [I::Lanes::splat(0.0); 4];
    for (a, b) in a_quads.iter().zip(b_quads) {
        for (sum, (a, b)) in sums.iter_mut().zip(a.iter().zip(b)) {
            *sum = I::Lanes::load(a).mul_add(I::Lanes::load(b), *sum);
        }
    }
    for (sum, (a, b)) in sums.iter_mut().zip(a.iter().zip(b)) {
        *sum = I::Lanes::load(a).mul_add(I::Lanes::load(b), *sum);
    }
    let sum = sums[0].add(sums[1]).add(sums[2].add(sums[3]));
    I::Lanes::load_part(a_rest)
        .mul_add(I::Lanes::load_part(b_rest), sum)
        .sum()
}

/// The dot products of several slices with `b`, all of one length.
#[inline(always)]
pub(crate) fn dots<I: Isa, const N: usize>(a: [&[f32]; N], b: &[f32]) -> [f32; N] {
    let (blocks, rest) = b.as_chunks::<LANES>();
    let a = a.map(|a| a[..b.len()].as_chunks::<LANES>());
    let mut sums = [I::Lanes::splat(0.0); N];
    for (i, block) in blocks.iter().enumerate() {
        let block = I::Lanes::load(block);
        for (sum, (a, _)) in sums.iter_mut().zip(&a) {
            // SAFETY: all slices have been cut to one length.
            let a = unsafe { a.get_unchecked(i) };
            *sum = I::Lanes::load(a).mul_add(block, *sum);
        }
    }
    let rest = I::Lanes::load_part(rest);
    let mut totals = [0.0; N];
    for ((total, sum), (_, a)) in totals.iter_mut().zip(sums).zip(&a) {
        *total = I::Lanes::load_part(a).mul_add(rest, sum).sum();
    }
    totals
}

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(target_arch = "x86_64")]
    use crate::simd::Avx2;
    use crate::simd::{Baseline, multiversion};

    /// The baseline with fused multiply-add in software.
    #[derive(Clone, Copy)]
    struct Fused;
    impl Isa for Fused {
        const FMA: bool = true;
        type Lanes = [f32; LANES];
    }

    multiversion!(fn exp_all(out: &mut [f32], x: &[f32]) = exp_all_body);

    #[inline(always)]
    fn exp_all_body<I: Isa>(out: &mut [f32], x: &[f32]) {
        for (out, x) in out.iter_mut().zip(x) {
            *out = exp::<I>(*x);
        }
    }

    fn check(f: fn(&mut [f32], &[f32])) {
        let x: Vec<f32> = (0..2_000_000)
            .map(|i| -87.3 + 175.6 * i as f32 / 2e6)
            .chain((-60..0).flat_map(|e| [2f32.powi(e), -(2f32.powi(e))]))
            .collect();
        let mut out = vec![0.0; x.len()];
        f(&mut out, &x);
        let worst = x
            .iter()
            .zip(&out)
            .map(|(x, y)| (f64::from(*y) / f64::from(*x).exp() - 1.0).abs())
            .fold(0.0, f64::max);
        assert!(worst < 2e-7, "relative error {worst:e}");
    }

    #[test]
    fn exp_is_accurate_with_and_without_fused_multiply_add() {
        check(exp_all);
        check(exp_all_body::<Baseline>);
        check(exp_all_body::<Fused>);
    }

    #[test]
    fn exp_saturates() {
        let x = [f32::NEG_INFINITY, -1e30, -88.5, 0.0, 89.0, f32::INFINITY];
        let mut out = [0.0; 6];
        exp_all(&mut out, &x);
        assert_eq!(out, [0.0, 0.0, 0.0, 1.0, f32::INFINITY, f32::INFINITY]);
        let mut nan = [0.0];
        exp_all(&mut nan, &[f32::NAN]);
        assert!(nan[0].is_nan());
    }

    multiversion!(fn dot_all(a: &[f32], b: &[f32]) -> f32 = dot);

    #[test]
    fn dots_agree_with_double_precision() {
        for n in [0, 1, 7, 16, 17, 31, 64, 100, 200] {
            let a: Vec<f32> = (0..n).map(|i| (i as f32 * 0.7).sin()).collect();
            let b: Vec<f32> = (0..n).map(|i| (i as f32 * 1.3).cos()).collect();
            let expected: f64 = a
                .iter()
                .zip(&b)
                .map(|(a, b)| f64::from(*a) * f64::from(*b))
                .sum();
            assert!((f64::from(dot_all(&a, &b)) - expected).abs() < 1e-5);
            assert!((f64::from(dot::<Baseline>(&a, &b)) - expected).abs() < 1e-5);
        }
    }

    multiversion!(fn lanes_all(values: &[f32; LANES]) -> [f32; 2] = lanes_body);

    #[inline(always)]
    fn lanes_body<I: Isa>(values: &[f32; LANES]) -> [f32; 2] {
        let lanes = I::Lanes::load(values);
        [lanes.sum(), lanes.max(I::Lanes::splat(-1.0)).largest()]
    }

    /// Sums add up the lanes in one order on every instruction set.
    #[test]
    fn lanes_agree_between_instruction_sets() {
        let values: [f32; LANES] =
            std::array::from_fn(|i| (i as f32 * 1.7).sin() * 3f32.powi(i as i32 - 8));
        assert_eq!(lanes_all(&values), lanes_body::<Baseline>(&values));
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") {
            #[target_feature(enable = "avx2,fma")]
            fn avx2(values: &[f32; LANES]) -> [f32; 2] {
                lanes_body::<Avx2>(values)
            }
            // SAFETY: the processor has AVX2, and FMA comes with it.
            assert_eq!(unsafe { avx2(&values) }, lanes_body::<Baseline>(&values));
        }
    }
}
