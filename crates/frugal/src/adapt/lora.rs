//! # LoRA: low-rank adaptation
//!
//! ## What it does
//! Learns a low-rank change of chosen linear maps while the model itself stays frozen.
//!
//! ## Update rule
//! `y = x Wᵀ + s · dropout(x) Aᵀ Bᵀ`, with `A [r, d_in]`, `B [d_out, r]` and `s = lora_alpha / r`
//! (`lora_alpha / sqrt(r)` with `use_rslora`).
//!
//! ## When to use, when not
//! The default choice for adapting a decoder or encoder to a task. Where even `r (d_in + d_out)` numbers per map are too
//! many, use prompt tuning; to teach a model much new knowledge, raise the rank (with `use_rslora`) or tune everything.
//!
//! ## Cost
//! Trainable: `r (d_in + d_out)` per map. Extra memory while training: `x Aᵀ` (`r` numbers per token) per map. Extra
//! compute: `2 r (d_in + d_out)` multiply-adds per token forward and about twice that backward. None after merging.
//!
//! ## Defaults and where they come from
//! `r = 8`, `lora_alpha = 16`, no dropout, all linear maps but the head: the paper's rank with the scale `alpha / r = 2`
//! and the targets that later comparisons found best. `A` is Kaiming-uniform with `a = sqrt(5)`, that is uniform within
//! `±1/sqrt(d_in)`, and `B` zero, as in Hugging Face `peft`; `init_lora_weights = "gaussian"` draws `A` with standard
//! deviation `1/r`.
//!
//! ## Departures from the paper
//! The paper scales by `alpha / r` and initialises `A` normally; initialisation follows the released code. Every linear
//! map is adapted by default, where the paper adapts query and value.
//!
//! ## References
//! - Hu, Shen, Wallis, Allen-Zhu, Li, Wang, Wang, Chen: LoRA: Low-Rank Adaptation of Large Language Models, 2021,
//!   arXiv 2106.09685.
//! - Kalajdzievski: A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA, 2023, arXiv 2312.03732.

use std::collections::BTreeMap;

use burn::prelude::*;
use rand::Rng;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::target::{Targets, pattern_value};
use super::{AdaptError, Adapter, BuildContext, Mode, Parameter, Pass, stream};
use crate::model::{Linear, SiteId, SiteKind, SiteTable};

const METHOD: &str = "lora";

/// Initial values of `A` and `B`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Init {
    /// `true`: Kaiming-uniform `A`, zero `B`. `false`: both random, for tests of merging.
    Default(bool),
    /// `"gaussian"`: normal `A` with standard deviation `1/r`, zero `B`.
    Named(String),
}

/// Which biases are trained.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Bias {
    /// None.
    #[default]
    None,
    /// Those of the adapted maps.
    LoraOnly,
}

/// Settings, with `peft`'s names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoraConfig {
    /// Rank.
    pub r: usize,
    /// Scale numerator.
    pub lora_alpha: f64,
    /// Probability of dropping an input element on the low-rank path while training.
    pub lora_dropout: f64,
    /// Scale by `lora_alpha / sqrt(r)`.
    pub use_rslora: bool,
    /// Initial values.
    pub init_lora_weights: Init,
    /// Rank by path pattern.
    pub rank_pattern: BTreeMap<String, usize>,
    /// Scale numerator by path pattern.
    pub alpha_pattern: BTreeMap<String, f64>,
    /// Biases of adapted maps.
    pub bias: Bias,
    /// A bias on `B`, scaled like it.
    pub lora_bias: bool,
    /// Path endings, one regular expression over the whole path, or `all-linear`.
    pub target_modules: super::target::Names,
    /// Same grammar; wins over the targets.
    pub exclude_modules: Option<super::target::Names>,
    /// Only these blocks.
    pub layers_to_transform: Option<super::target::Layers>,
    /// Name of the list of blocks in the path.
    pub layers_pattern: Option<super::target::Names>,
}

impl Default for LoraConfig {
    fn default() -> Self {
        let targets = Targets::default();
        Self {
            r: 8,
            lora_alpha: 16.0,
            lora_dropout: 0.0,
            use_rslora: false,
            init_lora_weights: Init::Default(true),
            rank_pattern: BTreeMap::new(),
            alpha_pattern: BTreeMap::new(),
            bias: Bias::None,
            lora_bias: false,
            target_modules: targets.target_modules,
            exclude_modules: None,
            layers_to_transform: None,
            layers_pattern: None,
        }
    }
}

