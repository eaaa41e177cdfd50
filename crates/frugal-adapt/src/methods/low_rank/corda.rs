//! # CorDA: context-oriented decomposition
//!
//! ## What it does
//! LoRA that starts from the singular directions of each weight as the data use it: the largest, to
//! learn the task of the data faster, or the smallest, to keep the knowledge that the data ask for.
//!
//! ## Update rule
//! `W C = U diag(σ) Vᵀ` with `C = mean(X Xᵀ)` of the rows that the layer reads in the first `calibration_steps`
//! batches, in which nothing moves; `A₀ = diag(√(σ/s)) Vᵀ C⁻¹` and `B₀ = U diag(√(σ/s))` of the `r` largest
//! (`"ipm"`, instruction-previewed) or smallest (`"kpm"`, knowledge-preserved) triples; the layer is
//! `W + s (B A − B₀ A₀)`.
//!
//! ## When to use, when not
//! `"ipm"` on data of the task, as `pissa`. `"kpm"` where the model must go on knowing something: the first
//! batches should then be of that knowledge. Each weight is decomposed once, `"kpm"` whole, which
//! takes minutes on wide models.
//!
//! ## Cost
//! Trainable: LoRA's. While looking: `d_in²` numbers per layer, once for layers that read the same.
//! Afterwards twice LoRA's compute. Files hold twice the rank. None after merging.
//!
//! ## Defaults and where they come from
//! `corda_method = "ipm"` and 1 % of the mean on the diagonal of `C`: Hugging Face `peft`. Each sequence is divided by its
//! largest element, as there. 16 steps of looking, or a quarter of the run if that is less.
//!
//! ## Departures from the paper
//! The frozen residual is not stored: the initial factors are subtracted in the forward pass. Files
//! are plain LoRA files of rank `2r` for the original model, as `peft` writes them with
//! `path_initial_model_for_weight_conversion`; read back they are a `lora` adapter. `peft`'s `cache_file`,
//! `covariance_file`, `verbose`, `use_float16_for_covariance` and `prune_temporary_fields` tell how its separate pass
//! over the data is kept; there is none here.
//!
//! ## References
//! - Yang, Li, Zhou, Song, Wu, Nie, Ghanem: CorDA: Context-Oriented Decomposition Adaptation of Large
//!   Language Models for Task-Aware Parameter-Efficient Fine-tuning, 2024, arXiv 2406.05223.

use std::collections::BTreeMap;

use burn::prelude::*;
use frugal_nn::linalg::{randomised_svd, svd};
use frugal_nn::{AdaptError, Adapter, BuildContext, Linear, to_vec};
use serde::{Deserialize, Serialize};

use crate::method::{Family, Method, MethodConfig};
use crate::methods::low_rank::lora::{self, LoraConfig};
use crate::settings::Settings;
use crate::support::data_start::{
    DataStart, FromData, Look, STEPS, Seen, residual_state, restore_residual,
};
use crate::support::orthogonal::invert;
use crate::support::per_linear::{bad, frozen_maps, linear_maps};
use crate::support::residual::{self, Factors, Residual, Weight};
use crate::support::sparse::Place;

const NAME: &str = "corda";

/// Share of the mean of the diagonal of `C` that is added to it.
const DAMP: f64 = 0.01;

/// Registry entry.
pub const METHOD: Method = Method::of::<CordaConfig>(
    Family::LowRank,
    "LoRA that starts from how the first batches use each weight",
    include_str!("corda.rs"),
)
.default_lr(2e-4)
// Files do not show it.
.peft_variant(|_| false);

/// Which directions are trained.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CordaMethod {
    /// Those that the data use most.
    #[default]
    Ipm,
    /// Those that they use least.
    Kpm,
}

/// The start, with `peft`'s names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Start {
    /// Which directions are trained.
    pub corda_method: CordaMethod,
}

/// Settings: those of LoRA and of the start.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CordaConfig {
    /// The start.
    pub corda_config: Start,
    /// Steps that look at inputs; at most a quarter of the run.
    pub calibration_steps: u64,
    /// The rest.
    #[serde(flatten)]
    pub lora: LoraConfig,
}

impl Default for CordaConfig {
    fn default() -> Self {
        Self {
            corda_config: Start::default(),
            calibration_steps: STEPS,
            lora: LoraConfig::default(),
        }
    }
}

impl MethodConfig for CordaConfig {
    const NAME: &'static str = NAME;
    const PEFT_TYPE: &'static str = "LORA";

