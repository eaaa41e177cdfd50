//! # AdaLoRA: low-rank adaptation that spends its rank where it matters
//!
//! ## What it does
//! Learns a change of chosen linear layers in the form of a singular value decomposition and, while
//! training, takes away the parts that turn out unimportant, so that maps which need more rank keep
//! more.
//!
//! ## Update rule
//! `y = x Wᵀ + s · x (E ⊙ A)ᵀ Bᵀ`, with `A [r, d_in]`, `E [r, 1]`, `B [d_out, r]` and
//! `s = lora_alpha / (init_r + 1e-5)`. The loss gains
//! `orth_reg_weight · mean(‖A Aᵀ − I‖, ‖Bᵀ B − I‖)` over all layers. After step `t`, for every
//! element `w` with gradient `g`: `I = |w g|`, `Ī ← β₁ Ī + (1 − β₁) I`,
//! `U ← β₂ U + (1 − β₂) |I − Ī|`. A triplet (row of `A`, entry of `E`, column of `B`) scores
//! `s(E) + mean s(A) + mean s(B)` with `s = Ī U`. From `tinit` on, every `deltaT` steps, the
//! entries of `E` with the lowest scores are set to zero, so that
//! `b(t) = b_T + (b₀ − b_T) (1 − (t − tinit) / (total_step − tfinal − tinit))³` of all triplets are
//! left; the choice stays fixed for the last `tfinal` steps.
//!
//! ## When to use, when not
//! When the number of stored parameters counts and layers differ much in what they need. It costs
//! more per step than LoRA and needs a run long enough to rank its triplets; in short runs LoRA is
//! as good.
//!
//! ## Cost
//! Trainable: `init_r (d_in + d_out + 1)` per layer; kept: `target_r` of `init_r` of these on
//! average. Extra memory: two running averages per trainable number. Extra compute: that of LoRA,
//! and the regulariser. None after merging.
//!
//! ## Defaults and where they come from
//! `init_r = 12`, `target_r = 8`, `beta1 = beta2 = 0.85`, `orth_reg_weight = 0.5`, `A` and `B`
//! normal with standard deviation 0.02 and `E` zero, as in Hugging Face `peft`. `total_step` is by
//! default the length of the run, `tinit` a tenth and `tfinal` four tenths of it, about the paper's
//! shares.
//!
//! ## Departures from the paper
//! Importance multiplies the updated values with the gradients of the step that updated them, and
//! triplets that score exactly the threshold go too; both as in `peft`. Gradients are taken before
//! clipping. Gradients of zeroed entries keep flowing, so that a triplet can come back until the
//! choice is fixed.
//!
//! ## References
//! - Zhang, Chen, Bukharin, Karampatziakis, He, Cheng, Chen, Zhao: AdaLoRA: Adaptive Budget
//!   Allocation for Parameter-Efficient Fine-Tuning, 2023, arXiv 2303.10512.

mod config;
mod triplets;

pub use crate::methods::low_rank::adalora::config::AdaLoraConfig;
use std::collections::BTreeMap;

use burn::prelude::*;
use frugal_nn::{
    AdaptError, Adapter, BuildContext, GradientSum, Linear, LinearChange, LowRankChange, Mode,
    Parameter, Pass, SiteId, SiteKind, StepContext,
};
use serde_json::{Map, Value, json};

use crate::method::{Family, Method, MethodConfig};
use crate::methods::low_rank::adalora::config::NAME;
use crate::methods::low_rank::adalora::triplets::{Triplets, alive_of};
use crate::settings::Settings;
use crate::support::low_rank;
use crate::support::rank_budget::{Importance, Schedule};
use crate::support::values::whole;

/// Registry entry.
pub const METHOD: Method = Method::of::<AdaLoraConfig>(
    Family::LowRank,
    "LoRA that moves its rank to the layers that need it",
    include_str!("adalora.rs"),
)
.aliases(&["ada-lora"])
.default_lr(6e-3);

impl MethodConfig for AdaLoraConfig {
    const NAME: &'static str = NAME;
    const PEFT_TYPE: &'static str = "ADALORA";

    fn validate(&self) -> Result<(), AdaptError> {
        self.check()
    }

