//! # OFT: orthogonal fine-tuning
//!
//! ## What it does
//! Rotates blocks of a layer's input, which keeps the angles between its rows' weights, instead of
//! adding to the weight.
//!
//! ## Update rule
//! `y = (x R) Wᵀ + b`, `R` block-diagonal with blocks `(I − Q)(I + Q)⁻¹` of trained skew-symmetric
//! `Q`, or the first terms of its series `I + 2Q + 2Q² + ...` with the sign of `Q` turned.
//!
//! ## When to use, when not
//! Where the model must not drift far from what it is: rotations keep lengths and angles. At equal
//! file size it trains slower than LoRA.
//!
//! ## Cost
//! Trainable: `d_in (b - 1) / 2` per layer for blocks of size `b`. Extra compute: `d_in b`
//! multiply-adds per token forward, and `b³` per block for the rotations of a step. None after
//! merging.
//!
//! ## Defaults and where they come from
//! `oft_block_size = 32`, the series with 5 terms: Hugging Face `peft`. Where the size does not
//! divide `d_in`, the nearest one that does is taken, as there. `Q` starts at zero. `r` counts
//! blocks and replaces the size; give one of the two.
//!
//! ## Departures from the paper
//! The paper rotates outputs and uses the exact transform; rotating inputs and the series follow
//! OFTv2. `coft` bounds `‖Q‖`. `module_dropout` is not offered: `peft` 0.21 has the setting and
//! does not apply it. With the series rotations are approximate, so keep `Q` small.
//!
//! ## References
//! - Qiu, Liu, Feng, Xue, Feng, Liu, Zhang, Weller, Schölkopf: Controlling Text-to-Image Diffusion
//!   by Orthogonal Finetuning, 2023, arXiv 2306.07280.
//! - Qiu, Liu, Weller, Schölkopf: Orthogonal Finetuning Made Scalable, 2025, arXiv 2506.19847.

use burn::prelude::*;
use frugal_nn::{
    AdaptError, Adapter, BuildContext, MergedLinear, Mode, Parameter, StepContext, named_rng,
    standard_normal,
};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::method::{Family, Method, MethodConfig};
use crate::settings::Settings;
use crate::support::orthogonal::{cayley, cayley_neumann, inverse, rotate, skew};
use crate::support::per_linear::{self, LinearAdapter, LinearSite, PerLinear, bad};
use crate::target::Targets;

const NAME: &str = "oft";

/// Registry entry.
pub const METHOD: Method = Method::of::<OftConfig>(
    Family::Orthogonal,
    "Rotations of blocks of each layer's input",
    include_str!("oft.rs"),
)
.aliases(&["orthogonal"])
.default_lr(7e-4);

/// Settings, with `peft`'s names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct OftConfig {
    /// Number of blocks, or 0 where the block size is given.
    pub r: usize,
    /// Block size, or 0 where the number of blocks is given.
    pub oft_block_size: usize,
    /// Bound the rotations.
    pub coft: bool,
    /// The bound: `‖Q‖` of a block is at most `eps / sqrt(blocks)`.
    pub eps: f64,
    /// One block serves every place.
    pub block_share: bool,
    /// Use the series instead of the exact transform.
    pub use_cayley_neumann: bool,
    /// Terms of the series.
    pub num_cayley_neumann_terms: usize,
    /// Start without a rotation; otherwise with random ones, for tests.
    pub init_weights: bool,
    /// Which layers.
    #[serde(flatten)]
    pub targets: Targets,
}

impl Default for OftConfig {
    fn default() -> Self {
        Self {
            r: 0,
            oft_block_size: 32,
            coft: false,
            eps: 6e-5,
            block_share: false,
            use_cayley_neumann: true,
            num_cayley_neumann_terms: 5,
            init_weights: true,
            targets: Targets::default(),
        }
    }
}

impl MethodConfig for OftConfig {
    const NAME: &'static str = NAME;
    const PEFT_TYPE: &'static str = "OFT";

    fn validate(&self) -> Result<(), AdaptError> {
        if (self.r == 0) == (self.oft_block_size == 0) {
            return bad(
                NAME,
                "oft_block_size",
                "give either a block size or the number of blocks `r`, and 0 for the other",
            );
        }
        if self.num_cayley_neumann_terms == 0 {
            return bad(NAME, "num_cayley_neumann_terms", "must be at least 1");
        }
        if self.eps.is_finite() && self.eps > 0.0 {
            Ok(())
        } else {
            bad(NAME, "eps", "must be above 0")
        }
    }

    fn build(self, context: &BuildContext<'_>) -> Result<Box<dyn Adapter>, AdaptError> {
        Ok(Box::new(build(self, context)?))
    }

    fn from_peft(config: &Settings) -> Result<Settings, AdaptError> {
        per_linear::from_peft_without_bias::<OftConfig>(NAME, config)
    }
}

impl OftConfig {
    /// Block size for layers of this width.
    fn block_size(&self, d_in: usize) -> usize {
        if self.r == 0 {
            nearest_divisor(d_in, self.oft_block_size)
        } else {
            d_in / nearest_divisor(d_in, self.r)
        }
    }
}

/// The divisor of `n` that is nearest to `wanted`, the smaller of two that are as near.
fn nearest_divisor(n: usize, wanted: usize) -> usize {
    if wanted >= n {
        return n;
    }
    let above = (wanted..=n).find(|d| n.is_multiple_of(*d)).unwrap_or(n);
    let below = (1..=wanted)
        .rev()
        .find(|d| n.is_multiple_of(*d))
        .unwrap_or(1);
    if wanted - below <= above - wanted {
        below
    } else {
        above
    }
}

