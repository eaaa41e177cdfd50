//! # LoRA: low-rank adaptation
//!
//! ## What it does
//! Learns a low-rank change of chosen linear layers while the model itself stays frozen.
//!
//! ## Update rule
//! `y = x Wᵀ + s · dropout(x) Aᵀ Bᵀ`, with `A [r, d_in]`, `B [d_out, r]` and `s = lora_alpha / r`
//! (`lora_alpha / sqrt(r)` with `use_rslora`).
//!
//! ## When to use, when not
//! The default choice for adapting a decoder or encoder to a task. Where even `r (d_in + d_out)`
//! numbers per layer are too many, use prompt tuning; to teach a model much new knowledge, raise the
//! rank (with `use_rslora`) or tune everything.
//!
//! ## Cost
//! Trainable: `r (d_in + d_out)` per layer. Extra memory while training: `x Aᵀ` (`r` numbers per
//! token) per layer. Extra compute: `2 r (d_in + d_out)` multiply-adds per token forward and about
//! twice that backward. None after merging.
//!
//! ## Defaults and where they come from
//! `r = 8`, `lora_alpha = 16`, no dropout, all linear layers but the head: the paper's rank with the
//! scale `alpha / r = 2` and the targets that later comparisons found best. `A` is Kaiming-uniform
//! with `a = sqrt(5)`, that is uniform within `±1/sqrt(d_in)`, and `B` zero, as in Hugging Face
//! `peft`; `init_lora_weights = "gaussian"` draws `A` with standard deviation `1/r`.
//! `init_lora_weights = "loftq"`, for weights held in few bits, starts from what rounding them
//! lost: in turn `loftq_iter` times `Q = round(W − s B A)` and `s B A` the largest `r` singular
//! triples of `W − Q`, so that `Q + s B A` is nearer to `W` than rounding alone. `loftq_config` has
//! `peft`'s defaults, 4 bits (NF4; needs `quantize = "nf4"`, or `"int8"` for 8) and one turn.
//!
//! ## Departures from the paper
//! The paper scales by `alpha / r` and initialises `A` normally; initialisation follows the
//! released code. Every linear layer is adapted by default, where the paper adapts query and value.
//!
//! LoftQ's pair is divided by the scale, which `peft` leaves out. Such an adapter goes with weights
//! rounded in the same way; commands that read its folder do that by themselves. It cannot be
//! merged, as weights in few bits hold no exact change.
//!
//! On a token table (`target_modules` naming it) the change is `E + s (B A)ᵀ` with `A [r, rows]`
//! zero and `B [d_model, r]` standard normal, on the input side only, as in `peft`: a tied output
//! head keeps the original table.
//!
//! ## References
//! - Hu, Shen, Wallis, Allen-Zhu, Li, Wang, Wang, Chen: LoRA: Low-Rank Adaptation of Large Language
//!   Models, 2021, arXiv 2106.09685.
//! - Li, Yu, Liang, He, Karampatziakis, Chen, Zhao: LoftQ: LoRA-Fine-Tuning-Aware Quantization for
//!   Large Language Models, 2023, arXiv 2310.08659.
//! - Kalajdzievski: A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA, 2023, arXiv
//!   2312.03732.

mod ranks;
mod start;

use std::collections::BTreeMap;

use burn::prelude::*;
use frugal_nn::{
    AdaptError, Adapter, BuildContext, Conv, ConvChange, Embedding, GradientSum, Linear,
    LinearChange, LowRank, LowRankChange, MergedLinear, Mode, Norm, NormChange, Operation,
    Parameter, Pass, SiteId, SiteKind, StepContext,
};
use serde_json::{Map, Value, json};

use crate::method::{Family, Method, MethodConfig};
use crate::methods::low_rank::loftq;
use crate::methods::low_rank::lora::start::{biases, pair};
use crate::methods::low_rank::lora_config::NAME;
use crate::settings::Settings;
use crate::support::dropout::dropout;
use crate::support::pair::Pair;
use crate::support::values::{object, whole};
use crate::target::check_patterns;

pub(crate) use crate::methods::low_rank::lora_config::variant_from_peft;
pub use crate::methods::low_rank::lora_config::{Bias, Init, LoraConfig};

