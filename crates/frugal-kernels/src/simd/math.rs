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

/// [`exp`] of sixteen numbers, in vectors.
#[inline(always)]
pub(crate) fn exp_lanes<L: Lanes>(x: L) -> L {
    const ROUND: f32 = 12_582_912.0;
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    // The order of the arguments lets NaN through.
    let x = L::splat(89.0).min(L::splat(-88.0).max(x));
    let shifted = x.mul_add(L::splat(std::f32::consts::LOG2_E), L::splat(ROUND));
    let n = shifted.add(L::splat(-ROUND));
    let r = n.mul_add(L::splat(-LN_2_LOW), n.mul_add(L::splat(-LN_2_HIGH), x));
    let mut p = L::splat(1.987_569_1e-4);
    for coefficient in [
        1.398_199_9e-3,
        8.333_452e-3,
        4.166_579_6e-2,
        0.166_666_65,
        0.5,
    ] {
        p = p.mul_add(r, L::splat(coefficient));
    }
    p.mul_add(r.mul(r), r)
        .add(L::splat(1.0))
        .scale_by_power(shifted)
}

/// `1 / (1 + e^-x)` of sixteen numbers.
#[inline(always)]
pub(crate) fn sigmoid_lanes<L: Lanes>(x: L) -> L {
    let one = L::splat(1.0);
    one.div(one.add(exp_lanes(x.mul(L::splat(-1.0)))))
}

/// `ln(1 + e^x)` of sixteen numbers, with a relative error below 5e-7 where e^x is a normal number.
#[inline(always)]
pub(crate) fn softplus_lanes<L: Lanes>(x: L) -> L {
    let (zero, minus) = (L::splat(0.0), x.mul(L::splat(-1.0)));
    // ln(1 + u) = 2 artanh(u / (2 + u)), whose series of odd powers ends below 2e-9 of its sum.
    let u = exp_lanes(x.min(minus));
    let s = u.div(u.add(L::splat(2.0)));
    let square = s.mul(s);
    let mut p = L::splat(2.0 / 15.0);
    for odd in [13.0, 11.0, 9.0, 7.0, 5.0, 3.0, 1.0] {
        p = p.mul_add(square, L::splat(2.0 / odd));
    }
    p.mul_add(s, zero.max(x))
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

    multiversion!(fn exp_in_lanes(out: &mut [f32], x: &[f32]) = exp_in_lanes_body);

    #[inline(always)]
    fn exp_in_lanes_body<I: Isa>(out: &mut [f32], x: &[f32]) {
        in_lanes::<I>(out, x, exp_lanes);
    }

    multiversion!(fn softplus_in_lanes(out: &mut [f32], x: &[f32]) = softplus_in_lanes_body);

    #[inline(always)]
    fn softplus_in_lanes_body<I: Isa>(out: &mut [f32], x: &[f32]) {
        in_lanes::<I>(out, x, softplus_lanes);
    }

    #[inline(always)]
    fn in_lanes<I: Isa>(out: &mut [f32], x: &[f32], f: impl Fn(I::Lanes) -> I::Lanes) {
        for (out, x) in out.chunks_mut(LANES).zip(x.chunks(LANES)) {
            let mut lanes = [0.0; LANES];
            f(I::Lanes::load_part(x)).store(&mut lanes);
            out.copy_from_slice(&lanes[..x.len()]);
        }
    }

    #[test]
    fn exp_of_vectors_is_that_of_numbers() {
        check(exp_in_lanes);
        check(exp_in_lanes_body::<Baseline>);
        check(exp_in_lanes_body::<Fused>);
        let x = [f32::NEG_INFINITY, -1e30, 0.0, 89.0, f32::INFINITY, f32::NAN];
        let mut out = [0.0; 6];
        exp_in_lanes(&mut out, &x);
        assert_eq!(out[..5], [0.0, 0.0, 1.0, f32::INFINITY, f32::INFINITY]);
        assert!(out[5].is_nan());
    }

    #[test]
    fn softplus_is_accurate_also_where_it_is_small() {
        let x: Vec<f32> = (0..100_000).map(|i| -80.0 + i as f32 / 500.0).collect();
        let mut out = vec![0.0; x.len()];
        for f in [softplus_in_lanes, softplus_in_lanes_body::<Baseline>] {
            f(&mut out, &x);
            for (x, y) in x.iter().zip(&out) {
                let x = f64::from(*x);
                let expected = x.max(0.0) + (-x.abs()).exp().ln_1p();
                let error = (f64::from(*y) / expected - 1.0).abs();
                assert!(
                    error < 5e-7,
                    "softplus({x}) is {expected}, not {y}: {error:e}"
                );
            }
        }
        softplus_in_lanes(&mut out[..2], &[f32::NAN, f32::NEG_INFINITY]);
        assert!(out[0].is_nan() && out[1] == 0.0);
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
