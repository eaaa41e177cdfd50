//! # LoKr: Kronecker product
//!
//! ## What it does
//! The change of a weight is the Kronecker product of two small matrices, one or both of them in
//! low-rank factors.
//!
//! ## Update rule
//! `ΔW = (alpha / r) w1 ⊗ w2` with `w1 [a, c]`, `w2 [b, d]`, `a b = d_out`, `c d = d_in`.
//! `w2 = w2_a w2_b` where that is smaller (`r < max(b, d) / 2`), and with `decompose_both` likewise
//! `w1`.
//!
//! ## When to use, when not
//! For very small files with a change of full rank. Where accuracy counts more than size, LoRA has
//! more room.
//!
//! ## Cost
//! Trainable: about `4 sqrt(d_in d_out) / 2` per layer and less with factors. Extra compute: forming
//! `ΔW` per layer and step, and a gradient of the whole weight backward. None after merging.
//!
//! ## Defaults and where they come from
//! `r = 8`, `alpha = 8`, sides split as near to a square as they divide (`decompose_factor = -1`):
//! Hugging Face `peft`. `w1` is zero, `w2` Kaiming-uniform with `a = sqrt(5)`;
//! `init_weights = "lycoris"` does it the other way round.
//!
//! ## Departures from the paper
//! KronA fixes the sides and scales by a constant; sides, factors and scale here are those of
//! LyCORIS and `peft`.
//!
//! ## References
//! - Yeh, Hsieh, Gao, Yang, Oh, Gong: Navigating Text-To-Image Customization: From LyCORIS
//!   Fine-Tuning to Model Evaluation, 2023, arXiv 2309.14859.
//! - Edalati, Tahaei, Kobyzev, Nia, Clark, Rezagholizadeh: KronA: Parameter Efficient Tuning with
//!   Kronecker Adapter, 2022, arXiv 2212.10650.

use burn::prelude::*;
use frugal_nn::{AdaptError, Adapter, BuildContext, Parameter, named_rng};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::method::{Family, Method, MethodConfig};
use crate::methods::low_rank::lora::Init;
use crate::settings::Settings;
use crate::support::lycoris::{Factors, LycorisConfig};
use crate::support::per_linear::{self, PerLinear, bad};
use crate::support::values::kaiming;

const NAME: &str = "lokr";

/// Registry entry.
pub const METHOD: Method = Method::of::<LokrConfig>(
    Family::LowRank,
    "The Kronecker product of two small matrices",
    include_str!("lokr.rs"),
)
.aliases(&["kronecker", "krona"])
.default_lr(2e-3);

/// Settings, with `peft`'s names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LokrConfig {
    /// Raise the remaining rows when some are dropped.
    pub rank_dropout_scale: bool,
    /// Factor `w1` too, where that is smaller.
    pub decompose_both: bool,
    /// Short side of the split of `d_in` and `d_out`; -1 for the most square one.
    pub decompose_factor: i64,
    /// `true`: `w1` zero. `"lycoris"`: `w2` zero. `false`: random, for tests.
    pub init_weights: Init,
    /// The rest.
    #[serde(flatten)]
    pub lycoris: LycorisConfig,
}

impl Default for LokrConfig {
    fn default() -> Self {
        Self {
            rank_dropout_scale: false,
            decompose_both: false,
            decompose_factor: -1,
            init_weights: Init::Default(true),
            lycoris: LycorisConfig::default(),
        }
    }
}

impl MethodConfig for LokrConfig {
    const NAME: &'static str = NAME;
    const PEFT_TYPE: &'static str = "LOKR";

    fn validate(&self) -> Result<(), AdaptError> {
        if self.decompose_factor == 0 || self.decompose_factor < -1 {
            return bad(NAME, "decompose_factor", "must be -1 or at least 1");
        }
        match &self.init_weights {
            Init::Named(name) if name != "lycoris" => bad(
                NAME,
                "init_weights",
                format!("`{name}` is not supported; supported: true, false, \"lycoris\""),
            ),
            _ => self.lycoris.validate(NAME),
        }
    }

    fn build(self, context: &BuildContext<'_>) -> Result<Box<dyn Adapter>, AdaptError> {
        Ok(Box::new(build(self, context)?))
    }

