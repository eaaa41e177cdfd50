//! # PELA: learning with low-rank approximation
//!
//! ## What it does
//! Replaces each chosen weight by two thin factors from its singular value decomposition and trains
//! them (with norms and biases) on the task while the features of the original model are kept
//! close. The result is a smaller model.
//!
//! ## Update rule
//! `W ≈ R Lᵀ` with `Lᵀ = S_r^½ V_rᵀ [r, d_in]`, `R = U_r S_r^½ [d_out, r]` and
//! `r = ⌊d_in d_out / (compression_ratio (d_in + d_out))⌋`; `y = (x L) Rᵀ + b`. The loss gains
//! `feature_weight / blocks · Σ MSE(h, h_teacher)` over the outputs of all blocks and
//! `perturbation_weight / maps · Σ (max |R Lᵀ − W| − perturbation_eps)²`.
//!
//! ## When to use, when not
//! To get a model with fewer parameters and less arithmetic that is then used or tuned further.
//! Expect a large loss right after factorising and hundreds of steps to recover it. Recover it on
//! the kind of text that the original knows and adapt it afterwards: on other text the original's
//! features hold it back (`benchmarks/pela`). To adapt a model without changing its size, use LoRA.
//!
//! ## Cost
//! Trainable: `r (d_in + d_out)` per layer, `1 / compression_ratio` of its weights, and norms and
//! biases. Extra memory while training: the original model and its features. Extra compute: its
//! forward pass, and one full-size product per layer for the perturbation term. Inference costs
//! `1 / compression_ratio` of the original layers unless merged.
//!
//! ## Defaults and where they come from
//! `compression_ratio = 2`, `feature_weight = 1` as for DeiT-B; `perturbation_weight = 1`,
//! `perturbation_eps = 0.001` as for ALBEF. All attention and feed-forward layers are factorised;
//! tables and head stay whole.
//!
//! ## Departures from the paper
//! Token tables are not trained. Student and teacher read the same batch in one step.
//! `feature_loss = "cosine"` compares directions instead of values, since a few channels of
//! language models dominate the squared error. Two layers in place of one have no place in a Hugging
//! Face model folder: the small form is the adapter folder, which holds the factors, and merging
//! gives a folder of the old size that loads anywhere.
//!
//! ## References
//! - Guo, Wang, Kankanhalli: PELA: Learning Parameter-Efficient Models with Low-Rank Approximation,
//!   2024, arXiv 2310.10700.

use std::sync::Arc;

use burn::prelude::*;
use frugal_models::merge;
use frugal_nn::linalg::{randomised_svd, svd};
use frugal_nn::{
    AdaptError, Adapter, Backbone, BuildContext, Embedding, Frozen, Input, Linear, LinearChange,
    MergedLinear, Mode, Norm, NormChange, Parameter, Pass, SequenceLayout, SiteId, SiteInfo,
    SiteKind, to_vec,
};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::method::{Capabilities, Family, Method};
use crate::settings;
use crate::support::{base_weights, own_files};
use crate::target::Targets;

const NAME: &str = "pela";
const PEFT_TYPE: &str = "PELA";
const OVERSAMPLING: usize = 10;
const POWER_ITERATIONS: usize = 2;

/// Registry entry.
pub const METHOD: Method = Method {
    name: NAME,
    aliases: &["low-rank-compression"],
    family: Family::Compression,
    summary: "Thin factors in place of weights, trained towards the features of the original",
    default_lr: 3e-4,
    peft_type: PEFT_TYPE,
    peft_variant: None,
    load_rule: None,
    capabilities: Capabilities {
        merge: true,
        identity_at_init: false,
        mixed_batch: true,
    },
    source: include_str!("pela.rs"),
    defaults: settings::defaults::<PelaConfig>,
    check: |settings| settings::parse::<PelaConfig>(NAME, settings)?.validate(),
    build: |settings, context| {
        Ok(Box::new(Pela::new(
            settings::parse(NAME, settings)?,
            context,
        )?))
    },
    from_peft: |config| {
        let mut settings = own_files::from_file::<PelaConfig>(config);
        settings.insert("init_weights".into(), json!(false));
        Ok(settings)
    },
};

/// How features are compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FeatureLoss {
    /// Mean squared difference.
    #[default]
    Mse,
    /// One minus the cosine, averaged over tokens.
    Cosine,
}

/// Settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PelaConfig {
    /// Old parameters of a layer divided by its new ones.
    pub compression_ratio: f64,
    /// Weight of the distance to the original's features.
    pub feature_weight: f64,
    /// How features are compared.
    pub feature_loss: FeatureLoss,
    /// Weight of the perturbation term.
    pub perturbation_weight: f64,
    /// Largest change of a weight that the perturbation term aims at.
    pub perturbation_eps: f64,
    /// Train norms, and the biases of factorised layers.
    pub train_norms: bool,
    /// Decompose the weights; `false` leaves the factors to the adapter file.
    pub init_weights: bool,
    /// Which layers.
    #[serde(flatten)]
    pub targets: Targets,
}

impl Default for PelaConfig {
    fn default() -> Self {
        Self {
            compression_ratio: 2.0,
            feature_weight: 1.0,
            feature_loss: FeatureLoss::Mse,
            perturbation_weight: 1.0,
            perturbation_eps: 1e-3,
            train_norms: true,
            init_weights: true,
            targets: Targets::default(),
        }
    }
}

impl PelaConfig {
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
        if !(self.compression_ratio.is_finite() && self.compression_ratio > 0.0) {
            return bad(
                "compression_ratio",
                format!("{} is not a positive number", self.compression_ratio),
            );
        }
        for (field, value) in [
            ("feature_weight", self.feature_weight),
            ("perturbation_weight", self.perturbation_weight),
            ("perturbation_eps", self.perturbation_eps),
        ] {
            if !(value.is_finite() && value >= 0.0) {
                return bad(field, format!("{value} is not a number of at least 0"));
            }
        }
        Ok(())
    }

    /// Rank of a layer of this size.
    fn rank(&self, d_in: usize, d_out: usize) -> usize {
        let rank = (d_in * d_out) as f64 / (self.compression_ratio * (d_in + d_out) as f64);
        (rank as usize).clamp(1, d_in.min(d_out))
    }
}

/// `Lᵀ [r, d_in]` and `R [d_out, r]` of the balanced decomposition of a weight.
fn factorise(
    weight: &[f32],
    d_out: usize,
    d_in: usize,
    rank: usize,
    seed: u64,
) -> (Vec<f32>, Vec<f32>) {
    let found = if 2 * rank <= d_out.min(d_in) {
        randomised_svd(
            weight,
            d_out,
            d_in,
            rank,
            OVERSAMPLING,
            POWER_ITERATIONS,
            seed,
        )
    } else {
        svd(weight, d_out, d_in)
    };
    let k = found.s.len();
    let roots: Vec<f32> = found.s[..rank].iter().map(|s| s.max(0.0).sqrt()).collect();
    let l = found
        .vt
        .chunks_exact(d_in)
        .zip(&roots)
        .flat_map(|(row, root)| row.iter().map(move |v| v * root))
        .collect();
    let r = found
        .u
        .chunks_exact(k)
        .flat_map(|row| row.iter().zip(&roots).map(|(v, root)| v * root))
        .collect();
    (l, r)
}

/// The factors of one layer.
struct Factors {
    /// `[r, d_in]`.
    l: Parameter,
    /// `[d_out, r]`.
    r: Parameter,
    /// `[d_out]`.
    bias: Option<Parameter>,
}

impl Factors {
    fn parameters(&self) -> impl Iterator<Item = &Parameter> {
        [Some(&self.l), Some(&self.r), self.bias.as_ref()]
            .into_iter()
            .flatten()
    }

    fn parameters_mut(&mut self) -> impl Iterator<Item = &mut Parameter> {
        [Some(&mut self.l), Some(&mut self.r), self.bias.as_mut()]
            .into_iter()
            .flatten()
    }

    /// `R Lᵀ`, `[d_out, d_in]`.
    fn weight(&self, mode: Mode) -> Tensor<2> {
        self.r.get::<2>(mode).matmul(self.l.get::<2>(mode))
    }
}

/// Trained gain and bias of a norm.
struct TrainedNorm {
    weight: Parameter,
    bias: Option<Parameter>,
}

