//! # VeLoRA: LoRA whose gradients come from compressed activations
//!
//! ## What it does
//! LoRA that keeps, for the gradient of `A`, one number in place of each group of a token's inputs.
//!
//! ## Update rule
//! LoRA's, forward. Backward `∂L/∂A` has `x̂` in the place of `x`: the inputs of a token are cut into `num_groups` groups
//! of equal length, of each only its product `c` with a unit vector `v` is kept, and `x̂ = scale · c v`. `v` is the mean
//! group of the pass (`"batch_average"`), that of the first pass (`"batch_average_once"`), or `"random"`.
//!
//! ## When to use, when not
//! Where the inputs of adapted layers fill the memory in training: long sequences, many layers. The
//! gradient is an approximation, so it learns less than LoRA at the same rate.
//!
//! ## Cost
//! Trainable: LoRA's. Kept for the backward pass: `num_groups + r` numbers per token and layer in the place of `d_in + r`. Extra
//! compute: LoRA's and one product with `v`. None after merging.
//!
//! ## Defaults and where they come from
//! `num_groups = 64`, `scale = 1`, `"batch_average"`: Hugging Face `peft`; the rest as `lora`.
//!
//! ## Departures from the paper
//! Only adapted layers are compressed, as in `peft`; the paper compresses further inputs of each block too.
//! With `"batch_average_once"` a file keeps `v`, and training that goes on from it does not look for another one; `peft`
//! looks again.
//!
//! ## References
//! - Miles, Reddy, Elezi, Deng: VeLoRA: Memory Efficient Training using Rank-1 Sub-Token Projections, 2024,
//!   arXiv 2405.17991.

use std::sync::{Mutex, PoisonError};

use burn::prelude::*;
use frugal_nn::{
    AdaptError, Adapter, BuildContext, Mode, Parameter, StepContext, named_rng, standard_normal,
    to_vec,
};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::method::{Family, Method, MethodConfig};
use crate::settings::Settings;
use crate::support::dropout::dropout;
use crate::support::lora_like::{self, LoraLike};
use crate::support::per_linear::{LinearAdapter, LinearSite, PerLinear, bad};

const NAME: &str = "velora";

/// Registry entry.
pub const METHOD: Method = Method::of::<VeloraConfig>(
    Family::LowRank,
    "LoRA whose gradients come from compressed activations",
    include_str!("velora.rs"),
)
.default_lr(5e-4)
.peft_variant(|config| config.get("velora_config").is_some_and(|v| !v.is_null()));

/// Where the vector comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Start {
    /// The mean group of each pass.
    BatchAverage,
    /// That of the first pass.
    BatchAverageOnce,
    /// Random.
    Random,
}

/// The compression, with `peft`'s names.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Compression {
    /// Groups of a token's inputs.
    pub num_groups: usize,
    /// Factor on what is restored.
    pub scale: f64,
    /// Where the vector comes from.
    pub init_type: Start,
}

impl Default for Compression {
    fn default() -> Self {
        Self {
            num_groups: 64,
            scale: 1.0,
            init_type: Start::BatchAverage,
        }
    }
}

/// Settings, with `peft`'s names.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct VeloraConfig {
    /// The compression.
    pub velora_config: Compression,
    /// The rest.
    #[serde(flatten)]
    pub lora: LoraLike,
}

impl MethodConfig for VeloraConfig {
    const NAME: &'static str = NAME;
    const PEFT_TYPE: &'static str = "LORA";

    fn validate(&self) -> Result<(), AdaptError> {
        let Compression {
            num_groups, scale, ..
        } = self.velora_config;
        if num_groups == 0 || !(scale > 0.0 && scale.is_finite()) {
            let reason = "`num_groups` must be at least 1 and `scale` a positive number";
            return bad(NAME, "velora_config", reason);
        }
        self.lora.validate(NAME)
    }

    fn build(self, context: &BuildContext<'_>) -> Result<Box<dyn Adapter>, AdaptError> {
        Ok(Box::new(build(self, context)?))
    }

    fn from_peft(config: &Settings) -> Result<Settings, AdaptError> {
        lora_like::from_peft::<VeloraConfig>(NAME, config, &["velora_config"])
    }
}

fn build(config: VeloraConfig, context: &BuildContext<'_>) -> Result<PerLinear<Pair>, AdaptError> {
    config.validate()?;
    config.lora.check_patterns(context.sites)?;
    let constants = lora_like::constants(json!({"velora_config": config.velora_config}));
    PerLinear::new(
        &METHOD,
        &config.lora.targets,
        context,
        &config,
        constants,
        |_, info| {
            // More groups than inputs would hold one each, and nothing.
            let (d_in, groups) = (info.d_in, config.velora_config.num_groups.min(info.d_in));
            let (r, _) = config.lora.of(info)?;
            let factors = config
                .lora
                .factors(info, (d_in, r), context.seed, &context.device)?;
            let length = d_in.div_ceil(groups);
            let name = format!("{}.lora_velora_embed", info.path);
            let mut rng = named_rng(context.seed, &name);
            let values = match config.velora_config.init_type {
                Start::Random => unit((0..length).map(|_| standard_normal(&mut rng)).collect()),
                Start::BatchAverage | Start::BatchAverageOnce => vec![0.0; length],
            };
            Ok(Pair {
                a: factors.a,
                b: factors.b,
                vector: Parameter::frozen(name, &[length], values, &context.device),
                found: Mutex::new(None),
                groups,
                compression: config.velora_config,
                scale: factors.scale,
                dropout: config.lora.lora_dropout,
            })
        },
    )
}

