//! ReLoRA: low-rank changes of random weights, merged into them every so often, so that the sum of
//! all changes has a higher rank than each.
//!
//! `W = W₀ + (lora_alpha / rank) B A`; every `restart_steps` updates `W₀` takes the product in, `A` is
//! drawn anew and `B` is zero. With `restart_steps` 0 this is LoRA from random weights.
//!
//! Lialin et al.: ReLoRA: High-Rank Training Through Low-Rank Updates, ICLR 2024, arXiv 2307.05695;
//! `para_eff_pt/pt_relora` of `Memory_Efficient_Pretraining`, which begins with both factors zero, so
//! that nothing is learnt before the first merge; here `A` is random from the start. All of the
//! optimizer's memory begins anew, where the paper leaves a tenth of it, and there is no full-rank
//! training first.

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
pub(super) struct ReLoraConfig {
    /// Width of the factors.
    rank: usize,
    /// The product counts this over `rank` times.
    lora_alpha: f64,
    /// Layers with one of these in their path; all linear layers of blocks where there is none.
    target_modules: Vec<String>,
    /// Updates between two merges; 0 for none.
    restart_steps: u64,
}

impl Default for ReLoraConfig {
    fn default() -> Self {
        Self {
            rank: 128,
            lora_alpha: 32.0,
            target_modules: Vec::new(),
            restart_steps: 200,
        }
    }
}

impl Rule for ReLoraConfig {
    const NAME: &'static str = "relora";

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
        dense: Parameter,
        context: &BuildContext<'_>,
    ) -> Result<Box<dyn Layer>, AdaptError> {
        let (rank, alpha) = (self.rank, self.lora_alpha);
        Ok(Box::new(ReLora {
            factors: Factors::new(place.path, place.shape, rank, alpha, true, context),
            // Planning has no shape for it.
            merged: Parameter::frozen(dense.name(), &place.shape, dense.to_vec(), &context.device),
        }))
    }
}

struct ReLora {
    factors: Factors,
    /// `[d_out, d_in]`, not trained.
    merged: Parameter,
}

impl Layer for ReLora {
    fn parameters(&self) -> Vec<&Parameter> {
        vec![&self.merged, &self.factors.a, &self.factors.b]
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        vec![&mut self.merged, &mut self.factors.a, &mut self.factors.b]
    }

    fn forward(&self, x: Tensor<2>, bias: Option<Tensor<1>>, mode: Mode) -> Tensor<2> {
        let merged = frugal_kernels::linear(x.clone(), self.merged.get::<2>(mode), None);
        merged + self.factors.forward(x, bias, mode)
    }

    fn weight(&self, mode: Mode) -> Tensor<2> {
        self.merged.get::<2>(mode) + self.factors.product(mode)
    }

    fn restart(&mut self, seed: u64) {
        let [m, n] = self.merged.get::<2>(Mode::Eval).dims();
        let weight = self.weight(Mode::Eval);
        self.merged.set_value(weight.reshape([m * n]));
        self.factors.redraw(seed);
    }
}
