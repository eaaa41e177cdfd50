//! # BEFT: bias-efficient fine-tuning
//!
//! ## What it does
//! Adds a trained vector to the output of a few layers, whether they have a bias or not; by default to
//! the values of attention, whose bias moves outputs most for its size.
//!
//! ## Update rule
//! `y = x Wᵀ + b + δ`, `δ [d_out]` trained.
//!
//! ## When to use, when not
//! For the smallest files of all, and where few examples are all there is. Like BitFit it cannot
//! teach much; unlike it, it needs no biases in the model and no more than one per block.
//!
//! ## Cost
//! Trainable: `d_out` per layer. Extra compute: an addition. None after merging; a model file of an
//! architecture without biases has no place for them.
//!
//! ## Defaults and where they come from
//! The value maps, zero at the start: paper and Hugging Face `peft`. The rate is BitFit's.
//!
//! ## Departures from the paper
//! Which of the three biases to train is not measured: it is the values'.
//!
//! ## References
//! - BEFT: Bias-Efficient Fine-Tuning of Language Models, 2025, arXiv 2509.15974.

use burn::prelude::*;
use frugal_nn::{
    AdaptError, Adapter, BuildContext, MergedLinear, Mode, Parameter, named_rng, standard_normal,
};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::method::{Family, Method, MethodConfig};
use crate::settings::Settings;
use crate::support::per_linear::{self, LinearAdapter, LinearSite, PerLinear};
use crate::target::{Names, Targets};

const NAME: &str = "beft";

/// Registry entry.
pub const METHOD: Method = Method::of::<BeftConfig>(
    Family::Scaling,
    "Adds a trained vector to the values of attention",
    include_str!("beft.rs"),
)
.default_lr(1e-2);

/// Settings, with `peft`'s names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BeftConfig {
    /// Start without a change; otherwise with a random one, for tests.
    pub init_weights: bool,
    /// Path endings, one regular expression over the whole path, or `all-linear`.
    pub target_modules: Names,
}

impl Default for BeftConfig {
    fn default() -> Self {
        // The names of the values in all supported architectures, or of what holds them.
        let values = [
            "v_proj",
            "value",
            "v_lin",
            "c_attn",
            "qkv_proj",
            "query_key_value",
        ];
        Self {
            init_weights: true,
            target_modules: Names::List(values.map(str::to_owned).to_vec()),
        }
    }
}

impl MethodConfig for BeftConfig {
    const NAME: &'static str = NAME;
    const PEFT_TYPE: &'static str = "BEFT";

    fn build(self, context: &BuildContext<'_>) -> Result<Box<dyn Adapter>, AdaptError> {
        Ok(Box::new(build(self, context)?))
    }

    fn from_peft(config: &Settings) -> Result<Settings, AdaptError> {
        per_linear::from_peft::<BeftConfig>(NAME, config, json!({}), &[])
    }
}

fn build(config: BeftConfig, context: &BuildContext<'_>) -> Result<PerLinear<Shift>, AdaptError> {
    let mut targets = Targets {
        target_modules: config.target_modules.clone(),
        ..Targets::default()
    };
    // The usual names are those of several architectures.
    let usual = BeftConfig::default().target_modules;
    if let Some(known) = usual
        .of_model(context.sites)
        .filter(|_| targets.target_modules == usual)
    {
        targets.target_modules = known;
    }
    PerLinear::new(&METHOD, &targets, context, &config, json!({}), |_, info| {
        let values = if config.init_weights {
            vec![0.0; info.d_out]
        } else {
            let mut rng = named_rng(context.seed, &info.path);
            (0..info.d_out).map(|_| standard_normal(&mut rng)).collect()
        };
        let name = format!("{}.beft_bias", info.path);
        Ok(Shift {
            bias: Parameter::new(name, &[1, info.d_out], values, &context.device),
        })
    })
}

/// The vector of one layer.
struct Shift {
    /// `[1, d_out]`.
    bias: Parameter,
}

impl Shift {
    fn shifted(&self, at: &LinearSite<'_>, sign: f32) -> MergedLinear {
        let shift = self.bias.get::<2>(Mode::Eval).squeeze::<1>() * sign;
        MergedLinear {
            weight: at.base.weight.dense(),
            bias: Some(match &at.base.bias {
                Some(bias) => bias.clone() + shift,
                None => shift,
            }),
        }
    }
}

impl LinearAdapter for Shift {
    fn parameters(&self) -> Vec<&Parameter> {
        vec![&self.bias]
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        vec![&mut self.bias]
    }

    fn delta(&self, at: &LinearSite<'_>) -> Tensor<2> {
        at.base.weight.dense().zeros_like()
    }

    fn materializes_weight(&self) -> bool {
        false
    }

    fn forward(&self, at: &LinearSite<'_>, x: Tensor<2>) -> Tensor<2> {
        at.base.forward(x) + self.bias.get::<2>(at.mode)
    }

    fn merged(&self, at: &LinearSite<'_>) -> MergedLinear {
        self.shifted(at, 1.0)
    }

    fn unmerged(&self, at: &LinearSite<'_>) -> Result<MergedLinear, String> {
        Ok(self.shifted(at, -1.0))
    }
}
