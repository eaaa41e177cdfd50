//! # STABLE-RPS: randomised parameter sharing
//!
//! ## What it does
//! Reads every weight of the chosen layers and tables from one small trained array through a fixed
//! random mapping, so that the model has a tenth, or a hundredth, of its weights. This is ROAST
//! with the mapping and the gradient scaling that make it stable.
//!
//! ## Update rule
//! `wᵢ = λ gᵢ ψ[idx(i)]` with a random sign `gᵢ` and one `λ` per layer. With `m` parameters, flat
//! index `i` in chunk `c = ⌊i / m⌋` reads `idx(i) = (u(c) + i − c m) mod m`: each chunk is a
//! rotation of the whole array (RANDOMFOLD). The step of `ψⱼ` is divided by `Γⱼ = (Σ λᵢ)² / nⱼ`
//! over the `nⱼ` weights that read it, which makes it independent of the scale that `ψ` starts
//! from.
//!
//! ## When to use, when not
//! To train a model whose weights must fit a small memory, from scratch or (with a loss that
//! retraining has to make good) from a trained one. It saves no arithmetic. To adapt a model to a
//! task, low-rank methods lose nothing of the base.
//!
//! ## Cost
//! Trainable: `⌊n / compression⌋` for `n` weights. Extra memory: in a pass, each weight that is
//! read is formed, with its sign, which is drawn again each time from one bit of a hash. Extra
//! compute: forming it, and a gradient of the array's length per layer. After merging none, but then the weights are as many
//! as before.
//!
//! ## Defaults and where they come from
//! `compression = 10` lies in the middle of the range of the paper; `sigma = 0.05`, the mapping,
//! the gradient scaling, the polynomial hash and `seed = 123321` are those of the released code.
//! `init = "fit"` sets `ψ` by least squares to the model's weights; `"random"` draws it from N(0,
//! sigma²) to train from scratch.
//!
//! ## Departures from the paper
//! `ψ` is normal with deviation `sigma`; the released code draws it uniformly within `±sigma` and
//! divides by `sigma`, so its weights start 1.73 times too small. The released code divides the
//! gradient by all of `Γ`. Adam does not see the scale of a gradient, but its ε and the clipping of
//! norms do, so `Γ` is divided in two: the gradient by `Σ λᵢ` (`scale_gradient`), which makes it
//! the mean of the weights' own, and the update by `Σ λᵢ / nⱼ` (`scale_update`), which makes it one
//! of weights. For gradient descent the two are the paper's `Γ`; with them a run of Adam with
//! clipping does not depend on `sigma` either. Signs come from SplitMix64. `mapper = "roast"` and
//! `"hashed"` are the baselines; they hold an index for every weight. Norms and biases stay as they
//! are, and the head follows a shared table when they are one matrix.
//!
//! ## References
//! - Desai, Shrivastava: In defense of parameter sharing for model-compression, 2024, arXiv
//!   2310.11611.
//! - Desai, Zhou, Shrivastava: Hardware-Aware Compression with Random Operation Access Specific
//!   Tile (ROAST) Hashing, 2023, arXiv 2207.10702.

mod mapping;

use burn::prelude::*;
use frugal_nn::{
    AdaptError, Adapter, BuildContext, Embedding, Frozen, GradientSum, Linear, LinearChange,
    MergedLinear, Mode, Parameter, Pass, SiteId, SiteKind, StepContext, lookup, named_rng,
    standard_normal, to_vec,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::method::{Family, Method, MethodConfig};
use crate::methods::compression::stable_rps::mapping::{Mapping, Span, Usage};
use crate::settings::Settings;
use crate::support::own_files;
use crate::target::Targets;

pub use crate::methods::compression::stable_rps::mapping::Mapper;

const NAME: &str = "stable-rps";
const PEFT_TYPE: &str = "STABLE_RPS";

/// Registry entry.
pub const METHOD: Method = Method::of::<StableRpsConfig>(
    Family::Compression,
    "All weights read from one small shared array",
    include_str!("mod.rs"),
)
.aliases(&["rps", "roast"])
.without_identity();

/// First values of the array.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Init {
    /// Those that come nearest to the model's weights.
    #[default]
    Fit,
    /// Normal.
    Random,
}

/// Settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct StableRpsConfig {
    /// Weights per parameter.
    pub compression: f64,
    /// Deviation of the array's first values.
    pub sigma: f64,
    /// Which parameter each weight reads.
    pub mapper: Mapper,
    /// Tile of the `roast` mapper, rows and columns.
    pub block: [usize; 2],
    /// First values of the array.
    pub init: Init,
    /// Divide each parameter's gradient by the sum of its readers' `λ`.
    pub scale_gradient: bool,
    /// Divide each parameter's update by the mean `λ` of its readers.
    pub scale_update: bool,
    /// Decides mapping and signs.
    pub seed: u64,
    /// Which layers and tables.
    #[serde(flatten)]
    pub targets: Targets,
}

impl Default for StableRpsConfig {
    fn default() -> Self {
        Self {
            compression: 10.0,
            sigma: 0.05,
            mapper: Mapper::RandomFold,
            block: [8, 8],
            init: Init::Fit,
            scale_gradient: true,
            scale_update: true,
            seed: 123_321,
            targets: Targets::default(),
        }
    }
}

impl MethodConfig for StableRpsConfig {
    const NAME: &'static str = NAME;
    const PEFT_TYPE: &'static str = PEFT_TYPE;

    fn validate(&self) -> Result<(), AdaptError> {
        let bad = |field, reason: String| {
            Err(AdaptError::Config {
                method: NAME,
                field,
                reason,
            })
        };
        if !(self.compression.is_finite() && self.compression >= 1.0) {
            return bad(
                "compression",
                format!("{} is not a number of at least 1", self.compression),
            );
        }
        if !(self.sigma.is_finite() && self.sigma > 0.0) {
            return bad("sigma", format!("{} is not a positive number", self.sigma));
        }
        if self.block.contains(&0) {
            return bad("block", "both sides must be at least 1".into());
        }
        Ok(())
    }

    fn build(self, context: &BuildContext<'_>) -> Result<Box<dyn Adapter>, AdaptError> {
        Ok(Box::new(StableRps::new(self, context)?))
    }

    fn from_peft(config: &Settings) -> Result<Settings, AdaptError> {
        let mut settings = own_files::from_file::<StableRpsConfig>(config);
        // The values come from the file.
        settings.insert("init".into(), json!("random"));
        Ok(settings)
    }
}

/// A matrix that is read from the array.
struct Shared {
    span: Span,
    /// Its place among the scales.
    index: usize,
    /// Parameter of each weight, for mappers without structure.
    indices: Option<Tensor<1, Int>>,
}

/// A STABLE-RPS adapter.
pub struct StableRps {
    config: StableRpsConfig,
    mapping: Mapping,
    /// Indexed by site.
    sites: Vec<Option<Shared>>,
    /// The output head and the token table, when they are one shared matrix.
    tied_head: Option<(SiteId, SiteId)>,
    /// `[m]`.
    psi: Parameter,
    /// `λ` of every matrix.
    scale: Parameter,
    usage: Option<Usage>,
    /// The array before the step that is being taken.
    before: Vec<f32>,
    saved_targets: Value,
}

/// Weights of the chosen sites, row by row.
fn base_weights(context: &BuildContext<'_>) -> Vec<Option<Vec<f32>>> {
    let mut weights = vec![None; context.sites.len()];
    if let Some(backbone) = context.backbone {
        backbone.visit_weights(&mut |part| match part {
            Frozen::Linear(linear) => {
                weights[linear.site.index()] = Some(to_vec(linear.weight.dense()))
            }
            Frozen::Embedding(table) => {
                weights[table.site.index()] = Some(to_vec(table.weight.dense()))
            }
            Frozen::Norm(_) | Frozen::Conv(_) | Frozen::Param(_) => {}
        });
    }
    weights
}

fn deviation(values: &[f32]) -> f64 {
    let n = values.len() as f64;
    let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
    (values
        .iter()
        .map(|&v| (f64::from(v) - mean).powi(2))
        .sum::<f64>()
        / n)
        .sqrt()
}

