//! # ID3: step-by-step unmasking
//!
//! ## What it does
//! Trains a small number of the model's own weights, chosen while training: every step scores the
//! frozen ones by gradient and magnitude and releases a few more until a budget is spent. What was
//! released stays trainable.
//!
//! ## Update rule
//! Score `H = |∇| / (|θ| + eps)^exp` with the gradient of the step. Step `t` of `T` releases the
//! `u_t` frozen weights of highest score over all layers, `u_t = ⌊B / T⌋`, one more in the first
//! `B mod T` steps; then the optimiser updates all released ones. In the end exactly `B` weights
//! differ from the base. `criterion` and `schedule` give what it is compared with: `pafi` releases
//! the smallest weights and `random` any; `static` spends the budget in the first step, and `repeat`
//! chooses `B` anew in every step and lets go of the others.
//!
//! ## When to use, when not
//! When the change must be a short list of weights, exact elsewhere. It needs the gradients of all
//! candidates, so it saves storage and not memory: where memory is short, use LoRA.
//!
//! ## Cost
//! Trainable: `budget`. Extra memory: a change, a gradient, two moments and a score for every
//! candidate weight. Extra compute: the gradients of all candidates and two passes over their
//! scores per step. None after merging. The file holds three numbers per released weight.
//!
//! ## Defaults and where they come from
//! `budget = 320000` is the larger budget that the paper uses on GLUE. `exp = 1`, `eps = 0.1` lie
//! within the region that its ablation finds best (it reports no significant difference between 1
//! and 2, or 0.1 and 1). `exp = 0` scores by gradient alone, as FishMask does; a large `exp`
//! prefers small weights, as PaFi does.
//!
//! ## Departures from the paper
//! Candidates are the weights of linear layers; `candidates` may name `bias`, `norm` and `embedding`
//! too, of which the gains of norms, near 1, score low. A task head is trained in full outside the
//! budget. What is trained is the change of each weight, so weight
//! decay pulls towards the base and frozen weights stay exact under it. Selection is exact; ties go
//! to the earlier layer and index (the released code may exceed its budget and release weights
//! twice). Bias correction of the
//! moments counts all steps, as in the released code: the first update of a late weight is larger
//! by up to `(1 − β₁) / √(1 − β₂)`, 3.16 with the usual values.
//!
//! ## References
//! - Agarwal, Ramesh, Sengupta, Chakraborty: Step-by-Step Unmasking for Parameter-Efficient
//!   Fine-tuning of Large Language Models, 2024, arXiv 2408.14470.

mod candidates;
mod config;
mod select;
mod site;

use std::collections::BTreeMap;

use burn::prelude::*;
use frugal_nn::{
    AdaptError, Adapter, BuildContext, Embedding, GradientSum, Linear, LinearChange, MergedLinear,
    Mode, Norm, NormChange, Parameter, Pass, SiteId, StepContext, lookup,
};
use serde_json::{Map, Value};

use crate::method::{Family, Method, MethodConfig};
use crate::methods::sparse::id3::candidates::{chosen_sites, frozen, shapes};
use crate::methods::sparse::id3::config::NAME;
use crate::methods::sparse::id3::select::highest;
use crate::methods::sparse::id3::site::{Change, Site, sparse};
use crate::support::by_site::{BySite, HasParameters};
use crate::support::own_files;

pub use crate::methods::sparse::id3::config::{Candidate, Criterion, Id3Config, Schedule};

const PEFT_TYPE: &str = "ID3";

/// Registry entry.
pub const METHOD: Method = Method::of::<Id3Config>(
    Family::Sparse,
    "Releases more of the model's own weights in every step, up to a budget",
    include_str!("id3.rs"),
)
.aliases(&["step-by-step-unmasking"]);

impl MethodConfig for Id3Config {
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
        if self.budget == 0 {
            return bad("budget", "must be at least 1".into());
        }
        if !self.exp.is_finite() {
            return bad("exp", format!("{} is not a number", self.exp));
        }
        if !(self.eps.is_finite() && self.eps > 0.0) {
            return bad("eps", format!("{} is not a positive number", self.eps));
        }
        if self.candidates.is_empty() {
            return bad(
                "candidates",
                "name at least one of `linear`, `bias`, `norm` and `embedding`".into(),
            );
        }
        Ok(())
    }

    fn build(self, context: &BuildContext<'_>) -> Result<Box<dyn Adapter>, AdaptError> {
        Ok(Box::new(Id3::new(self, context)?))
    }
}