/// The vector at length 1; the diagonal in the place of zero.
fn unit(mut vector: Vec<f32>) -> Vec<f32> {
    let norm = |vector: &[f32]| vector.iter().map(|v| v * v).sum::<f32>().sqrt();
    if norm(&vector) == 0.0 {
        vector.fill(1.0);
    }
    let length = norm(&vector);
    vector.iter_mut().for_each(|v| *v /= length);
    vector
}

/// The low-rank pair of one layer.
struct Pair {
    /// `[r, d_in]`.
    a: Parameter,
    /// `[d_out, r]`.
    b: Parameter,
    /// `v [d_in / num_groups]`, rounded up.
    vector: Parameter,
    /// The `v` of the first pass, which no step has kept yet.
    found: Mutex<Option<Vec<f32>>>,
    groups: usize,
    compression: Compression,
    scale: f32,
    dropout: f64,
}

impl Pair {
    /// `x [tokens, d_in]` in groups, `[tokens, groups, length]`, the last one filled up with zeros.
    fn grouped(&self, x: Tensor<2>) -> Tensor<3> {
        let [rows, d_in] = x.dims();
        let (groups, length) = (self.groups, self.vector.len());
        let missing = groups * length - d_in;
        let x = match missing {
            0 => x,
            _ => Tensor::cat(
                vec![x.clone(), Tensor::zeros([rows, missing], &x.device())],
                1,
            ),
        };
        x.reshape([rows, groups, length])
    }

    /// `v` for this pass.
    fn vector(&self, grouped: &Tensor<3>) -> Vec<f32> {
        let mean = || {
            let [rows, groups, length] = grouped.dims();
            let all = grouped.clone().reshape([rows * groups, length]);
            unit(to_vec(all.mean_dim(0)))
        };
        let kept = self.vector.to_vec();
        match self.compression.init_type {
            Start::Random => kept,
            Start::BatchAverage => mean(),
            Start::BatchAverageOnce if kept.iter().any(|v| *v != 0.0) => kept,
            Start::BatchAverageOnce => {
                let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
                found.get_or_insert_with(mean).clone()
            }
        }
    }

    /// `x Aᵀ`, whose gradient of `A` comes from what is kept of `x`.
    fn low(&self, x: Tensor<2>, mode: Mode) -> Tensor<2> {
        let [rows, r] = [x.dims()[0], self.a.shape()[0]];
        let a = self.a.get::<2>(mode);
        let grouped = self.grouped(x.clone().inner());
        let vector = self.vector(&grouped);
        let (groups, length) = (self.groups, vector.len());
        let vector = Tensor::<1>::from_data(TensorData::new(vector, [length]), &grouped.device());
        let products = |grouped: Tensor<3>, vector: Tensor<1>, rows: usize| {
            (grouped * vector.reshape([1, 1, length]))
                .sum_dim(2)
                .reshape([rows, groups])
        };
        let kept = products(grouped, vector.clone(), rows) * self.compression.scale as f32;
        // x̂ Aᵀ, without x̂: its gradient is the one wanted, its value is taken out again.
        let ungraded = Tensor::from_inner(a.clone().inner());
        let of_vector = products(self.grouped(a), Tensor::from_inner(vector), r);
        let restored = frugal_kernels::linear(Tensor::from_inner(kept), of_vector, None);
        let value = Tensor::from_inner(restored.clone().inner());
        frugal_kernels::linear(x, ungraded, None) + (restored - value)
    }
}

impl LinearAdapter for Pair {
    fn parameters(&self) -> Vec<&Parameter> {
        vec![&self.a, &self.b, &self.vector]
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        vec![&mut self.a, &mut self.b, &mut self.vector]
    }

    fn delta(&self, at: &LinearSite<'_>) -> Tensor<2> {
        self.b.get::<2>(at.mode).matmul(self.a.get::<2>(at.mode)) * self.scale
    }

    fn materializes_weight(&self) -> bool {
        false
    }

    fn samples(&self) -> bool {
        true
    }

    fn after_step(&mut self, _context: &StepContext) {
        let found = self
            .found
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(found) = found {
            self.vector.set(found);
        }
    }

    fn forward(&self, at: &LinearSite<'_>, x: Tensor<2>) -> Tensor<2> {
        let Mode::Train { seed } = at.mode else {
            let (a, b) = (self.a.get::<2>(Mode::Eval), self.b.get::<2>(Mode::Eval));
            return at.base.forward_low_rank(x, a, b, self.scale);
        };
        let y = at.base.forward(x.clone());
        if x.dims()[0] == 0 {
            return y;
        }
        let x = match self.dropout > 0.0 {
            true => dropout(x, self.dropout, seed, at.path),
            false => x,
        };
        let low = self.low(x, at.mode);
        y + frugal_kernels::linear(low, self.b.get::<2>(at.mode), None) * self.scale
    }
}