impl StableRps {
    /// Lays out the array for every selected layer and table.
    ///
    /// # Errors
    /// Bad settings, no matching layer, more compression than there are weights.
    pub fn new(config: StableRpsConfig, context: &BuildContext<'_>) -> Result<Self, AdaptError> {
        config.validate()?;
        let chosen = config.targets.select(context.sites)?;
        let mut sites: Vec<Option<Shared>> = (0..context.sites.len()).map(|_| None).collect();
        let (mut offset, mut matrices) = (0, 0);
        for &id in chosen.iter().filter(|id| !context.sites.info(**id).tied) {
            let info = context.sites.info(id);
            let (rows, cols) = if info.kind == SiteKind::Embedding {
                (info.d_in, info.d_out)
            } else {
                (info.d_out, info.d_in)
            };
            let span = Span { offset, rows, cols };
            sites[id.index()] = Some(Shared {
                span,
                index: matrices,
                indices: None,
            });
            (offset, matrices) = (offset + rows * cols, matrices + 1);
        }
        let m = (offset as f64 / config.compression) as usize;
        if m == 0 {
            let reason = format!(
                "{} leaves no parameter for {offset} weights: lower it",
                config.compression
            );
            return Err(AdaptError::Config {
                method: NAME,
                field: "compression",
                reason,
            });
        }
        let mapping = Mapping {
            mapper: config.mapper,
            m,
            block: config.block,
            seed: config.seed,
        };
        if config.mapper != Mapper::RandomFold {
            for shared in sites.iter_mut().flatten() {
                let indices: Vec<i64> = mapping
                    .indices(shared.span)
                    .into_iter()
                    .map(|j| j as i64)
                    .collect();
                shared.indices = Some(Tensor::from_data(
                    TensorData::from(indices.as_slice()),
                    &context.device.clone().inner(),
                ));
            }
        }
        let tied = context.sites.iter().find(|(_, s)| s.tied).map(|(id, _)| id);
        let table = context
            .sites
            .iter()
            .next()
            .map(|(id, _)| id)
            .filter(|id| sites[id.index()].is_some());
        let mut adapter = Self {
            psi: Parameter::new("rps.psi", &[m], vec![0.0; m], &context.device),
            scale: Parameter::frozen(
                "rps.scale",
                &[matrices],
                vec![1.0; matrices],
                &context.device,
            ),
            saved_targets: crate::target::saved_targets(&config.targets, context.sites, &chosen),
            tied_head: tied.zip(table),
            usage: None,
            before: Vec::new(),
            config,
            mapping,
            sites,
        };
        adapter.initialise(context);
        Ok(adapter)
    }

    fn initialise(&mut self, context: &BuildContext<'_>) {
        let (m, sigma) = (self.mapping.m, self.config.sigma);
        let weights = base_weights(context);
        let mut scales = vec![1.0f32; self.scale.len()];
        let (mut product, mut square) = (vec![0.0f64; m], vec![0.0f64; m]);
        for (shared, values) in self.sites.iter().zip(&weights) {
            let (Some(shared), Some(values)) = (shared, values) else {
                continue;
            };
            let lambda = (deviation(values) / sigma).max(f64::from(f32::MIN_POSITIVE));
            scales[shared.index] = lambda as f32;
            if self.config.init == Init::Fit {
                let signs = self.mapping.signs(shared.span);
                for ((j, &sign), &w) in self
                    .mapping
                    .indices(shared.span)
                    .into_iter()
                    .zip(&signs)
                    .zip(values)
                {
                    product[j] += lambda * f64::from(sign * w);
                    square[j] += lambda * lambda;
                }
            }
        }
        let mut rng = named_rng(context.seed, "rps psi");
        let psi = match self.config.init {
            Init::Random => (0..m)
                .map(|_| sigma as f32 * standard_normal(&mut rng))
                .collect(),
            Init::Fit => product
                .iter()
                .zip(&square)
                .map(|(p, s)| if *s > 0.0 { (p / s) as f32 } else { 0.0 })
                .collect(),
        };
        self.psi.set(psi);
        self.scale.set(scales);
    }

    fn at(&self, site: SiteId) -> Option<&Shared> {
        let site = match self.tied_head {
            Some((head, table)) if head == site => table,
            _ => site,
        };
        self.sites.get(site.index())?.as_ref()
    }

    /// The matrix `[rows, cols]` of a site, read from this `ψ`.
    fn weight(&self, shared: &Shared, psi: &Tensor<1>) -> Tensor<2> {
        let device = psi.device().inner();
        let read = match &shared.indices {
            Some(indices) => psi.clone().select(0, indices.clone()),
            None => Tensor::cat(
                self.mapping
                    .fold(shared.span)
                    .into_iter()
                    .map(|range| psi.clone().slice([range]))
                    .collect(),
                0,
            ),
        };
        (read * self.factors(shared, &device)).reshape([shared.span.rows, shared.span.cols])
    }

    /// `λ gᵢ` of every weight of a site. DerivedCache, these would be as large as the weights that the array
    /// stands for.
    fn factors(&self, shared: &Shared, device: &Device) -> Tensor<1> {
        let lambda = self.scale.to_vec()[shared.index];
        let mut factors = self.mapping.signs(shared.span);
        factors.iter_mut().for_each(|sign| *sign *= lambda);
        Tensor::from_data(TensorData::from(factors.as_slice()), device)
    }