    fn validate(&self) -> Result<(), AdaptError> {
        if self.calibration_steps == 0 {
            return bad(NAME, "calibration_steps", "must be at least 1");
        }
        let mut alphas = self.lora.alpha_pattern.values();
        if self.lora.lora_alpha <= 0.0 || alphas.any(|alpha| *alpha <= 0.0) {
            let reason = "the singular values are divided by the scale: use positive numbers";
            return bad(NAME, "lora_alpha", reason);
        }
        residual::validate(NAME, &self.lora)
    }

    fn build(self, context: &BuildContext<'_>) -> Result<Box<dyn Adapter>, AdaptError> {
        self.validate()?;
        let targets = self.lora.targets();
        let chosen = linear_maps(NAME, &targets, context)?;
        let start = Inputs {
            method: self.corda_config.corda_method,
            weights: frozen_maps(context, &chosen),
            seed: context.seed,
        };
        let adapter = Residual::without_start(NAME, self.lora, context)?;
        let steps = self.calibration_steps;
        let all = FromData::new(NAME, adapter, start, &targets, steps, context)?;
        Ok(Box::new(all))
    }

    fn from_peft(config: &Settings) -> Result<Settings, AdaptError> {
        lora::variant_from_peft(NAME, config, &[])
    }
}

struct Inputs {
    method: CordaMethod,
    /// Indexed by site.
    weights: Vec<Option<Linear>>,
    seed: u64,
}

impl Inputs {
    fn factors(&self, weight: &Weight, mut products: Vec<f64>) -> Factors {
        let (d_in, d_out, r) = (weight.d_in, weight.d_out, weight.rank);
        let mean = (0..d_in).map(|i| products[i * d_in + i]).sum::<f64>() / d_in as f64;
        (0..d_in).for_each(|i| products[i * d_in + i] += DAMP * mean);
        let device = Device::default();
        let matrix = |values: Vec<f32>, shape: [usize; 2]| {
            Tensor::<2>::from_data(TensorData::new(values, shape), &device)
        };
        let single = |values: &[f64]| values.iter().map(|v| *v as f32).collect::<Vec<f32>>();
        let used = matrix(weight.values.clone(), [d_out, d_in])
            .matmul(matrix(single(&products), [d_in, d_in]));
        let used = to_vec(used);
        let few = self.method == CordaMethod::Ipm && 4 * r <= d_in.min(d_out);
        let found = match few {
            true => randomised_svd(&used, d_out, d_in, r, r.max(8), 4, self.seed),
            false => svd(&used, d_out, d_in),
        };
        let k = found.s.len();
        let first = match self.method {
            CordaMethod::Ipm => 0,
            CordaMethod::Kpm => k - r,
        };
        let root = |i: usize| (found.s[first + i] / weight.scale).max(0.0).sqrt();
        let rows: Vec<f32> = (0..r * d_in)
            .map(|n| root(n / d_in) * found.vt[(first + n / d_in) * d_in + n % d_in])
            .collect();
        let inverse = single(&invert(&products, d_in));
        Factors {
            a: to_vec(matrix(rows, [r, d_in]).matmul(matrix(inverse, [d_in, d_in]))),
            b: (0..d_out * r)
                .map(|n| root(n % r) * found.u[n / r * k + first + n % r])
                .collect(),
        }
    }
}

impl DataStart for Inputs {
    type Adapter = Residual;
    const LOOK: Look = Look::ScaledInputs;

    fn start(&self, adapter: &mut Residual, places: &[Place], seen: &[Seen]) {
        for (place, seen) in places.iter().zip(seen) {
            let base = self.weights[place.site.index()].as_ref();
            let Some(weight) = base.and_then(|base| adapter.weight(base)) else {
                continue;
            };
            if seen.products.iter().all(|p| *p == 0.0) {
                adapter.begin_plain(place, self.seed);
                continue;
            }
            let mean = |p: &f32| f64::from(*p) / f64::from(seen.count);
            let products = seen.products.iter().map(mean).collect();
            adapter.begin(place.site, self.factors(&weight, products));
        }
    }

    fn state(&self, adapter: &Residual, places: &[Place]) -> BTreeMap<String, Vec<f32>> {
        residual_state(adapter, places)
    }

    fn restore(
        &self,
        adapter: &mut Residual,
        places: &[Place],
        state: &BTreeMap<String, Vec<f32>>,
    ) -> Result<(), String> {
        restore_residual(adapter, places, state)
    }
}
