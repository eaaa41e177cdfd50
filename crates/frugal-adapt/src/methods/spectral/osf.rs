//! # OSF: orthogonal subspace fine-tuning
//!
//! ## What it does
//! Keeps the largest singular directions of each weight as they are and trains all the others, with
//! gradients that are turned away from those that are kept: what the model knows best is not
//! overwritten.
//!
//! ## Update rule
//! `W = U_h Σ_h V_hᵀ + U_l Σ_l V_lᵀ`; `U_l`, `Σ_l` and `V_l` are trained, and the gradient of `U_l` loses its part in `U_h`, that of
//! `V_l` its part in `V_h`.
//!
//! ## When to use, when not
//! For one task after another (continual learning), where full tuning forgets. It trains more numbers
//! than the weight has; LoRA is far smaller.
//!
//! ## Cost
//! Trainable: `n (d_in + d_out + 1)` per layer, `n = min(d_in, d_out) − effective_rank`. Extra memory: a copy of each
//! weight, and `effective_rank (d_in + d_out)` numbers. Extra compute: a product as large as the weight per
//! layer and step. None after merging.
//!
//! ## Defaults and where they come from
//! Half of the directions are kept (`effective_rank = null`): Hugging Face `peft`. A fraction up to 1 is a share of
//! them. The rate is that of full tuning.
//!
//! ## Departures from the paper
//! The rank is the same for all layers of a size; the paper finds it from how much each layer changes
//! its input. `rank_pattern` of `peft` is refused.
//!
//! ## References
//! - Sculpting Subspaces: Constrained Full Fine-Tuning in LLMs for Continual Learning, 2025, arXiv
//!   2504.07097.

use burn::prelude::*;
use frugal_nn::linalg::svd;
use frugal_nn::{AdaptError, Adapter, BuildContext, Mode, Parameter, SiteInfo, to_vec};
use serde::{Deserialize, Serialize};
use serde_json::{Number, Value, json};

use crate::method::{Family, Method, MethodConfig};
use crate::settings::Settings;
use crate::support::base_weights::linear_weights;
use crate::support::per_linear::{self, LinearAdapter, LinearSite, PerLinear, bad};
use crate::target::{Names, Targets};

const NAME: &str = "osf";

/// Registry entry.
pub const METHOD: Method = Method::of::<OsfConfig>(
    Family::Spectral,
    "All but the largest singular directions of each weight",
    include_str!("osf.rs"),
)
.default_lr(1e-4);

/// Settings, with `peft`'s names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OsfConfig {
    /// Directions that are kept: a number, a fraction of all, or half of them.
    pub effective_rank: Option<Number>,
    /// Start at the weight's own triples.
    pub init_weights: bool,
    /// Path endings, one regular expression over the whole path, or `all-linear`.
    pub target_modules: Names,
}

impl Default for OsfConfig {
    fn default() -> Self {
        Self {
            effective_rank: None,
            init_weights: true,
            target_modules: Targets::default().target_modules,
        }
    }
}

impl OsfConfig {
    /// Directions that are kept of so many.
    fn kept(&self, all: usize) -> usize {
        match &self.effective_rank {
            None => all / 2,
            Some(number) => match (number.as_u64(), number.as_f64()) {
                (Some(rank), _) => all.min(rank as usize),
                (_, Some(share)) if share > 0.0 && share <= 1.0 => (all as f64 * share) as usize,
                (_, Some(rank)) => all.min(rank.max(0.0) as usize),
                _ => 0,
            },
        }
    }
}

impl MethodConfig for OsfConfig {
    const NAME: &'static str = NAME;
    const PEFT_TYPE: &'static str = "OSF";

    fn validate(&self) -> Result<(), AdaptError> {
        if !self.init_weights {
            return bad(
                NAME,
                "init_weights",
                "the first values are the weight's own",
            );
        }
        match self.effective_rank.as_ref().and_then(Number::as_f64) {
            Some(rank) if rank.is_nan() || rank <= 0.0 => {
                bad(NAME, "effective_rank", "must be positive")
            }
            _ => Ok(()),
        }
    }

    fn build(self, context: &BuildContext<'_>) -> Result<Box<dyn Adapter>, AdaptError> {
        Ok(Box::new(build(self, context)?))
    }