impl LoraConfig {
    /// Checks ranges.
    ///
    /// # Errors
    /// [`AdaptError::Config`] naming the field.
    pub fn validate(&self) -> Result<(), AdaptError> {
        let bad = |field, reason: String| Err(AdaptError::Config { method: METHOD, field, reason });
        if self.r == 0 || self.rank_pattern.values().any(|&r| r == 0) {
            return bad("r", "the rank must be at least 1".into());
        }
        if !(0.0..1.0).contains(&self.lora_dropout) {
            return bad("lora_dropout", format!("{} is not within 0 (none) and 1 (excluded)", self.lora_dropout));
        }
        if !self.lora_alpha.is_finite() || self.alpha_pattern.values().any(|a| !a.is_finite()) {
            return bad("lora_alpha", "must be a finite number".into());
        }
        match &self.init_lora_weights {
            Init::Named(name) if name != "gaussian" => {
                bad("init_lora_weights", format!("`{name}` is not supported; supported: true, false, \"gaussian\""))
            }
            _ => Ok(()),
        }
    }

    /// The target selection.
    pub fn targets(&self) -> Targets {
        Targets {
            target_modules: self.target_modules.clone(),
            exclude_modules: self.exclude_modules.clone(),
            layers_to_transform: self.layers_to_transform.clone(),
            layers_pattern: self.layers_pattern.clone(),
        }
    }

    fn scale(&self, alpha: f64, rank: usize) -> f64 {
        if self.use_rslora { alpha / (rank as f64).sqrt() } else { alpha / rank as f64 }
    }
}

/// The low-rank pair of one map.
struct Pair {
    path: String,
    a: Parameter,
    b: Parameter,
    /// Bias on `B`.
    b_bias: Option<Parameter>,
    /// Trained copy of the map's own bias.
    base_bias: Option<Parameter>,
    scale: f32,
}

/// A LoRA adapter.
pub struct Lora {
    config: LoraConfig,
    /// Indexed by site.
    pairs: Vec<Option<Pair>>,
}

impl Lora {
    /// Builds the pairs of every selected map.
    ///
    /// # Errors
    /// Bad settings, no matching map, a rank above a map's sides.
    pub fn new(config: LoraConfig, context: &BuildContext<'_>) -> Result<Self, AdaptError> {
        config.validate()?;
        let mut pairs: Vec<Option<Pair>> = (0..context.sites.len()).map(|_| None).collect();
        for id in config.targets().select(context.sites)? {
            pairs[id.index()] = Some(Self::pair(&config, context, id)?);
        }
        let adapter = Self { config, pairs };
        if adapter.config.bias == Bias::LoraOnly && adapter.parameters().iter().all(|p| !p.name().ends_with("base_layer.bias")) {
            return Err(AdaptError::Config { method: METHOD, field: "bias", reason: "none of the adapted maps has a bias: use `bias = \"none\"`".into() });
        }
        Ok(adapter)
    }

    fn pair(config: &LoraConfig, context: &BuildContext<'_>, id: SiteId) -> Result<Pair, AdaptError> {
        let info = context.sites.info(id);
        let (path, d_in, d_out) = (info.path.clone(), info.d_in, info.d_out);
        let rank = pattern_value("rank_pattern", &config.rank_pattern, &path)?.unwrap_or(config.r);
        let alpha = pattern_value("alpha_pattern", &config.alpha_pattern, &path)?.unwrap_or(config.lora_alpha);
        if rank > d_in.min(d_out) {
            return Err(AdaptError::Config {
                method: METHOD,
                field: "r",
                reason: format!("rank {rank} exceeds the smaller side of `{path}` ({d_out} x {d_in}): use at most {}", d_in.min(d_out)),
            });
        }
        let bound = 1.0 / (d_in as f32).sqrt();
        let mut rng = stream(context.seed, &path);
        let a: Vec<f32> = match &config.init_lora_weights {
            Init::Named(_) => (0..rank * d_in).map(|_| normal(&mut rng) / rank as f32).collect(),
            Init::Default(_) => (0..rank * d_in).map(|_| rng.random_range(-bound..bound)).collect(),
        };
        let b: Vec<f32> = match &config.init_lora_weights {
            Init::Default(false) => (0..d_out * rank).map(|_| rng.random_range(-bound..bound)).collect(),
            _ => vec![0.0; d_out * rank],
        };
        let device = &context.device;
        let base_bias = if config.bias == Bias::LoraOnly && info.has_bias {
            let values = context.backbone.and_then(|m| bias_of(m, id)).unwrap_or_else(|| vec![0.0; d_out]);
            Some(Parameter::new(format!("{path}.base_layer.bias"), &[d_out], values, device))
        } else {
            None
        };
        Ok(Pair {
            a: Parameter::new(format!("{path}.lora_A.weight"), &[rank, d_in], a, device),
            b: Parameter::new(format!("{path}.lora_B.weight"), &[d_out, rank], b, device),
            b_bias: config.lora_bias.then(|| Parameter::new(format!("{path}.lora_B.bias"), &[d_out], vec![0.0; d_out], device)),
            base_bias,
            scale: config.scale(alpha, rank) as f32,
            path,
        })
    }

