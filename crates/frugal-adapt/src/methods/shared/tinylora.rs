//! # TinyLoRA: a handful of numbers per model
//!
//! ## What it does
//! The change of a weight lies between its own largest singular vectors, and what lies there is a
//! mixture of fixed random matrices: a few numbers per layer, or for several layers together.
//!
//! ## Update rule
//! `y = x Wᵀ + B R A x` with `A = √Σ_r V_rᵀ`, `B = U_r √Σ_r` from the decomposition of `W`, `R = Σᵢ vᵢ Pᵢ [r, r]`, `Pᵢ`
//! random and frozen, `v [u]` trained.
//!
//! ## When to use, when not
//! For reinforcement learning, which puts little information into a model, and for files of bytes.
//! For supervised training a LoRA of rank 1 is far stronger.
//!
//! ## Cost
//! Trainable: `u` per group of layers. Extra memory: `r (d_in + d_out) + u r²` frozen numbers per layer. Extra
//! compute: as LoRA. None after merging.
//!
//! ## Defaults and where they come from
//! `r = 2`, `u = 64`, every layer by itself (`weight_tying = 0`; 1 is one vector for all): Hugging Face
//! `peft`. `P` is normal with variance `1 / r`, `v` zero, or uniform within `init_v_bound` with
//! `init_weights = "uniform"`.
//!
//! ## Departures from the paper
//! `P` is drawn from the run's seed, not by PyTorch's generator, and is always in the file
//! (`save_projection`); files without it are refused.
//!
//! ## References
//! - Learning to Reason in 13 Parameters, 2026, arXiv 2602.04118.

use burn::prelude::*;
use frugal_nn::linalg::{randomised_svd, svd};
use frugal_nn::{
    AdaptError, Adapter, BuildContext, Mode, Parameter, SiteInfo, named_rng, standard_normal,
    to_vec,
};
use rand::Rng;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::method::{Family, Method, MethodConfig};
use crate::methods::low_rank::lora_config::Init;
use crate::settings::Settings;
use crate::support::base_weights::linear_weights;
use crate::support::dropout::dropout;
use crate::support::layer_targets::LayerTargets;
use crate::support::per_linear::{
    self, LinearAdapter, LinearSite, PerLinear, bad, check_dropout, linear_maps,
};

const NAME: &str = "tinylora";

/// Registry entry.
pub const METHOD: Method = Method::of::<TinyloraConfig>(
    Family::Shared,
    "A few mixing weights of random matrices between singular vectors",
    include_str!("tinylora.rs"),
)
.default_lr(5e-4)
.files_hold_what_follows_from_weights();

/// Settings, with `peft`'s names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TinyloraConfig {
    /// Singular vectors of a layer.
    pub r: usize,
    /// Trained numbers of a group.
    pub u: usize,
    /// How many layers share them: 0 for none, 1 for all.
    pub weight_tying: f64,
    /// Seed of the random matrices of files that `peft` wrote.
    pub projection_seed: u64,
    /// Whether files hold the random matrices: always.
    pub save_projection: bool,
    /// Bound of first values.
    pub init_v_bound: f64,
    /// Probability of dropping an input element on the adapted path while training.
    pub tinylora_dropout: f64,
    /// `true`: zero. `"uniform"`: uniform values. `false`: normal values, for tests.
    pub init_weights: Init,
    /// Which layers.
    #[serde(flatten)]
    pub targets: LayerTargets,
}

impl Default for TinyloraConfig {
    fn default() -> Self {
        Self {
            r: 2,
            u: 64,
            weight_tying: 0.0,
            projection_seed: 42,
            save_projection: true,
            init_v_bound: 0.02,
            tinylora_dropout: 0.0,
            init_weights: Init::Default(true),
            targets: LayerTargets::default(),
        }
    }
}

impl MethodConfig for TinyloraConfig {
    const NAME: &'static str = NAME;
    const PEFT_TYPE: &'static str = "TINYLORA";

    fn validate(&self) -> Result<(), AdaptError> {
        if self.r == 0 || self.u == 0 {
            let field = if self.r == 0 { "r" } else { "u" };
            return bad(NAME, field, "must be at least 1");
        }
        if self.u > 1 << 16 {
            return bad(NAME, "u", "must be at most 65536");
        }
        if !(0.0..=1.0).contains(&self.weight_tying) {
            return bad(NAME, "weight_tying", "must be within 0 and 1");
        }
        if !self.save_projection {
            return bad(
                NAME,
                "save_projection",
                "the random matrices are not drawn again here: they must be in the file",
            );
        }
        if !(self.init_v_bound > 0.0 && self.init_v_bound.is_finite()) {
            return bad(NAME, "init_v_bound", "must be a positive number");
        }
        if matches!(&self.init_weights, Init::Named(name) if name != "uniform") {
            return bad(NAME, "init_weights", "supported: true, false, \"uniform\"");
        }
        check_dropout(NAME, "tinylora_dropout", self.tinylora_dropout)
    }

