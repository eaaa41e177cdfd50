//! # KaSA: knowledge-aware singular-value adaptation
//!
//! ## What it does
//! Takes the smallest singular directions out of each weight, as noise, and learns a change in the form
//! of a singular value decomposition, with trained singular values.
//!
//! ## Update rule
//! `y = x (W − N)ᵀ + s B (d ⊙ (A x))`, where `N` are the `r` smallest singular triples of `W`, `A [r, d_in]`,
//! `B [d_out, r]` and `d [r]` trained. The loss has `β ‖d‖² + γ (‖BᵀB − I‖ + ‖AAᵀ − I‖)` added for each layer.
//!
//! ## When to use, when not
//! As LoRA, where weights hold much that the task has no use for. It changes the model before
//! training, though little, and each weight is decomposed whole when training begins and whenever a
//! file is read, which takes minutes on wide models.
//!
//! ## Cost
//! Trainable: `r (d_in + d_out) + r` per layer. Extra memory: `r (d_in + d_out)` frozen numbers. Extra
//! compute: twice LoRA's. None after merging.
//!
//! ## Defaults and where they come from
//! `beta = 1e-4`, `gamma = 1e-3`: paper and Hugging Face `peft`; `lora_alpha = 16` as for `lora`. `d` starts
//! at standard normal values, `B` at zero.
//!
//! ## Departures from the paper
//! `peft` leaves it to the user to add the terms of the loss; here they are a part of it.
//!
//! ## References
//! - Wang, Jiang, Chen, Liang, Liu, Zhu, Wang: KaSA: Knowledge-Aware Singular-Value Adaptation of
//!   Large Language Models, 2024, arXiv 2412.06071.

use burn::prelude::*;
use frugal_nn::linalg::svd;
use frugal_nn::{
    AdaptError, Adapter, BuildContext, MergedLinear, Mode, Parameter, SiteInfo, named_rng,
    standard_normal, to_vec,
};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::method::{Family, Method, MethodConfig};
use crate::settings::Settings;
use crate::support::base_weights::linear_weights;
use crate::support::dropout::dropout;
use crate::support::lora_like::{self, LoraLike};
use crate::support::per_linear::{LinearAdapter, LinearSite, PerLinear, bad};

const NAME: &str = "kasa";

/// Registry entry.
pub const METHOD: Method = Method::of::<KasaConfig>(
    Family::LowRank,
    "LoRA with trained singular values, over weights without their smallest ones",
    include_str!("kasa.rs"),
)
.default_lr(5e-4)
.without_identity()
.peft_variant(|config| config.get("kasa_config").is_some_and(|v| !v.is_null()));

/// Weights of what is added to the loss.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Penalties {
    /// Of the squares of the singular values.
    pub beta: f64,
    /// Of how far the factors are from orthonormal ones.
    pub gamma: f64,
}

impl Default for Penalties {
    fn default() -> Self {
        Self {
            beta: 1e-4,
            gamma: 1e-3,
        }
    }
}

/// Settings, with `peft`'s names.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct KasaConfig {
    /// What is added to the loss.
    pub kasa_config: Penalties,
    /// The rest.
    #[serde(flatten)]
    pub lora: LoraLike,
}

impl MethodConfig for KasaConfig {
    const NAME: &'static str = NAME;
    const PEFT_TYPE: &'static str = "LORA";

    fn validate(&self) -> Result<(), AdaptError> {
        let Penalties { beta, gamma } = self.kasa_config;
        if !(beta >= 0.0 && gamma >= 0.0 && beta.is_finite() && gamma.is_finite()) {
            return bad(NAME, "kasa_config", "`beta` and `gamma` must be 0 or more");
        }
        self.lora.validate(NAME)
    }

    fn build(self, context: &BuildContext<'_>) -> Result<Box<dyn Adapter>, AdaptError> {
        Ok(Box::new(build(self, context)?))
    }

    fn from_peft(config: &Settings) -> Result<Settings, AdaptError> {
        let own = ["kasa_config"];
        lora_like::from_peft::<KasaConfig>(NAME, config, &own)
    }
}

fn build(config: KasaConfig, context: &BuildContext<'_>) -> Result<PerLinear<Triples>, AdaptError> {
    config.validate()?;
    config.lora.check_patterns(context.sites)?;
    let weights = linear_weights(context);
    let constants = lora_like::constants(json!({"kasa_config": config.kasa_config}));
    PerLinear::new(
        &METHOD,
        &config.lora.targets,
        context,
        &config,
        constants,
        |id, info| {
            let (r, _) = config.lora.of(info)?;
            let (d_in, d_out) = (info.d_in, info.d_out);
            if r >= d_in.min(d_out) {
                let reason = format!(
                    "{r} would leave nothing of `{}` ({d_out} x {d_in}): use less than {}",
                    info.path,
                    d_in.min(d_out)
                );
                return bad(NAME, "r", reason);
            }
            let factors = config
                .lora
                .factors(info, (d_in, r), context.seed, &context.device)?;
            let mut rng = named_rng(context.seed, &format!("{}.lora_diag", info.path));
            let values = (0..r).map(|_| standard_normal(&mut rng)).collect();
            let name = format!("{}.lora_diag", info.path);
            Ok(Triples {
                a: factors.a,
                b: factors.b,
                values: Parameter::new(name, &[r], values, &context.device),
                noise: weights[id.index()]
                    .as_ref()
                    .map(|weight| noise(weight, info, r)),
                scale: factors.scale,
                dropout: config.lora.lora_dropout,
                penalties: config.kasa_config,
            })
        },
    )
}

