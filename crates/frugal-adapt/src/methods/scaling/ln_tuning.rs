//! # Norm tuning
//!
//! ## What it does
//! Trains the gains (and, where there are any, biases) of the normalisations and nothing else.
//!
//! ## Update rule
//! `y = norm(x) ⊙ g + b`, with `g` and `b` trained from the model's own values.
//!
//! ## When to use, when not
//! As the cheapest adaptation of a model whose behaviour, not knowledge, should change; it was
//! found to rival low-rank methods when text models are turned into multi-modal ones. It has little
//! room to store facts.
//!
//! ## Cost
//! Trainable: `d_model` per norm, twice that with biases. No extra compute forward, almost none
//! backward. None after merging.
//!
//! ## Defaults and where they come from
//! Every norm of the model. Hugging Face `peft` lists the norms by architecture, which leaves out
//! the norms of queries and keys where a model has them; name them in `target_modules` to choose.
//!
//! ## Departures from the paper
//! None.
//!
//! ## References
//! - Zhao, Tu, Wei, Mei, Xie: Tuning LayerNorm in Attention: Towards Efficient Multi-Modal LLM
//!   Finetuning, 2023, arXiv 2312.11420.

use burn::prelude::*;
use frugal_nn::{
    AdaptError, Adapter, BuildContext, Frozen, Linear, Mode, Norm, NormChange, Parameter, Pass,
    to_vec,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::method::{Family, Method, MethodConfig};
use crate::settings::Settings;
use crate::support::{per_linear, values};
use crate::target::{Names, Targets};

const NAME: &str = "ln-tuning";

/// Registry entry.
pub const METHOD: Method = Method::of::<LnTuningConfig>(
    Family::Scaling,
    "Trains the gains and biases of the norms",
    include_str!("ln_tuning.rs"),
)
.aliases(&["norm-tuning", "layernorm-tuning"])
.default_lr(6e-3);

/// Settings, with `peft`'s names.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LnTuningConfig {
    /// Path endings, or one regular expression over the whole path; every norm if not given.
    pub target_modules: Option<Names>,
    /// Same grammar; wins over the targets.
    pub exclude_modules: Option<Names>,
}

impl MethodConfig for LnTuningConfig {
    const NAME: &'static str = NAME;
    const PEFT_TYPE: &'static str = "LN_TUNING";

    fn build(self, context: &BuildContext<'_>) -> Result<Box<dyn Adapter>, AdaptError> {
        Ok(Box::new(LnTuning::new(self, context)?))
    }

    fn from_peft(config: &Settings) -> Result<Settings, AdaptError> {
        per_linear::from_peft::<LnTuningConfig>(NAME, config, json!({}), &[])
    }
}

/// Trained copies of one norm's parameters, as files hold them.
struct Copy {
    weight: Parameter,
    bias: Option<Parameter>,
}

/// A norm-tuning adapter.
pub struct LnTuning {
    config: LnTuningConfig,
    /// Indexed by site.
    copies: Vec<Option<Copy>>,
    saved_targets: Value,
}

impl LnTuning {
    /// Copies the selected norms.
    ///
    /// # Errors
    /// No matching norm.
    pub fn new(config: LnTuningConfig, context: &BuildContext<'_>) -> Result<Self, AdaptError> {
        let all = Targets::default();
        let targets = Targets {
            target_modules: config
                .target_modules
                .clone()
                .unwrap_or_else(|| all.target_modules.clone()),
            exclude_modules: config.exclude_modules.clone(),
            ..all
        };
        let chosen = targets.select_norms(context.sites)?;
        let device = &context.device;
        let copy = |path: &str, weight: Vec<f32>, bias: Option<Vec<f32>>| Copy {
            weight: Parameter::new(
                format!("{path}.ln_tuning_layers.weight"),
                &[weight.len()],
                weight,
                device,
            ),
            bias: bias.map(|b| {
                Parameter::new(
                    format!("{path}.ln_tuning_layers.bias"),
                    &[b.len()],
                    b,
                    device,
                )
            }),
        };
        let mut copies: Vec<Option<Copy>> = (0..context.sites.len()).map(|_| None).collect();
        for &id in &chosen {
            let info = context.sites.info(id);
            copies[id.index()] = Some(copy(
                &info.path,
                vec![1.0; info.d_out],
                info.has_bias.then(|| vec![0.0; info.d_out]),
            ));
        }
        if let Some(backbone) = context.backbone {
            backbone.visit_weights(&mut |part| {
                if let Frozen::Norm(norm) = part
                    && let Some(slot) = copies[norm.site.index()].as_mut()
                {
                    let path = &context.sites.info(norm.site).path;
                    *slot = copy(
                        path,
                        to_vec(norm.weight.clone() - norm.stored_offset),
                        norm.bias.clone().map(to_vec),
                    );
                }
            });
        }
        Ok(Self {
            saved_targets: crate::target::saved_targets(&targets, context.sites, &chosen),
            config,
            copies,
        })
    }

    /// Gain and bias of a norm, as the model uses them.
    fn values(&self, base: &Norm, mode: Mode) -> Option<(Tensor<1>, Option<Tensor<1>>)> {
        let copy = self.copies.get(base.site.index())?.as_ref()?;
        let weight = copy.weight.get::<1>(mode);
        let weight = if base.stored_offset == 0.0 {
            weight
        } else {
            weight + base.stored_offset
        };
        Some((weight, copy.bias.as_ref().map(|b| b.get::<1>(mode))))
    }
}

struct LnTuningPass<'a> {
    adapter: &'a LnTuning,
    mode: Mode,
}

impl Pass for LnTuningPass<'_> {
    fn norm_change(&mut self, base: &Norm) -> NormChange {
        match self.adapter.values(base, self.mode) {
            Some((weight, bias)) => NormChange::Parameters(weight, bias),
            None => NormChange::None,
        }
    }
}

impl Adapter for LnTuning {
    fn method(&self) -> &'static str {
        NAME
    }

    fn parameters(&self) -> Vec<&Parameter> {
        self.copies
            .iter()
            .flatten()
            .flat_map(|c| std::iter::once(&c.weight).chain(&c.bias))
            .collect()
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        self.copies
            .iter_mut()
            .flatten()
            .flat_map(|c| std::iter::once(&mut c.weight).chain(&mut c.bias))
            .collect()
    }

    fn pass(&self, mode: Mode) -> Box<dyn Pass + '_> {
        Box::new(LnTuningPass {
            adapter: self,
            mode,
        })
    }

    fn peft_config(&self) -> Map<String, Value> {
        let exclude = &self.config.exclude_modules;
        values::object(
            json!({"peft_type": METHOD.peft_type, "target_modules": self.saved_targets, "exclude_modules": exclude}),
        )
    }

    fn weight_delta(&self, _base: &Linear) -> Result<Option<Tensor<2>>, AdaptError> {
        Ok(None)
    }

    fn merged_norm(&self, base: &Norm) -> Option<(Tensor<1>, Option<Tensor<1>>)> {
        self.values(base, Mode::Eval)
    }

    fn supports_mixed_batch(&self) -> bool {
        true
    }
}
