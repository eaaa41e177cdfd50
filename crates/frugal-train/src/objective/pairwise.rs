//! Putting texts in order by all pairs alike.

use serde::Deserialize;

use super::lambda_loss::{LambdaLoss, LambdaLossConfig, Weighting};

/// Settings of RankNet.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PairwiseConfig {
    /// Only pairs of which one text is among the first so many; all if absent.
    pub k: Option<usize>,
    /// What differences of scores are multiplied by.
    pub sigma: f64,
}

impl Default for PairwiseConfig {
    fn default() -> Self {
        Self {
            k: None,
            sigma: 1.0,
        }
    }
}

/// RankNet (Burges et al. 2005), as sentence-transformers' `RankNetLoss`: LambdaLoss of which every
/// pair counts the same.
///
/// # Errors
/// Settings that are out of range.
pub fn rank_net(config: PairwiseConfig) -> Result<LambdaLoss, String> {
    let config = LambdaLossConfig {
        weighting_scheme: Weighting::None,
        k: config.k,
        sigma: config.sigma,
        ..LambdaLossConfig::default()
    };
    LambdaLoss::new("pairwise", config)
}
