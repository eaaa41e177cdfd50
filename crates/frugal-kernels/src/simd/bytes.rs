//! Products of bytes: sixteen sums of four products at a time, on each instruction set.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use half::f16;

#[cfg(target_arch = "x86_64")]
use super::lanes::{Avx2, Avx512};
use super::lanes::{Baseline, Isa, LANES};

/// Codes that a vector holds: four neighbours of sixteen rows.
pub(crate) const CODES: usize = 4 * LANES;

/// An instruction set for products of bytes. As with [`super::Lanes`], the implementations must
/// only be used inside a function compiled for them, which `multiversion_bytes` sees to.
pub(crate) trait Bytes: Isa {
    /// [`CODES`] bytes without sign.
    type Codes: Copy;
    /// A sum for each row.
    type Sums: Copy;
    /// What [`Bytes::dot_byte`] takes off every code.
    const BYTE_BIAS: i32;
    /// Whether the sums of eight rows of x do not fit the registers.
    const FEW_REGISTERS: bool;

    fn load(codes: &[u8; CODES]) -> Self::Codes;
    /// The low halves of the bytes.
    fn low(codes: Self::Codes) -> Self::Codes;
    /// The high halves of the bytes.
    fn high(codes: Self::Codes) -> Self::Codes;
    fn zero() -> Self::Sums;
    /// Adds the products of each row's four codes, below 16, with x.
    fn dot_nibble(sums: Self::Sums, codes: Self::Codes, x: [i8; 4]) -> Self::Sums;
    /// Adds the products of each row's four codes less [`Bytes::BYTE_BIAS`] with x, which is not
    /// -128.
    fn dot_byte(sums: Self::Sums, codes: Self::Codes, x: [i8; 4]) -> Self::Sums;
    /// The sums less `offset`, as floating-point numbers.
    fn float(sums: Self::Sums, offset: i32) -> Self::Lanes;
    /// Halves as floating-point numbers.
    fn halves(values: &[f16; LANES]) -> Self::Lanes;
    /// Code `i`, below 4, of each row as a floating-point number.
    fn code(codes: Self::Codes, i: usize) -> Self::Lanes;
    /// The number of `table` that code `i` of each row, below 16, stands for.
    fn look_up(table: &[f32; LANES], codes: Self::Codes, i: usize) -> Self::Lanes;
}

/// `multiversion_bytes!(fn name<const C: T>(args) = body)` defines `name` as `body::<B, C>`
/// compiled for AVX-512 with VNNI, AVX2 and the baseline.
macro_rules! multiversion_bytes {
    ($vis:vis fn $name:ident <$(const $c:ident: $ct:ty),*> ($($arg:ident: $ty:ty),* $(,)?) = $body:ident) => {
        $vis fn $name <$(const $c: $ct),*> ($($arg: $ty),*) {
            #[cfg(target_arch = "x86_64")]
            {
                use $crate::simd::{Avx2, Avx512, InstructionSet, instruction_set};

                #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
                fn vnni <$(const $c: $ct),*> ($($arg: $ty),*) {
                    $body::<Avx512, $($c),*>($($arg),*)
                }

                #[target_feature(enable = "avx2,fma,f16c")]
                fn avx2 <$(const $c: $ct),*> ($($arg: $ty),*) {
                    $body::<Avx2, $($c),*>($($arg),*)
                }

                match instruction_set() {
                    // SAFETY: the processor has AVX-512 with VNNI: it is asked before a set is used.
                    InstructionSet::Avx512Vnni | InstructionSet::Avx512Bf16 => return unsafe { vnni::<$($c),*>($($arg),*) },
                    // SAFETY: the processor has AVX2, FMA and F16C: it is asked before a set is used.
                    InstructionSet::Avx512 | InstructionSet::Avx2 => return unsafe { avx2::<$($c),*>($($arg),*) },
                    InstructionSet::Scalar => {}
                }
            }
            $body::<$crate::simd::Baseline, $($c),*>($($arg),*)
        }
    };
}
pub(crate) use multiversion_bytes;

