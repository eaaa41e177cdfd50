//! Which instruction set a kernel runs with.

#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum InstructionSet {
    Avx512,
    Avx2,
    Baseline,
}

#[cfg(target_arch = "x86_64")]
pub(crate) fn instruction_set() -> InstructionSet {
    if !is_x86_feature_detected!("popcnt") {
        InstructionSet::Baseline
    } else if is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512dq")
    {
        InstructionSet::Avx512
    } else if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        InstructionSet::Avx2
    } else {
        InstructionSet::Baseline
    }
}

#[cfg(target_arch = "x86_64")]
pub(crate) fn byte_instructions() -> InstructionSet {
    let halves = is_x86_feature_detected!("f16c");
    match super::instruction_set() {
        InstructionSet::Avx512
            if halves
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vnni") =>
        {
            InstructionSet::Avx512
        }
        InstructionSet::Avx512 | InstructionSet::Avx2 if halves => InstructionSet::Avx2,
        _ => InstructionSet::Baseline,
    }
}

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
                    // SAFETY: the processor has AVX-512 F, VL and DQ, as just detected.
                    InstructionSet::Avx512 => return unsafe { avx512 $(::<$c>)? ($($arg),*) },
                    // SAFETY: the processor has AVX2, FMA and POPCNT, as just detected.
                    InstructionSet::Avx2 => return unsafe { avx2 $(::<$c>)? ($($arg),*) },
                    InstructionSet::Baseline => {}
                }
            }
            $body::<$crate::simd::Baseline $(, $c)?>($($arg),*)
        }
    };
}
pub(crate) use multiversion;