    fn at(&self, site: SiteId) -> Option<&Pair> {
        self.pairs.get(site.index())?.as_ref()
    }

    /// `(path, A [r, d_in], B [d_out, r], scale)` of every adapted map, for export to other formats.
    pub fn factors(&self) -> impl Iterator<Item = (&str, &Parameter, &Parameter, f32)> {
        self.pairs.iter().flatten().map(|p| (p.path.as_str(), &p.a, &p.b, p.scale))
    }
}

fn bias_of(backbone: &dyn crate::model::Backbone, site: SiteId) -> Option<Vec<f32>> {
    let mut found = None;
    backbone.export(&mut |part| {
        if let crate::model::Frozen::Linear(linear) = part
            && linear.site == site
        {
            found = linear.bias.clone().map(super::to_vec);
        }
    });
    found
}

/// A standard normal number (Box-Muller).
fn normal(rng: &mut impl Rng) -> f32 {
    let u: f64 = 1.0 - rng.random::<f64>();
    let v: f64 = rng.random();
    ((-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()) as f32
}

impl Pair {
    fn parameters(&self) -> impl Iterator<Item = &Parameter> {
        [Some(&self.a), Some(&self.b), self.b_bias.as_ref(), self.base_bias.as_ref()].into_iter().flatten()
    }

    fn parameters_mut(&mut self) -> impl Iterator<Item = &mut Parameter> {
        [Some(&mut self.a), Some(&mut self.b), self.b_bias.as_mut(), self.base_bias.as_mut()].into_iter().flatten()
    }
}

struct LoraPass<'a> {
    adapter: &'a Lora,
    mode: Mode,
}

impl Pass for LoraPass<'_> {
    fn linear(&mut self, base: &Linear, x: Tensor<2>) -> Tensor<2> {
        let Some(pair) = self.adapter.at(base.site) else { return base.forward(x) };
        let mode = self.mode;
        let bias = match &pair.base_bias {
            Some(bias) => Some(bias.get::<1>(mode)),
            None => base.bias.clone(),
        };
        let (a, b) = (pair.a.get::<2>(mode), pair.b.get::<2>(mode));
        let y = match mode {
            Mode::Train { seed } if self.adapter.config.lora_dropout > 0.0 => {
                let dropped = dropout(x.clone(), self.adapter.config.lora_dropout, seed, &pair.path);
                let y = Linear { bias, ..base.clone() }.forward(x);
                y + frugal_kernels::linear(frugal_kernels::linear(dropped, a, None), b, None) * pair.scale
            }
            _ => frugal_kernels::lora_linear(x, base.weight.dense(), bias, a, b, pair.scale),
        };
        match &pair.b_bias {
            Some(bias) => y + (bias.get::<1>(mode) * pair.scale).unsqueeze::<2>(),
            None => y,
        }
    }

    fn plain_weight(&mut self, base: &Linear) -> Option<Tensor<2>> {
        if self.adapter.at(base.site).is_some() { None } else { Some(base.weight.dense()) }
    }
}

