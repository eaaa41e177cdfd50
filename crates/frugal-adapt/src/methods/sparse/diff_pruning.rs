//! # Diff pruning: a sparse change of the weights, learned together with where it is
//!
//! ## What it does
//! Adds a change to the model's own weights and learns for every entry whether to keep it, by a
//! relaxed gate and a price on open gates. Then only the largest changes are kept and trained on.
//!
//! ## Update rule
//! `y = x (W + z ⊙ w)ᵀ`. While the places are learned, `z = min(1, max(0, s (ζ − γ) + γ))` with
//! `s = σ(log u − log(1 − u) + α)`, `u` uniform for every entry and pass, and the loss gains
//! `sparsity_pen · Σ σ(α − log(−γ / ζ))`, the expected number of open gates. With `structured`, `z`
//! is multiplied by one gate per matrix. For the last `fixmask_ratio` of the run, `z` is 1 at the
//! `density` of all entries with the largest `|z w|` and 0 elsewhere.
//!
//! ## When to use, when not
//! When the change must be sparse and the run is long enough to find its places; `fish-mask` fixes
//! them at once. While the places are learned it needs more memory than full training: two numbers
//! per weight instead of one.
//!
//! ## Cost
//! Trainable at first: two numbers per entry of the chosen layers; kept: `density` of the entries.
//! Extra compute: a random number and a gate per entry and pass. None after merging.
//!
//! ## Defaults and where they come from
//! Half a per cent of the entries, `γ = −1.5`, `ζ = 1.5`, `α` starting at 5, a price of `1.25e-7`
//! and gates per matrix: the settings of the released code. Gates learn 100 times as fast as the
//! change; the released code gives them a rate of their own too.
//!
//! ## Departures from the paper
//! The paper prunes after training and then trains on with the mask in a second run; here that is
//! the last part of one run. Biases, norms and tables stay frozen.
//!
//! ## References
//! - Guo, Rush, Kim: Parameter-Efficient Transfer Learning with Diff Pruning, 2020, arXiv
//!   2012.07463.
//! - Louizos, Welling, Kingma: Learning Sparse Neural Networks through L0 Regularization, 2017,
//!   arXiv 1712.01312.

use std::collections::BTreeMap;

use burn::prelude::*;
use burn::tensor::activation::sigmoid;
use frugal_nn::{
    AdaptError, Adapter, BuildContext, Linear, Mode, Parameter, Pass, StepContext, named_rng,
    to_vec,
};
use rand::Rng;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::method::{Family, Method, MethodConfig};
use crate::support::own_files;
use crate::support::sparse::{
    AddsToWeights, DeltaPass, Place, Places, SparseDelta, SparseFile, budget, top,
};
use crate::target::{Layers, Names, Targets};

const NAME: &str = "diff-pruning";

/// Registry entry.
pub const METHOD: Method = Method::of::<DiffPruningConfig>(
    Family::Sparse,
    "A sparse change of the weights, learned together with where it is",
    include_str!("diff_pruning.rs"),
)
.aliases(&["diffpruning"])
.default_lr(1.5e-3);

/// Settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DiffPruningConfig {
    /// Share of the entries that is kept.
    pub density: f64,
    /// Share of the run with fixed places.
    pub fixmask_ratio: f64,
    /// Price of an open gate.
    pub sparsity_pen: f64,
    /// One more gate for each matrix.
    pub structured: bool,
    /// `α` at the start.
    pub alpha_init: f64,
    /// Factor on the learning rate of `α`.
    pub alpha_lr_scale: f64,
    /// `γ`, below 0.
    pub concrete_lower: f64,
    /// `ζ`, above 1.
    pub concrete_upper: f64,
    /// Path endings, one regular expression over the whole path, or `all-linear`.
    pub target_modules: Names,
    /// Same grammar; wins over the targets.
    pub exclude_modules: Option<Names>,
    /// Only these blocks.
    pub layers_to_transform: Option<Layers>,
    /// Entries of each layer; what files have.
    pub nnz: Option<BTreeMap<String, usize>>,
}