/// A PELA student.
pub struct Pela {
    config: PelaConfig,
    /// Indexed by site.
    factors: Vec<Option<Factors>>,
    /// Indexed by site.
    norms: Vec<Option<TrainedNorm>>,
    /// Token table, segment table.
    tables: [Option<SiteId>; 2],
    /// The original model; shares the backbone's tensors. Absent when planning and without a
    /// feature term.
    teacher: Option<Arc<dyn Backbone>>,
    saved_targets: Value,
}

impl Pela {
    /// Factorises every selected layer.
    ///
    /// # Errors
    /// Bad settings, no matching layer.
    pub fn new(config: PelaConfig, context: &BuildContext<'_>) -> Result<Self, AdaptError> {
        config.validate()?;
        let chosen = config.targets.select(context.sites)?;
        if let Some(&id) = chosen
            .iter()
            .find(|id| !context.sites.info(**id).kind.is_inner_linear())
        {
            let reason = format!(
                "`{}` is a table or the output head, which stay whole: leave it out",
                context.sites.info(id).path
            );
            return Err(AdaptError::Config {
                method: NAME,
                field: "target_modules",
                reason,
            });
        }
        let weights = base_weights::linear_weights(context);
        let (biases, gains) = vectors(context);
        let (sites, seed) = (context.sites, context.seed);
        let decompose = |&id: &SiteId| {
            let (d_in, d_out) = (sites.info(id).d_in, sites.info(id).d_out);
            let rank = config.rank(d_in, d_out);
            match weights[id.index()].clone().filter(|_| config.init_weights) {
                Some(weight) => factorise(&to_vec(weight), d_out, d_in, rank, seed),
                None => (vec![0.0; rank * d_in], vec![0.0; d_out * rank]),
            }
        };
        let decomposed: Vec<(Vec<f32>, Vec<f32>)> = chosen.par_iter().map(decompose).collect();
        let mut all: Vec<Option<Factors>> = (0..context.sites.len()).map(|_| None).collect();
        for (&id, values) in chosen.iter().zip(decomposed) {
            all[id.index()] = Some(factors(
                &config,
                context,
                id,
                values,
                biases[id.index()].as_deref(),
            ));
        }
        let norm = |(id, info): (SiteId, &SiteInfo)| {
            let trained = info.kind == SiteKind::Norm && config.train_norms;
            trained.then(|| {
                norm(
                    context,
                    info,
                    gains[id.index()].as_deref(),
                    biases[id.index()].as_deref(),
                )
            })
        };
        let find = |ending: &str| {
            context
                .sites
                .iter()
                .find(|(_, s)| s.path.ends_with(ending))
                .map(|(id, _)| id)
        };
        let teacher = match context.backbone.filter(|_| config.feature_weight > 0.0) {
            Some(backbone) => Some(merge::weights(backbone, None)?.build(backbone.device())?),
            None => None,
        };
        Ok(Self {
            norms: context.sites.iter().map(norm).collect(),
            tables: [
                context.sites.iter().next().map(|(id, _)| id),
                find("token_type_embeddings"),
            ],
            saved_targets: crate::target::saved_targets(&config.targets, context.sites, &chosen),
            factors: all,
            teacher,
            config,
        })
    }

    fn at(&self, site: SiteId) -> Option<&Factors> {
        self.factors.get(site.index())?.as_ref()
    }
}

/// Biases of layers and norms, and gains of norms, by site; all absent when planning.
fn vectors(context: &BuildContext<'_>) -> (Vec<Option<Vec<f32>>>, Vec<Option<Vec<f32>>>) {
    let (mut biases, mut gains) = (
        vec![None; context.sites.len()],
        vec![None; context.sites.len()],
    );
    if let Some(backbone) = context.backbone {
        backbone.visit_weights(&mut |part| match part {
            Frozen::Linear(l) => biases[l.site.index()] = l.bias.clone().map(to_vec),
            Frozen::Norm(n) => {
                gains[n.site.index()] = Some(to_vec(n.weight.clone()));
                biases[n.site.index()] = n.bias.clone().map(to_vec);
            }
            Frozen::Embedding(_) => {}
        });
    }
    (biases, gains)
}