/// Zeroes elements with probability `p` and scales the rest by `1 / (1 - p)`; the mask follows from seed and place.
pub(super) fn dropout(x: Tensor<2>, p: f64, seed: u64, place: &str) -> Tensor<2> {
    let dims = x.dims();
    let mut rng = stream(seed, place);
    let keep = (1.0 / (1.0 - p)) as f32;
    let mask: Vec<f32> = (0..dims[0] * dims[1]).map(|_| if rng.random::<f32>() < p as f32 { 0.0 } else { keep }).collect();
    let device = x.device().inner();
    x * Tensor::from_data(TensorData::new(mask, dims), &device)
}

impl Adapter for Lora {
    fn method(&self) -> &'static str {
        METHOD
    }

    fn parameters(&self) -> Vec<&Parameter> {
        self.pairs.iter().flatten().flat_map(Pair::parameters).collect()
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        self.pairs.iter_mut().flatten().flat_map(Pair::parameters_mut).collect()
    }

    fn pass(&self, mode: Mode) -> Box<dyn Pass + '_> {
        Box::new(LoraPass { adapter: self, mode })
    }

    fn weight_delta(&self, base: &Linear) -> Result<Option<Tensor<2>>, AdaptError> {
        Ok(self.at(base.site).map(|pair| pair.b.get::<2>(Mode::Eval).matmul(pair.a.get::<2>(Mode::Eval)) * pair.scale))
    }

    fn merged_linear(&self, base: &Linear) -> Result<Option<super::merge::MergedLinear>, AdaptError> {
        let Some(delta) = self.weight_delta(base)? else { return Ok(None) };
        let pair = self.at(base.site).expect("a map with a delta has a pair");
        let own = pair.base_bias.as_ref().map(|p| p.get::<1>(Mode::Eval)).or_else(|| base.bias.clone());
        let added = pair.b_bias.as_ref().map(|p| p.get::<1>(Mode::Eval) * pair.scale);
        let bias = match (own, added) {
            (Some(own), Some(added)) => Some(own + added),
            (own, added) => own.or(added),
        };
        Ok(Some(super::merge::MergedLinear { weight: base.weight.dense() + delta, bias }))
    }

    fn supports_mixed_batch(&self) -> bool {
        true
    }

    fn peft_config(&self) -> Map<String, Value> {
        let c = &self.config;
        let targets: Vec<&str> = self.pairs.iter().flatten().map(|p| p.path.as_str()).collect();
        let init = match &c.init_lora_weights {
            Init::Default(flag) => json!(flag),
            Init::Named(name) => json!(name),
        };
        let fields = json!({
            "peft_type": "LORA", "r": c.r, "lora_alpha": c.lora_alpha, "lora_dropout": c.lora_dropout,
            "use_rslora": c.use_rslora, "init_lora_weights": init, "rank_pattern": c.rank_pattern,
            "alpha_pattern": c.alpha_pattern, "bias": c.bias, "lora_bias": c.lora_bias,
            "target_modules": super::peft::shortest_targets(&c.targets(), &targets),
            "exclude_modules": c.exclude_modules, "layers_to_transform": c.layers_to_transform,
            "layers_pattern": c.layers_pattern, "use_dora": false, "target_parameters": null,
            "trainable_token_indices": null, "loftq_config": {}, "eva_config": null, "corda_config": null,
            "lora_ga_config": null, "megatron_config": null, "megatron_core": "megatron.core", "layer_replication": null,
            "use_qalora": false, "qalora_group_size": 16, "alora_invocation_tokens": null, "arrow_config": null,
            "use_bdlora": null, "velora_config": null, "kasa_config": null, "monteclora_config": null,
            "ensure_weight_tying": false,
        });
        let Value::Object(fields) = fields else { unreachable!("a literal object") };
        fields
    }
}

/// Trainable parameters without building anything: the card's formula `Σ r (d_in + d_out)`.
pub fn count(config: &LoraConfig, sites: &SiteTable) -> Result<usize, AdaptError> {
    let mut total = 0;
    for id in config.targets().select(sites)? {
        let info = sites.info(id);
        debug_assert_ne!(info.kind, SiteKind::Norm);
        let rank = pattern_value("rank_pattern", &config.rank_pattern, &info.path)?.unwrap_or(config.r);
        total += rank * (info.d_in + info.d_out);
        total += if config.lora_bias { info.d_out } else { 0 };
        total += if config.bias == Bias::LoraOnly && info.has_bias { info.d_out } else { 0 };
    }
    Ok(total)
}
