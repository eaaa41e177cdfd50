//! Low rank: every weight is a product of two thin matrices from the first step on.
//!
//! `W = (lora_alpha / rank) B A`, both factors uniform as PyTorch makes linear layers; there is no
//! other weight. With `restart_steps` the factors are balanced every so many updates, by the
//! singular values of their product, which stays as it is ("Low-Rank-restarts"); the optimizer's
//! moments, which were of the factors before, have to begin anew then.
//!
//! Glentis et al.: Scalable Parameter and Memory Efficient Pretraining for LLM, 2025, arXiv
//! 2505.22922, section 4, lemma 4.1; `para_eff_pt/pt_low_rank` of `Memory_Efficient_Pretraining`,
//! which has no dropout here and in whose released loop low rank never restarts.

use burn::prelude::*;
use frugal_nn::{AdaptError, BuildContext, Mode, Parameter};
use serde::{Deserialize, Serialize};

use super::factors::Factors;
use super::layer::Layer;
use super::rule::Rule;
use super::targets::{Place, Shared};

/// Settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct LowRankConfig {
    /// Width of the factors.
    rank: usize,
    /// The product counts this over `rank` times.
    lora_alpha: f64,
    /// Layers with one of these in their path; all linear layers of blocks where there is none.
    target_modules: Vec<String>,
    /// Updates between two times at which the factors are balanced; 0 for never.
    restart_steps: u64,
}

impl Default for LowRankConfig {
    fn default() -> Self {
        Self {
            rank: 128,
            lora_alpha: 32.0,
            target_modules: Vec::new(),
            restart_steps: 0,
        }
    }
}

impl Rule for LowRankConfig {
    const NAME: &'static str = "low_rank";

    fn shared(&self) -> Shared<'_> {
        Shared {
            name: Self::NAME,
            rank: self.rank,
            lora_alpha: self.lora_alpha,
            target_modules: &self.target_modules,
            restart_steps: self.restart_steps,
        }
    }

    fn layer(
        &self,
        place: &Place<'_>,
        _dense: Parameter,
        context: &BuildContext<'_>,
    ) -> Result<Box<dyn Layer>, AdaptError> {
        let (rank, alpha) = (self.rank, self.lora_alpha);
        Ok(Box::new(LowRank(Factors::new(
            place.path,
            place.shape,
            rank,
            alpha,
            false,
            context,
        ))))
    }
}

struct LowRank(Factors);

impl Layer for LowRank {
    fn parameters(&self) -> Vec<&Parameter> {
        vec![&self.0.a, &self.0.b]
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        vec![&mut self.0.a, &mut self.0.b]
    }

    fn forward(&self, x: Tensor<2>, bias: Option<Tensor<1>>, mode: Mode) -> Tensor<2> {
        self.0.forward(x, bias, mode)
    }

    fn weight(&self, mode: Mode) -> Tensor<2> {
        self.0.product(mode)
    }

    fn restart(&mut self, _seed: u64) {
        self.0.balance();
    }
}