/// The `r` smallest singular triples of a weight: `[d_out, r]`, with the values in it, and `[r, d_in]`.
fn noise(weight: &Tensor<2>, info: &SiteInfo, r: usize) -> [Tensor<2>; 2] {
    let (d_in, d_out) = (info.d_in, info.d_out);
    let found = svd(&to_vec(weight.clone()), d_out, d_in);
    let k = found.s.len();
    let left: Vec<f32> = (0..d_out * r)
        .map(|n| {
            let column = k - r + n % r;
            found.u[n / r * k + column] * found.s[column]
        })
        .collect();
    let right = found.vt[(k - r) * d_in..].to_vec();
    let device = weight.device();
    [
        Tensor::from_data(TensorData::new(left, [d_out, r]), &device),
        Tensor::from_data(TensorData::new(right, [r, d_in]), &device),
    ]
}

/// The trained triples of one layer.
struct Triples {
    /// `[r, d_in]`.
    a: Parameter,
    /// `[d_out, r]`.
    b: Parameter,
    /// `[r]`.
    values: Parameter,
    /// What is taken out of the weight; nothing when planning.
    noise: Option<[Tensor<2>; 2]>,
    scale: f32,
    dropout: f64,
    penalties: Penalties,
}

impl LinearAdapter for Triples {
    fn parameters(&self) -> Vec<&Parameter> {
        vec![&self.a, &self.b, &self.values]
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        vec![&mut self.a, &mut self.b, &mut self.values]
    }

    fn delta(&self, at: &LinearSite<'_>) -> Tensor<2> {
        let scaled = self.b.get::<2>(at.mode) * self.values.get::<1>(at.mode).unsqueeze::<2>();
        let change = scaled.matmul(self.a.get::<2>(at.mode)) * self.scale;
        match &self.noise {
            Some([left, right]) => change - left.clone().matmul(right.clone()),
            None => change,
        }
    }

    fn materializes_weight(&self) -> bool {
        false
    }

    fn forward(&self, at: &LinearSite<'_>, x: Tensor<2>) -> Tensor<2> {
        let mut y = at.base.forward(x.clone());
        if let Some([left, right]) = &self.noise {
            let low = frugal_kernels::linear(x.clone(), right.clone(), None);
            y = y - frugal_kernels::linear(low, left.clone(), None);
        }
        let x = match at.mode {
            Mode::Train { seed } if self.dropout > 0.0 => dropout(x, self.dropout, seed, at.path),
            _ => x,
        };
        let low = frugal_kernels::linear(x, self.a.get::<2>(at.mode), None)
            * self.values.get::<1>(at.mode).unsqueeze::<2>();
        y + frugal_kernels::linear(low, self.b.get::<2>(at.mode), None) * self.scale
    }

    fn penalty(&self, mode: Mode) -> Option<Tensor<1>> {
        let Penalties { beta, gamma } = self.penalties;
        let (a, b) = (self.a.get::<2>(mode), self.b.get::<2>(mode));
        let far = |gram: Tensor<2>| {
            let one = Tensor::<2>::eye(gram.dims()[0], &gram.device().inner());
            // The length has no gradient at zero.
            (gram - one).powi_scalar(2).sum().clamp_min(1e-20).sqrt()
        };
        let orthogonal =
            far(b.clone().transpose().matmul(b)) + far(a.clone().matmul(a.transpose()));
        let values = self.values.get::<1>(mode).powi_scalar(2).sum();
        Some(values * beta as f32 + orthogonal * gamma as f32)
    }

    fn merged(&self, at: &LinearSite<'_>) -> MergedLinear {
        MergedLinear {
            weight: at.base.weight.dense() + self.delta(at),
            bias: at.base.bias.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_penalty_of_a_layer_by_hand() {
        // A = [3, 4]: |A Aᵀ − 1| = 24. B = [2]: |BᵀB − 1| = 3. d = 5: 25.
        let device = Device::flex();
        let new = |name: &str, shape: &[usize], values: Vec<f32>| {
            Parameter::new(name, shape, values, &device)
        };
        let triples = Triples {
            a: new("a", &[1, 2], vec![3.0, 4.0]),
            b: new("b", &[1, 1], vec![2.0]),
            values: new("d", &[1], vec![5.0]),
            noise: None,
            scale: 1.0,
            dropout: 0.0,
            penalties: Penalties {
                beta: 0.1,
                gamma: 0.01,
            },
        };
        let found: f32 = triples.penalty(Mode::Eval).unwrap().into_scalar();
        assert!((found - (2.5 + 0.27)).abs() < 1e-5, "{found}");
    }
}
