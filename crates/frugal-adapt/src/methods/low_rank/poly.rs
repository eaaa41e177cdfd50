//! # Poly: a mixture of skills that each layer chooses for the task
//!
//! ## What it does
//! Each layer holds several low-rank skills and learns for a task how much of each it takes, for all
//! of its input and output at once or for pieces of them (multi-head routing).
//!
//! ## Update rule
//! `y = x Wᵀ + x A B / r` where piece `q` of `A [d_in, r]` is `Σₛ wₛ Aₛ` with `Aₛ [d_in / n_splits, r]`,
//! and piece `q` of `B [r, d_out]` in the same way; `w = σ(z) / Σ σ(z)` with `z [n_skills]` trained for
//! each piece.
//!
//! ## When to use, when not
//! To adapt skills that many tasks have trained to a new one from few examples, and where LoRA's
//! rank should be shared out by the layers themselves. Trained from nothing on one task it is a LoRA
//! of more parameters.
//!
//! ## Cost
//! Trainable: `n_skills r (d_in + d_out) + n_splits n_skills` per layer. Extra compute: as LoRA, and
//! mixing the skills, once per layer and pass. None after merging.
//!
//! ## Defaults and where they come from
//! `r = 8`, `n_skills = 4`, `n_splits = 1`: Hugging Face `peft`. Skills start as LoRA's factors do, the
//! second zero; `z` uniform within 1e-3. In training `σ(z)` is sampled as a relaxed Bernoulli variable
//! of temperature 1, from the run's seed.
//!
//! ## Departures from the paper
//! One task: with several, each example would have to name its own, and files of more than one
//! (`n_tasks`) are refused. The sample of a pass is that of the whole batch. It merges, which `peft`
//! does not offer: outside of training the mixture is a fixed weight.
//!
//! ## References
//! - Ponti, Sordoni, Bengio, Reddy: Combining Modular Skills in Multitask Learning, 2022, arXiv
//!   2202.13914.
//! - Caccia, Ponti, Su, Pereira, Le Roux, Sordoni: Multi-Head Adapter Routing for Cross-Task
//!   Generalization, 2022, arXiv 2211.03831.

use burn::prelude::*;
use burn::tensor::activation::sigmoid;
use frugal_nn::{AdaptError, Adapter, BuildContext, Mode, Parameter, SiteInfo, named_rng};
use rand::Rng;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::method::{Family, Method, MethodConfig};
use crate::settings::Settings;
use crate::sizes::most_rank;
use crate::support::per_linear::{self, LinearAdapter, LinearSite, PerLinear, bad};
use crate::support::torch_random::TorchGenerator;
use crate::support::values::kaiming;
use crate::target::{Names, Targets};

const NAME: &str = "poly";

/// Added to the sum of the weights, as `peft` does.
const EPSILON: f32 = 1e-12;

/// Registry entry.
pub const METHOD: Method = Method::of::<PolyConfig>(
    Family::LowRank,
    "A learned mixture of low-rank skills in every layer",
    include_str!("poly.rs"),
)
.default_lr(5e-3);

/// Settings, with `peft`'s names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PolyConfig {
    /// Rank of a skill.
    pub r: usize,
    /// Skills of a layer.
    pub n_skills: usize,
    /// Pieces of the input and of the output that choose by themselves.
    pub n_splits: usize,
    /// Start without a change; otherwise with a random one, for tests.
    pub init_weights: bool,
    /// Path endings, one regular expression over the whole path, or `all-linear`.
    pub target_modules: Names,
    /// The same grammar; wins over the targets.
    pub exclude_modules: Option<Names>,
}

impl Default for PolyConfig {
    fn default() -> Self {
        Self {
            r: 8,
            n_skills: 4,
            n_splits: 1,
            init_weights: true,
            target_modules: Targets::default().target_modules,
            exclude_modules: None,
        }
    }
}

impl MethodConfig for PolyConfig {
    const NAME: &'static str = NAME;
    const PEFT_TYPE: &'static str = "POLY";

    fn validate(&self) -> Result<(), AdaptError> {
        for (field, value) in [
            ("r", self.r),
            ("n_skills", self.n_skills),
            ("n_splits", self.n_splits),
        ] {
            if value == 0 {
                return bad(NAME, field, "must be at least 1");
            }
        }
        if self.n_skills > 1024 {
            return bad(NAME, "n_skills", "must be at most 1024");
        }
        Ok(())
    }

    fn build(self, context: &BuildContext<'_>) -> Result<Box<dyn Adapter>, AdaptError> {
        Ok(Box::new(build(self, context)?))
    }

    fn from_peft(config: &Settings) -> Result<Settings, AdaptError> {
        per_linear::from_peft::<PolyConfig>(
            NAME,
            config,
            json!({}),
            &[("n_tasks", &[json!(1)]), ("poly_type", &[json!("poly")])],
        )
    }
}