/// Registry entry.
pub const METHOD: Method = Method::of::<LoraConfig>(
    Family::LowRank,
    "A low-rank change of chosen linear layers",
    include_str!("lora.rs"),
)
.aliases(&["low-rank-adaptation"])
.default_lr(5e-4)
.load_rule(loftq::LOAD_RULE);

impl MethodConfig for LoraConfig {
    const NAME: &'static str = NAME;
    const PEFT_TYPE: &'static str = "LORA";

    fn validate(&self) -> Result<(), AdaptError> {
        self.validate_for(NAME)
    }

    fn build(self, context: &BuildContext<'_>) -> Result<Box<dyn Adapter>, AdaptError> {
        Ok(Box::new(Lora::new(self, context)?))
    }

    fn from_peft(config: &Settings) -> Result<Settings, AdaptError> {
        variant_from_peft(NAME, config, &[])
    }
}

/// Values for the low-rank pair of one layer, at scale 1.
pub struct Factors {
    /// Path of the layer.
    pub path: String,
    /// Rank.
    pub rank: usize,
    /// `[rank, d_in]`, row by row.
    pub a: Vec<f32>,
    /// `[d_out, rank]`, row by row.
    pub b: Vec<f32>,
}

/// A LoRA adapter.
pub struct Lora {
    method: &'static str,
    pub(crate) config: LoraConfig,
    /// Indexed by site.
    pub(crate) pairs: Vec<Option<Pair>>,
    /// Trained copies of biases, indexed by site.
    biases: Vec<Option<Parameter>>,
    /// What a variant does to the gradients of a pair before a step.
    pub(crate) gradient_rule: Option<fn(&Pair, &mut GradientSum)>,
    /// `target_modules` for `peft`.
    saved_targets: Value,
    /// Whether the adapted layers are stored transposed, which `peft` wants to be told.
    fan_in_fan_out: bool,
}

impl Lora {
    /// Builds the pairs of every selected layer.
    ///
    /// # Errors
    /// Bad settings, no matching layer, a rank above a layer's sides.
    pub fn new(config: LoraConfig, context: &BuildContext<'_>) -> Result<Self, AdaptError> {
        Self::named(NAME, config, context)
    }

    /// The same under the name of a method built on this one.
    pub(crate) fn named(
        method: &'static str,
        config: LoraConfig,
        context: &BuildContext<'_>,
    ) -> Result<Self, AdaptError> {
        config.validate_for(method)?;
        check_patterns("rank_pattern", &config.rank_pattern, context.sites)?;
        check_patterns("alpha_pattern", &config.alpha_pattern, context.sites)?;
        let mut pairs: Vec<Option<Pair>> = (0..context.sites.len()).map(|_| None).collect();
        let chosen = config.targets().select(context.sites)?;
        for &id in &chosen {
            pairs[id.index()] = Some(pair(method, &config, context, id)?);
        }
        if let Some(loftq) = config.loftq() {
            loftq.start(method, &mut pairs, context)?;
        }
        let saved_targets = crate::target::saved_targets(&config.targets(), context.sites, &chosen);
        let biases = biases(method, &config, context, &pairs)?;
        let transposed = context
            .sites
            .iter()
            .any(|(id, site)| site.kind == SiteKind::Conv1d && pairs[id.index()].is_some());
        Ok(Self {
            method,
            config,
            pairs,
            biases,
            gradient_rule: None,
            saved_targets,
            fan_in_fan_out: transposed,
        })
    }

    /// A plain LoRA of twice the rank and the same scale, with these factors by index of site.
    pub(crate) fn with_doubled_rank(
        &self,
        factors: impl Fn(usize) -> Option<(Parameter, Parameter)>,
    ) -> Self {
        let raise = if self.config.use_rslora {
            2.0_f64.sqrt()
        } else {
            2.0
        };
        let mut config = LoraConfig {
            r: 2 * self.config.r,
            lora_alpha: raise * self.config.lora_alpha,
            ..self.config.clone()
        };
        config.rank_pattern.values_mut().for_each(|r| *r *= 2);
        config
            .alpha_pattern
            .values_mut()
            .for_each(|alpha| *alpha *= raise);
        let pair = |(site, old): (usize, &Option<Pair>)| {
            let (old, (a, b)) = (old.as_ref()?, factors(site)?);
            Some(Pair {
                path: old.path.clone(),
                a,
                b,
                b_bias: None,
                scale: old.scale,
            })
        };
        Self {
            method: NAME,
            pairs: self.pairs.iter().enumerate().map(pair).collect(),
            biases: self.biases.iter().map(|_| None).collect(),
            gradient_rule: None,
            saved_targets: self.saved_targets.clone(),
            fan_in_fan_out: self.fan_in_fan_out,
            config,
        }
    }

