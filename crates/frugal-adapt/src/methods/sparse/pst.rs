//! # PST: parameter-efficient sparsity
//!
//! ## What it does
//! Prunes linear layers while fine-tuning them: a low-rank change of the weights and a low-rank score
//! of what to keep are trained, and in the end the model has sparse weights and nothing else.
//!
//! ## Update rule
//! `W = W₀ + beta · U V`, `S = |W| + alpha1 · A B + alpha2 · (R 1ᵀ + 1 Cᵀ)`; `M` is 0 at the
//! `⌊v d_out d_in⌋` smallest elements of `S` and 1 elsewhere; `y = x (M ⊙ W)ᵀ + b`. The mask passes
//! its gradient straight through: with `G` the gradient of `M ⊙ W`, that of `S` is `G ⊙ W`, and `W`
//! gets `G ⊙ M + sign(W) ⊙ G ⊙ W`. The sparsity rises as
//! `v(t) = v_f + (v₀ − v_f) (1 − (t − t_i) / (T − t_i − t_f))³` between the warm-ups `t_i` and
//! `t_f`.
//!
//! `score = "magnitude"` keeps the largest `|W|`, with no gradient through the mask, and
//! `"movement"` trains a score for every weight, from zero; `change = "full"` trains every weight.
//! These are the prunings that the paper compares with.
//!
//! ## When to use, when not
//! To get a sparse model for storage or sparse kernels out of one fine-tuning run. Without such a
//! use, a dense adapter is better at the same cost. A run needs a few hundred steps, the last part
//! of them at the final sparsity.
//!
//! The merged model, read with `--quantize sparse`, is held and multiplied without its zeros. At 90
//! % of zeros that takes 0.13 of the memory of the layers, is 1.6 to 1.9 times as fast as the dense
//! product for 256 rows, and 1.2 to 1.3 times for one row with weights that come from memory, as in
//! generation; one row with weights in the cache is slower (0.5 to 0.65 times). At 50 % it takes
//! 0.53 of the memory and is slower everywhere (0.5 to 0.85 times): then only memory speaks for it.
//!
//! ## Cost
//! Trainable: `(r + score_r + 1) (d_in + d_out)` per layer; `2 d_in d_out` for movement pruning of all
//! weights. Extra memory while training: a mask and
//! two full-size matrices per layer in a pass. Extra compute: the full gradient of each weight, and a
//! selection over its scores per step. After merging none: the weights are sparse.
//!
//! ## Defaults and where they come from
//! Ranks 8, `beta = alpha1 = alpha2 = 1`, `final_sparsity = 0.9`, warm-ups 0.1 and 0.3 of the run,
//! as released. `V`, `B`, `R`, `C` are zero, so training begins as magnitude pruning. `U`, `A` have
//! deviation `1/√r`, which suits short runs at a higher rate; `init = "official"` draws them from
//! N(0, 1) as released, for rates near 3e-5.
//!
//! ## Departures from the paper
//! A task head is trained; the released optimiser leaves it at its random start. The mask is made
//! once per step instead of in every pass; equal scores are pruned from the lower index. Sparsity
//! is rounded to six decimals, so that files can say it exactly. While it rises no evaluation
//! counts as the best one.
//!
//! ## References
//! - Li, Luo, Tan, Wang, Huang, Li, Bai: Parameter-Efficient Sparsity for Large Language Models
//!   Fine-Tuning, 2022, arXiv 2205.11005.
//! - Zhu, Gupta: To prune, or not to prune, 2017, arXiv 1710.01878 (the schedule).

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use burn::prelude::*;
use frugal_nn::{
    AdaptError, Adapter, BuildContext, Linear, LinearChange, MergedLinear, Mode, Parameter, Pass,
    SiteId, StepContext, named_rng, standard_normal, to_vec,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::method::{Family, Method, MethodConfig};
use crate::support::by_site::{BySite, HasParameters};
use crate::support::own_files;
use crate::support::per_linear::linear_maps;
use crate::target::Targets;

const NAME: &str = "pst";
const PEFT_TYPE: &str = "PST";

/// Registry entry.
pub const METHOD: Method = Method::of::<PstConfig>(
    Family::Sparse,
    "Prunes while fine-tuning, with low-rank changes and scores",
    include_str!("pst.rs"),
)
.aliases(&["parameter-efficient-sparsity"])
.default_lr(5e-4);

/// First values of `U` and `A`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Init {
    /// Normal with deviation `1/√rank`.
    #[default]
    Scaled,
    /// Standard normal.
    Official,
}

/// How weights change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// By a product of two thin matrices.
    #[default]
    LowRank,
    /// Each by itself.
    Full,
}

