//! # PEANuT: a small network that turns a weight into its change
//!
//! ## What it does
//! The change of a weight is computed from the weight itself by a small trained network, so it can
//! be a non-linear function of it with few parameters.
//!
//! ## Update rule
//! `ΔW = s f(Wᵀ Aᵀ) ... Bᵀ`, transposed, with `A [r, d_out]`, `B [d_out, r]` and `f` an activation.
//! With `depth = n`, `n` layers `[r, r]` and as many that undo them lie between, the latter with the
//! values of the former added.
//!
//! ## When to use, when not
//! A research method: cheaper files than LoRA's on wide layers, but each step costs two products with
//! the whole weight, whatever the batch.
//!
//! ## Cost
//! Trainable: `2 r d_out + 2 n r²` per layer. Extra compute: `2 r d_in d_out` multiply-adds per layer and
//! step, forward. None after merging.
//!
//! ## Defaults and where they come from
//! `r = 32`, `depth = 0`, a rectifier, `scaling = 1`: Hugging Face `peft`. `B` is zero, all else
//! Kaiming-uniform with `a = sqrt(5)`.
//!
//! ## Departures from the paper
//! None known. A merged layer cannot be unmerged: its change depends on the weight that was there.
//!
//! ## References
//! - Zhong, Jiang, Qian, Tang, Wang: PEANuT: Parameter-Efficient Adaptation with Weight-aware Neural
//!   Tweakers, 2024, arXiv 2410.01870.

use burn::prelude::*;
use burn::tensor::activation;
use frugal_nn::{AdaptError, Adapter, BuildContext, MergedLinear, Parameter, named_rng};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::method::{Family, Method, MethodConfig};
use crate::settings::Settings;
use crate::support::per_linear::{self, LinearAdapter, LinearSite, PerLinear, bad};
use crate::support::values::kaiming;
use crate::target::Targets;

const NAME: &str = "peanut";

/// Registry entry.
pub const METHOD: Method = Method::of::<PeanutConfig>(
    Family::LowRank,
    "A small network that computes each weight's change from the weight",
    include_str!("peanut.rs"),
);

/// Non-linearity of the network, by its name in `transformers`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// `max(x, 0)`.
    #[default]
    Relu,
    /// With the error function.
    Gelu,
    /// `x σ(x)`.
    Silu,
    /// Hyperbolic tangent.
    Tanh,
    /// Logistic function.
    Sigmoid,
}

impl Activation {
    fn of(self, x: Tensor<2>) -> Tensor<2> {
        match self {
            Self::Relu => activation::relu(x),
            Self::Gelu => activation::gelu(x),
            Self::Silu => activation::silu(x),
            Self::Tanh => x.tanh(),
            Self::Sigmoid => activation::sigmoid(x),
        }
    }
}

/// Settings, with `peft`'s names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PeanutConfig {
    /// Width of the network.
    pub r: usize,
    /// Pairs of inner layers.
    pub depth: usize,
    /// Non-linearity.
    pub act_fn: Activation,
    /// Factor on the change.
    pub scaling: f64,
    /// Start without a change; otherwise with a random one, for tests.
    pub init_weights: bool,
    /// Which layers.
    #[serde(flatten)]
    pub targets: Targets,
}

impl Default for PeanutConfig {
    fn default() -> Self {
        Self {
            r: 32,
            depth: 0,
            act_fn: Activation::Relu,
            scaling: 1.0,
            init_weights: true,
            targets: Targets::default(),
        }
    }
}

impl MethodConfig for PeanutConfig {
    const NAME: &'static str = NAME;
    const PEFT_TYPE: &'static str = "PEANUT";

    fn validate(&self) -> Result<(), AdaptError> {
        if self.r == 0 {
            return bad(NAME, "r", "must be at least 1");
        }
        if self.scaling.is_finite() {
            Ok(())
        } else {
            bad(NAME, "scaling", "must be a finite number")
        }
    }

    fn build(self, context: &BuildContext<'_>) -> Result<Box<dyn Adapter>, AdaptError> {
        Ok(Box::new(build(self, context)?))
    }

    fn from_peft(config: &Settings) -> Result<Settings, AdaptError> {
        per_linear::from_peft::<PeanutConfig>(NAME, config, json!({}), &[])
    }
}

fn build(
    config: PeanutConfig,
    context: &BuildContext<'_>,
) -> Result<PerLinear<Network>, AdaptError> {
    config.validate()?;
    let r = config.r;
    PerLinear::new(
        &METHOD,
        &config.targets,
        context,
        &config,
        json!({}),
        |_, info| {
            let (path, d_out) = (&info.path, info.d_out);
            let mut rng = named_rng(context.seed, path);
            let mut layer = |name: &str, rows: usize, cols: usize, zero: bool| {
                let values = match zero {
                    true => vec![0.0; rows * cols],
                    false => kaiming(&mut rng, rows * cols, cols),
                };
                let name = format!("{path}.peanut_{name}.weight");
                Parameter::new(name, &[rows, cols], values, &context.device)
            };
            let mut inner = |kind: &str| -> Vec<Parameter> {
                (0..config.depth)
                    .map(|i| layer(&format!("{kind}.{i}"), r, r, false))
                    .collect()
            };
            let (encoders, decoders) = (inner("encoders"), inner("decoders"));
            Ok(Network {
                a: layer("A", r, d_out, false),
                b: layer("B", d_out, r, config.init_weights),
                encoders,
                decoders,
                activation: config.act_fn,
                scale: config.scaling as f32,
            })
        },
    )
}

/// The network of one layer.
struct Network {
    /// `[r, d_out]`.
    a: Parameter,
    /// Each `[r, r]`.
    encoders: Vec<Parameter>,
    /// Each `[r, r]`.
    decoders: Vec<Parameter>,
    /// `[d_out, r]`.
    b: Parameter,
    activation: Activation,
    scale: f32,
}

impl LinearAdapter for Network {
    fn parameters(&self) -> Vec<&Parameter> {
        let inner = self.encoders.iter().chain(&self.decoders);
        [&self.a, &self.b].into_iter().chain(inner).collect()
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        let inner = self.encoders.iter_mut().chain(&mut self.decoders);
        [&mut self.a, &mut self.b]
            .into_iter()
            .chain(inner)
            .collect()
    }

    fn delta(&self, at: &LinearSite<'_>) -> Tensor<2> {
        let layer = |x: Tensor<2>, weight: &Parameter| {
            frugal_kernels::linear(x, weight.get::<2>(at.mode), None)
        };
        let active = |x: Tensor<2>| self.activation.of(x);
        // A row for each input of the layer.
        let mut h = active(layer(at.base.weight.dense().transpose(), &self.a));
        let mut earlier = Vec::with_capacity(self.encoders.len());
        for encoder in &self.encoders {
            earlier.push(h.clone());
            h = active(layer(h, encoder));
        }
        for (decoder, before) in self.decoders.iter().zip(earlier.into_iter().rev()) {
            h = active(layer(h, decoder)) + before;
        }
        layer(h, &self.b).transpose() * self.scale
    }

    fn unmerged(&self, _at: &LinearSite<'_>) -> Result<MergedLinear, String> {
        Err("the change follows from the weight before it, which is gone: load the base model instead".into())
    }
}