impl Bytes for Baseline {
    type Codes = [u8; CODES];
    type Sums = [i32; LANES];
    const BYTE_BIAS: i32 = 0;
    const FEW_REGISTERS: bool = false;

    #[inline(always)]
    fn load(codes: &[u8; CODES]) -> Self::Codes {
        *codes
    }
    #[inline(always)]
    fn low(codes: Self::Codes) -> Self::Codes {
        codes.map(|code| code & 0x0f)
    }
    #[inline(always)]
    fn high(codes: Self::Codes) -> Self::Codes {
        codes.map(|code| code >> 4)
    }
    #[inline(always)]
    fn zero() -> Self::Sums {
        [0; LANES]
    }
    #[inline(always)]
    fn dot_nibble(mut sums: Self::Sums, codes: Self::Codes, x: [i8; 4]) -> Self::Sums {
        for (lane, sum) in sums.iter_mut().enumerate() {
            for i in 0..4 {
                *sum += i32::from(codes[4 * lane + i]) * i32::from(x[i]);
            }
        }
        sums
    }
    #[inline(always)]
    fn dot_byte(sums: Self::Sums, codes: Self::Codes, x: [i8; 4]) -> Self::Sums {
        Self::dot_nibble(sums, codes, x)
    }
    #[inline(always)]
    fn float(sums: Self::Sums, offset: i32) -> Self::Lanes {
        sums.map(|sum| (sum - offset) as f32)
    }
    #[inline(always)]
    fn halves(values: &[f16; LANES]) -> Self::Lanes {
        values.map(f16::to_f32)
    }
    #[inline(always)]
    fn code(codes: Self::Codes, i: usize) -> Self::Lanes {
        std::array::from_fn(|lane| f32::from(codes[4 * lane + i]))
    }
    #[inline(always)]
    fn look_up(table: &[f32; LANES], codes: Self::Codes, i: usize) -> Self::Lanes {
        std::array::from_fn(|lane| table[usize::from(codes[4 * lane + i] & 0x0f)])
    }
}

#[cfg(target_arch = "x86_64")]
impl Bytes for Avx512 {
    type Codes = __m512i;
    type Sums = __m512i;
    const BYTE_BIAS: i32 = 0;
    const FEW_REGISTERS: bool = false;

    #[inline(always)]
    fn load(codes: &[u8; CODES]) -> Self::Codes {
        // SAFETY: the caller is compiled for AVX-512 with VNNI; see the trait. All bytes are there
        // to read.
        unsafe { _mm512_loadu_si512(codes.as_ptr().cast()) }
    }
    #[inline(always)]
    fn low(codes: Self::Codes) -> Self::Codes {
        // SAFETY: the caller is compiled for AVX-512 with VNNI; see the trait.
        unsafe { _mm512_and_si512(codes, _mm512_set1_epi8(0x0f)) }
    }
    #[inline(always)]
    fn high(codes: Self::Codes) -> Self::Codes {
        // SAFETY: the caller is compiled for AVX-512 with VNNI; see the trait.
        unsafe { _mm512_and_si512(_mm512_srli_epi16(codes, 4), _mm512_set1_epi8(0x0f)) }
    }
    #[inline(always)]
    fn zero() -> Self::Sums {
        // SAFETY: the caller is compiled for AVX-512 with VNNI; see the trait.
        unsafe { _mm512_setzero_si512() }
    }
    #[inline(always)]
    fn dot_nibble(sums: Self::Sums, codes: Self::Codes, x: [i8; 4]) -> Self::Sums {
        // SAFETY: the caller is compiled for AVX-512 with VNNI; see the trait.
        unsafe {
            _mm512_dpbusd_epi32(
                sums,
                codes,
                _mm512_set1_epi32(i32::from_ne_bytes(x.map(|x| x as u8))),
            )
        }
    }
    #[inline(always)]
    fn dot_byte(sums: Self::Sums, codes: Self::Codes, x: [i8; 4]) -> Self::Sums {
        Self::dot_nibble(sums, codes, x)
    }
    #[inline(always)]
    fn float(sums: Self::Sums, offset: i32) -> Self::Lanes {
        // SAFETY: the caller is compiled for AVX-512 with VNNI; see the trait.
        unsafe { _mm512_cvtepi32_ps(_mm512_sub_epi32(sums, _mm512_set1_epi32(offset))) }
    }
    #[inline(always)]
    fn halves(values: &[f16; LANES]) -> Self::Lanes {
        // SAFETY: the caller is compiled for AVX-512 with VNNI, see the trait;
        // sixteen halves are there to read.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(values.as_ptr().cast())) }
    }
    #[inline(always)]
    fn code(codes: Self::Codes, i: usize) -> Self::Lanes {
        // SAFETY: the caller is compiled for AVX-512 with VNNI; see the trait.
        unsafe {
            let shifted = _mm512_srlv_epi32(codes, _mm512_set1_epi32(8 * i as i32));
            _mm512_cvtepi32_ps(_mm512_and_si512(shifted, _mm512_set1_epi32(0xff)))
        }
    }
    #[inline(always)]
    fn look_up(table: &[f32; LANES], codes: Self::Codes, i: usize) -> Self::Lanes {
        // SAFETY: the caller is compiled for AVX-512 with VNNI, see the trait;
        // the table has sixteen numbers, and only the low four bits
        // of a place are read.
        unsafe {
            let shifted = _mm512_srlv_epi32(codes, _mm512_set1_epi32(8 * i as i32));
            _mm512_permutexvar_ps(shifted, _mm512_loadu_ps(table.as_ptr()))
        }
    }
}

