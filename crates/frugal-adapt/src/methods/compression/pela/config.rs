//! Settings of PELA.

use serde::{Deserialize, Serialize};

use crate::target::Targets;

/// How features are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FeatureLoss {
    /// Mean squared difference.
    Mse,
    /// One minus the cosine, averaged over tokens.
    Cosine,
}

/// Settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PelaConfig {
    /// Old parameters of a layer divided by its new ones.
    pub compression_ratio: f64,
    /// Weight of the distance to the original's features.
    pub feature_weight: f64,
    /// How features are compared; by default directions on decoders, values on encoders.
    pub feature_loss: Option<FeatureLoss>,
    /// Weight of the squared distance to the original's output over the vocabulary.
    pub kd_beta: f64,
    /// Weight of the perturbation term.
    pub perturbation_weight: f64,
    /// Largest change of a weight that the perturbation term aims at.
    pub perturbation_eps: f64,
    /// Train norms, and the biases of factorised layers.
    pub train_norms: bool,
    /// Decompose the weights; `false` leaves the factors to the adapter file.
    pub init_weights: bool,
    /// Which layers.
    #[serde(flatten)]
    pub targets: Targets,
}

impl Default for PelaConfig {
    fn default() -> Self {
        Self {
            compression_ratio: 2.0,
            feature_weight: 1.0,
            feature_loss: None,
            kd_beta: 0.0,
            perturbation_weight: 1.0,
            perturbation_eps: 1e-3,
            train_norms: true,
            init_weights: true,
            targets: Targets::default(),
        }
    }
}

impl PelaConfig {
    /// Rank of a layer of this size.
    pub(crate) fn rank(&self, d_in: usize, d_out: usize) -> usize {
        let rank = (d_in * d_out) as f64 / (self.compression_ratio * (d_in + d_out) as f64);
        (rank as usize).clamp(1, d_in.min(d_out))
    }
}
