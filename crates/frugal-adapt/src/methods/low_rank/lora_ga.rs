//! # LoRA-GA: low-rank adaptation with gradient approximation
//!
//! ## What it does
//! LoRA that starts along the singular directions of the gradient of each weight, so that its first
//! steps go where those of full training would, and freezes the weight less this start.
//!
//! ## Update rule
//! `∂L/∂W = U diag(σ) Vᵀ`, the mean over the first `calibration_steps` batches, in which nothing moves;
//! `A₀ = V_aᵀ` and `B₀ = c U_b diag(σ_b)`, where `a` and `b` are `r` each of the `2r` largest triples, as `direction`
//! says; the layer is `W + s (B A − B₀ A₀)`. `scale` `"stable"`: `c = d_out^¼ / √γ`; `"weight_svd"`: the largest
//! singular value of `W` over that in `B₀`; `"gd_scale"`: both factors divided by `s`; `"unit"`: `c = 1`.
//!
//! ## When to use, when not
//! Where LoRA learns too slowly at first and runs are short. The gradients of the first batches must
//! be those of the task: small batches of mixed data make them noise.
//!
//! ## Cost
//! Trainable: LoRA's. While looking: a gradient and a sum for each whole weight, as much memory as full
//! training without its optimiser. Afterwards twice LoRA's compute. Files hold twice the rank. None
//! after merging.
//!
//! ## Defaults and where they come from
//! `direction = "ArB2r"`, `scale = "stable"`, `stable_gamma = 16`: Hugging Face `peft`. 16 steps of looking, or a
//! quarter of the run if that is less.
//!
//! ## Departures from the paper
//! `B₀` has the singular values in it, as in `peft`; the paper has the directions alone. The frozen residual is
//! not stored: the initial factors are subtracted in the forward pass. Files are plain LoRA files of
//! rank `2r` for the original model, as `peft` writes them with `path_initial_model_for_weight_conversion`; read
//! back they are a `lora` adapter.
//!
//! ## References
//! - Wang, Yu, Li: LoRA-GA: Low-Rank Adaptation with Gradient Approximation, 2024, arXiv 2407.05000.

use std::collections::BTreeMap;

use frugal_nn::linalg::{Svd, randomised_svd};
use frugal_nn::{AdaptError, Adapter, BuildContext, Linear, named_rng};
use rand::Rng;
use serde::{Deserialize, Serialize};

use crate::method::{Family, Method, MethodConfig};
use crate::methods::low_rank::lora::{self, LoraConfig};
use crate::settings::Settings;
use crate::support::data_start::{
    DataStart, FromData, Look, STEPS, Seen, residual_state, restore_residual,
};
use crate::support::per_linear::{bad, frozen_maps, linear_maps};
use crate::support::residual::{self, Factors, Residual};
use crate::support::sparse::Place;

const NAME: &str = "lora-ga";

/// Registry entry.
pub const METHOD: Method = Method::of::<LoraGaConfig>(
    Family::LowRank,
    "LoRA that starts along the gradients of the first batches",
    include_str!("lora_ga.rs"),
)
.aliases(&["loraga"])
.default_lr(5e-4)
// Files do not show it.
.peft_variant(|_| false);

/// Which triples of the gradient go where.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Direction {
    /// In turns: even ones in `B`, odd ones in `A`.
    ArBr,
    /// The first `r` in `B`, the next in `A`.
    A2rBr,
    /// The first `r` in `A`, the next in `B`.
    ArB2r,
    /// `r` of the `2r` by chance, the same in both.
    #[serde(rename = "random")]
    Random,
}

/// How large the start is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scale {
    /// `d_out^¼ / √γ` on `B`.
    Stable,
    /// As large as the weight.
    WeightSvd,
    /// Divided by LoRA's scale.
    GdScale,
    /// As it is.
    Unit,
}

/// The start, with `peft`'s names.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Start {
    /// Which triples of the gradient go where.
    pub direction: Direction,
    /// How large the start is.
    pub scale: Scale,
    /// `γ` of `"stable"`.
    pub stable_gamma: f64,
}

impl Default for Start {
    fn default() -> Self {
        Self {
            direction: Direction::ArB2r,
            scale: Scale::Stable,
            stable_gamma: 16.0,
        }
    }
}

/// Settings: those of LoRA and of the start.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LoraGaConfig {
    /// The start.
    pub lora_ga_config: Start,
    /// Steps that look at gradients; at most a quarter of the run.
    pub calibration_steps: u64,
    /// The rest.
    #[serde(flatten)]
    pub lora: LoraConfig,
}

