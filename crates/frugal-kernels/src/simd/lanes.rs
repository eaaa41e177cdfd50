//! Sixteen numbers at a time, in the registers of each instruction set.
//!
//! Plain arrays do for element-wise loops, but the compiler keeps accumulators that live across
//! iterations in registers only when they are vectors from the start.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

/// Elements that a kernel treats together; independent of the instruction set, so that sums have a
/// fixed order.
pub(crate) const LANES: usize = 16;

/// An instruction set a kernel is compiled for.
pub(crate) trait Isa: Copy {
    /// Whether a fused multiply-add is one instruction.
    const FMA: bool;
    /// Its vectors.
    type Lanes: Lanes;
}

/// `a * b + c`, in one rounding where that is one instruction.
#[inline(always)]
pub(crate) fn mul_add<I: Isa>(a: f32, b: f32, c: f32) -> f32 {
    if I::FMA { a.mul_add(b, c) } else { a * b + c }
}

/// [`LANES`] numbers. The implementations for an instruction set must only be used inside a
/// function compiled for it, which `multiversion` sees to.
pub(crate) trait Lanes: Copy {
    /// The same number everywhere.
    fn splat(value: f32) -> Self;
    /// Reads them.
    fn load(values: &[f32; LANES]) -> Self;
    /// Writes them.
    fn store(self, out: &mut [f32; LANES]);
    /// Two numbers in turn.
    #[inline(always)]
    fn pairs(values: &[f32; 2]) -> Self {
        let mut lanes = [values[0]; LANES];
        for lane in lanes.iter_mut().skip(1).step_by(2) {
            *lane = values[1];
        }
        Self::load(&lanes)
    }
    /// The first of `values` in the lanes whose bit is set, in order; 0 in the others.
    #[inline(always)]
    fn expand(values: &[f32; LANES], mask: u16) -> Self {
        let (mut lanes, mut next) = ([0.0; LANES], 0);
        for (lane, out) in lanes.iter_mut().enumerate() {
            let bit = usize::from(mask >> lane & 1);
            *out = if bit == 1 { values[next] } else { 0.0 };
            next += bit;
        }
        Self::load(&lanes)
    }
    /// `self * b + c`.
    fn mul_add(self, b: Self, c: Self) -> Self;
    /// The larger of each pair; `other` where one is not a number.
    fn max(self, other: Self) -> Self;
    /// The smaller of each pair; `other` where one is not a number.
    fn min(self, other: Self) -> Self;
    /// `self / other`.
    fn div(self, other: Self) -> Self;
    /// `self * 2^n`, for n from -127 to 128 in the low bits of `shifted`, a float of which the bits
    /// above the eight lowest are of no concern.
    fn scale_by_power(self, shifted: Self) -> Self;
    /// `self + other`.
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        self.mul_add(Self::splat(1.0), other)
    }
    /// `self * other`.
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        self.mul_add(other, Self::splat(0.0))
    }
    /// The sum of all, by halves.
    #[inline(always)]
    fn sum(self) -> f32 {
        let mut lanes = [0.0; LANES];
        self.store(&mut lanes);
        let mut half = LANES / 2;
        while half > 0 {
            for i in 0..half {
                lanes[i] += lanes[i + half];
            }
            half /= 2;
        }
        lanes[0]
    }
    /// The largest.
    #[inline(always)]
    fn largest(self) -> f32 {
        let mut lanes = [0.0; LANES];
        self.store(&mut lanes);
        let mut half = LANES / 2;
        while half > 0 {
            for i in 0..half {
                lanes[i] = if lanes[i] > lanes[i + half] {
                    lanes[i]
                } else {
                    lanes[i + half]
                };
            }
            half /= 2;
        }
        lanes[0]
    }
    /// Reads fewer than [`LANES`]; the others are 0.
    #[inline(always)]
    fn load_part(values: &[f32]) -> Self {
        // Most widths are multiples of LANES; the copy below is a call.
        if values.is_empty() {
            return Self::splat(0.0);
        }
        let mut padded = [0.0; LANES];
        padded[..values.len()].copy_from_slice(values);
        Self::load(&padded)
    }
}

/// What every processor of the target has.
#[derive(Clone, Copy)]
pub(crate) struct Baseline;

impl Isa for Baseline {
    const FMA: bool = cfg!(any(target_arch = "aarch64", target_feature = "fma"));
    type Lanes = [f32; LANES];
}