fn factors(
    config: &PelaConfig,
    context: &BuildContext<'_>,
    id: SiteId,
    (l, r): (Vec<f32>, Vec<f32>),
    bias: Option<&[f32]>,
) -> Factors {
    let (info, device) = (context.sites.info(id), &context.device);
    let (path, d_in, d_out) = (&info.path, info.d_in, info.d_out);
    let rank = config.rank(d_in, d_out);
    let bias = (config.train_norms && info.has_bias)
        .then(|| bias.map_or_else(|| vec![0.0; d_out], <[f32]>::to_vec));
    Factors {
        l: Parameter::new(format!("{path}.0.weight"), &[rank, d_in], l, device),
        r: Parameter::new(format!("{path}.1.weight"), &[d_out, rank], r, device),
        bias: bias.map(|bias| Parameter::new(format!("{path}.1.bias"), &[d_out], bias, device)),
    }
}

fn norm(
    context: &BuildContext<'_>,
    info: &SiteInfo,
    gain: Option<&[f32]>,
    bias: Option<&[f32]>,
) -> TrainedNorm {
    let (path, d) = (&info.path, info.d_out);
    let make = |name: &str, values: Option<&[f32]>| {
        let values = values.map_or_else(|| vec![0.0; d], <[f32]>::to_vec);
        Parameter::new(format!("{path}.{name}"), &[d], values, &context.device)
    };
    TrainedNorm {
        weight: make("weight", gain),
        bias: info.has_bias.then(|| make("bias", bias)),
    }
}

/// Collects the teacher's features.
#[derive(Default)]
struct Features(Vec<Tensor<2>>);

impl Pass for Features {
    fn after_block(&mut self, _layer: usize, hidden_states: &Tensor<2>) {
        self.0.push(hidden_states.clone());
    }
}

/// Mean over elements or tokens, `[1]`.
fn distance(kind: FeatureLoss, student: Tensor<2>, teacher: Tensor<2>) -> Tensor<1> {
    match kind {
        FeatureLoss::Mse => {
            let difference = student - teacher;
            (difference.clone() * difference).mean()
        }
        FeatureLoss::Cosine => {
            let norm = |x: &Tensor<2>| (x.clone() * x.clone()).sum_dim(1).sqrt();
            let norms = norm(&student) * norm(&teacher);
            let cosine = (student * teacher).sum_dim(1) / (norms + 1e-8);
            (cosine.neg() + 1.0).mean()
        }
    }
}

/// `(max |R Lᵀ − W| − eps)²`, `[1]`.
fn perturbation(student: Tensor<2>, base: Tensor<2>, eps: f64) -> Tensor<1> {
    let excess = (student - base).abs().max() - eps;
    excess.clone() * excess
}

struct PelaPass<'a> {
    adapter: &'a Pela,
    mode: Mode,
    ids: Vec<u32>,
    types: Vec<u32>,
    layout: Option<SequenceLayout>,
    teacher: Vec<Tensor<2>>,
    features: Vec<Tensor<1>>,
    perturbations: Vec<Tensor<1>>,
}

impl PelaPass<'_> {
    fn vector(&self, own: Option<&Parameter>, base: Option<&Tensor<1>>) -> Option<Tensor<1>> {
        own.map(|p| p.get::<1>(self.mode)).or_else(|| base.cloned())
    }
}