fn build(config: PolyConfig, context: &BuildContext<'_>) -> Result<PerLinear<Skills>, AdaptError> {
    config.validate()?;
    let targets = Targets {
        target_modules: config.target_modules.clone(),
        exclude_modules: config.exclude_modules.clone(),
        ..Targets::default()
    };
    let constants = json!({"n_tasks": 1, "poly_type": "poly"});
    PerLinear::new(&METHOD, &targets, context, &config, constants, |_, info| {
        Skills::new(&config, context, info)
    })
}

/// The skills of one layer.
struct Skills {
    /// `[n_splits, n_skills, d_in / n_splits, r]`.
    a: Parameter,
    /// `[n_splits, n_skills, r, d_out / n_splits]`.
    b: Parameter,
    /// `[1, n_splits * n_skills]`.
    logits: Parameter,
}

impl Skills {
    fn new(
        config: &PolyConfig,
        context: &BuildContext<'_>,
        info: &SiteInfo,
    ) -> Result<Self, AdaptError> {
        let (splits, skills, r) = (config.n_splits, config.n_skills, config.r);
        let (path, d_in, d_out) = (&info.path, info.d_in, info.d_out);
        if d_in % splits != 0 || d_out % splits != 0 {
            let reason = format!(
                "{splits} does not divide the {d_in} inputs and {d_out} outputs of `{path}`"
            );
            return bad(NAME, "n_splits", reason);
        }
        let most = most_rank(d_in, d_out);
        if skills.saturating_mul(r) > most {
            let reason = format!(
                "{skills} skills of rank {r} are more than `{path}` has a use for: at most {most} ranks together"
            );
            return bad(NAME, "n_skills", reason);
        }
        let mut rng = named_rng(context.seed, path);
        let a = kaiming(&mut rng, skills * d_in * r, d_in / splits);
        let b = match config.init_weights {
            true => vec![0.0; skills * d_out * r],
            false => kaiming(&mut rng, skills * d_out * r, r),
        };
        let logits = (0..splits * skills)
            .map(|_| rng.random_range(-1e-3..1e-3))
            .collect();
        let new = |name: &str, shape: &[usize], values| {
            Parameter::new(
                format!("{path}.poly_{name}"),
                shape,
                values,
                &context.device,
            )
        };
        Ok(Self {
            a: new("lora_A", &[splits, skills, d_in / splits, r], a),
            b: new("lora_B", &[splits, skills, r, d_out / splits], b),
            logits: new("router.module_logits", &[1, splits * skills], logits),
        })
    }

    /// How much of each skill, `[n_splits, n_skills, 1]`.
    fn weights(&self, at: &LinearSite<'_>) -> Tensor<3> {
        let [splits, skills] = [self.a.shape()[0], self.a.shape()[1]];
        let logits = self.logits.get::<2>(at.mode);
        let logits = match at.mode {
            Mode::Train { seed } => {
                let mut generator = TorchGenerator::of_place(seed, at.path);
                let noise: Vec<f32> = generator
                    .rand(splits * skills)
                    .into_iter()
                    .map(|u| u.clamp(f32::EPSILON, 1.0 - f32::EPSILON))
                    .map(|u| u.ln() - (-u).ln_1p())
                    .collect();
                let device = logits.device().inner();
                logits + Tensor::from_data(TensorData::new(noise, [1, splits * skills]), &device)
            }
            Mode::Eval => logits,
        };
        let weights = sigmoid(logits).reshape([splits, skills, 1]);
        weights.clone() / (weights.sum_dim(1) + EPSILON)
    }

    /// `A [d_in, r]` and `B [r, d_out]` of the mixture, over `r`.
    fn factors(&self, at: &LinearSite<'_>) -> (Tensor<2>, Tensor<2>) {
        let [splits, skills, d_in, r] = [0, 1, 2, 3].map(|i| self.a.shape()[i]);
        let d_out = self.b.shape()[3];
        let weights = self.weights(at);
        let mixed = |skill: &Parameter, len: usize| {
            let skill = skill.get::<4>(at.mode).reshape([splits, skills, len]);
            (skill * weights.clone()).sum_dim(1)
        };
        let a = mixed(&self.a, d_in * r).reshape([splits * d_in, r]);
        let b = mixed(&self.b, r * d_out)
            .reshape([splits, r, d_out])
            .swap_dims(0, 1)
            .reshape([r, splits * d_out]);
        (a, b / r as f32)
    }
}

impl LinearAdapter for Skills {
    fn parameters(&self) -> Vec<&Parameter> {
        vec![&self.a, &self.b, &self.logits]
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        vec![&mut self.a, &mut self.b, &mut self.logits]
    }

    fn delta(&self, at: &LinearSite<'_>) -> Tensor<2> {
        let (a, b) = self.factors(at);
        a.matmul(b).transpose()
    }

    fn samples(&self) -> bool {
        true
    }

    fn materializes_weight(&self) -> bool {
        false
    }

    fn forward(&self, at: &LinearSite<'_>, x: Tensor<2>) -> Tensor<2> {
        let y = at.base.forward(x.clone());
        let (a, b) = match at.mode {
            Mode::Train { .. } => self.factors(at),
            Mode::Eval => at.keep(|| self.factors(at)),
        };
        y + x.matmul(a).matmul(b)
    }
}
