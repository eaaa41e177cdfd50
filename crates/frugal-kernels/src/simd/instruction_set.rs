//! The instruction set that kernels run with: the machine's best, or a smaller one on request.

use std::env;
use std::fmt::{self, Display, Formatter};
use std::sync::OnceLock;

use thiserror::Error;

/// The environment variable that asks for an instruction set.
const VARIABLE: &str = "FRUGAL_SIMD";

/// An instruction set that kernels are compiled for; each has all of those before it.
///
/// The general matrix product that is used for small shapes, and for all where there is no AVX-512,
/// is that of the `gemm` crate, which always takes the best the machine has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum InstructionSet {
    /// What every processor of the target has.
    Scalar,
    /// AVX2 with FMA, F16C and POPCNT.
    Avx2,
    /// AVX-512 F, VL and DQ.
    Avx512,
    /// AVX-512 BW and VNNI, for products of bytes.
    Avx512Vnni,
    /// AVX-512 BF16, for products in bfloat16.
    Avx512Bf16,
}

/// Why kernels cannot run with the instruction set that `FRUGAL_SIMD` asks for.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum InstructionSetError {
    /// No such name.
    #[error(
        "`FRUGAL_SIMD`: there is no instruction set `{0}`; this machine has {list}", 
        list = names(*.1)
    )]
    Unknown(String, InstructionSet),
    /// The machine lacks it.
    #[error(
        "`FRUGAL_SIMD`: this machine lacks `{asked}`; it has {list}; without the variable, kernels \
         use `{best}`",
        list = names(*.best)
    )]
    Lacking {
        /// What was asked for.
        asked: InstructionSet,
        /// The best that the machine has.
        best: InstructionSet,
    },
}

/// The names up to `best`.
fn names(best: InstructionSet) -> String {
    let had = InstructionSet::ALL.iter().filter(|set| **set <= best);
    had.map(|set| format!("`{set}`"))
        .collect::<Vec<_>>()
        .join(", ")
}

impl InstructionSet {
    /// All, from the smallest to the largest.
    pub const ALL: [Self; 5] = [
        Self::Scalar,
        Self::Avx2,
        Self::Avx512,
        Self::Avx512Vnni,
        Self::Avx512Bf16,
    ];

    /// The name by which `FRUGAL_SIMD` asks for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Avx512Vnni => "avx512vnni",
            Self::Avx512Bf16 => "avx512bf16",
        }
    }

    /// The best that this machine has.
    pub fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            let has_avx2 = is_x86_feature_detected!("popcnt")
                && is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c");
            let has_avx512 = has_avx2
                && is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512dq");
            let has_vnni = has_avx512
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vnni");
            if has_vnni && is_x86_feature_detected!("avx512bf16") {
                return Self::Avx512Bf16;
            } else if has_vnni {
                return Self::Avx512Vnni;
            } else if has_avx512 {
                return Self::Avx512;
            } else if has_avx2 {
                return Self::Avx2;
            }
        }
        Self::Scalar
    }

    /// What kernels of this process run with: the best that the machine has, or what the
    /// environment variable `FRUGAL_SIMD` names. It is read once.
    ///
    /// # Errors
    /// When the variable names none, or one that the machine lacks. Kernels panic then: a program
    /// that lets its users set the variable asks here first.
    pub fn in_use() -> Result<Self, InstructionSetError> {
        in_use().clone()
    }
}

impl Display for InstructionSet {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[inline]
fn in_use() -> &'static Result<InstructionSet, InstructionSetError> {
    static IN_USE: OnceLock<Result<InstructionSet, InstructionSetError>> = OnceLock::new();
    IN_USE.get_or_init(|| {
        let asked = env::var_os(VARIABLE).filter(|name| !name.is_empty());
        let asked = asked.map(|name| name.to_string_lossy().into_owned());
        choose(asked.as_deref(), InstructionSet::detect())
    })
}

/// [`InstructionSet::in_use`], for kernels.
#[inline]
pub(crate) fn instruction_set() -> InstructionSet {
    match in_use() {
        Ok(set) => *set,
        Err(error) => refuse(error),
    }
}

#[cold]
fn refuse(error: &InstructionSetError) -> ! {
    panic!("{error}")
}

fn choose(
    asked: Option<&str>,
    best: InstructionSet,
) -> Result<InstructionSet, InstructionSetError> {
    let Some(asked) = asked else { return Ok(best) };
    let set = InstructionSet::ALL
        .into_iter()
        .find(|set| set.name() == asked)
        .ok_or_else(|| InstructionSetError::Unknown(asked.into(), best))?;
    if set > best {
        return Err(InstructionSetError::Lacking { asked: set, best });
    }
    Ok(set)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_the_machine_lacks_is_refused_with_those_it_has() {
        assert_eq!(choose(None, InstructionSet::Avx2), Ok(InstructionSet::Avx2));
        assert_eq!(
            choose(Some("scalar"), InstructionSet::Avx2),
            Ok(InstructionSet::Scalar)
        );
        let lacking = choose(Some("avx512"), InstructionSet::Avx2).unwrap_err();
        assert_eq!(
            lacking.to_string(),
            "`FRUGAL_SIMD`: this machine lacks `avx512`; it has `scalar`, `avx2`; without the \
             variable, kernels use `avx2`"
        );
        let unknown = choose(Some("AVX2"), InstructionSet::Avx2).unwrap_err();
        assert_eq!(
            unknown.to_string(),
            "`FRUGAL_SIMD`: there is no instruction set `AVX2`; this machine has `scalar`, `avx2`"
        );
    }
}