    /// A plain LoRA of this rank in every layer, with these factors, at `lora_alpha` as it is.
    pub(crate) fn at_rank(&self, rank: usize, factors: impl Fn(&Pair) -> Factors) -> Self {
        let config = LoraConfig {
            r: rank,
            ..self.config.clone()
        };
        let pair = |old: &Option<Pair>| {
            let old = old.as_ref()?;
            let Factors { a, b, .. } = factors(old);
            let new = |of: &Parameter, shape: [usize; 2], values: Vec<f32>| {
                let device = of.get::<2>(Mode::Eval).device();
                Parameter::new(of.name(), &shape, values, &device)
            };
            Some(Pair {
                path: old.path.clone(),
                a: new(&old.a, [rank, old.a.shape()[1]], a),
                b: new(&old.b, [old.b.shape()[0], rank], b),
                b_bias: None,
                scale: (f64::from(old.scale) * self.config.scale(1.0, rank)
                    / self.config.scale(1.0, old.a.shape()[0])) as f32,
            })
        };
        Self {
            method: NAME,
            pairs: self.pairs.iter().map(pair).collect(),
            biases: self.biases.iter().map(|_| None).collect(),
            gradient_rule: None,
            saved_targets: self.saved_targets.clone(),
            fan_in_fan_out: self.fan_in_fan_out,
            config,
        }
    }

    /// An adapter of known factors. Its `r` is the commonest rank; the others stand in
    /// `rank_pattern`.
    ///
    /// # Errors
    /// A path that is not a linear layer of the model, factors that do not fit it.
    pub fn from_factors(
        factors: Vec<Factors>,
        context: &BuildContext<'_>,
    ) -> Result<Self, AdaptError> {
        let mut counts: BTreeMap<usize, usize> = BTreeMap::new();
        factors
            .iter()
            .for_each(|f| *counts.entry(f.rank).or_default() += 1);
        let r = counts
            .iter()
            .max_by_key(|(_, count)| **count)
            .map_or(1, |(r, _)| *r);
        let others = || factors.iter().filter(|f| f.rank != r);
        let pattern = |f: &Factors| fancy_regex::escape(&f.path).into_owned();
        let config = LoraConfig {
            r,
            lora_alpha: r as f64,
            rank_pattern: others().map(|f| (pattern(f), f.rank)).collect(),
            alpha_pattern: others().map(|f| (pattern(f), f.rank as f64)).collect(),
            target_modules: crate::target::Names::List(
                factors.iter().map(|f| f.path.clone()).collect(),
            ),
            ..LoraConfig::default()
        };
        let mut lora = Self::new(config, context)?;
        for factor in factors {
            let pair = lora
                .pairs
                .iter_mut()
                .flatten()
                .find(|p| p.path == factor.path);
            let fits = pair.filter(|p| p.a.len() == factor.a.len() && p.b.len() == factor.b.len());
            let Some(pair) = fits else {
                return Err(AdaptError::Settings {
                    method: NAME,
                    reason: format!("the factors for `{}` do not fit this model", factor.path),
                });
            };
            pair.a.set(factor.a);
            pair.b.set(factor.b);
        }
        Ok(lora)
    }

    pub(crate) fn at(&self, site: SiteId) -> Option<&Pair> {
        self.pairs.get(site.index())?.as_ref()
    }

    pub(crate) fn bias(&self, site: SiteId) -> Option<&Parameter> {
        self.biases.get(site.index())?.as_ref()
    }
}

pub(crate) struct LoraPass<'a> {
    pub adapter: &'a Lora,
    pub mode: Mode,
}

