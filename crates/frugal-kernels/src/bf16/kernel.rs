//! The micro-kernel of products in bfloat16: pairs of numbers, sums in single precision.

use half::bf16;

use crate::simd::{InstructionSet, Isa, instruction_set, multiversion};

/// Rows of a panel of the first factor.
pub(super) const MR: usize = 12;
/// Columns of a panel of the second factor: two vectors.
pub(super) const NR: usize = 32;

/// Two neighbours along the depth, as `VDPBF16PS` takes them: the first in the low half.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[repr(transparent)]
pub(super) struct Pair(u32);

impl Pair {
    /// Rounds to the nearest, ties to even.
    #[inline(always)]
    pub(super) fn new(low: f32, high: f32) -> Self {
        let [low, high] = [low, high].map(|value| u32::from(bf16::from_f32(value).to_bits()));
        Self(low | high << 16)
    }

    #[inline(always)]
    pub(super) fn low(self) -> f32 {
        f32::from_bits(self.0 << 16)
    }

    #[inline(always)]
    pub(super) fn high(self) -> f32 {
        f32::from_bits(self.0 & 0xffff_0000)
    }
}

/// One tile of the target: `out[r][c]` is the sum over k of `x[k][r] · panel[k][c]`, for as many
/// rows as `out` has, at most [`MR`].
pub(super) fn tile(out: &mut [[f32; NR]], x: &[Pair], panel: &[[Pair; NR]]) {
    match out.len() {
        1 => tile_of::<1>(out, x, panel),
        2 => tile_of::<2>(out, x, panel),
        3 => tile_of::<3>(out, x, panel),
        4 => tile_of::<4>(out, x, panel),
        5 => tile_of::<5>(out, x, panel),
        6 => tile_of::<6>(out, x, panel),
        7 => tile_of::<7>(out, x, panel),
        8 => tile_of::<8>(out, x, panel),
        9 => tile_of::<9>(out, x, panel),
        10 => tile_of::<10>(out, x, panel),
        11 => tile_of::<11>(out, x, panel),
        _ => tile_of::<MR>(out, x, panel),
    }
}

fn tile_of<const R: usize>(out: &mut [[f32; NR]], x: &[Pair], panel: &[[Pair; NR]]) {
    let out: &mut [[f32; NR]; R] = out.try_into().expect("a tile has at most `MR` rows");
    let (x, rest) = x.as_chunks::<R>();
    assert!(
        x.len() == panel.len() && rest.is_empty(),
        "both factors have the depth of the product"
    );
    #[cfg(target_arch = "x86_64")]
    if instruction_set() >= InstructionSet::Avx512Bf16 {
        // SAFETY: the processor has AVX-512 F and BF16: it is asked before a set is used.
        unsafe { dot_pairs::<R>(out, x, panel) };
        return;
    }
    widened::<R>(out, x, panel);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bf16")]
fn dot_pairs<const R: usize>(out: &mut [[f32; NR]; R], x: &[[Pair; R]], panel: &[[Pair; NR]]) {
    use std::arch::x86_64::*;
    use std::mem::transmute;

    let mut sums = [[_mm512_setzero_ps(); 2]; R];
    for (x, right) in x.iter().zip(panel) {
        let (halves, _) = right.as_chunks::<16>();
        // SAFETY: a half is sixteen pairs, 64 bytes, and any 64 bytes are a vector of them.
        let right: [__m512bh; 2] = unsafe {
            [
                transmute::<[Pair; 16], __m512bh>(halves[0]),
                transmute::<[Pair; 16], __m512bh>(halves[1]),
            ]
        };
        for (sums, pair) in sums.iter_mut().zip(x) {
            // SAFETY: both are 64 bytes without further meaning.
            let left = unsafe { transmute::<__m512i, __m512bh>(_mm512_set1_epi32(pair.0 as i32)) };
            sums[0] = _mm512_dpbf16_ps(sums[0], left, right[0]);
            sums[1] = _mm512_dpbf16_ps(sums[1], left, right[1]);
        }
    }
    for (out, sums) in out.iter_mut().zip(sums) {
        // SAFETY: a row of the tile is 32 numbers, two vectors.
        unsafe {
            _mm512_storeu_ps(out.as_mut_ptr(), sums[0]);
            _mm512_storeu_ps(out.as_mut_ptr().add(16), sums[1]);
        }
    }
}

multiversion!(fn widened<const R: usize>(out: &mut [[f32; NR]; R], x: &[[Pair; R]], panel: &[[Pair; NR]]) = widened_body);

/// The same on other instruction sets: products of two bfloat16 are exact in single precision, and
/// are added in the order of `VDPBF16PS`, the second of a pair first.
#[inline(always)]
fn widened_body<I: Isa, const R: usize>(
    out: &mut [[f32; NR]; R],
    x: &[[Pair; R]],
    panel: &[[Pair; NR]],
) {
    *out = [[0.0; NR]; R];
    for (x, right) in x.iter().zip(panel) {
        for (out, left) in out.iter_mut().zip(x) {
            for (sum, right) in out.iter_mut().zip(right) {
                *sum += left.high() * right.high();
                *sum += left.low() * right.low();
            }
        }
    }
}
