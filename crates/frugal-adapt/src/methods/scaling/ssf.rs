//! # SSF: scaling and shifting features
//!
//! ## What it does
//! Learns a factor and an offset for every output feature of the model's linear layers and norms.
//! After training both vanish into the weights.
//!
//! ## Update rule
//! `y = γ ⊙ op(x) + β` behind every chosen linear layer and every norm. Merged: `W' = diag(γ) W`,
//! `b' = γ ⊙ b + β`.
//!
//! ## When to use, when not
//! When the adapter must be very small, mergeable, and the task needs features weighted differently
//! rather than new ones. LoRA reaches further.
//!
//! ## Cost
//! Trainable: `2 d_out` per layer or norm with a bias, `d_out` per one without. Extra memory while
//! training: the output of every adapted operation. None after merging.
//!
//! ## Defaults and where they come from
//! All linear layers but the head and all norms, as in the paper; factors start at one and offsets at
//! zero.
//!
//! ## Departures from the paper
//! The paper draws initial values with standard deviation 0.02 around one and zero; here nothing
//! changes before training. An offset exists where the model has a bias to take it up after
//! training (`shift = "where_bias"`); with `shift = "all"` every layer has one, which models without
//! biases cannot be merged with. Token tables are left alone.
//!
//! ## References
//! - Lian, Zhou, Feng, Wang: Scaling & Shifting Your Features: A New Baseline for Efficient Model
//!   Tuning, 2022, arXiv 2210.08823.

use burn::prelude::*;
use frugal_nn::{
    AdaptError, Adapter, BuildContext, Linear, LinearChange, MergedLinear, Mode, Norm, NormChange,
    Parameter, Pass, SiteId, SiteKind,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::method::{Family, Method, MethodConfig};
use crate::support::own_files;
use crate::target::{Names, Targets};

const NAME: &str = "ssf";

/// Registry entry.
pub const METHOD: Method = Method::of::<SsfConfig>(
    Family::Scaling,
    "A factor and an offset for every feature of layers and norms",
    include_str!("ssf.rs"),
)
.aliases(&["scale-shift"])
.default_lr(3e-3);

/// Which operations get an offset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Shift {
    /// Those with a bias.
    #[default]
    WhereBias,
    /// Every linear layer, and norms with a bias.
    All,
    /// None.
    None,
}

/// Settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SsfConfig {
    /// Linear layers: path endings, one regular expression over the whole path, or `all-linear`.
    pub target_modules: Names,
    /// Same grammar; wins over the targets.
    pub exclude_modules: Option<Names>,
    /// Norms too.
    pub norms: bool,
    /// Which operations get an offset.
    pub shift: Shift,
}

impl Default for SsfConfig {
    fn default() -> Self {
        Self {
            target_modules: Targets::default().target_modules,
            exclude_modules: None,
            norms: true,
            shift: Shift::WhereBias,
        }
    }
}

impl MethodConfig for SsfConfig {
    const NAME: &'static str = NAME;
    const PEFT_TYPE: &'static str = "SSF";

    fn build(self, context: &BuildContext<'_>) -> Result<Box<dyn Adapter>, AdaptError> {
        Ok(Box::new(Ssf::new(self, context)?))
    }
}

/// Factor and offset of one operation, each `[d_out]`.
struct ScaleShift {
    scale: Parameter,
    shift: Option<Parameter>,
}

impl ScaleShift {
    fn parameters(&self) -> impl Iterator<Item = &Parameter> {
        std::iter::once(&self.scale).chain(&self.shift)
    }

    fn parameters_mut(&mut self) -> impl Iterator<Item = &mut Parameter> {
        std::iter::once(&mut self.scale).chain(&mut self.shift)
    }

    /// `γ ⊙ v + β` of the rows of `y`.
    fn apply(&self, y: Tensor<2>, mode: Mode) -> Tensor<2> {
        let y = y * self.scale.get::<1>(mode).unsqueeze::<2>();
        match &self.shift {
            Some(shift) => y + shift.get::<1>(mode).unsqueeze::<2>(),
            None => y,
        }
    }

    fn bias(&self, base: Option<Tensor<1>>) -> Option<Tensor<1>> {
        let scaled = base.map(|bias| bias * self.scale.get::<1>(Mode::Eval));
        match (scaled, self.shift.as_ref().map(|s| s.get::<1>(Mode::Eval))) {
            (Some(bias), Some(shift)) => Some(bias + shift),
            (bias, shift) => bias.or(shift),
        }
    }
}

/// An SSF adapter.
pub struct Ssf {
    config: SsfConfig,
    /// Indexed by site.
    sites: Vec<Option<ScaleShift>>,
}