impl LoraPass<'_> {
    pub fn bias(&self, site: SiteId, base: Option<&Tensor<1>>) -> Option<Tensor<1>> {
        self.adapter
            .bias(site)
            .map(|b| b.get::<1>(self.mode))
            .or_else(|| base.cloned())
    }
}

impl Pass for LoraPass<'_> {
    fn embedding(&mut self, base: &Embedding, ids: &[u32]) -> Tensor<2> {
        let y = base.forward(ids);
        let Some(pair) = self.adapter.at(base.site) else {
            return y;
        };
        let rows = frugal_nn::lookup(pair.a.get::<2>(self.mode).transpose(), ids);
        y + rows.matmul(pair.b.get::<2>(self.mode).transpose()) * pair.scale
    }

    fn linear(&mut self, base: &Linear, x: Tensor<2>) -> Tensor<2> {
        let mode = self.mode;
        let bias = self.bias(base.site, base.bias.as_ref());
        let Some(pair) = self.adapter.at(base.site) else {
            return Linear {
                bias,
                ..base.clone()
            }
            .forward(x);
        };
        let (a, b) = (pair.a.get::<2>(mode), pair.b.get::<2>(mode));
        let y = match mode {
            Mode::Train { seed } if self.adapter.config.lora_dropout > 0.0 => {
                let dropped = dropout(
                    x.clone(),
                    self.adapter.config.lora_dropout,
                    seed,
                    &pair.path,
                );
                let y = Linear {
                    bias,
                    ..base.clone()
                }
                .forward(x);
                y + frugal_kernels::linear(frugal_kernels::linear(dropped, a, None), b, None)
                    * pair.scale
            }
            _ => Linear {
                bias,
                ..base.clone()
            }
            .forward_low_rank(x, a, b, pair.scale),
        };
        match pair.scaled_b_bias(mode) {
            Some(bias) => y + bias.unsqueeze::<2>(),
            None => y,
        }
    }

    fn linear_change(&mut self, base: &Linear) -> LinearChange {
        let bias = self.adapter.bias(base.site).is_some();
        let Some(pair) = self.adapter.at(base.site) else {
            return LinearChange::opaque_if(bias);
        };
        let drops = self.mode.is_train() && self.adapter.config.lora_dropout > 0.0;
        if drops || bias || pair.b_bias.is_some() {
            return LinearChange::Opaque;
        }
        LinearChange::LowRank(LowRankChange {
            a: pair.a.get(self.mode),
            b: pair.b.get(self.mode),
            scale: pair.scale,
        })
    }

    fn conv_change(&mut self, base: &Conv) -> ConvChange {
        match self.adapter.bias(base.site) {
            Some(bias) => ConvChange::Parameters(base.weight.clone(), Some(bias.get(self.mode))),
            None => ConvChange::None,
        }
    }

    fn norm_change(&mut self, base: &Norm) -> NormChange {
        NormChange::Parameters(
            base.weight.clone(),
            self.bias(base.site, base.bias.as_ref()),
        )
    }
}

