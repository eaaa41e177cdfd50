//! Compiling one loop for several instruction sets.

/// `multiversion!(fn name(args) -> result = body)` defines `name` as `body::<I>` compiled for each
/// instruction set `I`. `body` must be `#[inline(always)]`, and so must what it calls with `I`.
macro_rules! multiversion {
    ($vis:vis fn $name:ident $(<const $c:ident: $ct:ty>)? ($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? = $body:ident) => {
        $vis fn $name $(<const $c: $ct>)? ($($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            {
                use $crate::simd::{Avx2, Avx512, InstructionSet, instruction_set};

                #[target_feature(enable = "avx512f,avx512vl,avx512dq,avx2,fma,popcnt")]
                fn avx512 $(<const $c: $ct>)? ($($arg: $ty),*) $(-> $ret)? {
                    $body::<Avx512 $(, $c)?>($($arg),*)
                }

                #[target_feature(enable = "avx2,fma,popcnt")]
                fn avx2 $(<const $c: $ct>)? ($($arg: $ty),*) $(-> $ret)? {
                    $body::<Avx2 $(, $c)?>($($arg),*)
                }

                match instruction_set() {
                    // SAFETY: the processor has AVX-512 F, VL and DQ: it is asked before a set is used.
                    InstructionSet::Avx512
                    | InstructionSet::Avx512Vnni
                    | InstructionSet::Avx512Bf16 => return unsafe { avx512 $(::<$c>)? ($($arg),*) },
                    // SAFETY: the processor has AVX2, FMA and POPCNT: it is asked before a set is used.
                    InstructionSet::Avx2 => return unsafe { avx2 $(::<$c>)? ($($arg),*) },
                    InstructionSet::Scalar => {}
                }
            }
            $body::<$crate::simd::Baseline $(, $c)?>($($arg),*)
        }
    };
}
pub(crate) use multiversion;