impl Lanes for [f32; LANES] {
    #[inline(always)]
    fn splat(value: f32) -> Self {
        [value; LANES]
    }
    #[inline(always)]
    fn load(values: &[f32; LANES]) -> Self {
        *values
    }
    #[inline(always)]
    fn store(self, out: &mut [f32; LANES]) {
        *out = self;
    }
    #[inline(always)]
    fn mul_add(self, b: Self, mut c: Self) -> Self {
        for i in 0..LANES {
            c[i] = mul_add::<Baseline>(self[i], b[i], c[i]);
        }
        c
    }
    #[inline(always)]
    fn max(self, mut other: Self) -> Self {
        for i in 0..LANES {
            other[i] = if self[i] > other[i] {
                self[i]
            } else {
                other[i]
            };
        }
        other
    }
    #[inline(always)]
    fn min(self, mut other: Self) -> Self {
        for i in 0..LANES {
            other[i] = if self[i] < other[i] {
                self[i]
            } else {
                other[i]
            };
        }
        other
    }
    #[inline(always)]
    fn div(mut self, other: Self) -> Self {
        for i in 0..LANES {
            self[i] /= other[i];
        }
        self
    }
    #[inline(always)]
    fn scale_by_power(mut self, shifted: Self) -> Self {
        for i in 0..LANES {
            self[i] *= f32::from_bits(shifted[i].to_bits().wrapping_add(127) << 23);
        }
        self
    }
}

/// AVX-512 F, VL and DQ.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub(crate) struct Avx512;

#[cfg(target_arch = "x86_64")]
impl Isa for Avx512 {
    const FMA: bool = true;
    type Lanes = __m512;
}

#[cfg(target_arch = "x86_64")]
impl Lanes for __m512 {
    #[inline(always)]
    fn splat(value: f32) -> Self {
        // SAFETY: the caller is compiled for AVX-512; see the trait.
        unsafe { _mm512_set1_ps(value) }
    }
    #[inline(always)]
    fn load(values: &[f32; LANES]) -> Self {
        // SAFETY: the caller is compiled for AVX-512, see the trait;
        // sixteen numbers are there to read.
        unsafe { _mm512_loadu_ps(values.as_ptr()) }
    }
    #[inline(always)]
    fn store(self, out: &mut [f32; LANES]) {
        // SAFETY: the caller is compiled for AVX-512, see the trait;
        // there is room for sixteen numbers.
        unsafe { _mm512_storeu_ps(out.as_mut_ptr(), self) }
    }
    #[inline(always)]
    fn pairs(values: &[f32; 2]) -> Self {
        // SAFETY: the caller is compiled for AVX-512, see the trait;
        // the two numbers are there to read, as one of twice the size.
        unsafe {
            _mm512_castpd_ps(_mm512_set1_pd(
                values.as_ptr().cast::<f64>().read_unaligned(),
            ))
        }
    }
    #[inline(always)]
    fn expand(values: &[f32; LANES], mask: u16) -> Self {
        // SAFETY: the caller is compiled for AVX-512, see the trait;
        // sixteen numbers are there to read.
        unsafe { _mm512_maskz_expand_ps(mask, _mm512_loadu_ps(values.as_ptr())) }
    }
    #[inline(always)]
    fn mul_add(self, b: Self, c: Self) -> Self {
        // SAFETY: the caller is compiled for AVX-512; see the trait.
        unsafe { _mm512_fmadd_ps(self, b, c) }
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        // SAFETY: the caller is compiled for AVX-512; see the trait.
        unsafe { _mm512_max_ps(self, other) }
    }
    #[inline(always)]
    fn min(self, other: Self) -> Self {
        // SAFETY: the caller is compiled for AVX-512; see the trait.
        unsafe { _mm512_min_ps(self, other) }
    }
    #[inline(always)]
    fn div(self, other: Self) -> Self {
        // SAFETY: the caller is compiled for AVX-512; see the trait.
        unsafe { _mm512_div_ps(self, other) }
    }
    #[inline(always)]
    fn scale_by_power(self, shifted: Self) -> Self {
        // SAFETY: the caller is compiled for AVX-512; see the trait.
        unsafe {
            let n = _mm512_add_epi32(_mm512_castps_si512(shifted), _mm512_set1_epi32(127));
            _mm512_mul_ps(self, _mm512_castsi512_ps(_mm512_slli_epi32::<23>(n)))
        }
    }
    #[inline(always)]
    fn sum(self) -> f32 {
        // SAFETY: the caller is compiled for AVX-512; see the trait.
        unsafe {
            sum_of_8(_mm256_add_ps(
                _mm512_castps512_ps256(self),
                _mm512_extractf32x8_ps(self, 1),
            ))
        }
    }
}