/// An ID3 adapter.
pub struct Id3 {
    config: Id3Config,
    /// Weights of linear layers, tables, and gains of norms.
    sites: BySite<Site>,
    /// Biases.
    biases: BySite<Site>,
    /// The output head and the token table, when they are one matrix that is a candidate.
    tied_head: Option<(SiteId, SiteId)>,
    seed: u64,
    device: Device,
    saved_targets: Value,
}

impl Id3 {
    /// Makes all selected weights candidates, or takes those that a file lists.
    ///
    /// # Errors
    /// Bad settings, no matching layer, a table among the targets, counts that the layers do not have.
    pub fn new(config: Id3Config, context: &BuildContext<'_>) -> Result<Self, AdaptError> {
        config.validate()?;
        let (chosen, linear) = chosen_sites(&config, context)?;
        let [mut weights, mut biases] = frozen(context);
        let mut adapter = Self {
            sites: BySite::empty(context.sites),
            biases: BySite::empty(context.sites),
            tied_head: None,
            seed: context.seed,
            device: context.device.clone(),
            saved_targets: crate::target::saved_targets(&config.targets, context.sites, &linear),
            config,
        };
        for id in chosen {
            let info = context.sites.info(id);
            let (weight, bias) = shapes(&adapter.config, info);
            if let Some((rows, columns)) = weight
                && let Some(site) = adapter.site(
                    info.path.clone(),
                    [rows, columns],
                    weights[id.index()].take(),
                )?
            {
                adapter.sites.insert(id, site);
            }
            if let Some(len) = bias
                && let Some(site) = adapter.site(
                    format!("{}.bias", info.path),
                    [1, len],
                    biases[id.index()].take(),
                )?
            {
                adapter.biases.insert(id, site);
            }
        }
        let table = context.sites.iter().find(|(_, s)| s.token_table);
        let head = context.sites.iter().find(|(_, s)| s.tied);
        adapter.tied_head = head
            .zip(table)
            .map(|((head, _), (table, _))| (head, table))
            .filter(|(_, table)| adapter.sites.get(*table).is_some());
        if adapter.candidates() == 0 && adapter.config.counts.is_none() {
            return Err(AdaptError::Config {
                method: NAME,
                field: "candidates",
                reason: "the model has none of these".into(),
            });
        }
        Ok(adapter)
    }

    /// A tensor of candidates; `None` where a file says that none was released.
    fn site(
        &self,
        path: String,
        [rows, columns]: [usize; 2],
        base: Option<Tensor<2>>,
    ) -> Result<Option<Site>, AdaptError> {
        let len = rows * columns;
        let change = match &self.config.counts {
            None => Change::Dense {
                delta: Parameter::new(
                    format!("{path}.id3_delta"),
                    &[rows, columns],
                    vec![0.0; len],
                    &self.device,
                ),
                released: vec![false; len],
            },
            Some(counts) => {
                let Some(&n) = counts.get(&path).filter(|n| **n > 0) else {
                    return Ok(None);
                };
                if n > len {
                    let reason = format!(
                        "`{path}` has {len} weights, not {n}: the file is damaged or another model's"
                    );
                    return Err(AdaptError::Config {
                        method: NAME,
                        field: "counts",
                        reason,
                    });
                }
                let sides = [rows, columns];
                let (places, values) =
                    sparse(&path, sides, vec![0.0; 2 * n], vec![0.0; n], &self.device);
                Change::Sparse { places, values }
            }
        };
        Ok(Some(Site {
            path,
            d_in: columns,
            d_out: rows,
            base,
            change,
        }))
    }

    /// All tensors of candidates.
    fn all(&self) -> impl Iterator<Item = &Site> {
        self.sites.iter().chain(self.biases.iter())
    }

    fn all_mut(&mut self) -> impl Iterator<Item = &mut Site> {
        self.sites.iter_mut().chain(self.biases.iter_mut())
    }

    /// The change of a site's weight; the head's is that of the table that it shares.
    fn weight_change(&self, site: SiteId, mode: Mode) -> Option<Tensor<2>> {
        let site = match self.tied_head {
            Some((head, table)) if head == site => table,
            _ => site,
        };
        Some(self.sites.get(site)?.delta(mode))
    }

    fn bias_change(&self, site: SiteId, mode: Mode) -> Option<Tensor<1>> {
        let change = self.biases.get(site)?.delta(mode);
        let len = change.dims()[1];
        Some(change.reshape([len]))
    }

    /// The bias with its change.
    fn bias(&self, site: SiteId, base: Option<&Tensor<1>>, mode: Mode) -> Option<Tensor<1>> {
        match (self.bias_change(site, mode), base) {
            (Some(change), Some(base)) => Some(change + base.clone()),
            (None, base) => base.cloned(),
            (Some(change), None) => Some(change),
        }
    }

