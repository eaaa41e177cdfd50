//! # SoRA: sparse low-rank adaptation
//!
//! ## What it does
//! LoRA with a gate on every rank-one part; after each step the gates are drawn towards zero, and parts
//! whose gate is zero are gone, so that each layer finds a rank of its own.
//!
//! ## Update rule
//! `y = x Wᵀ + s B (g ⊙ (A x))` with `g [r]`; after each step `g ← sign(g) max(|g| − η λ, 0)`, where `η` follows the
//! schedule of the learning rate.
//!
//! ## When to use, when not
//! Where ranks per layer matter and are not known. It begins with a high rank and pays for it while
//! training; a gate at zero can come back.
//!
//! ## Cost
//! Trainable: `r (d_in + d_out) + r` per layer. Extra compute: as LoRA. None after merging.
//!
//! ## Defaults and where they come from
//! `r = 8` and a uniform `A`, zero `B` as for `lora`, gates at 1. `threshold = 1e-4` is what a gate loses at
//! each step at the peak of the schedule: `λ = 0.1` at a rate of 1e-3.
//!
//! ## Departures from the paper
//! The product `η λ` is one setting, because methods do not see the learning rate, only its schedule.
//! The paper's gates start at normal values; from 1 the start is LoRA's.
//!
//! ## References
//! - Ding, Lv, Wang, Chen, Zhou, Liu, Sun: Sparse Low-rank Adaptation of Pre-trained Language
//!   Models, 2023, arXiv 2311.11696.

use burn::prelude::*;
use frugal_nn::{AdaptError, Adapter, BuildContext, Mode, Parameter, StepContext};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::method::{Family, Method, MethodConfig};
use crate::support::dropout::dropout;
use crate::support::lora_like::LoraLike;
use crate::support::per_linear::{LinearAdapter, LinearSite, PerLinear, bad};

const NAME: &str = "sora";

/// Registry entry.
pub const METHOD: Method = Method::of::<SoraConfig>(
    Family::LowRank,
    "LoRA with gates that close the parts of the rank that are not needed",
    include_str!("sora.rs"),
)
.default_lr(5e-4);

/// Settings: those of LoRA and how fast gates close.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SoraConfig {
    /// What each gate loses per step at the peak of the schedule.
    pub threshold: f64,
    /// The rest.
    #[serde(flatten)]
    pub lora: LoraLike,
}

impl Default for SoraConfig {
    fn default() -> Self {
        Self {
            threshold: 1e-4,
            lora: LoraLike::default(),
        }
    }
}

impl MethodConfig for SoraConfig {
    const NAME: &'static str = NAME;
    const PEFT_TYPE: &'static str = "SORA";

    fn validate(&self) -> Result<(), AdaptError> {
        if !(self.threshold >= 0.0 && self.threshold.is_finite()) {
            return bad(NAME, "threshold", "must be 0 or more");
        }
        self.lora.validate(NAME)
    }

    fn build(self, context: &BuildContext<'_>) -> Result<Box<dyn Adapter>, AdaptError> {
        Ok(Box::new(build(self, context)?))
    }
}

fn build(config: SoraConfig, context: &BuildContext<'_>) -> Result<PerLinear<Gated>, AdaptError> {
    config.validate()?;
    config.lora.check_patterns(context.sites)?;
    PerLinear::new(
        &METHOD,
        &config.lora.targets,
        context,
        &config,
        json!({}),
        |_, info| {
            let (r, _) = config.lora.of(info)?;
            let factors =
                config
                    .lora
                    .factors(info, (info.d_in, r), context.seed, &context.device)?;
            let name = format!("{}.lora_gate", info.path);
            Ok(Gated {
                a: factors.a,
                b: factors.b,
                gate: Parameter::new(name, &[r], vec![1.0; r], &context.device),
                scale: factors.scale,
                dropout: config.lora.lora_dropout,
                threshold: config.threshold,
            })
        },
    )
}

/// The gated pair of one layer.
struct Gated {
    /// `[r, d_in]`.
    a: Parameter,
    /// `[d_out, r]`.
    b: Parameter,
    /// `[r]`.
    gate: Parameter,
    scale: f32,
    dropout: f64,
    threshold: f64,
}

impl LinearAdapter for Gated {
    fn parameters(&self) -> Vec<&Parameter> {
        vec![&self.a, &self.b, &self.gate]
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        vec![&mut self.a, &mut self.b, &mut self.gate]
    }

    fn delta(&self, at: &LinearSite<'_>) -> Tensor<2> {
        let gated = self.b.get::<2>(at.mode) * self.gate.get::<1>(at.mode).unsqueeze::<2>();
        gated.matmul(self.a.get::<2>(at.mode)) * self.scale
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
        let low = frugal_kernels::linear(x, self.a.get::<2>(at.mode), None)
            * self.gate.get::<1>(at.mode).unsqueeze::<2>();
        y + frugal_kernels::linear(low, self.b.get::<2>(at.mode), None) * self.scale
    }

    fn after_step(&mut self, context: &StepContext) {
        let lost = (self.threshold * context.lr_factor) as f32;
        let mut gate = self.gate.to_vec();
        gate.iter_mut()
            .for_each(|g| *g = g.signum() * (g.abs() - lost).max(0.0));
        self.gate.set(gate);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gates_are_drawn_to_zero_and_stop_there() {
        let device = Device::flex();
        let new = |name: &str, shape: &[usize], values: Vec<f32>| {
            Parameter::new(name, shape, values, &device)
        };
        let mut part = Gated {
            a: new("a", &[3, 1], vec![1.0; 3]),
            b: new("b", &[1, 3], vec![1.0; 3]),
            gate: new("g", &[3], vec![1.0, -0.5, 0.05]),
            scale: 1.0,
            dropout: 0.0,
            threshold: 0.2,
        };
        let context = StepContext {
            step: 1,
            total_steps: 2,
            seed: 0,
            lr_factor: 0.5,
        };
        part.after_step(&context);
        let found = part.gate.to_vec();
        let close = |a: f32, b: f32| (a - b).abs() < 1e-6;
        assert!(
            close(found[0], 0.9) && close(found[1], -0.4) && found[2] == 0.0,
            "{found:?}"
        );
    }
}
