//! # LoHa: low-rank Hadamard product
//!
//! ## What it does
//! The change of a weight is the element-wise product of two low-rank matrices, whose rank can
//! reach the square of theirs.
//!
//! ## Update rule
//! `ΔW = (alpha / r) (w1_a w1_b) ⊙ (w2_a w2_b)` with `w_a [d_out, r]` and `w_b [r, d_in]`.
//!
//! ## When to use, when not
//! Where LoRA's rank is the limit and its file size is not to grow. It came from image models; on
//! text LoRA at the same number of parameters is usually as good and faster.
//!
//! ## Cost
//! Trainable: `2 r (d_in + d_out)` per layer. Extra compute: `2 r d_in d_out` multiply-adds per layer
//! and step, forward, and a gradient of the whole weight backward. None after merging.
//!
//! ## Defaults and where they come from
//! `r = 8`, `alpha = 8`: Hugging Face `peft`. `w2_b` is zero, the other factors Kaiming-uniform
//! with `a = sqrt(5)`.
//!
//! ## Departures from the paper
//! FedPara multiplies two full parametrisations for federated training; this is its use as an
//! adapter in LyCORIS and `peft`. `rank_dropout` drops rows of `ΔW`, as there.
//!
//! ## References
//! - Hyeon-Woo, Ye-Bin, Oh: FedPara: Low-Rank Hadamard Product for Communication-Efficient
//!   Federated Learning, 2021, arXiv 2108.06098.
//! - Yeh, Hsieh, Gao, Yang, Oh, Gong: Navigating Text-To-Image Customization: From LyCORIS
//!   Fine-Tuning to Model Evaluation, 2023, arXiv 2309.14859.

use frugal_nn::{AdaptError, Adapter, BuildContext, Parameter, named_rng};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::method::{Family, Method, MethodConfig};
use crate::settings::Settings;
use crate::support::lycoris::{Factors, LycorisConfig};
use crate::support::per_linear::{self, PerLinear};
use crate::support::values::kaiming;

const NAME: &str = "loha";

/// Registry entry.
pub const METHOD: Method = Method::of::<LohaConfig>(
    Family::LowRank,
    "The element-wise product of two low-rank changes",
    include_str!("loha.rs"),
)
.aliases(&["hadamard"])
.default_lr(2e-3);

/// Settings, with `peft`'s names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LohaConfig {
    /// Start without a change; otherwise with a random one, for tests.
    pub init_weights: bool,
    /// The rest.
    #[serde(flatten)]
    pub lycoris: LycorisConfig,
}

impl Default for LohaConfig {
    fn default() -> Self {
        Self {
            init_weights: true,
            lycoris: LycorisConfig::default(),
        }
    }
}

impl MethodConfig for LohaConfig {
    const NAME: &'static str = NAME;
    const PEFT_TYPE: &'static str = "LOHA";

    fn validate(&self) -> Result<(), AdaptError> {
        self.lycoris.validate(NAME)
    }

    fn build(self, context: &BuildContext<'_>) -> Result<Box<dyn Adapter>, AdaptError> {
        Ok(Box::new(build(self, context)?))
    }

    fn from_peft(config: &Settings) -> Result<Settings, AdaptError> {
        per_linear::from_peft::<LohaConfig>(NAME, config, json!({}), &[])
    }
}

fn build(config: LohaConfig, context: &BuildContext<'_>) -> Result<PerLinear<Factors>, AdaptError> {
    config.validate()?;
    config.lycoris.check_patterns(context.sites)?;
    PerLinear::new(
        &METHOD,
        &config.lycoris.targets,
        context,
        &config,
        json!({"use_effective_conv2d": false}),
        |_, info| {
            let scaled = config.lycoris.of(info, true)?;
            let (r, mut rng) = (scaled.r, named_rng(context.seed, &info.path));
            let mut factor = |name: &str, rows: usize, cols: usize, zero: bool| {
                let values = if zero {
                    vec![0.0; rows * cols]
                } else {
                    kaiming(&mut rng, rows * cols, cols)
                };
                Parameter::new(
                    format!("{}.hada_{name}", info.path),
                    &[rows, cols],
                    values,
                    &context.device,
                )
            };
            let w1 = vec![
                factor("w1_a", info.d_out, r, false),
                factor("w1_b", r, info.d_in, false),
            ];
            let w2 = vec![
                factor("w2_a", info.d_out, r, false),
                factor("w2_b", r, info.d_in, config.init_weights),
            ];
            Ok(Factors {
                w1,
                w2,
                combine: |a, b| a * b,
                scaled,
            })
        },
    )
}
