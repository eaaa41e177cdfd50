//! # RandLoRA: full-rank changes from random bases
//!
//! ## What it does
//! Sums scaled copies of fixed random low-rank matrices, as many as it takes for a change of full rank;
//! all layers share the matrices, and only the scales are trained.
//!
//! ## Update rule
//! `ΔW = s Σⱼ Bⱼ diag(λⱼ) A diag(γⱼ)` over `n = ⌈min(d_in, d_out) / r⌉` bases, with `A [r, min]` and `Bⱼ [max, r]` random
//! and frozen, `λⱼ [r]` and `γⱼ [min]` trained, `s = randlora_alpha / r`; transposed where `d_in > d_out`.
//!
//! ## When to use, when not
//! Where LoRA's rank limits it and the number of trained parameters should stay. Each step costs as
//! much as a full-rank change: a smaller `r` means fewer frozen numbers per basis but more bases.
//!
//! ## Cost
//! Trainable: about `min + min² / r` per layer. Extra memory: `max min + r min` frozen numbers once. Extra
//! compute: `min (d_in + d_out)` multiply-adds per token forward. None after merging.
//!
//! ## Defaults and where they come from
//! `r = 32`, `randlora_alpha = 640`, `λ` zero, `γ = 1 / max(n, min)`: Hugging Face `peft`. The bases are
//! uniform with variance 1; with `sparse` they are -1, 0 or 1, a sixth of each sign, with `very_sparse` one in
//! `2 √min` of each.
//!
//! ## Departures from the paper
//! The bases are drawn from `projection_prng_key` by our generator, not by PyTorch's, and are always in
//! the file (`save_projection`); files without them are refused. The order in which rows of `A` meet
//! columns of `B` is that of `peft`, whose two sides count the bases differently; with random bases it
//! makes no other difference.
//!
//! ## References
//! - Albert, Zhang, Saratchandran, Rodriguez-Opazo, Teney, van den Hengel, Abbasnejad: RandLoRA:
//!   Full-rank parameter-efficient fine-tuning of large models, 2025, arXiv 2502.00987.

use burn::prelude::*;
use frugal_nn::{AdaptError, Adapter, BuildContext, Mode, Parameter, named_rng};
use rand::Rng;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::method::{Family, Method, MethodConfig};
use crate::settings::Settings;
use crate::support::dropout::dropout;
use crate::support::layer_targets::LayerTargets;
use crate::support::per_linear::{
    self, LinearAdapter, LinearSite, PerLinear, bad, check_dropout, linear_maps,
};
use crate::target::Targets;

const NAME: &str = "randlora";

/// Registry entry.
pub const METHOD: Method = Method::of::<RandloraConfig>(
    Family::Shared,
    "Trained scales of many shared random matrices, together of full rank",
    include_str!("randlora.rs"),
)
.default_lr(1e-4);

/// Settings, with `peft`'s names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RandloraConfig {
    /// Rank of each basis.
    pub r: usize,
    /// Seed of the bases.
    pub projection_prng_key: u64,
    /// Whether files hold the bases: always.
    pub save_projection: bool,
    /// Bases of -1, 0 and 1.
    pub sparse: bool,
    /// The same with still fewer that are not 0.
    pub very_sparse: bool,
    /// Probability of dropping an input element on the adapted path while training.
    pub randlora_dropout: f64,
    /// Scale numerator.
    pub randlora_alpha: f64,
    /// Start without a change; otherwise with a random one, for tests.
    pub init_weights: bool,
    /// Which layers.
    #[serde(flatten)]
    pub targets: LayerTargets,
}

impl Default for RandloraConfig {
    fn default() -> Self {
        Self {
            r: 32,
            projection_prng_key: 0,
            save_projection: true,
            sparse: false,
            very_sparse: false,
            randlora_dropout: 0.0,
            randlora_alpha: 640.0,
            init_weights: true,
            targets: LayerTargets::default(),
        }
    }
}

impl MethodConfig for RandloraConfig {
    const NAME: &'static str = NAME;
    const PEFT_TYPE: &'static str = "RANDLORA";

    fn validate(&self) -> Result<(), AdaptError> {
        if self.r == 0 {
            return bad(NAME, "r", "must be at least 1");
        }
        if !self.save_projection {
            return bad(
                NAME,
                "save_projection",
                "the bases are not drawn as PyTorch draws them: they must be in the file",
            );
        }
        if !self.randlora_alpha.is_finite() {
            return bad(NAME, "randlora_alpha", "must be a finite number");
        }
        check_dropout(NAME, "randlora_dropout", self.randlora_dropout)
    }

    fn build(self, context: &BuildContext<'_>) -> Result<Box<dyn Adapter>, AdaptError> {
        Ok(Box::new(build(self, context)?))
    }

    fn from_peft(config: &Settings) -> Result<Settings, AdaptError> {
        per_linear::from_peft_without_bias::<RandloraConfig>(NAME, config)
    }
}

