//! # DEFT: decompositional efficient fine-tuning
//!
//! ## What it does
//! Takes a low-rank projection of each weight out of it and puts a trained low-rank matrix in its
//! place.
//!
//! ## Update rule
//! `W' = W − P relu(P)ᵀ W + s P R` with `P [d_out, r]` and `R [r, d_in]` trained. With `para` there is no
//! `R`: the projection is only taken out.
//!
//! ## When to use, when not
//! Where something that the model knows is to be replaced rather than added to. LoRA is cheaper and
//! better understood.
//!
//! ## Cost
//! Trainable: `r (d_in + d_out)` per layer. Extra compute: `2 r d_out + r (d_in + d_out)` multiply-adds per
//! token forward. None after merging.
//!
//! ## Defaults and where they come from
//! `r = 8`, `decomposition_method = "relu"`, no scale (`alpha = null`), `P` normal with deviation 0.02 and
//! `R` so that nothing changes at first: Hugging Face `peft`.
//!
//! ## Departures from the paper
//! From `peft`: only the projection through a rectifier is offered. The other one (`"qr"`) needs the signs that
//! LAPACK gives to an orthonormal basis, which differ between programs, and so is refused.
//!
//! ## References
//! - DEFT (decompositional efficient fine-tuning) of Hugging Face `peft`, version 0.21, whose arithmetic
//!   this is.

use burn::prelude::*;
use burn::tensor::activation::relu;
use frugal_nn::{
    AdaptError, Adapter, BuildContext, MergedLinear, Mode, Parameter, named_rng, standard_normal,
    to_vec,
};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::method::{Family, Method, MethodConfig};
use crate::settings::Settings;
use crate::support::base_weights::linear_weights;
use crate::support::dropout::dropout;
use crate::support::per_linear::{self, LinearAdapter, LinearSite, PerLinear, bad};
use crate::target::Targets;

const NAME: &str = "deft";

/// Registry entry.
pub const METHOD: Method = Method::of::<DeftConfig>(
    Family::LowRank,
    "Replaces a projection of each weight by a trained matrix",
    include_str!("deft.rs"),
);

/// Settings, with `peft`'s names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DeftConfig {
    /// Rank; at most the outputs of a layer.
    pub r: usize,
    /// Scale numerator of what is put in; none for a scale of 1.
    pub alpha: Option<f64>,
    /// Deviation of `R` in units of 0.02 where it starts at random.
    pub init_scale: f64,
    /// Only take the projection out.
    pub para: bool,
    /// Probability of dropping an input element of what is put in while training.
    pub deft_dropout: f64,
    /// Start without a change; otherwise with a random one, for tests.
    pub init_weights: bool,
    /// Which layers.
    #[serde(flatten)]
    pub targets: Targets,
}

impl Default for DeftConfig {
    fn default() -> Self {
        Self {
            r: 8,
            alpha: None,
            init_scale: 1.0,
            para: false,
            deft_dropout: 0.0,
            init_weights: true,
            targets: Targets::default(),
        }
    }
}

impl MethodConfig for DeftConfig {
    const NAME: &'static str = NAME;
    const PEFT_TYPE: &'static str = "DEFT";

    fn validate(&self) -> Result<(), AdaptError> {
        if self.r == 0 {
            return bad(NAME, "r", "must be at least 1");
        }
        // `peft` takes 0 for none.
        if self.alpha.is_some_and(|a| !a.is_finite() || a < 0.0) {
            return bad(
                NAME,
                "alpha",
                "must be a positive number, or 0 for a scale of 1",
            );
        }
        if !self.init_scale.is_finite() {
            return bad(NAME, "init_scale", "must be a finite number");
        }
        per_linear::check_dropout(NAME, "deft_dropout", self.deft_dropout)
    }

    fn build(self, context: &BuildContext<'_>) -> Result<Box<dyn Adapter>, AdaptError> {
        Ok(Box::new(build(self, context)?))
    }