    fn build(self, context: &BuildContext<'_>) -> Result<Box<dyn Adapter>, AdaptError> {
        Ok(Box::new(AdaLora::new(self, context)?))
    }

    fn from_peft(config: &Settings) -> Result<Settings, AdaptError> {
        from_peft(config)
    }
}

/// Fields of `peft`'s configuration that mean the same here.
const PEFT_FIELDS: [&str; 16] = [
    "init_r",
    "target_r",
    "lora_alpha",
    "lora_dropout",
    "tinit",
    "tfinal",
    "deltaT",
    "beta1",
    "beta2",
    "orth_reg_weight",
    "total_step",
    "rank_pattern",
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
];

fn from_peft(config: &Map<String, Value>) -> Result<Map<String, Value>, AdaptError> {
    let bad = |field, reason: &str| AdaptError::Config {
        method: NAME,
        field,
        reason: reason.into(),
    };
    if config
        .get("bias")
        .and_then(Value::as_str)
        .is_some_and(|bias| bias != "none")
    {
        return Err(bad("bias", "trained biases are not supported"));
    }
    if !config
        .get("target_modules")
        .is_some_and(|t| t.is_array() || t.is_string())
    {
        return Err(bad(
            "target_modules",
            "must be a list of names or a pattern",
        ));
    }
    let mut settings = Map::from_iter([
        ("lora_alpha".to_owned(), json!(8)),
        ("tinit".to_owned(), json!(0)),
        ("tfinal".to_owned(), json!(0)),
    ]);
    settings.extend(PEFT_FIELDS.into_iter().filter_map(|f| {
        Some((
            f.to_owned(),
            config
                .get(f)
                .filter(|v| !v.is_null() && *v != &json!({}))?
                .clone(),
        ))
    }));
    Ok(settings)
}

/// An AdaLoRA adapter.
pub struct AdaLora {
    config: AdaLoraConfig,
    /// Indexed by site.
    sites: Vec<Option<Triplets>>,
    /// Triplets that are left, by path, once a choice was made.
    alive: Option<BTreeMap<String, Vec<bool>>>,
    /// Dead triplets are gone, not zero: the form of files, whose ranks do not change any more.
    sliced: bool,
    /// Running averages by parameter name.
    importance: BTreeMap<String, Importance>,
    /// Gradients of the step that is being taken.
    gradients: BTreeMap<String, Vec<f32>>,
    /// That of the last step, for the file.
    schedule: Schedule,
    /// The choice is final.
    settled: bool,
    scale: f32,
    saved_targets: Value,
    fan_in_fan_out: bool,
}

impl AdaLora {
    /// Builds the triplets of every selected layer.
    ///
    /// # Errors
    /// Bad settings, no matching layer, a table among the targets, a pattern that does not fit.
    pub fn new(config: AdaLoraConfig, context: &BuildContext<'_>) -> Result<Self, AdaptError> {
        config.validate()?;
        let mut sites: Vec<Option<Triplets>> = (0..context.sites.len()).map(|_| None).collect();
        let chosen = config.targets().select(context.sites)?;
        for &id in &chosen {
            let triplets = Triplets::new(&config, context, id)?;
            sites[id.index()] = Some(match &config.rank_pattern {
                Some(pattern) => {
                    triplets.slice(alive_of(pattern, &triplets, config.init_r, context)?)
                }
                None => triplets,
            });
        }
        let alive = config.rank_pattern.as_ref().map(|_| BTreeMap::new());
        let mut adapter = Self {
            saved_targets: crate::target::saved_targets(&config.targets(), context.sites, &chosen),
            fan_in_fan_out: chosen
                .iter()
                .any(|&id| context.sites.info(id).kind == SiteKind::Conv1d),
            scale: (config.lora_alpha / (config.init_r as f64 + 1e-5)) as f32,
            schedule: config.schedule(config.total_step.unwrap_or(1)),
            sliced: config.rank_pattern.is_some(),
            settled: false,
            importance: BTreeMap::new(),
            gradients: BTreeMap::new(),
            sites,
            alive,
            config,
        };
        if let Some(pattern) = adapter.config.rank_pattern.take() {
            adapter.alive = Some(
                pattern
                    .into_iter()
                    .map(|(key, mask)| (key.trim_end_matches(".lora_E").to_owned(), mask))
                    .collect(),
            );
        }
        Ok(adapter)
    }

