//! In which numbers a model computes.

use clap::ValueEnum;
use frugal::device::InstructionSet;
use frugal::model::Quantize;

/// Numbers in which the weights of a model are held and multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Dtype {
    /// bf16 where the processor multiplies it at twice the rate (AVX-512 BF16), else f32
    Auto,
    /// Single precision
    #[value(alias = "float32", alias = "float")]
    F32,
    /// bfloat16, sums in single precision
    #[value(alias = "bfloat16")]
    Bf16,
}

impl Dtype {
    /// How the weights are held for it.
    pub fn quantize(self) -> Quantize {
        let fast = || InstructionSet::in_use().is_ok_and(|set| set >= InstructionSet::Avx512Bf16);
        match self {
            Self::Auto if fast() => Quantize::Bf16,
            Self::Auto | Self::F32 => Quantize::None,
            Self::Bf16 => Quantize::Bf16,
        }
    }

    /// The name of [`Dtype::quantize`] in a config.
    pub fn quantize_name(self) -> String {
        match self.quantize() {
            Quantize::Bf16 => "bf16".into(),
            _ => "none".into(),
        }
    }
}