    fn from_peft(config: &Settings) -> Result<Settings, AdaptError> {
        let fixed: &[(&'static str, &[_])] = &[
            ("bias", &[json!("none")]),
            ("decomposition_method", &[json!("relu")]),
        ];
        per_linear::from_peft::<DeftConfig>(NAME, config, json!({}), fixed)
    }
}

fn build(
    config: DeftConfig,
    context: &BuildContext<'_>,
) -> Result<PerLinear<Replacement>, AdaptError> {
    config.validate()?;
    let weights = linear_weights(context);
    let constants =
        json!({"bias": "none", "decomposition_method": "relu", "fan_in_fan_out": false});
    PerLinear::new(
        &METHOD,
        &config.targets,
        context,
        &config,
        constants,
        |id, info| {
            let (path, d_in, d_out) = (&info.path, info.d_in, info.d_out);
            let r = config.r.min(d_out);
            let scale = match config.alpha {
                Some(alpha) if alpha > 0.0 => (alpha / r as f64) as f32,
                _ => 1.0,
            };
            let mut rng = named_rng(context.seed, path);
            let mut normal = |len: usize, deviation: f32| -> Vec<f32> {
                (0..len)
                    .map(|_| deviation * standard_normal(&mut rng))
                    .collect()
            };
            let p = normal(d_out * r, 0.02);
            let p = Parameter::new(format!("{path}.deft_P"), &[d_out, r], p, &context.device);
            let replaced = (!config.para).then(|| {
                let values = match (&weights[id.index()], config.init_weights) {
                    (_, false) => normal(r * d_in, 0.02 * config.init_scale as f32),
                    (Some(weight), true) => {
                        let right = relu(p.get::<2>(Mode::Eval)).transpose();
                        to_vec(right.matmul(weight.clone()) / scale)
                    }
                    (None, true) => vec![0.0; r * d_in],
                };
                Parameter::new(
                    format!("{path}.deft_R"),
                    &[r, d_in],
                    values,
                    &context.device,
                )
            });
            Ok(Replacement {
                p,
                r: replaced,
                scale,
                dropout: config.deft_dropout,
            })
        },
    )
}

/// What is taken out of one layer and put in.
struct Replacement {
    /// `[d_out, r]`.
    p: Parameter,
    /// `[r, d_in]`.
    r: Option<Parameter>,
    scale: f32,
    dropout: f64,
}

impl LinearAdapter for Replacement {
    fn parameters(&self) -> Vec<&Parameter> {
        std::iter::once(&self.p).chain(&self.r).collect()
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        std::iter::once(&mut self.p).chain(&mut self.r).collect()
    }

    fn delta(&self, at: &LinearSite<'_>) -> Tensor<2> {
        let p = self.p.get::<2>(at.mode);
        let out = relu(p.clone()).transpose().matmul(at.base.weight.dense());
        match &self.r {
            Some(r) => p.matmul(r.get::<2>(at.mode) * self.scale - out),
            None => -p.matmul(out),
        }
    }

    fn materializes_weight(&self) -> bool {
        false
    }

    fn forward(&self, at: &LinearSite<'_>, x: Tensor<2>) -> Tensor<2> {
        let p = self.p.get::<2>(at.mode);
        let y = at.base.forward(x.clone());
        let product = match &at.base.bias {
            Some(bias) => y.clone() - bias.clone().unsqueeze::<2>(),
            None => y.clone(),
        };
        let mut low = -product.matmul(relu(p.clone()));
        if let Some(r) = &self.r {
            let x = match at.mode {
                Mode::Train { seed } if self.dropout > 0.0 => {
                    dropout(x, self.dropout, seed, at.path)
                }
                _ => x,
            };
            low = low + frugal_kernels::linear(x, r.get::<2>(at.mode) * self.scale, None);
        }
        y + frugal_kernels::linear(low, p, None)
    }

    fn unmerged(&self, _at: &LinearSite<'_>) -> Result<MergedLinear, String> {
        Err("what was taken out of the weight is gone: load the base model instead".into())
    }
}
