//! # LoRA-FA: frozen A
//!
//! ## What it does
//! LoRA that trains only `B`: the random projection `A` stays as it was drawn.
//!
//! ## Update rule
//! That of `lora` with `A` fixed. With `adjust_gradients` the gradient of `B` becomes
//! `G (A Aᵀ + δ I)⁻¹ / s²`, with `δ = 1e-8`: among all changes of `B` the one whose change of `W`
//! is nearest to the full gradient.
//!
//! ## When to use, when not
//! Where optimiser memory or file size is short: half of the parameters are trained, and `A` could
//! be drawn again. Needs a somewhat higher rank than LoRA for the same quality.
//!
//! ## Cost
//! Trainable: `r d_out` per layer. For the gradient of `B` only `x Aᵀ` (`r` numbers per token) must
//! be kept, not `x`. None after merging.
//!
//! ## Defaults and where they come from
//! Those of `lora`; adjusted gradients as in Hugging Face `peft`'s optimiser for LoRA-FA.
//!
//! ## Departures from the paper
//! The first version of the paper has no adjustment: `adjust_gradients = false`. Tables are
//! refused, because their `A` starts at zero.
//!
//! ## References
//! - Zhang, Zhang, Shi, Chu, Li: LoRA-FA: Memory-efficient Low-rank Adaptation for Large Language
//!   Models Fine-tuning, 2023, arXiv 2308.03303.

use frugal_nn::{AdaptError, Adapter, BuildContext, GradientSum};
use serde::{Deserialize, Serialize};

use crate::method::{Family, Method, MethodConfig};
use crate::methods::low_rank::lora::{self, Lora, LoraConfig};
use crate::settings::Settings;
use crate::support::orthogonal::invert;
use crate::support::pair::Pair;
use crate::support::per_linear::linear_maps;

const NAME: &str = "lora-fa";

/// Added to the diagonal of `A Aᵀ`.
const DELTA: f64 = 1e-8;

/// Registry entry.
pub const METHOD: Method = Method::of::<LoraFaConfig>(
    Family::LowRank,
    "LoRA that trains only B",
    include_str!("lora_fa.rs"),
)
.aliases(&["lorafa"])
// Files do not show it.
.peft_variant(|_| false);

/// Settings: those of LoRA and what happens to the gradients.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LoraFaConfig {
    /// Turn the gradients of `B` towards the full gradient of the weight.
    pub adjust_gradients: bool,
    /// The rest.
    #[serde(flatten)]
    pub lora: LoraConfig,
}

impl Default for LoraFaConfig {
    fn default() -> Self {
        Self {
            adjust_gradients: true,
            lora: LoraConfig::default(),
        }
    }
}

impl MethodConfig for LoraFaConfig {
    const NAME: &'static str = NAME;
    const PEFT_TYPE: &'static str = "LORA";

    fn validate(&self) -> Result<(), AdaptError> {
        self.lora.validate_for(NAME)
    }

    fn build(self, context: &BuildContext<'_>) -> Result<Box<dyn Adapter>, AdaptError> {
        Ok(Box::new(build(self, context)?))
    }

    fn from_peft(config: &Settings) -> Result<Settings, AdaptError> {
        lora::variant_from_peft(NAME, config, &[])
    }
}

fn build(config: LoraFaConfig, context: &BuildContext<'_>) -> Result<Lora, AdaptError> {
    linear_maps(NAME, &config.lora.targets(), context)?;
    let mut adapter = Lora::named(NAME, config.lora, context)?;
    for pair in adapter.pairs.iter_mut().flatten() {
        pair.a = pair.a.clone().freeze();
    }
    adapter.gradient_rule = config.adjust_gradients.then_some(adjust);
    Ok(adapter)
}

/// `G (A Aᵀ + δ I)⁻¹ / s²` in place of the gradient `G [d_out, r]` of `B`.
fn adjust(pair: &Pair, gradients: &mut GradientSum) {
    let Some(gradient) = gradients.get_mut(pair.b.name()) else {
        return;
    };
    let (r, d_in) = (pair.a.shape()[0], pair.a.shape()[1]);
    let a: Vec<f64> = pair.a.to_vec().into_iter().map(f64::from).collect();
    let row = |i: usize| &a[i * d_in..(i + 1) * d_in];
    let product = |i: usize, j: usize| row(i).iter().zip(row(j)).map(|(x, y)| x * y).sum::<f64>();
    let gram: Vec<f64> = (0..r * r)
        .map(|n| product(n / r, n % r) + if n / r == n % r { DELTA } else { 0.0 })
        .collect();
    let inverse = invert(&gram, r);
    let scale = 1.0 / (f64::from(pair.scale) * f64::from(pair.scale));
    for g in gradient.chunks_exact_mut(r) {
        let old: Vec<f64> = g.iter().map(|&v| f64::from(v)).collect();
        for (j, new) in g.iter_mut().enumerate() {
            *new = (scale * (0..r).map(|i| old[i] * inverse[i * r + j]).sum::<f64>()) as f32;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::prelude::Device;
    use frugal_nn::Parameter;

    #[test]
    fn a_gradient_adjusted_by_hand() {
        // A Aᵀ = diag(4, 1), s = 2: the first column of G is divided by 16, the second by 4.
        let device = Device::flex();
        let pair = Pair {
            path: "q_proj".into(),
            a: Parameter::new("a", &[2, 2], vec![2.0, 0.0, 0.0, 1.0], &device).freeze(),
            b: Parameter::new("b", &[2, 2], vec![0.0; 4], &device),
            b_bias: None,
            scale: 2.0,
        };
        let mut gradients = GradientSum::default();
        gradients.insert("b", vec![16.0, 4.0, -32.0, 1.0]);
        adjust(&pair, &mut gradients);
        let found = gradients.get("b").unwrap();
        assert!(
            found
                .iter()
                .zip([1.0, 1.0, -2.0, 0.25])
                .all(|(a, b)| (a - b).abs() < 1e-6),
            "{found:?}"
        );
    }
}