    fn at(&self, site: SiteId) -> Option<&Triplets> {
        self.sites.get(site.index())?.as_ref()
    }

    /// Scores of all triplets, in the order of the sites.
    fn scores(&self) -> Vec<Vec<f32>> {
        let nothing = Importance::default();
        let of = |p: &Parameter| self.importance.get(p.name()).unwrap_or(&nothing);
        let score = |t: &Triplets| {
            let (rank, d_in, d_out) = (t.rank(), t.a.shape()[1], t.b.shape()[0]);
            let (of_a, of_e, of_b) = (of(&t.a), of(&t.e), of(&t.b));
            let mean = |sum: f32, n: usize| sum / n as f32;
            (0..rank)
                .map(|i| {
                    let a = mean((0..d_in).map(|j| of_a.score(i * d_in + j)).sum(), d_in);
                    let b = mean((0..d_out).map(|j| of_b.score(j * rank + i)).sum(), d_out);
                    of_e.score(i) + (a + b)
                })
                .collect()
        };
        self.sites.iter().flatten().map(score).collect()
    }

    /// Keeps the `budget` best triplets.
    fn choose(&mut self, budget: usize) {
        let scores = self.scores();
        let mut sorted = scores.concat();
        sorted.sort_by(f32::total_cmp);
        // The threshold is the best score that goes.
        let threshold = sorted.len().checked_sub(budget + 1).map(|i| sorted[i]);
        let mut alive = BTreeMap::new();
        for (triplets, scores) in self.sites.iter_mut().flatten().zip(scores) {
            let mask: Vec<bool> = scores
                .iter()
                .map(|score| threshold.is_none_or(|t| *score > t))
                .collect();
            triplets.mask(&mask);
            alive.insert(triplets.path.clone(), mask);
        }
        self.alive = Some(alive);
    }

    fn apply_choice(&mut self) {
        let Some(alive) = &self.alive else { return };
        for triplets in self.sites.iter_mut().flatten() {
            if let Some(mask) = alive.get(&triplets.path) {
                triplets.mask(mask);
            }
        }
    }

    /// `mean(‖A Aᵀ − I‖, ‖Bᵀ B − I‖)` over all layers, weighted.
    fn orthogonality(&self, mode: Mode) -> Option<Tensor<1>> {
        let distance = |covariance: Tensor<2>| {
            let [n, _] = covariance.dims();
            let square = (covariance.clone() - Tensor::eye(n, &covariance.device().inner()))
                .powi_scalar(2)
                .sum();
            // The root has no slope at exactly zero.
            (square + 1e-12).sqrt()
        };
        let live = self.sites.iter().flatten().filter(|t| t.rank() > 0);
        let terms: Vec<Tensor<1>> = live
            .flat_map(|t| {
                let (a, b) = (t.a.get::<2>(mode), t.b.get::<2>(mode));
                [
                    distance(a.clone().matmul(a.transpose())),
                    distance(b.clone().transpose().matmul(b)),
                ]
            })
            .collect();
        let count = terms.len() as f64;
        let sum = terms.into_iter().reduce(|a, b| a + b)?;
        Some(sum * (self.config.orth_reg_weight / count))
    }
}

struct AdaLoraPass<'a> {
    adapter: &'a AdaLora,
    mode: Mode,
}

impl Pass for AdaLoraPass<'_> {
    fn linear(&mut self, base: &Linear, x: Tensor<2>) -> Tensor<2> {
        let Some(triplets) = self.adapter.at(base.site).filter(|t| t.rank() > 0) else {
            return base.forward(x);
        };
        let (a, b, scale) = (
            triplets.scaled_a(self.mode),
            triplets.b.get::<2>(self.mode),
            self.adapter.scale,
        );
        let dropping = low_rank::Dropping {
            p: self.adapter.config.lora_dropout,
            mode: self.mode,
            path: &triplets.path,
        };
        low_rank::forward(base, x, a, b, scale, &dropping)
    }

    fn linear_change(&mut self, base: &Linear) -> LinearChange {
        let Some(triplets) = self.adapter.at(base.site) else {
            return LinearChange::None;
        };
        let drops = self.mode.is_train() && self.adapter.config.lora_dropout > 0.0;
        if drops || triplets.rank() == 0 {
            return LinearChange::Opaque;
        }
        LinearChange::LowRank(LowRankChange {
            a: triplets.scaled_a(self.mode),
            b: triplets.b.get(self.mode),
            scale: self.adapter.scale,
        })
    }

    fn auxiliary_loss(&mut self) -> Option<Tensor<1>> {
        if self.adapter.config.orth_reg_weight > 0.0 {
            self.adapter.orthogonality(self.mode)
        } else {
            None
        }
    }
}