impl Default for DiffPruningConfig {
    fn default() -> Self {
        Self {
            density: 0.005,
            fixmask_ratio: 0.4,
            sparsity_pen: 1.25e-7,
            structured: true,
            alpha_init: 5.0,
            alpha_lr_scale: 100.0,
            concrete_lower: -1.5,
            concrete_upper: 1.5,
            target_modules: Targets::default().target_modules,
            exclude_modules: None,
            layers_to_transform: None,
            nnz: None,
        }
    }
}

impl MethodConfig for DiffPruningConfig {
    const NAME: &'static str = NAME;
    const PEFT_TYPE: &'static str = "DIFF_PRUNING";

    fn validate(&self) -> Result<(), AdaptError> {
        let bad = |field, reason: &str| {
            Err(AdaptError::Config {
                method: NAME,
                field,
                reason: reason.into(),
            })
        };
        if !(self.density > 0.0 && self.density <= 1.0) {
            return bad("density", "must be above 0 and at most 1");
        }
        if !(self.fixmask_ratio > 0.0 && self.fixmask_ratio < 1.0) {
            return bad("fixmask_ratio", "must be between 0 and 1");
        }
        if !(self.sparsity_pen >= 0.0 && self.sparsity_pen.is_finite()) {
            return bad("sparsity_pen", "must be zero or positive");
        }
        if !(self.alpha_lr_scale > 0.0 && self.alpha_lr_scale.is_finite()) {
            return bad("alpha_lr_scale", "must be positive");
        }
        if !self.alpha_init.is_finite() {
            return bad("alpha_init", "must be a number");
        }
        if !(self.concrete_lower < 0.0 && self.concrete_lower.is_finite()) {
            return bad("concrete_lower", "must be below 0");
        }
        if !(self.concrete_upper > 1.0 && self.concrete_upper.is_finite()) {
            return bad("concrete_upper", "must be above 1");
        }
        Ok(())
    }

    fn build(self, context: &BuildContext<'_>) -> Result<Box<dyn Adapter>, AdaptError> {
        DiffPruning::build(self, context)
    }
}

impl DiffPruningConfig {
    fn targets(&self) -> Targets {
        Targets {
            target_modules: self.target_modules.clone(),
            exclude_modules: self.exclude_modules.clone(),
            layers_to_transform: self.layers_to_transform.clone(),
            ..Targets::default()
        }
    }

    /// The gate for `logit`, which is `α` with or without noise.
    fn gate<const D: usize>(&self, logit: Tensor<D>) -> Tensor<D> {
        let (lower, upper) = (self.concrete_lower, self.concrete_upper);
        (sigmoid(logit) * (upper - lower) + lower).clamp(0.0, 1.0)
    }

    /// Probability that a gate is open.
    fn open<const D: usize>(&self, alpha: Tensor<D>) -> Tensor<D> {
        sigmoid(alpha - (-self.concrete_lower / self.concrete_upper).ln())
    }
}

/// While the places are learned: the change of a layer, and its gates.
struct Gated {
    /// `[d_out, d_in]`.
    w: Parameter,
    /// `[d_out, d_in]`.
    alpha: Parameter,
    /// `[1]`.
    group: Option<Parameter>,
}

impl Gated {
    fn new(place: &Place, config: &DiffPruningConfig, device: &Device) -> Self {
        let shape = [place.d_out, place.d_in];
        let start = config.alpha_init as f32;
        let alpha = |name: &str, shape: &[usize]| {
            let values = vec![start; shape.iter().product()];
            Parameter::new(format!("{}.{name}", place.path), shape, values, device)
                .with_lr_scale(config.alpha_lr_scale)
        };
        Self {
            w: Parameter::new(
                format!("{}.diff", place.path),
                &shape,
                vec![0.0; place.len()],
                device,
            ),
            alpha: alpha("alpha", &shape),
            group: config.structured.then(|| alpha("group_alpha", &[1])),
        }
    }

