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
//! Trainable: `(r + score_r + 1) (d_in + d_out)` per layer. Extra memory while training: a mask and
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

use crate::method::{Capabilities, Family, Method};
use crate::settings;
use crate::support::own_files;
use crate::support::per_linear::linear_maps;
use crate::target::Targets;

const NAME: &str = "pst";
const PEFT_TYPE: &str = "PST";

/// Registry entry.
pub const METHOD: Method = Method {
    name: NAME,
    aliases: &["parameter-efficient-sparsity"],
    family: Family::Sparse,
    summary: "Prunes while fine-tuning, with low-rank changes and scores",
    default_lr: 5e-4,
    peft_type: PEFT_TYPE,
    peft_variant: None,
    load_rule: None,
    capabilities: Capabilities {
        merge: true,
        identity_at_init: true,
        mixed_batch: true,
    },
    source: include_str!("pst.rs"),
    defaults: settings::defaults::<PstConfig>,
    check: |settings| settings::parse::<PstConfig>(NAME, settings)?.validate(),
    build: |settings, context| {
        Ok(Box::new(Pst::new(
            settings::parse(NAME, settings)?,
            context,
        )?))
    },
    from_peft: |config| Ok(own_files::from_file::<PstConfig>(config)),
};

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

/// Settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PstConfig {
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

impl PstConfig {
    /// Checks ranges.
    ///
    /// # Errors
    /// [`AdaptError::Config`] naming the field.
    pub fn validate(&self) -> Result<(), AdaptError> {
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
    /// `[d_out, r]`.
    u: Parameter,
    /// `[r, d_in]`.
    v: Parameter,
    /// `[d_out, score_r]`.
    a: Parameter,
    /// `[score_r, d_in]`.
    b: Parameter,
    /// `[d_out, 1]`.
    rows: Parameter,
    /// `[1, d_in]`.
    columns: Parameter,
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
        Self {
            u: make("U", [d_out, config.r], draw("U", config.r)),
            v: zeros("V", [config.r, d_in]),
            a: make("A", [d_out, config.score_r], draw("A", config.score_r)),
            b: zeros("B", [config.score_r, d_in]),
            rows: zeros("R", [d_out, 1]),
            columns: zeros("C", [1, d_in]),
            mask: Mutex::new(None),
        }
    }

    fn parameters(&self) -> [&Parameter; 6] {
        [
            &self.u,
            &self.v,
            &self.a,
            &self.b,
            &self.rows,
            &self.columns,
        ]
    }

    fn parameters_mut(&mut self) -> [&mut Parameter; 6] {
        [
            &mut self.u,
            &mut self.v,
            &mut self.a,
            &mut self.b,
            &mut self.rows,
            &mut self.columns,
        ]
    }

    /// `W₀ + β U V`.
    fn weight(&self, base: Tensor<2>, config: &PstConfig, mode: Mode) -> Tensor<2> {
        base + self.u.get::<2>(mode).matmul(self.v.get::<2>(mode)) * config.beta
    }