    fn from_peft(config: &Settings) -> Result<Settings, AdaptError> {
        let fixed: &[(&'static str, &[Value])] =
            &[("rank_pattern", &[json!({})]), ("target_svd_config", &[])];
        let mut settings = per_linear::from_peft::<OsfConfig>(NAME, config, json!({}), fixed)?;
        // The values come from the file, so how they were first made no longer matters.
        settings.insert("init_weights".into(), json!(true));
        Ok(settings)
    }
}

fn build(config: OsfConfig, context: &BuildContext<'_>) -> Result<PerLinear<Rest>, AdaptError> {
    config.validate()?;
    let targets = Targets {
        target_modules: config.target_modules.clone(),
        ..Targets::default()
    };
    let weights = linear_weights(context);
    let constants = json!({"rank_pattern": null, "target_svd_config": null});
    PerLinear::new(
        &METHOD,
        &targets,
        context,
        &config,
        constants,
        |id, info| {
            let all = info.d_in.min(info.d_out);
            let kept = config.kept(all);
            if kept == 0 || kept >= all {
                let reason = format!(
                    "keeps {kept} of the {all} directions of `{}`: some must be kept and some trained",
                    info.path
                );
                return bad(NAME, "effective_rank", reason);
            }
            Ok(Rest::new(context, info, weights[id.index()].as_ref(), kept))
        },
    )
}

/// What is kept of a layer.
struct Kept {
    /// `[d_out, k]`.
    u: Tensor<2>,
    /// `[k, d_in]`.
    vt: Tensor<2>,
    /// The product of the others as they were, `[d_out, d_in]`.
    start: Tensor<2>,
}

/// The trained directions of one layer.
struct Rest {
    /// `[d_out, n]`.
    u: Parameter,
    /// `[n]`.
    s: Parameter,
    /// `[n, d_in]`.
    vt: Parameter,
    /// Nothing when planning.
    kept: Option<Kept>,
}

impl Rest {
    fn new(
        context: &BuildContext<'_>,
        info: &SiteInfo,
        weight: Option<&Tensor<2>>,
        k: usize,
    ) -> Self {
        let (d_in, d_out) = (info.d_in, info.d_out);
        let all = d_in.min(d_out);
        let n = all - k;
        let new = |name: &str, shape: &[usize], values| {
            let name = format!("{}.osf_svd_params.{name}_low", info.path);
            Parameter::new(name, shape, values, &context.device)
        };
        let Some(weight) = weight else {
            return Self {
                u: new("U", &[d_out, n], vec![0.0; d_out * n]),
                s: new("S", &[n], vec![0.0; n]),
                vt: new("V", &[n, d_in], vec![0.0; n * d_in]),
                kept: None,
            };
        };
        let found = svd(&to_vec(weight.clone()), d_out, d_in);
        let columns = |from: usize, count: usize| -> Vec<f32> {
            let at = |i: usize| i / count * all + from + i % count;
            (0..d_out * count).map(|i| found.u[at(i)]).collect()
        };
        let u = new("U", &[d_out, n], columns(k, n));
        let s = new("S", &[n], found.s[k..].to_vec());
        let vt = new("V", &[n, d_in], found.vt[k * d_in..].to_vec());
        let tensor = |values: Vec<f32>, shape: [usize; 2]| {
            Tensor::from_data(TensorData::new(values, shape), &weight.device())
        };
        let kept = Kept {
            u: tensor(columns(0, k), [d_out, k]),
            vt: tensor(found.vt[..k * d_in].to_vec(), [k, d_in]),
            start: product(u.get(Mode::Eval), s.get(Mode::Eval), vt.get(Mode::Eval)),
        };
        Self {
            u,
            s,
            vt,
            kept: Some(kept),
        }
    }
}

/// `U diag(s) Vᵀ`.
fn product(u: Tensor<2>, s: Tensor<1>, vt: Tensor<2>) -> Tensor<2> {
    (u * s.unsqueeze::<2>()).matmul(vt)
}

/// The same values, with a gradient that `away` has turned.
fn turned(x: Tensor<2>, away: impl FnOnce(Tensor<2>) -> Tensor<2>) -> Tensor<2> {
    let fixed = x.clone().detach();
    fixed.clone() + away(x - fixed)
}

impl LinearAdapter for Rest {
    fn parameters(&self) -> Vec<&Parameter> {
        vec![&self.u, &self.s, &self.vt]
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        vec![&mut self.u, &mut self.s, &mut self.vt]
    }

    fn delta(&self, at: &LinearSite<'_>) -> Tensor<2> {
        let (mut u, mut vt) = (self.u.get::<2>(at.mode), self.vt.get::<2>(at.mode));
        let s = self.s.get::<1>(at.mode);
        let Some(kept) = &self.kept else {
            return product(u, s, vt);
        };
        if at.mode.is_train() {
            let (high_u, high_v) = (kept.u.clone(), kept.vt.clone());
            u = turned(u, |x| {
                x.clone() - high_u.clone().matmul(high_u.transpose().matmul(x))
            });
            vt = turned(vt, |x| {
                x.clone() - x.matmul(high_v.clone().transpose()).matmul(high_v)
            });
        }
        product(u, s, vt) - kept.start.clone()
    }
}
