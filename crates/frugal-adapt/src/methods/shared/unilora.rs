//! # Uni-LoRA: all factors of a model from one short vector
//!
//! ## What it does
//! Every element of every LoRA factor of the model is one of a few trained numbers, by a fixed random
//! assignment: a projection that keeps lengths, from a vector to all factors.
//!
//! ## Update rule
//! `ΔW = B A` with `A [r, d_in]` and `B [d_out, r]`; `Aᵢⱼ = θ[k] / sqrt(nₖ)`, where `k` is drawn for each
//! element, `θ [theta_d_length]` is trained and `nₖ` is how often `k` was drawn in the whole model.
//!
//! ## When to use, when not
//! Where an adapter must be a kilobyte: it is as good as VeRA and VB-LoRA with fewer numbers. LoRA
//! of rank 1 is stronger where its size does not matter.
//!
//! ## Cost
//! Trainable: `theta_d_length` per model. Extra memory: an index and a factor for each element of the
//! factors. Extra compute: as LoRA, and gathering the factors. None after merging.
//!
//! ## Defaults and where they come from
//! `r = 4`, `theta_d_length = 256`, `θ` uniform within `init_theta_d_bound = 0.02`: Hugging Face `peft`.
//! Indices are drawn by NumPy's generator from `proj_seed`, exactly as `peft` draws them, so files
//! hold `θ` alone; with `save_indices` they hold them too.
//!
//! ## Departures from the paper
//! None. Training biases (`bias` of `peft`) is not offered.
//!
//! ## References
//! - Uni-LoRA: One Vector is All You Need, 2025, arXiv 2506.00799; the assignment follows Hugging
//!   Face `peft`.

use burn::prelude::*;
use frugal_nn::{AdaptError, Adapter, BuildContext, Mode, Parameter, named_rng, standard_normal};
use rand::Rng;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::method::{Family, Method, MethodConfig};
use crate::settings::Settings;
use crate::support::dropout::dropout;
use crate::support::layer_targets::LayerTargets;
use crate::support::numpy_random::NumpyGenerator;
use crate::support::per_linear::{
    self, LinearAdapter, LinearSite, PerLinear, bad, check_dropout, linear_maps,
};

const NAME: &str = "unilora";

/// Indices are exact in single precision below this.
const MAX_LENGTH: usize = 1 << 24;

/// Registry entry.
pub const METHOD: Method = Method::of::<UniloraConfig>(
    Family::Shared,
    "All low-rank factors of the model from one vector",
    include_str!("unilora.rs"),
)
.aliases(&["uni-lora"])
.default_lr(5e-3)
.without_identity();

/// Settings, with `peft`'s names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct UniloraConfig {
    /// Rank.
    pub r: usize,
    /// Trained numbers of the model.
    pub theta_d_length: usize,
    /// Seed of the assignment.
    pub proj_seed: u64,
    /// Probability of dropping an input element on the adapted path while training.
    pub unilora_dropout: f64,
    /// Bound of first values.
    pub init_theta_d_bound: f64,
    /// Uniform first values; otherwise standard normal ones, for tests.
    pub init_weights: bool,
    /// Whether files hold the assignment.
    pub save_indices: bool,
    /// Which layers.
    #[serde(flatten)]
    pub targets: LayerTargets,
}

impl Default for UniloraConfig {
    fn default() -> Self {
        Self {
            r: 4,
            theta_d_length: 256,
            proj_seed: 42,
            unilora_dropout: 0.0,
            init_theta_d_bound: 0.02,
            init_weights: true,
            save_indices: false,
            targets: LayerTargets::default(),
        }
    }
}

impl MethodConfig for UniloraConfig {
    const NAME: &'static str = NAME;
    const PEFT_TYPE: &'static str = "UNILORA";

    fn validate(&self) -> Result<(), AdaptError> {
        if self.r == 0 {
            return bad(NAME, "r", "the rank must be at least 1");
        }
        if !(1..MAX_LENGTH).contains(&self.theta_d_length) {
            let reason = format!("must be at least 1 and below {MAX_LENGTH}");
            return bad(NAME, "theta_d_length", reason);
        }
        if !(self.init_theta_d_bound > 0.0 && self.init_theta_d_bound.is_finite()) {
            return bad(NAME, "init_theta_d_bound", "must be a positive number");
        }
        check_dropout(NAME, "unilora_dropout", self.unilora_dropout)
    }

    fn build(self, context: &BuildContext<'_>) -> Result<Box<dyn Adapter>, AdaptError> {
        Ok(Box::new(build(self, context)?))
    }

    fn from_peft(config: &Settings) -> Result<Settings, AdaptError> {
        per_linear::from_peft_without_bias::<UniloraConfig>(NAME, config)
    }
}