    /// Gain and bias of a norm with their changes; `None` where there are none.
    fn norm(&self, base: &Norm, mode: Mode) -> Option<(Tensor<1>, Option<Tensor<1>>)> {
        let gain = self.sites.get(base.site).map(|site| site.delta(mode));
        if gain.is_none() && self.biases.get(base.site).is_none() {
            return None;
        }
        let weight = match gain {
            Some(change) => change.reshape(base.weight.dims()) + base.weight.clone(),
            None => base.weight.clone(),
        };
        Some((weight, self.bias(base.site, base.bias.as_ref(), mode)))
    }

    fn candidates(&self) -> usize {
        self.all().map(Site::len).sum()
    }

    fn released(&self) -> usize {
        self.all().map(Site::released).sum()
    }

    /// Releases the `count` best of the frozen weights that have a score.
    fn release(&mut self, count: usize, gradients: &GradientSum) {
        // Once for both passes.
        let scores: Vec<Vec<f32>> = self
            .all()
            .map(|site| site.scores(gradients, &self.config, self.seed))
            .collect();
        let chosen = highest(count, |each| {
            for (tensor, scores) in scores.iter().enumerate() {
                let known = scores.iter().enumerate().filter(|(_, s)| s.is_finite());
                for (index, &score) in known {
                    each(tensor, index, score);
                }
            }
        });
        let mut sites: Vec<&mut Site> = self.all_mut().collect();
        for (tensor, index) in chosen {
            if let Change::Dense { released, .. } = &mut sites[tensor].change {
                released[index] = true;
            }
        }
    }
}

struct Id3Pass<'a> {
    adapter: &'a Id3,
    mode: Mode,
}

impl Pass for Id3Pass<'_> {
    fn embedding(&mut self, base: &Embedding, ids: &[u32]) -> Tensor<2> {
        let rows = base.forward(ids);
        match self.adapter.sites.get(base.site) {
            Some(site) => rows + lookup(site.delta(self.mode), ids),
            None => rows,
        }
    }

    fn linear(&mut self, base: &Linear, x: Tensor<2>) -> Tensor<2> {
        let bias = self.adapter.bias(base.site, base.bias.as_ref(), self.mode);
        match self.adapter.weight_change(base.site, self.mode) {
            Some(change) => frugal_kernels::linear(x, base.weight.dense() + change, bias),
            None => Linear {
                bias,
                ..base.clone()
            }
            .forward(x),
        }
    }

    fn linear_change(&mut self, base: &Linear) -> LinearChange {
        if self.adapter.biases.get(base.site).is_some() {
            return LinearChange::Opaque;
        }
        match self.adapter.weight_change(base.site, self.mode) {
            None => LinearChange::None,
            Some(change) => LinearChange::Weight(base.weight.dense() + change),
        }
    }

    fn norm_change(&mut self, base: &Norm) -> NormChange {
        match self.adapter.norm(base, self.mode) {
            Some((weight, bias)) => NormChange::Parameters(weight, bias),
            None => NormChange::None,
        }
    }
}

