//! # RoAd: rotary adaptation
//!
//! ## What it does
//! Turns and stretches pairs of each layer's outputs by trained angles and factors.
//!
//! ## Update rule
//! `y' = y ⊙ α₁ cos θ₁ + rot(y) ⊙ α₂ sin θ₂` with `y = x Wᵀ + b` and `rot(y₁, y₂) = (−y₂, y₁)`. In
//! each group of `group_size` outputs, element `i` is paired with element `i + group_size/2`.
//! `road_1` has one angle and one factor for a pair, `road_2` one for each element, `road_4` one
//! for each of the two terms of each element.
//!
//! ## When to use, when not
//! Where thousands of adapters share one model: a batch of mixed adapters costs two products by
//! element. It cannot mix outputs that are not a pair; for more capacity use LoRA or OFT.
//!
//! ## Cost
//! Trainable per map: `d_out` (`road_1`), `2 d_out` (`road_2`), `4 d_out` (`road_4`). Extra
//! compute: three multiply-adds per output. None after merging.
//!
//! ## Defaults and where they come from
//! `road_1`, `group_size = 64`, angles zero and factors one, so that nothing changes at the start,
//! as in Hugging Face `peft`. All linear layers but the head are adapted.
//!
//! ## Departures from the paper
//! Pairs lie half a group apart rather than side by side, as in `peft`; outputs have no order, so
//! only files differ.
//!
//! ## References
//! - Liao, Monz: 3-in-1: 2D Rotary Adaptation for Efficient Finetuning, Efficient Batching and
//!   Composability, 2024, arXiv 2409.00119, equation 4.

use burn::prelude::*;
use frugal_nn::{
    AdaptError, Adapter, BuildContext, MergedLinear, Mode, Parameter, named_rng, standard_normal,
    to_vec,
};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::method::{Family, Method, MethodConfig};
use crate::settings::Settings;
use crate::support::per_linear::{self, LinearAdapter, LinearSite, PerLinear, bad};
use crate::target::{Names, Targets};

const NAME: &str = "road";

/// Registry entry.
pub const METHOD: Method = Method::of::<RoadConfig>(
    Family::Orthogonal,
    "Trained rotations and factors of pairs of outputs",
    include_str!("road.rs"),
)
.aliases(&["rotary-adaptation"])
.default_lr(5e-3);

/// How many angles and factors there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Variant {
    /// One of each for a pair.
    #[default]
    #[serde(rename = "road_1")]
    Road1,
    /// One of each for an element.
    #[serde(rename = "road_2")]
    Road2,
    /// Two of each for an element.
    #[serde(rename = "road_4")]
    Road4,
}

/// Settings, with `peft`'s names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RoadConfig {
    /// How many angles and factors there are.
    pub variant: Variant,
    /// Outputs among which pairs are made; even.
    pub group_size: usize,
    /// Start without a change; otherwise at random, for tests.
    pub init_weights: bool,
    /// Path endings, one regular expression over the whole path, or `all-linear`.
    pub target_modules: Names,
}

impl Default for RoadConfig {
    fn default() -> Self {
        Self {
            variant: Variant::Road1,
            group_size: 64,
            init_weights: true,
            target_modules: Targets::default().target_modules,
        }
    }
}

impl MethodConfig for RoadConfig {
    const NAME: &'static str = NAME;
    const PEFT_TYPE: &'static str = "ROAD";

    fn validate(&self) -> Result<(), AdaptError> {
        let even = self.group_size > 0 && self.group_size.is_multiple_of(2);
        if even {
            Ok(())
        } else {
            bad(
                NAME,
                "group_size",
                format!("{} is not a positive even number", self.group_size),
            )
        }
    }

    fn build(self, context: &BuildContext<'_>) -> Result<Box<dyn Adapter>, AdaptError> {
        Ok(Box::new(build(self, context)?))
    }

    fn from_peft(config: &Settings) -> Result<Settings, AdaptError> {
        per_linear::from_peft::<RoadConfig>(NAME, config, json!({}), &[])
    }
}

fn build(
    config: RoadConfig,
    context: &BuildContext<'_>,
) -> Result<PerLinear<Rotation>, AdaptError> {
    config.validate()?;
    let RoadConfig {
        variant,
        group_size,
        init_weights,
        ..
    } = config;
    let targets = Targets {
        target_modules: config.target_modules.clone(),
        ..Targets::default()
    };
    PerLinear::new(&METHOD, &targets, context, &config, json!({}), |_, info| {
        if !info.d_out.is_multiple_of(group_size) {
            let reason = format!(
                "{group_size} does not divide the {} outputs of `{}`",
                info.d_out, info.path
            );
            return bad(NAME, "group_size", reason);
        }
        let n = match variant {
            Variant::Road1 => info.d_out / 2,
            Variant::Road2 => info.d_out,
            Variant::Road4 => 2 * info.d_out,
        };
        let mut rng = named_rng(context.seed, &info.path);
        let mut values = |mean: f32| {
            (0..n)
                .map(|_| {
                    if init_weights {
                        mean
                    } else {
                        mean + 0.5 * standard_normal(&mut rng)
                    }
                })
                .collect::<Vec<f32>>()
        };
        let parameter = |name: &str, values| {
            Parameter::new(
                format!("{}.{name}", info.path),
                &[n],
                values,
                &context.device,
            )
        };
        Ok(Rotation {
            theta: parameter("road_theta", values(0.0)),
            alpha: parameter("road_alpha", values(1.0)),
            variant,
            group_size,
        })
    })
}

