//! SLTrain: every weight is a low-rank product and a sparse matrix whose entries are chosen once.
//!
//! `W = (lora_alpha / rank) B A + S`, `B` zero at the start, `S` with `⌊sparsity m n⌋` trained
//! entries at places drawn from the seed. With `restart_steps` the factors are balanced every so many
//! updates, and `S` stays as it is ("SLTrain-restarts").
//!
//! Han et al.: SLTrain: a sparse plus low-rank approach for parameter and memory efficient
//! pretraining, NeurIPS 2024, arXiv 2406.02214; `para_eff_pt/pt_sltrain` of
//! `Memory_Efficient_Pretraining`. There the dense weight is formed a second time in the backward
//! pass; here a step keeps the one of its forward pass, `m n` numbers for each layer.

use burn::prelude::*;
use frugal_nn::{AdaptError, BuildContext, Mode, Parameter, named_rng};
use rand::seq::index;
use serde::{Deserialize, Serialize};

use super::factors::{Factors, kaiming};
use super::layer::Layer;
use super::rule::Rule;
use super::targets::{Place, Shared};
use crate::support::sparse::scatter;

/// Settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct SlTrainConfig {
    /// Width of the factors.
    rank: usize,
    /// The product counts this over `rank` times.
    lora_alpha: f64,
    /// Share of the entries that are trained beside the factors.
    sparsity: f64,
    /// Layers with one of these in their path; all linear layers of blocks where there is none.
    target_modules: Vec<String>,
    /// Updates between two times at which the factors are balanced; 0 for never.
    restart_steps: u64,
}

impl Default for SlTrainConfig {
    fn default() -> Self {
        Self {
            rank: 128,
            lora_alpha: 32.0,
            sparsity: 0.03,
            target_modules: Vec::new(),
            restart_steps: 0,
        }
    }
}

impl Rule for SlTrainConfig {
    const NAME: &'static str = "sltrain";

    fn shared(&self) -> Shared<'_> {
        Shared {
            name: Self::NAME,
            rank: self.rank,
            lora_alpha: self.lora_alpha,
            target_modules: &self.target_modules,
            restart_steps: self.restart_steps,
        }
    }

    fn check(&self) -> Result<(), AdaptError> {
        let sparsity = self.sparsity;
        if sparsity > 0.0 && sparsity < 1.0 {
            return Ok(());
        }
        Err(AdaptError::Config {
            method: Self::NAME,
            field: "sparsity",
            reason: format!("{sparsity} given, but it must be above 0 and below 1"),
        })
    }

    fn layer(
        &self,
        place: &Place<'_>,
        _dense: Parameter,
        context: &BuildContext<'_>,
    ) -> Result<Box<dyn Layer>, AdaptError> {
        let ([d_out, d_in], path) = (place.shape, place.path);
        let len = d_out * d_in;
        let count = (self.sparsity * len as f64) as usize;
        if count == 0 || u32::try_from(len).is_err() {
            return Err(AdaptError::Config {
                method: Self::NAME,
                field: "sparsity",
                reason: format!(
                    "{} of the {len} entries of `{path}` is {count}, but there must be one at least, of 2³² at most",
                    self.sparsity
                ),
            });
        }
        let name = format!("{path}.sparse_value");
        let mut rng = named_rng(context.seed, &format!("{path}.sparse_index"));
        let drawn = index::sample(&mut rng, len, count);
        let mut entries: Vec<u32> = drawn.iter().map(|i| i as u32).collect();
        entries.sort_unstable();
        let values = kaiming(count, d_in, context.seed, &name);
        let (rank, alpha) = (self.rank, self.lora_alpha);
        Ok(Box::new(SparsePlusLowRank {
            factors: Factors::new(path, place.shape, rank, alpha, true, context),
            values: Parameter::new(name, &[count], values, &context.device),
            entries,
            shape: place.shape,
        }))
    }
}

pub(super) struct SparsePlusLowRank {
    pub(super) factors: Factors,
    /// One number for each entry.
    pub(super) values: Parameter,
    /// Sorted places in the weight, row by row.
    pub(super) entries: Vec<u32>,
    pub(super) shape: [usize; 2],
}

impl Layer for SparsePlusLowRank {
    fn parameters(&self) -> Vec<&Parameter> {
        vec![&self.factors.a, &self.factors.b, &self.values]
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        vec![&mut self.factors.a, &mut self.factors.b, &mut self.values]
    }

    fn forward(&self, x: Tensor<2>, bias: Option<Tensor<1>>, mode: Mode) -> Tensor<2> {
        frugal_kernels::linear(x, self.weight(mode), bias)
    }

    fn weight(&self, mode: Mode) -> Tensor<2> {
        let [d_out, d_in] = self.shape;
        let entries = self.entries.iter().map(|&i| i as usize);
        let sparse = scatter(entries, self.values.get::<1>(mode), d_out, d_in);
        self.factors.product(mode) + sparse
    }

    fn is_weight(&self) -> bool {
        true
    }

    fn restart(&mut self, _seed: u64) {
        self.factors.balance();
    }

    fn other_bytes(&self) -> u64 {
        4 * self.entries.len() as u64
    }
}
