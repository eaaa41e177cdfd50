//! # HiRA: Hadamard high-rank adaptation
//!
//! ## What it does
//! The change of a weight is the weight itself, each element multiplied by one of a low-rank
//! matrix: a change of high rank with LoRA's number of parameters.
//!
//! ## Update rule
//! `ΔW = W ⊙ (B A)` with `A [r, d_in]`, `B [d_out, r]`.
//!
//! ## When to use, when not
//! Where LoRA at the same size falls short and the task asks for changes of high rank. Elements that
//! are zero stay zero. Each step costs more than LoRA's, because `ΔW` is formed.
//!
//! ## Cost
//! Trainable: `r (d_in + d_out)` per layer, as LoRA. Extra compute: `r d_in d_out` multiply-adds and a
//! second product with the weight per layer and step, forward. None after merging.
//!
//! ## Defaults and where they come from
//! `r = 32`, `A` Kaiming-uniform with `a = sqrt(5)`, `B` zero: paper and Hugging Face `peft`.
//! `init_weights = "gaussian"` draws `A` from a normal distribution with deviation `1 / r`. There is
//! no scale, so the learning rate is above LoRA's: the change is as small as the weights are.
//!
//! ## Departures from the paper
//! None. Tables (`hira_embedding_A` of `peft`) are not offered, and `rank_pattern` is passed over, as
//! `peft` 0.21 does: every layer has rank `r`.
//!
//! ## References
//! - Huang, Ko, Zhuang, Zhang: HiRA: Parameter-Efficient Hadamard High-Rank Adaptation for Large
//!   Language Models, ICLR 2025.

use burn::prelude::*;
use frugal_nn::{
    AdaptError, Adapter, BuildContext, MergedLinear, Mode, Parameter, named_rng, standard_normal,
};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::method::{Family, Method, MethodConfig};
use crate::methods::low_rank::lora_config::Init;
use crate::settings::Settings;
use crate::support::dropout::dropout;
use crate::support::per_linear::{self, LinearAdapter, LinearSite, PerLinear, bad};
use crate::support::values::kaiming;
use crate::target::Targets;

const NAME: &str = "hira";

/// Registry entry.
pub const METHOD: Method = Method::of::<HiraConfig>(
    Family::LowRank,
    "Each weight times a low-rank matrix, element by element, on top of itself",
    include_str!("hira.rs"),
)
.default_lr(1e-2);

/// Settings, with `peft`'s names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct HiraConfig {
    /// Rank of the factor.
    pub r: usize,
    /// Probability of dropping an input element on the adapted path while training.
    pub hira_dropout: f64,
    /// Initial values.
    pub init_weights: Init,
    /// Which layers.
    #[serde(flatten)]
    pub targets: Targets,
}

impl Default for HiraConfig {
    fn default() -> Self {
        Self {
            r: 32,
            hira_dropout: 0.0,
            init_weights: Init::Default(true),
            targets: Targets::default(),
        }
    }
}

impl MethodConfig for HiraConfig {
    const NAME: &'static str = NAME;
    const PEFT_TYPE: &'static str = "HIRA";

    fn validate(&self) -> Result<(), AdaptError> {
        if self.r == 0 {
            return bad(NAME, "r", "the rank must be at least 1");
        }
        if let Init::Named(name) = &self.init_weights
            && name != "gaussian"
        {
            return bad(
                NAME,
                "init_weights",
                format!("`{name}` is not supported; supported: true, false, \"gaussian\""),
            );
        }
        per_linear::check_dropout(NAME, "hira_dropout", self.hira_dropout)
    }

    fn build(self, context: &BuildContext<'_>) -> Result<Box<dyn Adapter>, AdaptError> {
        Ok(Box::new(build(self, context)?))
    }

    fn from_peft(config: &Settings) -> Result<Settings, AdaptError> {
        per_linear::from_peft::<HiraConfig>(NAME, config, json!({}), &[])
    }
}

fn build(config: HiraConfig, context: &BuildContext<'_>) -> Result<PerLinear<Factor>, AdaptError> {
    config.validate()?;
    let constants = json!({"fan_in_fan_out": false, "rank_pattern": {}});
    PerLinear::new(
        &METHOD,
        &config.targets,
        context,
        &config,
        constants,
        |_, info| {
            let (path, d_in, d_out) = (&info.path, info.d_in, info.d_out);
            let r = config.r;
            let mut rng = named_rng(context.seed, path);
            let a = match config.init_weights {
                Init::Default(true) => kaiming(&mut rng, r * d_in, d_in),
                Init::Default(false) => (0..r * d_in).map(|_| standard_normal(&mut rng)).collect(),
                Init::Named(_) => (0..r * d_in)
                    .map(|_| standard_normal(&mut rng) / r as f32)
                    .collect(),
            };
            let b = match config.init_weights {
                Init::Default(false) => (0..r * d_out).map(|_| standard_normal(&mut rng)).collect(),
                _ => vec![0.0; r * d_out],
            };
            Ok(Factor {
                a: Parameter::new(format!("{path}.hira_A"), &[r, d_in], a, &context.device),
                b: Parameter::new(format!("{path}.hira_B"), &[d_out, r], b, &context.device),
                dropout: config.hira_dropout,
            })
        },
    )
}

/// The factor of one layer.
struct Factor {
    /// `[r, d_in]`.
    a: Parameter,
    /// `[d_out, r]`.
    b: Parameter,
    dropout: f64,
}

impl Factor {
    fn product(&self, mode: Mode) -> Tensor<2> {
        self.b.get::<2>(mode).matmul(self.a.get::<2>(mode))
    }
}

impl LinearAdapter for Factor {
    fn parameters(&self) -> Vec<&Parameter> {
        vec![&self.a, &self.b]
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        vec![&mut self.a, &mut self.b]
    }

    fn delta(&self, at: &LinearSite<'_>) -> Tensor<2> {
        at.base.weight.dense() * self.product(at.mode)
    }

    fn forward(&self, at: &LinearSite<'_>, x: Tensor<2>) -> Tensor<2> {
        match at.mode {
            Mode::Train { seed } if self.dropout > 0.0 => {
                let dropped = dropout(x.clone(), self.dropout, seed, at.path);
                at.base.forward(x) + frugal_kernels::linear(dropped, self.delta(at), None)
            }
            _ => frugal_kernels::linear(
                x,
                at.base.weight.dense() + self.delta(at),
                at.base.bias.clone(),
            ),
        }
    }

    fn unmerged(&self, at: &LinearSite<'_>) -> Result<MergedLinear, String> {
        // W' = W ⊙ (1 + B A): where the factor is 0, W is lost.
        let factor = self.product(Mode::Eval) + 1.0;
        let smallest: f32 = factor.clone().abs().min().into_scalar();
        if smallest < 1e-6 {
            return Err("a weight was multiplied by zero, which has no way back: load the base model instead".into());
        }
        Ok(MergedLinear {
            weight: at.base.weight.dense() / factor,
            bias: at.base.bias.clone(),
        })
    }
}