fn build(
    config: UniloraConfig,
    context: &BuildContext<'_>,
) -> Result<PerLinear<Assigned>, AdaptError> {
    config.validate()?;
    let targets = config.targets.all();
    let (length, r) = (config.theta_d_length, config.r);
    let sides = linear_maps(NAME, &targets, context)?
        .into_iter()
        .map(|id| context.sites.info(id).d_in + context.sites.info(id).d_out);
    let assignment = assign(r * sides.sum::<usize>(), length, config.proj_seed);
    let mut counts = vec![0_u32; length];
    assignment.iter().for_each(|&k| counts[k] += 1);
    let mut rest = assignment.as_slice();
    let constants = json!({"bias": "none", "fan_in_fan_out": false});
    let maps = PerLinear::new(&METHOD, &targets, context, &config, constants, |_, info| {
        let mut factor = |letter: char, shape: [usize; 2]| {
            let (own, others) = rest.split_at(shape[0] * shape[1]);
            rest = others;
            let new = |what: &str, values: Vec<f32>| {
                let name = format!("{}.unilora_{what}_{letter}", info.path);
                Parameter::frozen(name, &shape, values, &context.device)
            };
            let scale = |&k: &usize| 1.0 / (counts[k] as f32).sqrt();
            Factor {
                indices: new("indices", own.iter().map(|&k| k as f32).collect())
                    .as_whole_numbers()
                    .indices_below(&[length]),
                scales: new("scales", own.iter().map(scale).collect()),
            }
        };
        Ok(Assigned {
            a: factor('A', [r, info.d_in]),
            b: factor('B', [info.d_out, r]),
            saved: config.save_indices,
            dropout: config.unilora_dropout,
        })
    })?;
    let mut rng = named_rng(context.seed, "unilora_theta_d");
    let bound = config.init_theta_d_bound as f32;
    let mut draw = || match config.init_weights {
        true => rng.random_range(-bound..bound),
        false => standard_normal(&mut rng),
    };
    let values = (0..length).map(|_| draw()).collect();
    let theta = Parameter::new(
        "base_model.unilora_theta_d",
        &[length],
        values,
        &context.device,
    );
    Ok(maps.with_shared(vec![theta], true))
}

/// Which of `length` numbers each of `count` elements is: each of them equally often, up to one.
fn assign(count: usize, length: usize, seed: u64) -> Vec<usize> {
    let mut generator = NumpyGenerator::new(seed);
    let times = count / length;
    let mut all: Vec<usize> = (0..length)
        .flat_map(|k| std::iter::repeat_n(k, times))
        .collect();
    if !count.is_multiple_of(length) {
        all.extend(generator.choice(length, count % length));
    }
    generator.shuffle(&mut all);
    all
}

/// Where a factor's elements come from.
struct Factor {
    /// Shape of the factor.
    indices: Parameter,
    /// The same.
    scales: Parameter,
}

impl Factor {
    fn form(&self, theta: Tensor<1>) -> Tensor<2> {
        let scales = self.scales.get::<2>(Mode::Eval);
        let (dims, indices) = (scales.dims(), self.indices.value().int());
        theta.select(0, indices).reshape(dims) * scales
    }
}

/// The factors of one layer.
struct Assigned {
    /// `[r, d_in]`.
    a: Factor,
    /// `[d_out, r]`.
    b: Factor,
    /// Whether files hold the assignment.
    saved: bool,
    dropout: f64,
}

impl Assigned {
    /// `A` and `B`.
    fn factors(&self, at: &LinearSite<'_>) -> (Tensor<2>, Tensor<2>) {
        let theta = at.shared[0].get::<1>(at.mode);
        (self.a.form(theta.clone()), self.b.form(theta))
    }
}

impl LinearAdapter for Assigned {
    fn parameters(&self) -> Vec<&Parameter> {
        let all = [&self.a, &self.b].map(|f| [&f.indices, &f.scales]);
        all.into_iter().flatten().filter(|_| self.saved).collect()
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        let saved = self.saved;
        let all = [&mut self.a, &mut self.b].map(|f| [&mut f.indices, &mut f.scales]);
        all.into_iter().flatten().filter(|_| saved).collect()
    }

    fn delta(&self, at: &LinearSite<'_>) -> Tensor<2> {
        let (a, b) = self.factors(at);
        b.matmul(a)
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
        let (a, b) = match at.mode {
            Mode::Train { .. } => self.factors(at),
            Mode::Eval => at.keep(|| self.factors(at)),
        };
        y + frugal_kernels::linear(frugal_kernels::linear(x, a, None), b, None)
    }
}