fn build(
    config: RandloraConfig,
    context: &BuildContext<'_>,
) -> Result<PerLinear<Scales>, AdaptError> {
    config.validate()?;
    let targets = config.targets.all();
    let r = config.r;
    let constants = json!({"bias": "none", "fan_in_fan_out": false});
    let mut paths = Vec::new();
    let maps = PerLinear::new(&METHOD, &targets, context, &config, constants, |_, info| {
        let (smaller, larger) = (info.d_in.min(info.d_out), info.d_in.max(info.d_out));
        let bases = smaller.div_ceil(r);
        paths.push(info.path.clone());
        let mut rng = named_rng(context.seed, &info.path);
        let (lambda, gamma) = match config.init_weights {
            true => (vec![0.0; r * bases], 1.0 / bases.max(smaller) as f32),
            false => {
                let drawn = (0..r * bases).map(|_| frugal_nn::standard_normal(&mut rng));
                (drawn.collect(), 1.0 / larger as f32)
            }
        };
        let new = |name: &str, shape: &[usize], values| {
            Parameter::new(
                format!("{}.randlora_{name}", info.path),
                shape,
                values,
                &context.device,
            )
        };
        Ok(Scales {
            lambda: new("lambda", &[r, bases], lambda),
            gamma: new("gamma", &[bases, smaller], vec![gamma; bases * smaller]),
            scale: (config.randlora_alpha / r as f64) as f32,
            dropout: config.randlora_dropout,
        })
    })?;
    let shared = bases(&config, &targets, context, &paths)?;
    Ok(maps.with_shared(shared, true))
}

/// `A [r, 1, min]` and `B [max, n, r]` for the largest sides, which `peft` stores again with every
/// layer.
fn bases(
    config: &RandloraConfig,
    targets: &Targets,
    context: &BuildContext<'_>,
    paths: &[String],
) -> Result<Vec<Parameter>, AdaptError> {
    let (mut d_in, mut d_out) = (0, 0);
    for id in linear_maps(NAME, targets, context)? {
        let info = context.sites.info(id);
        (d_in, d_out) = (d_in.max(info.d_in), d_out.max(info.d_out));
    }
    let (smaller, larger, r) = (d_in.min(d_out), d_in.max(d_out), config.r);
    let mut rng = named_rng(config.projection_prng_key, "randlora");
    // One in this many elements is 1, and as many are -1.
    let rare = match (config.very_sparse, config.sparse) {
        (true, _) => Some(2.0 * (smaller as f32).sqrt()),
        (_, true) => Some(6.0),
        _ => None,
    };
    let mut basis = |letter: char, shape: [usize; 3]| {
        let len = shape.iter().product::<usize>();
        let mut values: Vec<f32> = match rare {
            Some(n) => (0..len)
                .map(|_| match rng.random::<f32>() * n {
                    u if u < 1.0 => -1.0,
                    u if u > n - 1.0 => 1.0,
                    _ => 0.0,
                })
                .collect(),
            None => (0..len).map(|_| rng.random_range(-1.0..1.0)).collect(),
        };
        let mean = values.iter().sum::<f32>() / len.max(1) as f32;
        let squares: f32 = values.iter().map(|v| (v - mean).powi(2)).sum();
        let deviation = (squares / (len.max(2) - 1) as f32).sqrt().max(1e-6);
        values.iter_mut().for_each(|v| *v /= deviation);
        let name = format!("randlora_{letter}");
        let first = Parameter::frozen(
            format!("base_model.{name}"),
            &shape,
            values,
            &context.device,
        );
        paths
            .iter()
            .fold(first, |p, path| p.also_as(format!("{path}.{name}")))
    };
    Ok(vec![
        basis('A', [r, 1, smaller]),
        basis('B', [larger, smaller.div_ceil(r), r]),
    ])
}

/// The scales of one layer.
struct Scales {
    /// `[r, n]`.
    lambda: Parameter,
    /// `[n, min]`.
    gamma: Parameter,
    scale: f32,
    dropout: f64,
}

impl Scales {
    /// What the input goes through, `[r n, d_in]`, and what the output comes from, `[d_out, r n]`.
    fn factors(&self, at: &LinearSite<'_>) -> (Tensor<2>, Tensor<2>) {
        let [d_out, d_in] = at.base.weight.dims();
        let (smaller, larger) = (d_in.min(d_out), d_in.max(d_out));
        let [r, bases] = [self.lambda.shape()[0], self.lambda.shape()[1]];
        let a = at.shared[0].get::<3>(Mode::Eval).narrow(2, 0, smaller);
        let b = at.shared[1].get::<3>(Mode::Eval);
        let lambda = self.lambda.get::<2>(at.mode).reshape([r, bases, 1]);
        let gamma = self.gamma.get::<2>(at.mode).reshape([1, bases, smaller]);
        let scaled = (lambda * a * gamma).reshape([r * bases, smaller]);
        let fixed = b
            .narrow(0, 0, larger)
            .narrow(1, 0, bases)
            .reshape([larger, bases * r]);
        match smaller == d_in {
            true => (scaled, fixed),
            false => (fixed.transpose(), scaled.transpose()),
        }
    }
}

impl LinearAdapter for Scales {
    fn parameters(&self) -> Vec<&Parameter> {
        vec![&self.lambda, &self.gamma]
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        vec![&mut self.lambda, &mut self.gamma]
    }

    fn delta(&self, at: &LinearSite<'_>) -> Tensor<2> {
        let (input, output) = self.factors(at);
        output.matmul(input) * self.scale
    }

    fn materializes_weight(&self) -> bool {
        false
    }

    fn forward(&self, at: &LinearSite<'_>, x: Tensor<2>) -> Tensor<2> {
        let y = at.base.forward(x.clone());
        let x = match at.mode {
            Mode::Train { seed } if self.dropout > 0.0 => dropout(x, self.dropout, seed, at.path),
            _ => x,
        };
        let (input, output) = self.factors(at);
        let low = frugal_kernels::linear(x, input, None);
        y + frugal_kernels::linear(low, output, None) * self.scale
    }
}