impl Ssf {
    /// Builds factors and offsets.
    ///
    /// # Errors
    /// No matching layer, bad patterns, tables among the targets.
    pub fn new(config: SsfConfig, context: &BuildContext<'_>) -> Result<Self, AdaptError> {
        let targets = Targets {
            target_modules: config.target_modules.clone(),
            exclude_modules: config.exclude_modules.clone(),
            ..Targets::default()
        };
        let mut chosen = targets.select(context.sites)?;
        if config.norms {
            chosen.extend(
                context
                    .sites
                    .iter()
                    .filter(|(_, site)| site.kind == SiteKind::Norm)
                    .map(|(id, _)| id),
            );
        }
        chosen.sort_unstable();
        let mut sites: Vec<Option<ScaleShift>> = (0..context.sites.len()).map(|_| None).collect();
        for id in chosen {
            let info = context.sites.info(id);
            if info.kind == SiteKind::Embedding {
                let reason = format!("`{}` is a table of rows, not a linear layer", info.path);
                return Err(AdaptError::Config {
                    method: NAME,
                    field: "target_modules",
                    reason,
                });
            }
            let shifted = match config.shift {
                Shift::WhereBias => info.has_bias,
                Shift::All => info.has_bias || info.kind != SiteKind::Norm,
                Shift::None => false,
            };
            let new = |kind: &str, value: f32| {
                Parameter::new(
                    format!("{}.{kind}", info.path),
                    &[info.d_out],
                    vec![value; info.d_out],
                    &context.device,
                )
            };
            sites[id.index()] = Some(ScaleShift {
                scale: new("ssf_scale", 1.0),
                shift: shifted.then(|| new("ssf_shift", 0.0)),
            });
        }
        Ok(Self { config, sites })
    }

    fn at(&self, site: SiteId) -> Option<&ScaleShift> {
        self.sites.get(site.index())?.as_ref()
    }

    /// `W` with its rows multiplied by `factor`.
    fn scaled(weight: Tensor<2>, factor: Tensor<1>) -> Tensor<2> {
        weight * factor.unsqueeze_dim::<2>(1)
    }
}

struct SsfPass<'a> {
    adapter: &'a Ssf,
    mode: Mode,
}

impl Pass for SsfPass<'_> {
    fn linear(&mut self, base: &Linear, x: Tensor<2>) -> Tensor<2> {
        let y = base.forward(x);
        match self.adapter.at(base.site) {
            Some(site) => site.apply(y, self.mode),
            None => y,
        }
    }

    fn norm(&mut self, base: &Norm, x: Tensor<2>) -> Tensor<2> {
        let y = base.apply(x, base.weight.clone(), base.bias.clone());
        match self.adapter.at(base.site) {
            Some(site) => site.apply(y, self.mode),
            None => y,
        }
    }

    fn norm_change(&mut self, base: &Norm) -> NormChange {
        match self.adapter.at(base.site) {
            None => NormChange::None,
            Some(_) => NormChange::Opaque,
        }
    }

    fn linear_change(&mut self, base: &Linear) -> LinearChange {
        LinearChange::opaque_if(self.adapter.at(base.site).is_some())
    }
}

impl Adapter for Ssf {
    fn method(&self) -> &'static str {
        NAME
    }

    fn parameters(&self) -> Vec<&Parameter> {
        self.sites
            .iter()
            .flatten()
            .flat_map(ScaleShift::parameters)
            .collect()
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        self.sites
            .iter_mut()
            .flatten()
            .flat_map(ScaleShift::parameters_mut)
            .collect()
    }

    fn pass(&self, mode: Mode) -> Box<dyn Pass + '_> {
        Box::new(SsfPass {
            adapter: self,
            mode,
        })
    }

    fn peft_config(&self) -> Map<String, Value> {
        own_files::all_to_file("SSF", &self.config)
    }

    fn weight_delta(&self, base: &Linear) -> Result<Option<Tensor<2>>, AdaptError> {
        let Some(site) = self.at(base.site) else {
            return Ok(None);
        };
        Ok(Some(Self::scaled(
            base.weight.dense(),
            site.scale.get::<1>(Mode::Eval) - 1.0,
        )))
    }

    fn merged_linear(&self, base: &Linear) -> Result<Option<MergedLinear>, AdaptError> {
        let Some(site) = self.at(base.site) else {
            return Ok(None);
        };
        let weight = Self::scaled(base.weight.dense(), site.scale.get::<1>(Mode::Eval));
        Ok(Some(MergedLinear {
            weight,
            bias: site.bias(base.bias.clone()),
        }))
    }

    fn unmerged_linear(&self, merged: &Linear) -> Result<Option<MergedLinear>, AdaptError> {
        let Some(site) = self.at(merged.site) else {
            return Ok(None);
        };
        let scale = site.scale.to_vec();
        if scale.contains(&0.0) {
            let reason = format!(
                "`{}` has a factor of zero, behind which the base is lost; load the base model",
                site.scale.name()
            );
            return Err(AdaptError::Unsupported {
                method: NAME,
                action: "be taken out again",
                reason,
            });
        }
        let inverse = site.scale.get::<1>(Mode::Eval).recip();
        let unshifted = |bias: Tensor<1>| match &site.shift {
            Some(shift) => bias - shift.get::<1>(Mode::Eval),
            None => bias,
        };
        let bias = merged
            .bias
            .clone()
            .map(|bias| unshifted(bias) * inverse.clone());
        Ok(Some(MergedLinear {
            weight: Self::scaled(merged.weight.dense(), inverse),
            bias,
        }))
    }

    fn merged_norm(&self, base: &Norm) -> Option<(Tensor<1>, Option<Tensor<1>>)> {
        let site = self.at(base.site)?;
        Some((
            base.weight.clone() * site.scale.get::<1>(Mode::Eval),
            site.bias(base.bias.clone()),
        ))
    }

    fn supports_mixed_batch(&self) -> bool {
        true
    }
}