impl Default for LoraGaConfig {
    fn default() -> Self {
        Self {
            lora_ga_config: Start::default(),
            calibration_steps: STEPS,
            lora: LoraConfig::default(),
        }
    }
}

impl MethodConfig for LoraGaConfig {
    const NAME: &'static str = NAME;
    const PEFT_TYPE: &'static str = "LORA";

    fn validate(&self) -> Result<(), AdaptError> {
        let gamma = self.lora_ga_config.stable_gamma;
        if !(gamma > 0.0 && gamma.is_finite()) {
            let reason = format!("`stable_gamma` must be a positive number, not {gamma}");
            return bad(NAME, "lora_ga_config", reason);
        }
        if self.calibration_steps == 0 {
            return bad(NAME, "calibration_steps", "must be at least 1");
        }
        residual::validate(NAME, &self.lora)
    }

    fn build(self, context: &BuildContext<'_>) -> Result<Box<dyn Adapter>, AdaptError> {
        self.validate()?;
        let targets = self.lora.targets();
        let chosen = linear_maps(NAME, &targets, context)?;
        let start = Gradients {
            start: self.lora_ga_config,
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

struct Gradients {
    start: Start,
    /// Indexed by site.
    weights: Vec<Option<Linear>>,
    seed: u64,
}

impl Gradients {
    /// Triples in `A` and in `B`.
    fn choice(&self, r: usize, path: &str) -> (Vec<usize>, Vec<usize>) {
        let all = |from: usize, by: usize| (0..r).map(|i| from + by * i).collect::<Vec<_>>();
        match self.start.direction {
            Direction::ArBr => (all(1, 2), all(0, 2)),
            Direction::A2rBr => (all(r, 1), all(0, 1)),
            Direction::ArB2r => (all(0, 1), all(r, 1)),
            Direction::Random => {
                let mut rng = named_rng(self.seed, path);
                let mut left: Vec<usize> = (0..2 * r).collect();
                let drawn: Vec<usize> = (0..r)
                    .map(|_| left.swap_remove(rng.random_range(0..left.len())))
                    .collect();
                (drawn.clone(), drawn)
            }
        }
    }

    fn factors(&self, found: &Svd, place: &Place, (r, scale): (usize, f32)) -> Factors {
        let (d_in, d_out, k) = (place.d_in, place.d_out, found.s.len());
        let (of_a, of_b) = self.choice(r, &place.path);
        let (on_a, on_b) = match self.start.scale {
            Scale::Stable => {
                let gamma = self.start.stable_gamma as f32;
                (1.0, (d_out as f32).powf(0.25) / gamma.sqrt())
            }
            Scale::WeightSvd => {
                let weight = self.weights[place.site.index()].as_ref();
                let largest = weight.map_or(0.0, |base| {
                    let values = frugal_nn::to_vec(base.weight.dense());
                    randomised_svd(&values, d_out, d_in, 1, r.max(8), 4, self.seed).s[0]
                });
                let first = found.s[of_b[0]];
                (1.0, if first > 0.0 { largest / first } else { 1.0 })
            }
            Scale::GdScale => (1.0 / scale, 1.0 / scale),
            Scale::Unit => (1.0, 1.0),
        };
        let a = (0..r * d_in)
            .map(|n| on_a * found.vt[of_a[n / d_in] * d_in + n % d_in])
            .collect();
        let b = (0..d_out * r)
            .map(|n| {
                let triple = of_b[n % r];
                on_b * found.s[triple] * found.u[n / r * k + triple]
            })
            .collect();
        Factors { a, b }
    }
}

impl DataStart for Gradients {
    type Adapter = Residual;
    const LOOK: Look = Look::Gradients;

    fn start(&self, adapter: &mut Residual, places: &[Place], seen: &[Seen]) {
        for (place, seen) in places.iter().zip(seen) {
            let Some((r, scale, _)) = adapter.rank_scale_outputs(place.site) else {
                continue;
            };
            if seen.products.iter().all(|g| *g == 0.0) {
                adapter.begin_plain(place, self.seed);
                continue;
            }
            let mean: Vec<f32> = seen.products.iter().map(|g| g / seen.count).collect();
            let found = randomised_svd(
                &mean,
                place.d_out,
                place.d_in,
                2 * r,
                (2 * r).max(8),
                4,
                self.seed,
            );
            adapter.begin(place.site, self.factors(&found, place, (r, scale)));
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