impl Pass for PelaPass<'_> {
    fn embed(&mut self, hidden_states: Tensor<2>, layout: &mut SequenceLayout) -> Tensor<2> {
        self.layout = Some(layout.clone());
        hidden_states
    }

    fn embedding(&mut self, base: &Embedding, ids: &[u32]) -> Tensor<2> {
        let [tokens, types] = self.adapter.tables;
        if Some(base.site) == tokens {
            self.ids = ids.to_vec();
        } else if Some(base.site) == types {
            self.types = ids.to_vec();
        }
        base.forward(ids)
    }

    fn linear(&mut self, base: &Linear, x: Tensor<2>) -> Tensor<2> {
        let Some(factors) = self.adapter.at(base.site) else {
            return base.forward(x);
        };
        let config = &self.adapter.config;
        if self.mode.is_train() && config.perturbation_weight > 0.0 {
            self.perturbations.push(perturbation(
                factors.weight(self.mode),
                base.weight.dense(),
                config.perturbation_eps,
            ));
        }
        let bias = self.vector(factors.bias.as_ref(), base.bias.as_ref());
        frugal_kernels::linear(
            frugal_kernels::linear(x, factors.l.get::<2>(self.mode), None),
            factors.r.get::<2>(self.mode),
            bias,
        )
    }

    fn linear_change(&mut self, base: &Linear) -> LinearChange {
        LinearChange::opaque_if(self.adapter.at(base.site).is_some())
    }

    fn norm_change(&mut self, base: &Norm) -> NormChange {
        let Some(own) = &self.adapter.norms[base.site.index()] else {
            return NormChange::None;
        };
        NormChange::Parameters(
            own.weight.get::<1>(self.mode),
            self.vector(own.bias.as_ref(), base.bias.as_ref()),
        )
    }

    fn after_block(&mut self, layer: usize, hidden_states: &Tensor<2>) {
        let (Some(teacher), true) = (&self.adapter.teacher, self.mode.is_train()) else {
            return;
        };
        if self.teacher.is_empty()
            && let Some(layout) = self.layout.take()
        {
            let mut features = Features::default();
            let input = Input {
                token_type_ids: &self.types,
                ..Input::tokens(&self.ids, layout)
            };
            // The same tokens have just passed the same checks in the student; without features
            // there is no term.
            if teacher.forward(&input, &mut features, None).is_ok() {
                self.teacher = features.0;
            }
        }
        if let Some(original) = self.teacher.get(layer) {
            self.features.push(distance(
                self.adapter.config.feature_loss,
                hidden_states.clone(),
                original.clone(),
            ));
        }
    }

    fn auxiliary_loss(&mut self) -> Option<Tensor<1>> {
        let config = &self.adapter.config;
        let mean = |terms: Vec<Tensor<1>>, weight: f64| {
            let count = terms.len() as f64;
            terms
                .into_iter()
                .reduce(|sum, term| sum + term)
                .map(|sum| sum * (weight / count))
        };
        let features = mean(std::mem::take(&mut self.features), config.feature_weight);
        let perturbations = mean(
            std::mem::take(&mut self.perturbations),
            config.perturbation_weight,
        );
        match (features, perturbations) {
            (Some(a), Some(b)) => Some(a + b),
            (a, b) => a.or(b),
        }
    }
}