/// What decides which weights are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Score {
    /// Magnitude and a learned score of few parameters.
    #[default]
    Pst,
    /// Magnitude alone.
    Magnitude,
    /// A learned score of each weight.
    Movement,
}

/// Settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PstConfig {
    /// How weights change.
    pub change: Change,
    /// What decides which weights are kept.
    pub score: Score,
    /// Rank of the weights' change.
    pub r: usize,
    /// Scale of the weights' change.
    pub beta: f64,
    /// Rank of the score.
    pub score_r: usize,
    /// Scale of the score's low-rank part.
    pub alpha1: f64,
    /// Scale of the score's rows and columns.
    pub alpha2: f64,
    /// Share of zeros at the start.
    pub initial_sparsity: f64,
    /// Share of zeros at the end.
    pub final_sparsity: f64,
    /// Share of the run before sparsity rises.
    pub initial_warmup: f64,
    /// Share of the run at the final sparsity.
    pub final_warmup: f64,
    /// Do not train the weights through the magnitude in the score.
    pub detach_magnitude: bool,
    /// First values of `U` and `A`.
    pub init: Init,
    /// Share of zeros now; set in adapter files.
    pub current_sparsity: Option<f64>,
    /// Which layers.
    #[serde(flatten)]
    pub targets: Targets,
}

impl Default for PstConfig {
    fn default() -> Self {
        Self {
            change: Change::LowRank,
            score: Score::Pst,
            r: 8,
            beta: 1.0,
            score_r: 8,
            alpha1: 1.0,
            alpha2: 1.0,
            initial_sparsity: 0.0,
            final_sparsity: 0.9,
            initial_warmup: 0.1,
            final_warmup: 0.3,
            detach_magnitude: false,
            init: Init::Scaled,
            current_sparsity: None,
            targets: Targets::default(),
        }
    }
}

impl MethodConfig for PstConfig {
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
        if self.r == 0 || self.score_r == 0 {
            return bad(
                if self.r == 0 { "r" } else { "score_r" },
                "the rank must be at least 1".into(),
            );
        }
        for (field, value) in [
            ("initial_sparsity", rounded(self.initial_sparsity)),
            ("final_sparsity", rounded(self.final_sparsity)),
            ("initial_warmup", self.initial_warmup),
            ("final_warmup", self.final_warmup),
        ] {
            if !(0.0..1.0).contains(&value) {
                return bad(
                    field,
                    format!("{value} is not a share of at least 0 and below 1"),
                );
            }
        }
        if let Some(share) = self
            .current_sparsity
            .filter(|share| !(0.0..=1.0).contains(share))
        {
            return bad(
                "current_sparsity",
                format!("{share} is not a share from 0 to 1"),
            );
        }
        if self.initial_sparsity > self.final_sparsity {
            return bad(
                "initial_sparsity",
                format!(
                    "{} exceeds `final_sparsity` ({})",
                    self.initial_sparsity, self.final_sparsity
                ),
            );
        }
        if self.initial_warmup + self.final_warmup >= 1.0 {
            return bad(
                "final_warmup",
                "the two warm-ups leave no step for sparsity to rise: lower one".into(),
            );
        }
        Ok(())
    }

    fn build(self, context: &BuildContext<'_>) -> Result<Box<dyn Adapter>, AdaptError> {
        Ok(Box::new(Pst::new(self, context)?))
    }
}

impl PstConfig {
    /// Share of zeros after `step` of `total` steps.
    fn sparsity(&self, step: u64, total: u64) -> f64 {
        let (step, total) = (step as f64, total as f64);
        let (begin, end) = (
            (self.initial_warmup * total).floor(),
            total - (self.final_warmup * total).floor(),
        );
        let (first, last) = (self.initial_sparsity, self.final_sparsity);
        let value = if step > end || end <= begin {
            last
        } else if step <= begin {
            first
        } else {
            last + (first - last) * (1.0 - (step - begin) / (end - begin)).powi(3)
        };
        rounded(value)
    }
}

/// A share with six decimals.
fn rounded(share: f64) -> f64 {
    (share * 1e6).round() / 1e6
}

/// What is trained for one layer.
struct Site {
    /// `U [d_out, r]` and `V [r, d_in]`, or the change of each weight `[d_out, d_in]`.
    change: Vec<Parameter>,
    /// `A [d_out, score_r]`, `B [score_r, d_in]`, `R [d_out, 1]`, `C [1, d_in]`; the score of each
    /// weight `[d_out, d_in]`; or nothing.
    score: Vec<Parameter>,
    /// Mask of the current scores, until they change.
    mask: Mutex<Option<Tensor<2>>>,
}