    /// `z ⊙ w`; gates have noise while training.
    fn delta(&self, place: &Place, config: &DiffPruningConfig, mode: Mode) -> Tensor<2> {
        let (mut alpha, mut group) = (
            self.alpha.get::<2>(mode),
            self.group.as_ref().map(|g| g.get::<1>(mode)),
        );
        if let Mode::Train { seed } = mode {
            let mut rng = named_rng(seed, &place.path);
            let mut noise = |n: usize| -> Vec<f32> {
                let logit = |u: f32| (u.ln() - (1.0 - u).ln()).clamp(-20.0, 20.0);
                (0..n).map(|_| logit(rng.random::<f32>())).collect()
            };
            let device = alpha.device().inner();
            alpha = alpha
                + Tensor::from_data(
                    TensorData::new(noise(place.len()), [place.d_out, place.d_in]),
                    &device,
                );
            group =
                group.map(|g| g + Tensor::<1>::from_data(TensorData::new(noise(1), [1]), &device));
        }
        let delta = config.gate(alpha) * self.w.get::<2>(mode);
        match group {
            Some(group) => delta * config.gate(group).unsqueeze::<2>(),
            None => delta,
        }
    }

    /// Expected number of open gates, `[1]`.
    fn open(&self, config: &DiffPruningConfig, mode: Mode) -> Tensor<1> {
        let entries = config.open(self.alpha.get::<2>(mode)).sum();
        match &self.group {
            Some(group) => entries * config.open(group.get::<1>(mode)),
            None => entries,
        }
    }

    fn parameters(&self) -> impl Iterator<Item = &Parameter> {
        [&self.w, &self.alpha].into_iter().chain(&self.group)
    }

    fn parameters_mut(&mut self) -> impl Iterator<Item = &mut Parameter> {
        [&mut self.w, &mut self.alpha]
            .into_iter()
            .chain(&mut self.group)
    }
}

/// Diff pruning while it is trained.
pub struct DiffPruning {
    config: DiffPruningConfig,
    places: Places,
    sparse: SparseDelta,
    /// While the places are learned, one for each of `places`.
    gated: Vec<Gated>,
    device: Device,
}

impl DiffPruning {
    /// Builds the adapter, in the form of files where the settings have `nnz`.
    ///
    /// # Errors
    /// Bad settings, no matching layer.
    pub fn build(
        config: DiffPruningConfig,
        context: &BuildContext<'_>,
    ) -> Result<Box<dyn Adapter>, AdaptError> {
        config.validate()?;
        let places = Places::new(NAME, &config.targets(), context)?;
        if let Some(nnz) = &config.nnz {
            return Ok(Box::new(SparseFile::new(
                NAME,
                own_files::all_to_file("DIFF_PRUNING", &config),
                &places.list,
                nnz,
                context,
            )?));
        }
        Ok(Box::new(Self::new(config, places, context)))
    }

    fn new(config: DiffPruningConfig, places: Places, context: &BuildContext<'_>) -> Self {
        Self {
            sparse: SparseDelta::new(budget(&places.list, config.density), &context.device),
            gated: places
                .list
                .iter()
                .map(|place| Gated::new(place, &config, &context.device))
                .collect(),
            device: context.device.clone(),
            config,
            places,
        }
    }

    /// Keeps the largest changes and fixes their places.
    fn project(&mut self) {
        let dense =
            |(gated, place): (&Gated, &Place)| to_vec(gated.delta(place, &self.config, Mode::Eval));
        let changes: Vec<Vec<f32>> = self
            .gated
            .iter()
            .zip(&self.places.list)
            .map(dense)
            .collect();
        let sizes: Vec<Vec<f32>> = changes
            .iter()
            .map(|map| map.iter().map(|v| v.abs()).collect())
            .collect();
        let entries = top(&sizes, self.sparse.values.len());
        let kept = entries
            .iter()
            .zip(&changes)
            .flat_map(|(entries, map)| entries.iter().map(|&i| map[i as usize]))
            .collect();
        self.sparse.values.set(kept);
        self.sparse.entries = Some(entries);
        self.gated.clear();
    }
}

