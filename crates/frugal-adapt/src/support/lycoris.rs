//! What the methods of the LyCORIS family share: settings, the two kinds of dropout, and a change
//! made of two matrices.

use burn::prelude::*;
use frugal_nn::{AdaptError, Mode, Parameter, SiteInfo, SiteTable, named_rng};
use rand::Rng;
use serde::{Deserialize, Serialize};

use crate::pattern::Patterns;
use crate::support::per_linear::{LinearAdapter, LinearSite, bad, check_dropout};
use crate::target::{Targets, check_patterns, pattern_value};

/// Rank and scale of one layer, and how it is dropped while training.
#[derive(Clone, Copy)]
pub(crate) struct Scaled {
    /// Rank.
    pub r: usize,
    /// `alpha / r`.
    pub scale: f32,
    /// Probability of dropping a row of the change.
    pub rank_dropout: f64,
    /// Whether the remaining rows are raised to keep the mean.
    pub rescale: bool,
    /// Probability of leaving a layer as it is.
    pub module_dropout: f64,
}

/// Settings that the methods share, by their names in `peft`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LycorisConfig {
    /// Rank of the factors.
    pub r: usize,
    /// Scale numerator.
    pub alpha: f64,
    /// Probability of dropping a row of the change while training.
    pub rank_dropout: f64,
    /// Probability of leaving a layer as it is while training.
    pub module_dropout: f64,
    /// Rank by path pattern.
    pub rank_pattern: Patterns<usize>,
    /// Scale numerator by path pattern.
    pub alpha_pattern: Patterns<f64>,
    /// Which layers.
    #[serde(flatten)]
    pub targets: Targets,
}

impl Default for LycorisConfig {
    fn default() -> Self {
        Self {
            r: 8,
            alpha: 8.0,
            rank_dropout: 0.0,
            module_dropout: 0.0,
            rank_pattern: Patterns::new(),
            alpha_pattern: Patterns::new(),
            targets: Targets::default(),
        }
    }
}

impl LycorisConfig {
    /// Checks ranges.
    pub(crate) fn validate(&self, method: &'static str) -> Result<(), AdaptError> {
        if self.r == 0 || self.rank_pattern.values().any(|&r| r == 0) {
            return bad(method, "r", "the rank must be at least 1");
        }
        if !self.alpha.is_finite() || self.alpha_pattern.values().any(|a| !a.is_finite()) {
            return bad(method, "alpha", "must be a finite number");
        }
        check_dropout(method, "rank_dropout", self.rank_dropout)?;
        check_dropout(method, "module_dropout", self.module_dropout)
    }

    /// Checks that every pattern names something of this model.
    pub(crate) fn check_patterns(&self, sites: &SiteTable) -> Result<(), AdaptError> {
        check_patterns("rank_pattern", &self.rank_pattern, sites)?;
        Ok(check_patterns("alpha_pattern", &self.alpha_pattern, sites)?)
    }

    /// Those of one layer.
    pub(crate) fn of(&self, info: &SiteInfo, rescale: bool) -> Result<Scaled, AdaptError> {
        let r = pattern_value("rank_pattern", &self.rank_pattern, &info.path)?.unwrap_or(self.r);
        let alpha =
            pattern_value("alpha_pattern", &self.alpha_pattern, &info.path)?.unwrap_or(self.alpha);
        let scale = (alpha / r as f64) as f32;
        Ok(Scaled {
            r,
            scale,
            rescale,
            rank_dropout: self.rank_dropout,
            module_dropout: self.module_dropout,
        })
    }
}

impl Scaled {
    /// The layer's output with this change of its weight, dropped where chance says so.
    pub fn forward(&self, at: &LinearSite<'_>, x: Tensor<2>, delta: Tensor<2>) -> Tensor<2> {
        let mut delta = delta;
        if let Mode::Train { seed } = at.mode {
            let mut rng = named_rng(seed, at.path);
            if self.module_dropout > 0.0 && rng.random::<f64>() < self.module_dropout {
                return at.base.forward(x);
            }
            if self.rank_dropout > 0.0 {
                let rows = delta.dims()[0];
                let mut keep: Vec<f32> = (0..rows)
                    .map(|_| f32::from(u8::from(rng.random::<f64>() > self.rank_dropout)))
                    .collect();
                let kept: f32 = keep.iter().sum();
                if self.rescale && kept > 0.0 {
                    keep.iter_mut().for_each(|k| *k *= rows as f32 / kept);
                }
                let device = delta.device().inner();
                delta = delta * Tensor::<2>::from_data(TensorData::new(keep, [rows, 1]), &device);
            }
        }
        frugal_kernels::linear(x, at.base.weight.dense() + delta, at.base.bias.clone())
    }
}

/// The factors of one map: two matrices that are combined into its change, each in one piece or as
/// two that are multiplied.
pub(crate) struct Factors {
    pub w1: Vec<Parameter>,
    pub w2: Vec<Parameter>,
    /// The two matrices' combination, `[d_out, d_in]`.
    pub combine: fn(Tensor<2>, Tensor<2>) -> Tensor<2>,
    pub scaled: Scaled,
}

impl LinearAdapter for Factors {
    fn parameters(&self) -> Vec<&Parameter> {
        self.w1.iter().chain(&self.w2).collect()
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        self.w1.iter_mut().chain(&mut self.w2).collect()
    }

    fn delta(&self, at: &LinearSite<'_>) -> Tensor<2> {
        let matrix = |w: &[Parameter]| match w {
            [a, b] => a.get::<2>(at.mode).matmul(b.get::<2>(at.mode)),
            _ => w[0].get::<2>(at.mode),
        };
        (self.combine)(matrix(&self.w1), matrix(&self.w2)) * self.scaled.scale
    }

    fn forward(&self, at: &LinearSite<'_>, x: Tensor<2>) -> Tensor<2> {
        self.scaled.forward(at, x, self.delta(at))
    }
}