/// Indices of the `⌊share · n⌋` smallest scores as zeros in a vector of ones; of equal ones the
/// earlier.
fn keep(scores: &[f32], share: f64) -> Vec<f32> {
    let mut mask = vec![1.0; scores.len()];
    // The slack keeps products such as 0.7 · 10 from falling below a whole number.
    let count = (share * scores.len() as f64 + 1e-9) as usize;
    if count == 0 {
        return mask;
    }
    let mut sorted = scores.to_vec();
    let (_, &mut threshold, _) = sorted.select_nth_unstable_by(count - 1, f32::total_cmp);
    let below = |score: f32| score.total_cmp(&threshold).is_lt();
    let mut equal = count - scores.iter().filter(|s| below(**s)).count();
    for (kept, &score) in mask.iter_mut().zip(scores) {
        if below(score) {
            *kept = 0.0;
        } else if score.total_cmp(&threshold).is_eq() && equal > 0 {
            (*kept, equal) = (0.0, equal - 1);
        }
    }
    mask
}

impl Site {
    fn new(config: &PstConfig, context: &BuildContext<'_>, id: SiteId) -> Self {
        let (info, device) = (context.sites.info(id), &context.device);
        let (path, d_in, d_out) = (&info.path, info.d_in, info.d_out);
        let draw = |what: &str, rank: usize| -> Vec<f32> {
            let mut rng = named_rng(context.seed, &format!("{path} {what}"));
            let deviation = if config.init == Init::Official {
                1.0
            } else {
                1.0 / (rank as f32).sqrt()
            };
            (0..d_out * rank)
                .map(|_| deviation * standard_normal(&mut rng))
                .collect()
        };
        let make = |what: &str, shape: [usize; 2], values| {
            Parameter::new(format!("{path}.pst_{what}"), &shape, values, device)
        };
        let zeros =
            |what: &str, shape: [usize; 2]| make(what, shape, vec![0.0; shape[0] * shape[1]]);
        let change = match config.change {
            Change::LowRank => vec![
                make("U", [d_out, config.r], draw("U", config.r)),
                zeros("V", [config.r, d_in]),
            ],
            Change::Full => vec![zeros("W", [d_out, d_in])],
        };
        let score = match config.score {
            Score::Pst => vec![
                make("A", [d_out, config.score_r], draw("A", config.score_r)),
                zeros("B", [config.score_r, d_in]),
                zeros("R", [d_out, 1]),
                zeros("C", [1, d_in]),
            ],
            Score::Movement => vec![zeros("S", [d_out, d_in])],
            Score::Magnitude => Vec::new(),
        };
        Self {
            change,
            score,
            mask: Mutex::new(None),
        }
    }

    /// `W₀ + β U V`, or `W₀` and the change of each weight.
    fn weight(&self, base: Tensor<2>, config: &PstConfig, mode: Mode) -> Tensor<2> {
        match self.change.as_slice() {
            [u, v] => base + u.get::<2>(mode).matmul(v.get::<2>(mode)) * config.beta,
            [change] => base + change.get::<2>(mode),
            _ => base,
        }
    }

    /// `S` of this weight.
    fn scores(&self, weight: &Tensor<2>, config: &PstConfig, mode: Mode) -> Tensor<2> {
        let detached = config.detach_magnitude || config.score == Score::Magnitude;
        let magnitude = || match detached {
            true => weight.clone().detach().abs(),
            false => weight.clone().abs(),
        };
        match self.score.as_slice() {
            [a, b, rows, columns] => {
                let learned = a.get::<2>(mode).matmul(b.get::<2>(mode)) * config.alpha1;
                magnitude()
                    + learned
                    + (rows.get::<2>(mode) + columns.get::<2>(mode)) * config.alpha2
            }
            [score] => score.get::<2>(mode),
            _ => magnitude(),
        }
    }

    /// The mask of these scores, which is kept until [`Site::forget`].
    fn mask(&self, scores: &Tensor<2>, sparsity: f64) -> Tensor<2> {
        let mut known = self.mask.lock().unwrap_or_else(PoisonError::into_inner);
        let make = || {
            let dims = scores.dims();
            let kept = keep(&to_vec(scores.clone()), sparsity);
            Tensor::from_data(TensorData::new(kept, dims), &scores.device().inner())
        };
        known.get_or_insert_with(make).clone()
    }