impl Adapter for Pela {
    fn method(&self) -> &'static str {
        NAME
    }

    fn parameters(&self) -> Vec<&Parameter> {
        let norms = self
            .norms
            .iter()
            .flatten()
            .flat_map(|n| [Some(&n.weight), n.bias.as_ref()])
            .flatten();
        self.factors
            .iter()
            .flatten()
            .flat_map(Factors::parameters)
            .chain(norms)
            .collect()
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        let norms = self
            .norms
            .iter_mut()
            .flatten()
            .flat_map(|n| [Some(&mut n.weight), n.bias.as_mut()])
            .flatten();
        self.factors
            .iter_mut()
            .flatten()
            .flat_map(Factors::parameters_mut)
            .chain(norms)
            .collect()
    }

    fn pass(&self, mode: Mode) -> Box<dyn Pass + '_> {
        Box::new(PelaPass {
            adapter: self,
            mode,
            ids: Vec::new(),
            types: Vec::new(),
            layout: None,
            teacher: Vec::new(),
            features: Vec::new(),
            perturbations: Vec::new(),
        })
    }

    fn peft_config(&self) -> Map<String, Value> {
        own_files::to_file(PEFT_TYPE, &self.config, &self.saved_targets)
    }

    fn weight_delta(&self, base: &Linear) -> Result<Option<Tensor<2>>, AdaptError> {
        Ok(self
            .at(base.site)
            .map(|factors| factors.weight(Mode::Eval) - base.weight.dense()))
    }

    fn merged_linear(&self, base: &Linear) -> Result<Option<MergedLinear>, AdaptError> {
        Ok(self.at(base.site).map(|factors| MergedLinear {
            weight: factors.weight(Mode::Eval),
            bias: factors
                .bias
                .as_ref()
                .map(|b| b.get::<1>(Mode::Eval))
                .or_else(|| base.bias.clone()),
        }))
    }

    fn unmerged_linear(&self, _merged: &Linear) -> Result<Option<MergedLinear>, AdaptError> {
        let reason = "it replaces the weights; load the base model".into();
        Err(AdaptError::Unsupported {
            method: NAME,
            action: "be taken out again",
            reason,
        })
    }

    fn merged_norm(&self, base: &Norm) -> Option<(Tensor<1>, Option<Tensor<1>>)> {
        let own = self.norms[base.site.index()].as_ref()?;
        Some((
            own.weight.get::<1>(Mode::Eval),
            own.bias.as_ref().map(|b| b.get::<1>(Mode::Eval)),
        ))
    }

    fn needs_trainer(&self) -> bool {
        self.teacher.is_some() || self.config.perturbation_weight > 0.0
    }

    fn supports_mixed_batch(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use frugal_models::ModelConfig;

    fn close(found: &[f32], expected: &[f32], tolerance: f32) {
        assert_eq!(found.len(), expected.len());
        found.iter().zip(expected).for_each(|(f, e)| {
            assert!(
                (f - e).abs() < tolerance,
                "{found:?} instead of {expected:?}"
            )
        });
    }

    fn matrix(values: Vec<f32>, rows: usize, cols: usize) -> Tensor<2> {
        Tensor::from_data(TensorData::new(values, [rows, cols]), &Device::default())
    }

    #[test]
    fn ranks_and_sizes_are_those_of_the_paper() {
        let ranks = |c: f64, sides: [(usize, usize); 4]| {
            let config = PelaConfig {
                compression_ratio: c,
                ..PelaConfig::default()
            };
            sides.map(|(d_in, d_out)| config.rank(d_in, d_out))
        };
        // DeiT-B: fused qkv, projection and the two feed-forward layers.
        let deit = [(768, 2304), (768, 768), (768, 3072), (3072, 768)];
        assert_eq!(ranks(2.0, deit), [288, 192, 307, 307]);
        assert_eq!(ranks(3.0, deit), [192, 128, 204, 204]);
        assert_eq!(ranks(1.5, deit), [384, 256, 409, 409]);
        let model = ModelConfig::from_json(
            json!({"model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
                "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 64}),
            "test",
        )
        .unwrap();
        let sites = model.sites();
        let context = BuildContext {
            info: &model.info(),
            sites: &sites,
            backbone: None,
            device: Device::default(),
            seed: 1,
            tokenize: None,
        };
        for (compression_ratio, expected) in
            [(1.5, 70_727_040), (2.0, 52_997_760), (3.0, 35_268_480)]
        {
            let config = PelaConfig {
                compression_ratio,
                train_norms: false,
                ..PelaConfig::default()
            };
            assert_eq!(
                Pela::new(config, &context).unwrap().num_trainable(),
                expected
            );
        }
    }

    #[test]
    fn factors_are_the_best_approximation_and_balanced() {
        let (l, r) = factorise(&[3.0, 0.0, 4.0, 5.0], 2, 2, 1, 0);
        close(
            &[l[0] * l[0] + l[1] * l[1], r[0] * r[0] + r[1] * r[1]],
            &[6.708_204; 2],
            1e-5,
        );
        let product = matrix(r, 2, 1).matmul(matrix(l, 1, 2));
        close(&to_vec(product.clone()), &[1.5, 1.5, 4.5, 4.5], 1e-5);
        let base = matrix(vec![3.0, 0.0, 4.0, 5.0], 2, 2);
        let error = to_vec(product.clone() - base.clone())
            .iter()
            .map(|v| v * v)
            .sum::<f32>()
            .sqrt();
        close(&[error], &[2.236_068], 1e-5);
        close(
            &to_vec(perturbation(product, base.clone(), 1e-3)),
            &[2.247_001],
            1e-5,
        );
        let (l, r) = factorise(&[3.0, 0.0, 4.0, 5.0], 2, 2, 2, 0);
        let whole = matrix(r, 2, 2).matmul(matrix(l, 2, 2));
        close(&to_vec(whole.clone()), &[3.0, 0.0, 4.0, 5.0], 1e-5);
        close(&to_vec(perturbation(whole, base, 1e-3)), &[1e-6], 1e-7);
    }

    #[test]
    fn features_are_compared_by_value_or_direction() {
        let (a, b) = (
            matrix(vec![1.0, 0.0, 0.0, 2.0], 2, 2),
            matrix(vec![2.0, 0.0, 2.0, 0.0], 2, 2),
        );
        close(
            &to_vec(distance(FeatureLoss::Mse, a.clone(), b.clone())),
            &[(1.0 + 4.0 + 4.0) / 4.0],
            1e-6,
        );
        close(&to_vec(distance(FeatureLoss::Cosine, a, b)), &[0.5], 1e-6);
    }
}