impl Adapter for Id3 {
    fn method(&self) -> &'static str {
        NAME
    }

    fn parameters(&self) -> Vec<&Parameter> {
        self.all().flat_map(HasParameters::parameters).collect()
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        self.all_mut()
            .flat_map(HasParameters::parameters_mut)
            .collect()
    }

    fn pass(&self, mode: Mode) -> Box<dyn Pass + '_> {
        Box::new(Id3Pass {
            adapter: self,
            mode,
        })
    }

    fn peft_config(&self) -> Map<String, Value> {
        own_files::to_file(PEFT_TYPE, &self.config, &self.saved_targets)
    }

    fn weight_delta(&self, base: &Linear) -> Result<Option<Tensor<2>>, AdaptError> {
        Ok(self.weight_change(base.site, Mode::Eval))
    }

    fn merged_linear(&self, base: &Linear) -> Result<Option<MergedLinear>, AdaptError> {
        let change = self.weight_change(base.site, Mode::Eval);
        if change.is_none() && self.biases.get(base.site).is_none() {
            return Ok(None);
        }
        let weight = base.weight.dense();
        Ok(Some(MergedLinear {
            weight: change.map_or_else(|| weight.clone(), |change| weight.clone() + change),
            bias: self.bias(base.site, base.bias.as_ref(), Mode::Eval),
        }))
    }

    fn unmerged_linear(&self, merged: &Linear) -> Result<Option<MergedLinear>, AdaptError> {
        let change = self.weight_change(merged.site, Mode::Eval);
        let bias = self.bias_change(merged.site, Mode::Eval);
        if change.is_none() && bias.is_none() {
            return Ok(None);
        }
        let weight = merged.weight.dense();
        Ok(Some(MergedLinear {
            weight: change.map_or_else(|| weight.clone(), |change| weight.clone() - change),
            bias: match (merged.bias.clone(), bias) {
                (Some(merged), Some(change)) => Some(merged - change),
                (merged, _) => merged,
            },
        }))
    }

    fn merged_embedding(&self, base: &Embedding) -> Option<Tensor<2>> {
        let change = self.sites.get(base.site)?.delta(Mode::Eval);
        Some(base.weight.dense() + change)
    }

    fn merged_norm(&self, base: &Norm) -> Option<(Tensor<1>, Option<Tensor<1>>)> {
        self.norm(base, Mode::Eval)
    }

    fn before_step(&mut self, context: &StepContext, gradients: &mut GradientSum) {
        let wanted = self
            .config
            .released(context.step, context.total_steps, self.candidates());
        if self.config.schedule == Schedule::Repeat {
            for site in self.all_mut() {
                if let Change::Dense { released, .. } = &mut site.change {
                    released.fill(false);
                }
            }
        }
        let count = wanted.saturating_sub(self.released());
        if count > 0 {
            self.release(count, gradients);
        }
        for site in self.all() {
            let Change::Dense { delta, released } = &site.change else {
                continue;
            };
            if let Some(gradient) = gradients.get_mut(delta.name()) {
                gradient
                    .iter_mut()
                    .zip(released)
                    .filter(|(_, released)| !**released)
                    .for_each(|(g, _)| *g = 0.0);
            }
        }
    }

    /// Sixteen flags to a number.
    fn state(&self) -> BTreeMap<String, Vec<f32>> {
        let pack = |flags: &[bool]| {
            flags
                .iter()
                .rev()
                .fold(0u16, |bits, &flag| bits << 1 | u16::from(flag))
        };
        let dense = self.all().filter_map(|site| match &site.change {
            Change::Dense { released, .. } => Some((
                site.path.clone(),
                released
                    .chunks(16)
                    .map(|flags| f32::from(pack(flags)))
                    .collect(),
            )),
            Change::Sparse { .. } => None,
        });
        dense.collect()
    }

    fn restore(&mut self, state: &BTreeMap<String, Vec<f32>>) -> Result<(), String> {
        for site in self.all_mut() {
            let Change::Dense { released, .. } = &mut site.change else {
                continue;
            };
            let stored = state
                .get(&site.path)
                .ok_or_else(|| format!("no mask of `{}`", site.path))?;
            if stored.len() != released.len().div_ceil(16) {
                return Err(format!("the mask of `{}` has another size", site.path));
            }
            for (i, flag) in released.iter_mut().enumerate() {
                *flag = (stored[i / 16] as u16 >> (i % 16)) & 1 == 1;
            }
        }
        Ok(())
    }

    fn to_inference(&self) -> Option<Box<dyn Adapter>> {
        if self.config.counts.is_some() {
            return None;
        }
        let kept = |site: &Site| site.released_only(self.config.schedule, &self.device);
        let (sites, biases) = (self.sites.filter_map(kept), self.biases.filter_map(kept));
        let counts = sites
            .iter()
            .chain(biases.iter())
            .map(|site| (site.path.clone(), site.released()))
            .collect();
        let config = Id3Config {
            counts: Some(counts),
            ..self.config.clone()
        };
        Some(Box::new(Self {
            config,
            sites,
            biases,
            tied_head: self.tied_head,
            seed: self.seed,
            device: self.device.clone(),
            saved_targets: self.saved_targets.clone(),
        }))
    }

    fn needs_trainer(&self) -> bool {
        true
    }

    fn is_complete(&self) -> bool {
        self.config.counts.is_some() || self.released() == self.config.budget.min(self.candidates())
    }

    fn materializes_weight(&self, base: &Linear) -> bool {
        let site = match self.tied_head {
            Some((head, table)) if head == base.site => table,
            _ => base.site,
        };
        self.sites.get(site).is_some() && self.biases.get(base.site).is_none()
    }

    fn materializes_embedding(&self, base: &Embedding) -> bool {
        self.sites.get(base.site).is_some()
    }

    fn supports_mixed_batch(&self) -> bool {
        true
    }

    fn num_trainable(&self) -> usize {
        self.config.budget.min(
            self.parameters()
                .iter()
                .filter(|p| p.is_trainable())
                .map(|p| p.len())
                .sum(),
        )
    }
}

#[cfg(test)]
mod tests;