    fn from_peft(config: &Settings) -> Result<Settings, AdaptError> {
        per_linear::from_peft::<LokrConfig>(NAME, config, json!({}), &[])
    }
}

/// Two factors of `n`, the smaller first: with `factor` as one of them if it divides `n`, otherwise
/// the most square split whose smaller factor is at most `factor` (-1: no limit).
fn split(n: usize, factor: i64) -> (usize, usize) {
    let limit = usize::try_from(factor).unwrap_or(n);
    if factor > 0 && n.is_multiple_of(limit) {
        return (limit, n / limit);
    }
    let (mut m, mut k) = (1, n);
    while m < k {
        let next = (m + 1..=n).find(|d| n.is_multiple_of(*d)).unwrap_or(n);
        if next + n / next > m + k || next > limit {
            break;
        }
        (m, k) = (next, n / next);
    }
    (m.min(k), m.max(k))
}

fn build(config: LokrConfig, context: &BuildContext<'_>) -> Result<PerLinear<Factors>, AdaptError> {
    config.validate()?;
    config.lycoris.check_patterns(context.sites)?;
    let (zero_first, zero_second) = match &config.init_weights {
        Init::Default(zero) => (*zero, false),
        Init::Named(_) => (false, true),
    };
    PerLinear::new(
        &METHOD,
        &config.lycoris.targets,
        context,
        &config,
        json!({"use_effective_conv2d": false}),
        |_, info| {
            let scaled = config.lycoris.of(info, config.rank_dropout_scale)?;
            let (r, mut rng) = (scaled.r, named_rng(context.seed, &info.path));
            let ((a, b), (c, d)) = (
                split(info.d_out, config.decompose_factor),
                split(info.d_in, config.decompose_factor),
            );
            let mut tensor = |name: &str, rows: usize, cols: usize, zero: bool| {
                let values = if zero {
                    vec![0.0; rows * cols]
                } else {
                    kaiming(&mut rng, rows * cols, cols)
                };
                Parameter::new(
                    format!("{}.lokr_{name}", info.path),
                    &[rows, cols],
                    values,
                    &context.device,
                )
            };
            let smaller = |rows: usize, cols: usize| r.saturating_mul(2) < rows.max(cols);
            let w1 = if config.decompose_both && smaller(a, c) {
                vec![
                    tensor("w1_a", a, r, zero_first),
                    tensor("w1_b", r, c, false),
                ]
            } else {
                vec![tensor("w1", a, c, zero_first)]
            };
            let w2 = if smaller(b, d) {
                vec![
                    tensor("w2_a", b, r, false),
                    tensor("w2_b", r, d, zero_second),
                ]
            } else {
                vec![tensor("w2", b, d, zero_second)]
            };
            Ok(Factors {
                w1,
                w2,
                combine: kronecker,
                scaled,
            })
        },
    )
}

/// `w1 [a, c] ⊗ w2 [b, d]`, `[a b, c d]`.
fn kronecker(w1: Tensor<2>, w2: Tensor<2>) -> Tensor<2> {
    let ([a, c], [b, d]) = (w1.dims(), w2.dims());
    (w1.reshape([a, 1, c, 1]) * w2.reshape([1, b, 1, d])).reshape([a * b, c * d])
}

#[cfg(test)]
mod tests {
    use super::*;
    use frugal_nn::to_vec;

    #[test]
    fn sides_split_as_in_lycoris() {
        // Examples of its own documentation.
        for (n, factor, expected) in [
            (256, -1, (16, 16)),
            (128, -1, (8, 16)),
            (127, -1, (1, 127)),
            (128, 4, (4, 32)),
            (360, 13, (12, 30)),
            (512, 16, (16, 32)),
        ] {
            assert_eq!(split(n, factor), expected, "{n} by {factor}");
        }
    }

    #[test]
    fn a_kronecker_product_by_hand() {
        let matrix = |values: [[f32; 2]; 1]| Tensor::<2>::from_data(values, &Device::flex());
        let found = kronecker(matrix([[2.0, 3.0]]), matrix([[5.0, 7.0]]));
        assert_eq!(to_vec(found), [10.0, 14.0, 15.0, 21.0]);
    }
}