impl Adapter for Lora {
    fn method(&self) -> &'static str {
        self.method
    }

    fn parameters(&self) -> Vec<&Parameter> {
        self.pairs
            .iter()
            .flatten()
            .flat_map(Pair::parameters)
            .chain(self.biases.iter().flatten())
            .collect()
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        self.pairs
            .iter_mut()
            .flatten()
            .flat_map(Pair::parameters_mut)
            .chain(self.biases.iter_mut().flatten())
            .collect()
    }

    fn pass(&self, mode: Mode) -> Box<dyn Pass + '_> {
        Box::new(LoraPass {
            adapter: self,
            mode,
        })
    }

    fn weight_delta(&self, base: &Linear) -> Result<Option<Tensor<2>>, AdaptError> {
        Ok(self.at(base.site).map(|pair| pair.delta(Mode::Eval)))
    }

    fn merged_linear(&self, base: &Linear) -> Result<Option<MergedLinear>, AdaptError> {
        let own = self
            .bias(base.site)
            .map(|b| b.get::<1>(Mode::Eval))
            .or_else(|| base.bias.clone());
        let Some(pair) = self.at(base.site) else {
            let trained = self.bias(base.site).is_some();
            return Ok(trained.then(|| MergedLinear {
                weight: base.weight.dense(),
                bias: own,
            }));
        };
        let bias = match (own, pair.scaled_b_bias(Mode::Eval)) {
            (Some(own), Some(added)) => Some(own + added),
            (own, added) => own.or(added),
        };
        Ok(Some(MergedLinear {
            weight: base.weight.dense() + pair.delta(Mode::Eval),
            bias,
        }))
    }

    fn unmerged_linear(&self, merged: &Linear) -> Result<Option<MergedLinear>, AdaptError> {
        if self.config.bias != Bias::None {
            let reason = "`bias` replaced the biases of the base; load the base model".into();
            return Err(AdaptError::Unsupported {
                method: self.method,
                action: "be taken out again",
                reason,
            });
        }
        Ok(self.at(merged.site).map(|pair| {
            let bias = match (merged.bias.clone(), pair.scaled_b_bias(Mode::Eval)) {
                (Some(bias), Some(added)) => Some(bias - added),
                (bias, _) => bias,
            };
            MergedLinear {
                weight: merged.weight.dense() - pair.delta(Mode::Eval),
                bias,
            }
        }))
    }

    fn merged_embedding(&self, base: &Embedding) -> Option<Tensor<2>> {
        self.at(base.site)
            .map(|pair| base.weight.dense() + pair.delta(Mode::Eval).transpose())
    }

    fn merged_norm(&self, base: &Norm) -> Option<(Tensor<1>, Option<Tensor<1>>)> {
        let bias = self.bias(base.site)?.get::<1>(Mode::Eval);
        Some((base.weight.clone(), Some(bias)))
    }

    fn merged_conv(&self, base: &Conv) -> Option<(Tensor<2>, Option<Tensor<1>>)> {
        let bias = self.bias(base.site)?.get::<1>(Mode::Eval);
        Some((base.weight.clone(), Some(bias)))
    }

    fn before_step(&mut self, _context: &StepContext, gradients: &mut GradientSum) {
        if let Some(rule) = self.gradient_rule {
            self.pairs
                .iter()
                .flatten()
                .for_each(|pair| rule(pair, gradients));
        }
    }

    fn needs_trainer(&self) -> bool {
        self.gradient_rule.is_some() || self.parameters().iter().any(|p| p.lr_scale() != 1.0)
    }

    fn low_rank_factors(&self) -> Option<Vec<LowRank<'_>>> {
        let plain = self.biases.iter().all(Option::is_none)
            && self.pairs.iter().flatten().all(|p| p.b_bias.is_none());
        plain.then(|| {
            self.pairs
                .iter()
                .flatten()
                .map(|p| LowRank {
                    path: &p.path,
                    a: &p.a,
                    b: &p.b,
                    scale: p.scale,
                })
                .collect()
        })
    }

    fn refuses(&self, _operation: Operation) -> Option<String> {
        self.config.loftq().map(|_| loftq::refusal())
    }

    fn supports_mixed_batch(&self) -> bool {
        true
    }

    fn peft_config(&self) -> Map<String, Value> {
        let c = &self.config;
        let fields = json!({
            "peft_type": "LORA", "fan_in_fan_out": self.fan_in_fan_out, "r": c.r, "lora_alpha": whole(c.lora_alpha),
            "lora_dropout": c.lora_dropout, "use_rslora": c.use_rslora, "init_lora_weights": c.init_lora_weights,
            "rank_pattern": c.rank_pattern, "alpha_pattern": c.alpha_pattern.iter().map(|(k, &v)| (k.clone(), whole(v))).collect::<Map<_, _>>(), "bias": c.bias, "lora_bias": c.lora_bias,
            "target_modules": self.saved_targets,
            "exclude_modules": c.exclude_modules, "layers_to_transform": c.layers_to_transform,
            "layers_pattern": c.layers_pattern, "loftq_config": c.loftq().map_or_else(|| json!({}), |loftq| json!(loftq)),
        });
        let mut all = object(crate::methods::low_rank::lora_config::peft_fields_without_use());
        all.extend(object(fields));
        all
    }
}