fn build(config: OftConfig, context: &BuildContext<'_>) -> Result<PerLinear<Rotation>, AdaptError> {
    config.validate()?;
    let constants = json!({"bias": "none", "fan_in_fan_out": false, "module_dropout": 0.0});
    PerLinear::new(
        &METHOD,
        &config.targets,
        context,
        &config,
        constants,
        |_, info| {
            let size = config.block_size(info.d_in);
            let blocks = if config.block_share {
                1
            } else {
                info.d_in / size
            };
            let entries = size * (size - 1) / 2;
            let mut rng = named_rng(context.seed, &info.path);
            let mut value = || {
                if config.init_weights {
                    0.0
                } else {
                    0.1 * standard_normal(&mut rng)
                }
            };
            let values = (0..blocks * entries).map(|_| value()).collect();
            Ok(Rotation {
                q: Parameter::new(
                    format!("{}.oft_R.weight", info.path),
                    &[blocks, entries],
                    values,
                    &context.device,
                ),
                size,
                bound: config
                    .coft
                    .then(|| (config.eps / (blocks as f64).sqrt()) as f32),
                terms: config
                    .use_cayley_neumann
                    .then_some(config.num_cayley_neumann_terms),
            })
        },
    )
}

/// The rotation of one layer's input.
struct Rotation {
    /// Entries above the diagonal of each block, `[blocks, size (size - 1) / 2]`.
    q: Parameter,
    size: usize,
    /// Largest `‖Q‖` of a block.
    bound: Option<f32>,
    /// Terms of the series; exact if none.
    terms: Option<usize>,
}

impl Rotation {
    /// What each block is multiplied by to stay within the bound.
    fn shrink(&self, bound: f32) -> Vec<f32> {
        // The norm of the whole skew-symmetric matrix: each entry is there twice.
        let norm = |block: &[f32]| (2.0 * block.iter().map(|v| v * v).sum::<f32>()).sqrt();
        let factor = |norm: f32| if norm <= bound { 1.0 } else { bound / norm };
        self.q
            .to_vec()
            .chunks_exact(self.q.shape()[1].max(1))
            .map(|block| factor(norm(block)))
            .collect()
    }

    /// `[blocks, size, size]`.
    fn blocks(&self, mode: Mode) -> Tensor<3> {
        let mut q = self.q.get::<2>(mode);
        if let Some(bound) = self.bound {
            let factors = self.shrink(bound);
            let factors = Tensor::<2>::from_data(
                TensorData::new(factors, [self.q.shape()[0], 1]),
                &q.device().inner(),
            );
            // The projection counts as done: its gradient is that of its result.
            let values = q.clone().inner();
            q = q + (values.clone() * factors - values);
        }
        let q = skew(q, self.size);
        match self.terms {
            Some(terms) => cayley_neumann(q, terms),
            None => cayley(q),
        }
    }
}

impl LinearAdapter for Rotation {
    fn parameters(&self) -> Vec<&Parameter> {
        vec![&self.q]
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        vec![&mut self.q]
    }

    fn delta(&self, at: &LinearSite<'_>) -> Tensor<2> {
        self.merged(at).weight - at.base.weight.dense()
    }

    fn materializes_weight(&self) -> bool {
        false
    }

    fn forward(&self, at: &LinearSite<'_>, x: Tensor<2>) -> Tensor<2> {
        at.base.forward(rotate(x, at.keep(|| self.blocks(at.mode))))
    }

    fn merged(&self, at: &LinearSite<'_>) -> MergedLinear {
        let turned = self.blocks(Mode::Eval).swap_dims(1, 2);
        MergedLinear {
            weight: rotate(at.base.weight.dense(), turned),
            bias: at.base.bias.clone(),
        }
    }

    fn unmerged(&self, at: &LinearSite<'_>) -> Result<MergedLinear, String> {
        let turned = inverse(&self.blocks(Mode::Eval).swap_dims(1, 2));
        Ok(MergedLinear {
            weight: rotate(at.base.weight.dense(), turned),
            bias: at.base.bias.clone(),
        })
    }

    fn after_step(&mut self, _context: &StepContext) {
        if let Some(bound) = self.bound {
            let (factors, width) = (self.shrink(bound), self.q.shape()[1].max(1));
            let values = self
                .q
                .to_vec()
                .iter()
                .enumerate()
                .map(|(i, v)| v * factors[i / width])
                .collect();
            self.q.set(values);
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::support::values;

    use super::*;

    #[test]
    fn a_size_that_does_not_divide_becomes_the_nearest_that_does() {
        // What peft 0.21 chose, by its warnings.
        for (n, wanted, expected) in [
            (32, 10, 8),
            (48, 10, 8),
            (576, 32, 32),
            (1536, 100, 96),
            (31, 8, 1),
            (16, 32, 16),
        ] {
            assert_eq!(nearest_divisor(n, wanted), expected, "{n} by {wanted}");
        }
    }

    #[test]
    fn size_and_number_exclude_each_other() {
        let message = (METHOD.check)(&values::object(json!({"r": 4})))
            .unwrap_err()
            .to_string();
        assert!(
            message.contains("either a block size or the number of blocks"),
            "{message}"
        );
    }
}