    /// `S` of this weight.
    fn scores(&self, weight: &Tensor<2>, config: &PstConfig, mode: Mode) -> Tensor<2> {
        let magnitude = if config.detach_magnitude {
            weight.clone().detach().abs()
        } else {
            weight.clone().abs()
        };
        let learned = self.a.get::<2>(mode).matmul(self.b.get::<2>(mode)) * config.alpha1;
        magnitude
            + learned
            + (self.rows.get::<2>(mode) + self.columns.get::<2>(mode)) * config.alpha2
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

/// A PST adapter.
pub struct Pst {
    config: PstConfig,
    /// Indexed by site.
    sites: Vec<Option<Site>>,
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
        let mut sites: Vec<Option<Site>> = (0..context.sites.len()).map(|_| None).collect();
        for &id in &chosen {
            sites[id.index()] = Some(Site::new(&config, context, id));
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

    fn at(&self, site: SiteId) -> Option<&Site> {
        self.sites.get(site.index())?.as_ref()
    }

    fn masked(&self, base: &Linear, mode: Mode) -> Option<Tensor<2>> {
        self.at(base.site)
            .map(|site| site.masked(base.weight.dense(), &self.config, self.sparsity, mode))
    }

    fn set_sparsity(&mut self, sparsity: f64) {
        self.sparsity = sparsity;
        self.sites.iter_mut().flatten().for_each(Site::forget);
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
        self.sites
            .iter()
            .flatten()
            .flat_map(Site::parameters)
            .collect()
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        self.sites
            .iter_mut()
            .flatten()
            .flat_map(Site::parameters_mut)
            .collect()
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
        self.at(base.site).is_some()
    }

    fn supports_mixed_batch(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use frugal_models::ModelConfig;
    use frugal_nn::{SiteTable, Weight};

    fn close(found: &[f32], expected: &[f32]) {
        assert_eq!(found.len(), expected.len());
        found
            .iter()
            .zip(expected)
            .for_each(|(f, e)| assert!((f - e).abs() < 1e-5, "{found:?} instead of {expected:?}"));
    }

    #[test]
    fn sparsity_rises_as_the_cube() {
        let config = PstConfig::default();
        let expected = [
            (0, 0.0),
            (100, 0.0),
            (101, 0.004_493),
            (250, 0.520_312),
            (400, 0.7875),
            (550, 0.885_938),
            (700, 0.9),
            (1000, 0.9),
        ];
        for (step, value) in expected {
            assert!(
                (config.sparsity(step, 1000) - value).abs() < 1e-6,
                "{step}: {}",
                config.sparsity(step, 1000)
            );
        }
        assert!(
            (0..1000).all(|step| config.sparsity(step, 1000) <= config.sparsity(step + 1, 1000))
        );
    }

    #[test]
    fn the_smallest_scores_are_pruned_and_ties_from_the_left() {
        assert_eq!(
            keep(&[0.8, 0.1, 4.0, 5.8, 2.5, 3.1], 0.5),
            [0.0, 0.0, 1.0, 1.0, 0.0, 1.0]
        );
        assert_eq!(keep(&[1.0, 1.0, 1.0, 0.5], 0.5), [0.0, 1.0, 1.0, 0.0]);
        let zeros = |n: usize, share: f64| {
            keep(&vec![1.0; n], share)
                .iter()
                .filter(|k| **k == 0.0)
                .count()
        };
        assert_eq!(
            (zeros(10, 0.7), zeros(7, 0.5), zeros(100, 0.999)),
            (7, 3, 99)
        );
    }

    /// On a model whose first layer is 2 x 3.
    fn small(settings: Value) -> (Result<Pst, AdaptError>, SiteTable) {
        let raw = json!({"model_type": "llama", "hidden_size": 3, "head_dim": 2, "intermediate_size": 3, "num_hidden_layers": 1,
            "num_attention_heads": 1, "num_key_value_heads": 1, "vocab_size": 4});
        let model = ModelConfig::from_json(raw, "test").unwrap();
        let sites = model.sites();
        let context = BuildContext {
            info: &model.info(),
            sites: &sites,
            backbone: None,
            device: Device::default(),
            seed: 1,
            tokenize: None,
        };
        (
            Pst::new(
                settings::parse(NAME, settings.as_object().unwrap()).unwrap(),
                &context,
            ),
            sites,
        )
    }

    /// One 2 x 3 map with the worked example's values.
    fn worked() -> (Pst, Linear) {
        let (pst, sites) = small(
            json!({"r": 1, "score_r": 1, "target_modules": ["q_proj"], "current_sparsity": 0.5}),
        );
        let mut pst = pst.unwrap();
        let values: [&[f32]; 6] = [
            &[1.0, -1.0],
            &[0.0; 3],
            &[1.0, 0.0],
            &[0.0, -1.9, 0.0],
            &[0.0, 2.0],
            &[-0.2, 0.0, 1.0],
        ];
        pst.parameters_mut()
            .into_iter()
            .zip(values)
            .for_each(|(p, v)| p.set(v.to_vec()));
        let weight =
            Tensor::<2>::from_data([[1.0, -2.0, 3.0], [-4.0, 0.5, 0.1]], &Device::default());
        (
            pst,
            Linear {
                site: sites.find("model.layers.0.self_attn.q_proj").unwrap(),
                weight: Weight::Dense(weight),
                bias: None,
            },
        )
    }

    #[test]
    fn mask_and_straight_through_gradients_are_those_of_the_worked_example() {
        let (pst, base) = worked();
        let merged = pst.merged_linear(&base).unwrap().unwrap();
        assert_eq!(to_vec(merged.weight), [0.0, 0.0, 3.0, -4.0, 0.0, 0.1]);
        assert!(pst.unmerged_linear(&base).is_err());

        let device = Device::default();
        let x = Tensor::<2>::eye(3, &device.clone().autodiff());
        let y = pst.pass(Mode::Train { seed: 0 }).linear(&base, x);
        close(&to_vec(y.clone().inner()), &[0.0, -4.0, 0.0, 0.0, 3.0, 0.1]);
        // y = Ŵᵀ, so weights on y are the gradient of Ŵ transposed: G = [[1, 2, 3], [4, 5, 6]].
        let mut gradients =
            (y * Tensor::<2>::from_data([[1.0, 4.0], [2.0, 5.0], [3.0, 6.0]], &device))
                .sum()
                .backward();
        let mut gradient =
            |i: usize| to_vec(pst.parameters()[i].take_gradient(&mut gradients).unwrap());
        close(&gradient(4), &[6.0, -12.9]);
        close(&gradient(5), &[-15.0, -1.5, 9.6]);
        close(&gradient(3), &[1.0, -4.0, 9.0]);
        // ∂L/∂(UV) = G ⊙ M + sign(W) ⊙ G ⊙ W, and V gets Uᵀ of it.
        let (g, m, w) = (
            [1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
            [0.0, 0.0, 1.0, 1.0, 0.0, 1.0],
            [1.0f32, -2.0, 3.0, -4.0, 0.5, 0.1],
        );
        let full: Vec<f32> = (0..6)
            .map(|i| g[i] * m[i] + w[i].signum() * g[i] * w[i])
            .collect();
        close(
            &gradient(1),
            &[full[0] - full[3], full[1] - full[4], full[2] - full[5]],
        );
    }

    #[test]
    fn a_final_sparsity_of_many_decimals_is_reached() {
        let mut pst = small(json!({"final_sparsity": 2.0 / 3.0})).0.unwrap();
        assert!(!pst.is_complete());
        pst.after_step(&StepContext {
            step: 10,
            total_steps: 10,
            seed: 0,
        });
        assert!(pst.is_complete());
        let state = pst.state();
        pst.restore(&state).unwrap();
        assert!(pst.is_complete());
    }

    #[test]
    fn shares_are_within_0_and_1_and_tables_refused() {
        let message = |settings: Value| {
            (METHOD.check)(settings.as_object().unwrap())
                .unwrap_err()
                .to_string()
        };
        for (field, value) in [
            ("current_sparsity", 1.5),
            ("current_sparsity", -0.1),
            ("final_sparsity", 0.999_999_9),
        ] {
            assert!(
                message(json!({field: value})).contains(field),
                "{field} {value}"
            );
        }
        let message = small(json!({"target_modules": ["q_proj", "embed_tokens"]}))
            .0
            .err()
            .unwrap()
            .to_string();
        assert!(
            message.contains("`model.embed_tokens` is a table"),
            "{message}"
        );
    }

    #[test]
    fn counts_are_those_of_the_factors() {
        let count = |raw: Value, settings: Value| {
            let model = ModelConfig::from_json(raw, "test").unwrap();
            let sites = model.sites();
            let context = BuildContext {
                info: &model.info(),
                sites: &sites,
                backbone: None,
                device: Device::default(),
                seed: 1,
                tokenize: None,
            };
            Pst::new(
                settings::parse(NAME, settings.as_object().unwrap()).unwrap(),
                &context,
            )
            .unwrap()
            .num_trainable()
        };
        let bert = json!({"model_type": "bert", "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
            "num_attention_heads": 12, "vocab_size": 16, "max_position_embeddings": 8, "type_vocab_size": 2});
        assert_eq!(
            count(bert.clone(), json!({"exclude_modules": ["pooler.dense"]})),
            2_820_096
        );
        assert_eq!(
            count(
                bert,
                json!({"r": 4, "score_r": 4, "exclude_modules": ["pooler.dense"]})
            ),
            1_492_992
        );
        let smollm = json!({"model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
            "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 64});
        assert_eq!(count(smollm, json!({})), 5_189_760);
    }
}