    /// The matrix of a site outside the gradient graph.
    fn plain(&self, shared: &Shared) -> Tensor<2> {
        self.weight(shared, &self.psi.get::<1>(Mode::Eval))
    }

    fn usage(&mut self) -> &Usage {
        let (mapping, scales) = (self.mapping, self.scale.to_vec());
        let sites = &self.sites;
        let new = || {
            Usage::new(
                mapping.m,
                sites
                    .iter()
                    .flatten()
                    .map(|s| (mapping.indices(s.span), scales[s.index])),
            )
        };
        self.usage.get_or_insert_with(new)
    }
}

struct StableRpsPass<'a> {
    adapter: &'a StableRps,
    /// Taken once, so that all matrices add to one gradient instead of holding one each.
    psi: Tensor<1>,
}

impl StableRpsPass<'_> {
    fn weight(&self, site: SiteId) -> Option<Tensor<2>> {
        self.adapter
            .at(site)
            .map(|shared| self.adapter.weight(shared, &self.psi))
    }
}

impl Pass for StableRpsPass<'_> {
    fn embedding(&mut self, base: &Embedding, ids: &[u32]) -> Tensor<2> {
        self.weight(base.site)
            .map_or_else(|| base.forward(ids), |table| lookup(table, ids))
    }

    fn linear_change(&mut self, base: &Linear) -> LinearChange {
        match self.weight(base.site) {
            None => LinearChange::None,
            Some(weight) => LinearChange::Weight(weight),
        }
    }
}

impl Adapter for StableRps {
    fn method(&self) -> &'static str {
        NAME
    }

    fn parameters(&self) -> Vec<&Parameter> {
        vec![&self.psi, &self.scale]
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        vec![&mut self.psi, &mut self.scale]
    }

    fn pass(&self, mode: Mode) -> Box<dyn Pass + '_> {
        Box::new(StableRpsPass {
            adapter: self,
            psi: self.psi.get::<1>(mode),
        })
    }

    fn peft_config(&self) -> Map<String, Value> {
        own_files::to_file(PEFT_TYPE, &self.config, &self.saved_targets)
    }

    fn weight_delta(&self, base: &Linear) -> Result<Option<Tensor<2>>, AdaptError> {
        Ok(self
            .at(base.site)
            .map(|shared| self.plain(shared) - base.weight.dense()))
    }

    fn merged_linear(&self, base: &Linear) -> Result<Option<MergedLinear>, AdaptError> {
        let merged = |shared| MergedLinear {
            weight: self.plain(shared),
            bias: base.bias.clone(),
        };
        Ok(self.at(base.site).map(merged))
    }

    fn unmerged_linear(&self, _merged: &Linear) -> Result<Option<MergedLinear>, AdaptError> {
        let reason = "it replaces the weights; load the base model".into();
        Err(AdaptError::Unsupported {
            method: NAME,
            action: "be taken out again",
            reason,
        })
    }

    fn merged_embedding(&self, base: &Embedding) -> Option<Tensor<2>> {
        self.at(base.site).map(|shared| self.plain(shared))
    }

    fn before_step(&mut self, _context: &StepContext, gradients: &mut GradientSum) {
        if self.config.scale_gradient
            && let Some(gradient) = gradients.get_mut("rps.psi")
        {
            let sums = self.usage().sums();
            gradient.iter_mut().zip(sums).for_each(|(g, sum)| *g /= sum);
        }
        if self.config.scale_update {
            self.before = self.psi.to_vec();
        }
    }

    fn after_step(&mut self, _context: &StepContext) {
        if !self.config.scale_update {
            return;
        }
        let mean = self.usage().mean();
        let before = std::mem::take(&mut self.before);
        let values = self
            .psi
            .to_vec()
            .into_iter()
            .zip(before)
            .zip(mean)
            .map(|((new, old), mean)| old + (new - old) / mean);
        self.psi.set(values.collect());
    }

    fn needs_trainer(&self) -> bool {
        self.config.scale_gradient || self.config.scale_update
    }

    fn materializes_weight(&self, base: &Linear) -> bool {
        self.at(base.site).is_some()
    }

    fn materializes_embedding(&self, base: &Embedding) -> bool {
        self.at(base.site).is_some()
    }

    fn supports_mixed_batch(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests;