#[cfg(target_arch = "x86_64")]
impl Bytes for Avx2 {
    type Codes = [__m256i; 2];
    type Sums = [__m256i; 2];
    // Codes are made signed, because sums of pairs of larger products would not fit 16 bits.
    const BYTE_BIAS: i32 = 128;
    const FEW_REGISTERS: bool = true;

    #[inline(always)]
    fn load(codes: &[u8; CODES]) -> Self::Codes {
        // SAFETY: the caller is compiled for AVX2; see the trait. All bytes are there to read.
        unsafe {
            [
                _mm256_loadu_si256(codes.as_ptr().cast()),
                _mm256_loadu_si256(codes.as_ptr().add(CODES / 2).cast()),
            ]
        }
    }
    #[inline(always)]
    fn low(codes: Self::Codes) -> Self::Codes {
        // SAFETY: the caller is compiled for AVX2; see the trait.
        unsafe {
            let mask = _mm256_set1_epi8(0x0f);
            [
                _mm256_and_si256(codes[0], mask),
                _mm256_and_si256(codes[1], mask),
            ]
        }
    }
    #[inline(always)]
    fn high(codes: Self::Codes) -> Self::Codes {
        // SAFETY: the caller is compiled for AVX2; see the trait.
        unsafe {
            Self::low([
                _mm256_srli_epi16(codes[0], 4),
                _mm256_srli_epi16(codes[1], 4),
            ])
        }
    }
    #[inline(always)]
    fn zero() -> Self::Sums {
        // SAFETY: the caller is compiled for AVX2; see the trait.
        unsafe { [_mm256_setzero_si256(); 2] }
    }
    #[inline(always)]
    fn dot_nibble(sums: Self::Sums, codes: Self::Codes, x: [i8; 4]) -> Self::Sums {
        // SAFETY: the caller is compiled for AVX2; see the trait.
        unsafe {
            let x = _mm256_set1_epi32(i32::from_ne_bytes(x.map(|x| x as u8)));
            [
                add_products(sums[0], codes[0], x),
                add_products(sums[1], codes[1], x),
            ]
        }
    }
    #[inline(always)]
    fn dot_byte(sums: Self::Sums, codes: Self::Codes, x: [i8; 4]) -> Self::Sums {
        // SAFETY: the caller is compiled for AVX2; see the trait.
        unsafe {
            let x = _mm256_set1_epi32(i32::from_ne_bytes(x.map(|x| x as u8)));
            let flip = _mm256_set1_epi8(-128);
            let codes = [
                _mm256_xor_si256(codes[0], flip),
                _mm256_xor_si256(codes[1], flip),
            ];
            [
                add_products(
                    sums[0],
                    _mm256_abs_epi8(codes[0]),
                    _mm256_sign_epi8(x, codes[0]),
                ),
                add_products(
                    sums[1],
                    _mm256_abs_epi8(codes[1]),
                    _mm256_sign_epi8(x, codes[1]),
                ),
            ]
        }
    }
    #[inline(always)]
    fn float(sums: Self::Sums, offset: i32) -> Self::Lanes {
        // SAFETY: the caller is compiled for AVX2; see the trait.
        unsafe {
            let offset = _mm256_set1_epi32(offset);
            [
                _mm256_cvtepi32_ps(_mm256_sub_epi32(sums[0], offset)),
                _mm256_cvtepi32_ps(_mm256_sub_epi32(sums[1], offset)),
            ]
        }
    }
    #[inline(always)]
    fn halves(values: &[f16; LANES]) -> Self::Lanes {
        // SAFETY: the caller is compiled for AVX2, see the trait;
        // sixteen halves are there to read.
        unsafe {
            let values: *const __m128i = values.as_ptr().cast();
            [
                _mm256_cvtph_ps(_mm_loadu_si128(values)),
                _mm256_cvtph_ps(_mm_loadu_si128(values.add(1))),
            ]
        }
    }
    #[inline(always)]
    fn code(codes: Self::Codes, i: usize) -> Self::Lanes {
        // SAFETY: the caller is compiled for AVX2; see the trait.
        unsafe {
            let (shift, mask) = (_mm256_set1_epi32(8 * i as i32), _mm256_set1_epi32(0xff));
            [
                _mm256_cvtepi32_ps(_mm256_and_si256(_mm256_srlv_epi32(codes[0], shift), mask)),
                _mm256_cvtepi32_ps(_mm256_and_si256(_mm256_srlv_epi32(codes[1], shift), mask)),
            ]
        }
    }
    #[inline(always)]
    fn look_up(table: &[f32; LANES], codes: Self::Codes, i: usize) -> Self::Lanes {
        // SAFETY: the caller is compiled for AVX2, see the trait;
        // the table has sixteen numbers, and only the low three bits
        // of a place are read.
        unsafe {
            let shift = _mm256_set1_epi32(8 * i as i32);
            let halves = [
                _mm256_loadu_ps(table.as_ptr()),
                _mm256_loadu_ps(table.as_ptr().add(8)),
            ];
            [
                choose(halves, _mm256_srlv_epi32(codes[0], shift)),
                choose(halves, _mm256_srlv_epi32(codes[1], shift)),
            ]
        }
    }
}

/// The numbers at these places of a table of sixteen.
///
/// # Safety
/// The caller must be compiled for AVX2.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn choose(table: [__m256; 2], places: __m256i) -> __m256 {
    // SAFETY: passed on to the caller.
    unsafe {
        let (low, high) = (
            _mm256_permutevar8x32_ps(table[0], places),
            _mm256_permutevar8x32_ps(table[1], places),
        );
        // The fourth bit, moved to the sign, says which half of the table is meant.
        _mm256_blendv_ps(
            low,
            high,
            _mm256_castsi256_ps(_mm256_slli_epi32(places, 28)),
        )
    }
}

/// Adds the products of unsigned with signed bytes, four to a sum; products of two neighbours must
/// fit 16 bits.
///
/// # Safety
/// The caller must be compiled for AVX2.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn add_products(sums: __m256i, codes: __m256i, x: __m256i) -> __m256i {
    // SAFETY: passed on to the caller.
    unsafe {
        _mm256_add_epi32(
            sums,
            _mm256_madd_epi16(_mm256_maddubs_epi16(codes, x), _mm256_set1_epi16(1)),
        )
    }
}