/// AVX2 with FMA.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub(crate) struct Avx2;

#[cfg(target_arch = "x86_64")]
impl Isa for Avx2 {
    const FMA: bool = true;
    type Lanes = [__m256; 2];
}

#[cfg(target_arch = "x86_64")]
impl Lanes for [__m256; 2] {
    #[inline(always)]
    fn splat(value: f32) -> Self {
        // SAFETY: the caller is compiled for AVX2; see the trait.
        unsafe { [_mm256_set1_ps(value); 2] }
    }
    #[inline(always)]
    fn load(values: &[f32; LANES]) -> Self {
        // SAFETY: the caller is compiled for AVX2, see the trait;
        // sixteen numbers are there to read.
        unsafe {
            [
                _mm256_loadu_ps(values.as_ptr()),
                _mm256_loadu_ps(values.as_ptr().add(8)),
            ]
        }
    }
    #[inline(always)]
    fn store(self, out: &mut [f32; LANES]) {
        // SAFETY: the caller is compiled for AVX2, see the trait;
        // there is room for sixteen numbers.
        unsafe {
            _mm256_storeu_ps(out.as_mut_ptr(), self[0]);
            _mm256_storeu_ps(out.as_mut_ptr().add(8), self[1]);
        }
    }
    #[inline(always)]
    fn pairs(values: &[f32; 2]) -> Self {
        // SAFETY: the caller is compiled for AVX2, see the trait;
        // the two numbers are there to read, as one of twice the size.
        unsafe {
            [_mm256_castpd_ps(_mm256_set1_pd(
                values.as_ptr().cast::<f64>().read_unaligned(),
            )); 2]
        }
    }
    #[inline(always)]
    fn mul_add(self, b: Self, c: Self) -> Self {
        // SAFETY: the caller is compiled for AVX2; see the trait.
        unsafe {
            [
                _mm256_fmadd_ps(self[0], b[0], c[0]),
                _mm256_fmadd_ps(self[1], b[1], c[1]),
            ]
        }
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        // SAFETY: the caller is compiled for AVX2; see the trait.
        unsafe {
            [
                _mm256_max_ps(self[0], other[0]),
                _mm256_max_ps(self[1], other[1]),
            ]
        }
    }
    #[inline(always)]
    fn min(self, other: Self) -> Self {
        // SAFETY: the caller is compiled for AVX2; see the trait.
        unsafe {
            [
                _mm256_min_ps(self[0], other[0]),
                _mm256_min_ps(self[1], other[1]),
            ]
        }
    }
    #[inline(always)]
    fn div(self, other: Self) -> Self {
        // SAFETY: the caller is compiled for AVX2; see the trait.
        unsafe {
            [
                _mm256_div_ps(self[0], other[0]),
                _mm256_div_ps(self[1], other[1]),
            ]
        }
    }
    #[inline(always)]
    fn scale_by_power(self, shifted: Self) -> Self {
        // SAFETY: the caller is compiled for AVX2; see the trait.
        unsafe {
            let bias = _mm256_set1_epi32(127);
            let first = _mm256_add_epi32(_mm256_castps_si256(shifted[0]), bias);
            let second = _mm256_add_epi32(_mm256_castps_si256(shifted[1]), bias);
            [
                _mm256_mul_ps(self[0], _mm256_castsi256_ps(_mm256_slli_epi32::<23>(first))),
                _mm256_mul_ps(
                    self[1],
                    _mm256_castsi256_ps(_mm256_slli_epi32::<23>(second)),
                ),
            ]
        }
    }
    #[inline(always)]
    fn sum(self) -> f32 {
        // SAFETY: the caller is compiled for AVX2; see the trait.
        unsafe { sum_of_8(_mm256_add_ps(self[0], self[1])) }
    }
}

/// The sum of eight numbers, by halves.
///
/// # Safety
/// The caller must be compiled for AVX2.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn sum_of_8(values: __m256) -> f32 {
    // SAFETY: passed on to the caller.
    unsafe {
        let four = _mm_add_ps(
            _mm256_castps256_ps128(values),
            _mm256_extractf128_ps(values, 1),
        );
        let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)))
    }
}
