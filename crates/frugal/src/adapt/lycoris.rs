//! What the methods of the LyCORIS family share: settings by pattern and the two kinds of dropout.

use std::collections::BTreeMap;

use burn::prelude::*;
use rand::Rng;

use super::maps::{At, bad, check_dropout};
use super::target::pattern_value;
use super::{AdaptError, Mode, stream};
use crate::model::SiteInfo;

/// Rank and scale of one map, and how it is dropped while training.
#[derive(Clone, Copy)]
pub(super) struct Scaled {
    /// Rank.
    pub r: usize,
    /// `alpha / r`.
    pub scale: f32,
    /// Probability of dropping a row of the change.
    pub rank_dropout: f64,
    /// Whether the remaining rows are raised to keep the mean.
    pub rescale: bool,
    /// Probability of leaving a map as it is.
    pub module_dropout: f64,
}

/// Settings of this family, by their names in `peft`.
pub(super) struct Settings<'a> {
    pub method: &'static str,
    pub r: usize,
    pub alpha: f64,
    pub rank_dropout: f64,
    pub module_dropout: f64,
    pub rank_pattern: &'a BTreeMap<String, usize>,
    pub alpha_pattern: &'a BTreeMap<String, f64>,
}

impl Settings<'_> {
    /// Checks ranges.
    pub fn validate(&self) -> Result<(), AdaptError> {
        if self.r == 0 || self.rank_pattern.values().any(|&r| r == 0) {
            return bad(self.method, "r", "the rank must be at least 1");
        }
        if !self.alpha.is_finite() || self.alpha_pattern.values().any(|a| !a.is_finite()) {
            return bad(self.method, "alpha", "must be a finite number");
        }
        check_dropout(self.method, "rank_dropout", self.rank_dropout)?;
        check_dropout(self.method, "module_dropout", self.module_dropout)
    }

    /// Those of one map.
    pub fn of(&self, info: &SiteInfo, rescale: bool) -> Result<Scaled, AdaptError> {
        let r = pattern_value("rank_pattern", self.rank_pattern, &info.path)?.unwrap_or(self.r);
        let alpha = pattern_value("alpha_pattern", self.alpha_pattern, &info.path)?.unwrap_or(self.alpha);
        let scale = (alpha / r as f64) as f32;
        Ok(Scaled { r, scale, rescale, rank_dropout: self.rank_dropout, module_dropout: self.module_dropout })
    }
}

impl Scaled {
    /// The map's output with this change of its weight, dropped where chance says so.
    pub fn forward(&self, at: &At<'_>, x: Tensor<2>, delta: Tensor<2>) -> Tensor<2> {
        let mut delta = delta;
        if let Mode::Train { seed } = at.mode {
            let mut rng = stream(seed, at.path);
            if self.module_dropout > 0.0 && rng.random::<f64>() < self.module_dropout {
                return at.base.forward(x);
            }
            if self.rank_dropout > 0.0 {
                let rows = delta.dims()[0];
                let mut keep: Vec<f32> = (0..rows).map(|_| f32::from(u8::from(rng.random::<f64>() > self.rank_dropout))).collect();
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