    fn build(self, context: &BuildContext<'_>) -> Result<Box<dyn Adapter>, AdaptError> {
        Ok(Box::new(build(self, context)?))
    }

    fn from_peft(config: &Settings) -> Result<Settings, AdaptError> {
        per_linear::from_peft_without_bias::<TinyloraConfig>(NAME, config)
    }
}

fn build(
    config: TinyloraConfig,
    context: &BuildContext<'_>,
) -> Result<PerLinear<Between>, AdaptError> {
    config.validate()?;
    let targets = config.targets.all();
    let layers = linear_maps(NAME, &targets, context)?.len();
    let asked = (layers as f64 * (1.0 - config.weight_tying)).round_ties_even() as usize;
    let groups = asked.max(1);
    let size = (layers / groups).max(1);
    let weights = linear_weights(context);
    let constants = json!({"bias": "none", "fan_in_fan_out": false});
    let mut earlier = 0;
    let maps = PerLinear::new(
        &METHOD,
        &targets,
        context,
        &config,
        constants,
        |id, info| {
            let group = (earlier / size).min(groups - 1);
            earlier += 1;
            Ok(Between::new(
                &config,
                context,
                info,
                weights[id.index()].as_ref(),
                group,
            ))
        },
    )?;
    // With as many groups as layers allow, the last may have none.
    let used = layers.saturating_sub(1) / size;
    let mut rng = named_rng(context.seed, "tinylora_v");
    let bound = config.init_v_bound as f32;
    let shared = (0..=used.min(groups - 1)).map(|group| {
        let mut draw = || match config.init_weights {
            Init::Default(true) => 0.0,
            Init::Default(false) => standard_normal(&mut rng),
            Init::Named(_) => rng.random_range(-bound..bound),
        };
        let values = (0..config.u).map(|_| draw()).collect();
        let name = format!("base_model.tinylora_v.{group}");
        Parameter::new(name, &[config.u], values, &context.device)
    });
    Ok(maps.with_shared(shared.collect(), true))
}

/// What lies between the vectors of one layer.
struct Between {
    /// `[r, d_in]`.
    a: Parameter,
    /// `[d_out, r]`.
    b: Parameter,
    /// `[u, r, r]`.
    p: Parameter,
    /// Which of the shared vectors.
    group: usize,
    dropout: f64,
}

impl Between {
    fn new(
        config: &TinyloraConfig,
        context: &BuildContext<'_>,
        info: &SiteInfo,
        weight: Option<&Tensor<2>>,
        group: usize,
    ) -> Self {
        let (d_in, d_out, path) = (info.d_in, info.d_out, &info.path);
        let r = config.r.min(d_in).min(d_out);
        let (mut a, mut b) = (vec![0.0; r * d_in], vec![0.0; d_out * r]);
        if let Some(weight) = weight {
            let values = to_vec(weight.clone());
            let found = match 4 * r > d_in.min(d_out) {
                true => svd(&values, d_out, d_in),
                false => randomised_svd(&values, d_out, d_in, r, r.max(8), 4, context.seed),
            };
            let (k, root) = (found.s.len(), |i: usize| found.s[i].max(0.0).sqrt());
            a.iter_mut()
                .enumerate()
                .for_each(|(n, a)| *a = root(n / d_in) * found.vt[n]);
            b.iter_mut()
                .enumerate()
                .for_each(|(n, b)| *b = found.u[n / r * k + n % r] * root(n % r));
        }
        let mut rng = named_rng(context.seed, path);
        let deviation = 1.0 / (r as f32).sqrt();
        let p = (0..config.u * r * r)
            .map(|_| deviation * standard_normal(&mut rng))
            .collect();
        let new = |letter: char, shape: &[usize], values| {
            let name = format!("{path}.tinylora_{letter}");
            Parameter::frozen(name, shape, values, &context.device)
        };
        Self {
            a: new('A', &[r, d_in], a),
            b: new('B', &[d_out, r], b),
            p: new('P', &[config.u, r, r], p),
            group,
            dropout: config.tinylora_dropout,
        }
    }

    /// `B R`, `[d_out, r]`.
    fn mixed(&self, at: &LinearSite<'_>) -> Tensor<2> {
        let [u, r] = [self.p.shape()[0], self.p.shape()[1]];
        let v = at.shared[self.group].get::<1>(at.mode).reshape([1, u]);
        let p = self.p.get::<3>(Mode::Eval).reshape([u, r * r]);
        self.b
            .get::<2>(Mode::Eval)
            .matmul(v.matmul(p).reshape([r, r]))
    }
}

impl LinearAdapter for Between {
    fn parameters(&self) -> Vec<&Parameter> {
        vec![&self.a, &self.b, &self.p]
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        vec![&mut self.a, &mut self.b, &mut self.p]
    }

    fn delta(&self, at: &LinearSite<'_>) -> Tensor<2> {
        self.mixed(at).matmul(self.a.get::<2>(Mode::Eval))
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
        let low = frugal_kernels::linear(x, self.a.get::<2>(Mode::Eval), None);
        y + frugal_kernels::linear(low, self.mixed(at), None)
    }
}