    fn forget(&mut self) {
        *self.mask.get_mut().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// `M ⊙ W`.
    fn masked(&self, base: Tensor<2>, config: &PstConfig, sparsity: f64, mode: Mode) -> Tensor<2> {
        let weight = self.weight(base, config, mode);
        if !mode.is_train() && sparsity == 0.0 {
            return weight;
        }
        let scores = self.scores(&weight, config, mode);
        if !mode.is_train() {
            return self.mask(&scores, sparsity) * weight;
        }
        let plain = scores.clone().inner();
        // Adds exactly 0, and sends the gradient of the mask to the scores.
        let through = scores - Tensor::from_inner(plain.clone());
        (through + self.mask(&plain, sparsity)) * weight
    }
}

impl HasParameters for Site {
    fn parameters(&self) -> Vec<&Parameter> {
        self.change.iter().chain(&self.score).collect()
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        self.change.iter_mut().chain(&mut self.score).collect()
    }
}

/// A PST adapter.
pub struct Pst {
    config: PstConfig,
    sites: BySite<Site>,
    sparsity: f64,
    saved_targets: Value,
}

impl Pst {
    /// Builds the factors of every selected layer.
    ///
    /// # Errors
    /// Bad settings, no matching layer, tables among the targets.
    pub fn new(config: PstConfig, context: &BuildContext<'_>) -> Result<Self, AdaptError> {
        config.validate()?;
        let chosen = linear_maps(NAME, &config.targets, context)?;
        let mut sites = BySite::empty(context.sites);
        for &id in &chosen {
            sites.insert(id, Site::new(&config, context, id));
        }
        let saved_targets = crate::target::saved_targets(&config.targets, context.sites, &chosen);
        // As the schedule rounds, so that it arrives at the final one exactly.
        let (first, last) = (
            rounded(config.initial_sparsity),
            rounded(config.final_sparsity),
        );
        let config = PstConfig {
            initial_sparsity: first,
            final_sparsity: last,
            ..config
        };
        Ok(Self {
            sparsity: rounded(config.current_sparsity.unwrap_or(first)),
            config,
            sites,
            saved_targets,
        })
    }

    fn masked(&self, base: &Linear, mode: Mode) -> Option<Tensor<2>> {
        self.sites
            .get(base.site)
            .map(|site| site.masked(base.weight.dense(), &self.config, self.sparsity, mode))
    }

    fn set_sparsity(&mut self, sparsity: f64) {
        self.sparsity = sparsity;
        self.sites.iter_mut().for_each(Site::forget);
    }
}

struct PstPass<'a> {
    adapter: &'a Pst,
    mode: Mode,
}

impl Pass for PstPass<'_> {
    fn linear_change(&mut self, base: &Linear) -> LinearChange {
        match self.adapter.masked(base, self.mode) {
            None => LinearChange::None,
            Some(weight) => LinearChange::Weight(weight),
        }
    }
}

impl Adapter for Pst {
    fn method(&self) -> &'static str {
        NAME
    }

    fn parameters(&self) -> Vec<&Parameter> {
        self.sites.parameters()
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        self.sites.parameters_mut()
    }

    fn pass(&self, mode: Mode) -> Box<dyn Pass + '_> {
        Box::new(PstPass {
            adapter: self,
            mode,
        })
    }

    fn peft_config(&self) -> Map<String, Value> {
        let mut fields = own_files::to_file(PEFT_TYPE, &self.config, &self.saved_targets);
        fields.insert("current_sparsity".into(), json!(self.sparsity));
        fields
    }

    fn weight_delta(&self, base: &Linear) -> Result<Option<Tensor<2>>, AdaptError> {
        Ok(self
            .masked(base, Mode::Eval)
            .map(|weight| weight - base.weight.dense()))
    }

    fn merged_linear(&self, base: &Linear) -> Result<Option<MergedLinear>, AdaptError> {
        Ok(self.masked(base, Mode::Eval).map(|weight| MergedLinear {
            weight,
            bias: base.bias.clone(),
        }))
    }

    fn unmerged_linear(&self, _merged: &Linear) -> Result<Option<MergedLinear>, AdaptError> {
        let reason = "pruned weights are gone; load the base model".into();
        Err(AdaptError::Unsupported {
            method: NAME,
            action: "be taken out again",
            reason,
        })
    }

    fn after_step(&mut self, context: &StepContext) {
        self.set_sparsity(self.config.sparsity(context.step, context.total_steps));
    }

    fn state(&self) -> BTreeMap<String, Vec<f32>> {
        BTreeMap::from([("sparsity".to_owned(), vec![self.sparsity as f32])])
    }

    fn restore(&mut self, state: &BTreeMap<String, Vec<f32>>) -> Result<(), String> {
        let Some([sparsity]) = state.get("sparsity").map(Vec::as_slice) else {
            return Err("no `sparsity`".into());
        };
        self.set_sparsity(rounded(f64::from(*sparsity)));
        Ok(())
    }

    fn needs_trainer(&self) -> bool {
        true
    }

    fn is_complete(&self) -> bool {
        self.sparsity == self.config.final_sparsity
    }

    fn materializes_weight(&self, base: &Linear) -> bool {
        self.sites.get(base.site).is_some()
    }

    fn supports_mixed_batch(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests;