impl AddsToWeights for DiffPruning {
    fn delta(&self, base: &Linear, mode: Mode) -> Option<Tensor<2>> {
        let index = self.places.index(base.site)?;
        match self.gated.get(index) {
            Some(gated) => Some(gated.delta(&self.places.list[index], &self.config, mode)),
            None => self.sparse.delta(index, &self.places.list[index], mode),
        }
    }

    fn acts_on(&self, base: &Linear) -> bool {
        self.places.index(base.site).is_some()
    }

    fn penalty(&self, mode: Mode) -> Option<Tensor<1>> {
        let open = self
            .gated
            .iter()
            .map(|gated| gated.open(&self.config, mode));
        open.reduce(|a, b| a + b)
            .map(|open| open * self.config.sparsity_pen)
    }
}

impl Adapter for DiffPruning {
    fn method(&self) -> &'static str {
        NAME
    }

    fn parameters(&self) -> Vec<&Parameter> {
        std::iter::once(&self.sparse.values)
            .chain(self.gated.iter().flat_map(Gated::parameters))
            .collect()
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        std::iter::once(&mut self.sparse.values)
            .chain(self.gated.iter_mut().flat_map(Gated::parameters_mut))
            .collect()
    }

    fn num_trainable(&self) -> usize {
        self.sparse.values.len()
    }

    fn pass(&self, mode: Mode) -> Box<dyn Pass + '_> {
        Box::new(DeltaPass {
            adapter: self,
            mode,
        })
    }

    fn after_step(&mut self, context: &StepContext) {
        let learning = (context.total_steps as f64 * (1.0 - self.config.fixmask_ratio)) as u64;
        if !self.gated.is_empty() && context.step >= learning.max(1) {
            self.project();
        }
    }

    fn state(&self) -> BTreeMap<String, Vec<f32>> {
        self.sparse
            .state(&self.places.list)
            .map(|entries| ("entries".to_owned(), entries))
            .into_iter()
            .collect()
    }

    fn restore(&mut self, state: &BTreeMap<String, Vec<f32>>) -> Result<(), String> {
        self.sparse
            .restore(state.get("entries"), &self.places.list)?;
        self.gated = match self.sparse.entries {
            Some(_) => Vec::new(),
            None => self
                .places
                .list
                .iter()
                .map(|place| Gated::new(place, &self.config, &self.device))
                .collect(),
        };
        Ok(())
    }

    fn needs_trainer(&self) -> bool {
        true
    }

    fn is_complete(&self) -> bool {
        self.gated.is_empty()
    }

    fn to_inference(&self) -> Option<Box<dyn Adapter>> {
        if !self.gated.is_empty() {
            // A run that was broken off before its places were fixed: they are fixed for the file.
            let mut projected = Self {
                config: self.config.clone(),
                places: self.places.clone(),
                sparse: SparseDelta::new(self.sparse.values.len(), &self.device),
                gated: self.gated.iter().map(Gated::copy).collect(),
                device: self.device.clone(),
            };
            projected.project();
            return projected.to_inference();
        }
        Some(Box::new(self.sparse.finished(
            NAME,
            self.peft_config(),
            &self.places.list,
        )))
    }

    fn peft_config(&self) -> Map<String, Value> {
        own_files::all_to_file("DIFF_PRUNING", &self.config)
    }

    fn weight_delta(&self, base: &Linear) -> Result<Option<Tensor<2>>, AdaptError> {
        Ok(self.delta(base, Mode::Eval))
    }

    fn materializes_weight(&self, base: &Linear) -> bool {
        self.acts_on(base)
    }

    fn supports_mixed_batch(&self) -> bool {
        true
    }
}

impl Gated {
    fn copy(&self) -> Self {
        Self {
            w: self.w.clone(),
            alpha: self.alpha.clone(),
            group: self.group.clone(),
        }
    }
}

#[cfg(test)]
mod tests;