impl Adapter for AdaLora {
    fn method(&self) -> &'static str {
        NAME
    }

    fn parameters(&self) -> Vec<&Parameter> {
        self.sites
            .iter()
            .flatten()
            .flat_map(Triplets::parameters)
            .collect()
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        self.sites
            .iter_mut()
            .flatten()
            .flat_map(Triplets::parameters_mut)
            .collect()
    }

    fn pass(&self, mode: Mode) -> Box<dyn Pass + '_> {
        Box::new(AdaLoraPass {
            adapter: self,
            mode,
        })
    }

    fn weight_delta(&self, base: &Linear) -> Result<Option<Tensor<2>>, AdaptError> {
        let live = self.at(base.site).filter(|t| t.rank() > 0);
        Ok(live.map(|t| t.b.get::<2>(Mode::Eval).matmul(t.scaled_a(Mode::Eval)) * self.scale))
    }

    fn before_step(&mut self, context: &StepContext, gradients: &mut GradientSum) {
        self.schedule = self.config.schedule(context.total_steps);
        self.gradients.clear();
        if !self.sliced && context.step + 1 < self.schedule.last_choice() {
            self.gradients = self
                .parameters()
                .iter()
                .filter_map(|p| Some((p.name().to_owned(), gradients.get(p.name())?.to_vec())))
                .collect();
        }
    }

    fn after_step(&mut self, context: &StepContext) {
        if self.sliced {
            return;
        }
        let (step, last) = (context.step, self.schedule.last_choice());
        let (beta1, beta2) = (self.config.beta1 as f32, self.config.beta2 as f32);
        let gradients = std::mem::take(&mut self.gradients);
        self.settled = step >= last;
        if step > last {
            return self.apply_choice();
        }
        for parameter in self.sites.iter().flatten().flat_map(Triplets::parameters) {
            if let Some(gradient) = gradients.get(parameter.name()) {
                let importance = self
                    .importance
                    .entry(parameter.name().to_owned())
                    .or_default();
                importance.update(&parameter.to_vec(), gradient, beta1, beta2);
            }
        }
        let maps = self.sites.iter().flatten().count();
        let (initial, target) = (maps * self.config.init_r, maps * self.config.target_r);
        let (budget, due) = self
            .schedule
            .budget(step, initial, target, self.config.delta_t);
        if due || step == last {
            self.choose(budget);
        }
        if step == last {
            self.importance.clear();
        }
    }

    fn state(&self) -> BTreeMap<String, Vec<f32>> {
        let mut state = BTreeMap::new();
        for (name, importance) in &self.importance {
            state.insert(
                format!("exp_avg_ipt.{name}"),
                importance.exp_avg_ipt.clone(),
            );
            state.insert(
                format!("exp_avg_unc.{name}"),
                importance.exp_avg_unc.clone(),
            );
        }
        for (path, mask) in self.alive.iter().flatten() {
            state.insert(
                format!("alive.{path}"),
                mask.iter()
                    .map(|&alive| f32::from(u8::from(alive)))
                    .collect(),
            );
        }
        let Schedule {
            total,
            tinit,
            tfinal,
        } = self.schedule;
        let settled = u64::from(self.settled);
        state.insert(
            "schedule".into(),
            [total, tinit, tfinal, settled].map(|n| n as f32).to_vec(),
        );
        state
    }

    fn restore(&mut self, state: &BTreeMap<String, Vec<f32>>) -> Result<(), String> {
        let [total, tinit, tfinal, settled] =
            state.get("schedule").map(Vec::as_slice).unwrap_or_default()
        else {
            return Err("`schedule` is missing or not four numbers".into());
        };
        self.settled = *settled > 0.5;
        self.schedule = Schedule {
            total: *total as u64,
            tinit: *tinit as u64,
            tfinal: *tfinal as u64,
        };
        self.importance.clear();
        let mut alive = BTreeMap::new();
        for triplets in self.sites.iter().flatten() {
            if let Some(mask) = state.get(&format!("alive.{}", triplets.path)) {
                if !self.sliced && mask.len() != triplets.rank() {
                    return Err(format!(
                        "`alive.{}` has {} numbers instead of {}",
                        triplets.path,
                        mask.len(),
                        triplets.rank()
                    ));
                }
                alive.insert(
                    triplets.path.clone(),
                    mask.iter().map(|m| *m > 0.5).collect(),
                );
            }
            for parameter in triplets.parameters() {
                let of = |kind: &str| state.get(&format!("{kind}.{}", parameter.name()));
                if let (Some(average), Some(uncertainty)) = (of("exp_avg_ipt"), of("exp_avg_unc")) {
                    if average.len() != parameter.len() || uncertainty.len() != parameter.len() {
                        return Err(format!(
                            "the importance of `{}` does not have {} numbers",
                            parameter.name(),
                            parameter.len()
                        ));
                    }
                    let importance = Importance {
                        exp_avg_ipt: average.clone(),
                        exp_avg_unc: uncertainty.clone(),
                    };
                    self.importance
                        .insert(parameter.name().to_owned(), importance);
                }
            }
        }
        self.alive = Some(alive).filter(|a| !a.is_empty());
        Ok(())
    }

    fn needs_trainer(&self) -> bool {
        true
    }

    fn is_complete(&self) -> bool {
        self.settled || self.sliced
    }

    fn to_inference(&self) -> Option<Box<dyn Adapter>> {
        let alive = self.alive.as_ref().filter(|_| !self.sliced)?;
        let slice = |t: &Triplets| alive.get(&t.path).map(|mask| t.slice(mask));
        Some(Box::new(Self {
            config: self.config.clone(),
            sites: self
                .sites
                .iter()
                .map(|t| t.as_ref().and_then(slice))
                .collect(),
            alive: self.alive.clone(),
            sliced: true,
            importance: BTreeMap::new(),
            gradients: BTreeMap::new(),
            saved_targets: self.saved_targets.clone(),
            ..*self
        }))
    }

    fn peft_config(&self) -> Map<String, Value> {
        let (c, s) = (&self.config, &self.schedule);
        let pattern = self.alive.as_ref().filter(|_| self.sliced);
        let pattern = pattern.map(|a| {
            a.iter()
                .map(|(path, mask)| (format!("{path}.lora_E"), json!(mask)))
                .collect::<Map<_, _>>()
        });
        let fields = json!({
            "peft_type": "ADALORA", "init_r": c.init_r, "target_r": c.target_r, "tinit": s.tinit, "tfinal": s.tfinal,
            "deltaT": c.delta_t, "beta1": c.beta1, "beta2": c.beta2, "orth_reg_weight": c.orth_reg_weight, "total_step": s.total,
            "rank_pattern": pattern, "lora_alpha": whole(c.lora_alpha), "lora_dropout": c.lora_dropout,
            "target_modules": self.saved_targets, "exclude_modules": c.exclude_modules,
            "layers_to_transform": c.layers_to_transform, "layers_pattern": c.layers_pattern,
            "fan_in_fan_out": self.fan_in_fan_out, "r": 8, "use_rslora": false, "init_lora_weights": true, "bias": "none",
            "lora_bias": false, "alpha_pattern": {}, "use_dora": false, "target_parameters": null,
            "trainable_token_indices": null, "loftq_config": {}, "eva_config": null, "corda_config": null,
            "lora_ga_config": null, "megatron_config": null, "megatron_core": "megatron.core", "layer_replication": null,
            "use_qalora": false, "qalora_group_size": 16, "alora_invocation_tokens": null, "arrow_config": null,
            "use_bdlora": null, "velora_config": null, "kasa_config": null, "monteclora_config": null,
            "ensure_weight_tying": false,
        });
        let Value::Object(fields) = fields else {
            unreachable!("a literal object")
        };
        fields
    }

    fn supports_mixed_batch(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests;