/// The rotations of one layer's outputs.
struct Rotation {
    theta: Parameter,
    alpha: Parameter,
    variant: Variant,
    group_size: usize,
}

impl Rotation {
    /// What an output is multiplied by, and what its partner is: `[groups, 2, group_size / 2]`
    /// each.
    fn columns(&self, mode: Mode) -> (Tensor<3>, Tensor<3>) {
        let (theta, alpha) = (self.theta.get::<1>(mode), self.alpha.get::<1>(mode));
        let half = self.group_size / 2;
        match self.variant {
            Variant::Road1 => {
                let groups = theta.dims()[0] / half;
                let [theta, alpha] =
                    [theta, alpha].map(|v| v.reshape([groups, 1, half]).expand([groups, 2, half]));
                (alpha.clone() * theta.clone().cos(), alpha * theta.sin())
            }
            Variant::Road2 => {
                let groups = theta.dims()[0] / self.group_size;
                let [theta, alpha] = [theta, alpha].map(|v| v.reshape([groups, 2, half]));
                (alpha.clone() * theta.clone().cos(), alpha * theta.sin())
            }
            Variant::Road4 => {
                let groups = theta.dims()[0] / (2 * self.group_size);
                let term = |v: &Tensor<1>, i: usize| {
                    let v = v.clone().reshape([groups, 2, self.group_size]).slice([
                        0..groups,
                        i..i + 1,
                        0..self.group_size,
                    ]);
                    v.reshape([groups, 2, half])
                };
                (
                    term(&alpha, 0) * term(&theta, 0).cos(),
                    term(&alpha, 1) * term(&theta, 1).sin(),
                )
            }
        }
    }

    /// The columns that turn back; `None` where a pair was flattened.
    fn columns_back(&self) -> Option<(Tensor<3>, Tensor<3>)> {
        let (own, other) = self.columns(Mode::Eval);
        let [groups, _, half] = own.dims();
        let part = |x: &Tensor<3>, i: usize| x.clone().slice([0..groups, i..i + 1, 0..half]);
        let determinant = part(&own, 0) * part(&own, 1) + part(&other, 0) * part(&other, 1);
        if to_vec(determinant.clone()).iter().any(|d| d.abs() < 1e-6) {
            return None;
        }
        let own = Tensor::cat(vec![part(&own, 1), part(&own, 0)], 1) / determinant.clone();
        Some((own, other.neg() / determinant))
    }

    /// Rows of outputs `[rows, d_out]`, multiplied by these columns.
    fn turn(&self, y: Tensor<2>, (own, other): (Tensor<3>, Tensor<3>)) -> Tensor<2> {
        let ([rows, width], half) = (y.dims(), self.group_size / 2);
        let groups = width / self.group_size;
        let y = y.reshape([rows, groups, 2, half]);
        let part = |i: usize| y.clone().slice([0..rows, 0..groups, i..i + 1, 0..half]);
        let partner = Tensor::cat(vec![part(1).neg(), part(0)], 2);
        (y * own.unsqueeze::<4>() + partner * other.unsqueeze::<4>()).reshape([rows, width])
    }
}

impl Rotation {
    fn turned(&self, at: &LinearSite<'_>, columns: &(Tensor<3>, Tensor<3>)) -> MergedLinear {
        let weight = self
            .turn(at.base.weight.dense().transpose(), columns.clone())
            .transpose();
        let bias = at.base.bias.clone().map(|bias| {
            self.turn(bias.unsqueeze::<2>(), columns.clone())
                .squeeze_dim::<1>(0)
        });
        MergedLinear { weight, bias }
    }
}

impl LinearAdapter for Rotation {
    fn parameters(&self) -> Vec<&Parameter> {
        vec![&self.theta, &self.alpha]
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        vec![&mut self.theta, &mut self.alpha]
    }

    fn delta(&self, at: &LinearSite<'_>) -> Tensor<2> {
        self.merged(at).weight - at.base.weight.dense()
    }

    fn materializes_weight(&self) -> bool {
        false
    }

    fn forward(&self, at: &LinearSite<'_>, x: Tensor<2>) -> Tensor<2> {
        self.turn(at.base.forward(x), self.columns(at.mode))
    }

    fn merged(&self, at: &LinearSite<'_>) -> MergedLinear {
        self.turned(at, &self.columns(Mode::Eval))
    }

    fn unmerged(&self, at: &LinearSite<'_>) -> Result<MergedLinear, String> {
        let columns = self.columns_back();
        columns
            .map(|columns| self.turned(at, &columns))
            .ok_or_else(|| "a factor is zero, so the base is lost; load the base model".into())
    }
}
