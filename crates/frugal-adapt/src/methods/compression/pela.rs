//! # PELA: learning with low-rank approximation
//!
//! ## What it does
//! Replaces each chosen weight by two thin factors from its singular value decomposition and trains
//! them (with norms and biases) on the task while the features of the original model are kept
//! close. The result is a smaller model, of its own or as an adapter.
//!
//! ## Update rule
//! `W ≈ R Lᵀ` with `Lᵀ = S_r^½ V_rᵀ [r, d_in]`, `R = U_r S_r^½ [d_out, r]` and
//! `r = ⌊d_in d_out / (compression_ratio (d_in + d_out))⌋`; `y = (x L) Rᵀ + b`. The loss gains
//! `feature_weight / blocks · Σ MSE(h, h_teacher)` over the outputs of all blocks and
//! `perturbation_weight / maps · Σ (max |R Lᵀ − W| − perturbation_eps)²`, and with `kd_beta` that
//! many times the mean squared difference of the outputs over the vocabulary.
//!
//! ## When to use, when not
//! To get a model with fewer parameters and less arithmetic that is then used or tuned further.
//! Expect a large loss right after factorising and hundreds of steps to recover it. Recover it on
//! the kind of text that the original knows and adapt it afterwards: on other text the original's
//! features hold it back (`benchmarks/pela`). `frugal merge --factored` writes the small model as a
//! folder that needs no base and is then evaluated, tuned (by `full` or any other method) and merged
//! like any other; plain `frugal merge` writes one of the old size that loads anywhere. To adapt a
//! model without changing its size, use LoRA.
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
//! tables and head stay whole. Features are compared by value on encoders (`mse`, as in the paper),
//! by direction on decoders (`cosine`), where a few channels dominate the squared error: on
//! SmolLM2-135M at ratio 1.5 the squares leave a perplexity of 3,877, directions one of 1,055.
//!
//! ## Departures from the paper
//! Token tables are not trained. Student and teacher read the same batch in one step. Two layers in
//! place of one have no place in a Hugging Face model folder, so other programs refuse the small
//! form (`quantization_config` names a kind that they do not know).
//!
//! ## References
//! - Guo, Wang, Kankanhalli: PELA: Learning Parameter-Efficient Models with Low-Rank Approximation,
//!   2024, arXiv 2310.10700.

mod config;
mod distance;
mod factors;

use std::collections::BTreeMap;
use std::sync::Arc;

use burn::prelude::*;
use frugal_models::merge;
use frugal_nn::{
    AdaptError, Adapter, Backbone, BuildContext, Embedding, Input, Linear, LinearChange,
    MergedLinear, Mode, ModelError, NoAdapter, Norm, NormChange, Parameter, Pass, Rows,
    SequenceLayout, SiteId, SiteInfo, SiteKind, to_vec,
};
use rayon::prelude::*;
use serde_json::{Map, Value, json};

use crate::method::{Family, Method, MethodConfig};
use crate::methods::compression::pela::distance::{Features, distance, perturbation};
use crate::methods::compression::pela::factors::{
    Factors, TrainedNorm, factorise, factors, norm, vectors,
};
use crate::settings::Settings;
use crate::support::{base_weights, own_files};

pub use crate::methods::compression::pela::config::{FeatureLoss, PelaConfig};

const NAME: &str = "pela";
const PEFT_TYPE: &str = "PELA";

/// Registry entry.
pub const METHOD: Method = Method::of::<PelaConfig>(
    Family::Compression,
    "Thin factors in place of weights, trained towards the features of the original",
    include_str!("pela.rs"),
)
.aliases(&["low-rank-compression"])
.default_lr(3e-4)
.without_identity();

impl MethodConfig for PelaConfig {
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
        if !(self.compression_ratio.is_finite() && self.compression_ratio > 0.0) {
            return bad(
                "compression_ratio",
                format!("{} is not a positive number", self.compression_ratio),
            );
        }
        for (field, value) in [
            ("feature_weight", self.feature_weight),
            ("kd_beta", self.kd_beta),
            ("perturbation_weight", self.perturbation_weight),
            ("perturbation_eps", self.perturbation_eps),
        ] {
            if !(value.is_finite() && value >= 0.0) {
                return bad(field, format!("{value} is not a number of at least 0"));
            }
        }
        Ok(())
    }

    fn build(self, context: &BuildContext<'_>) -> Result<Box<dyn Adapter>, AdaptError> {
        Ok(Box::new(Pela::new(self, context)?))
    }

    fn from_peft(config: &Settings) -> Result<Settings, AdaptError> {
        let mut settings = own_files::from_file::<PelaConfig>(config);
        settings.insert("init_weights".into(), json!(false));
        Ok(settings)
    }
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
    /// The original model; shares the backbone's tensors. Absent when planning and without a term
    /// that needs it.
    teacher: Option<Arc<dyn Backbone>>,
    feature_loss: FeatureLoss,
    /// The norm before the output head, where its output is compared.
    last_norm: Option<SiteId>,
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
        let last_norm = last_norm(&config, context)?;
        let needed = config.feature_weight > 0.0 || config.kd_beta > 0.0;
        let teacher = match context.backbone.filter(|_| needed) {
            Some(backbone) => Some(merge::weights(backbone, None)?.build(backbone.device())?),
            None => None,
        };
        let usual = match context.info.is_encoder {
            true => FeatureLoss::Mse,
            false => FeatureLoss::Cosine,
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
            feature_loss: config.feature_loss.unwrap_or(usual),
            last_norm,
            config,
        })
    }

    fn at(&self, site: SiteId) -> Option<&Factors> {
        self.factors.get(site.index())?.as_ref()
    }
}

/// The norm before the output head, where outputs are compared.
fn last_norm(
    config: &PelaConfig,
    context: &BuildContext<'_>,
) -> Result<Option<SiteId>, AdaptError> {
    if config.kd_beta == 0.0 {
        return Ok(None);
    }
    if context.info.is_encoder {
        return Err(AdaptError::Config {
            method: NAME,
            field: "kd_beta",
            reason: "this model has no output over the vocabulary: leave it at 0".into(),
        });
    }
    let outside = |site: &SiteInfo| site.kind == SiteKind::Norm && site.layer.is_none();
    let norms = context.sites.iter().filter(|(_, site)| outside(site));
    Ok(norms.last().map(|(id, _)| id))
}

struct PelaPass<'a> {
    adapter: &'a Pela,
    mode: Mode,
    ids: Vec<u32>,
    types: Vec<u32>,
    layout: Option<SequenceLayout>,
    /// What the teacher gave behind each block, and in the end.
    teacher: BTreeMap<usize, Tensor<2>>,
    teacher_output: Option<Tensor<2>>,
    features: Vec<Tensor<1>>,
    perturbations: Vec<Tensor<1>>,
    outputs: Option<Tensor<1>>,
    error: Option<ModelError>,
}

impl<'a> PelaPass<'a> {
    fn new(adapter: &'a Pela, mode: Mode) -> Self {
        Self {
            adapter,
            mode,
            ids: Vec::new(),
            types: Vec::new(),
            layout: None,
            teacher: BTreeMap::new(),
            teacher_output: None,
            features: Vec::new(),
            perturbations: Vec::new(),
            outputs: None,
            error: None,
        }
    }

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

    fn norm(&mut self, base: &Norm, x: Tensor<2>) -> Tensor<2> {
        let (weight, bias) = match self.norm_change(base) {
            NormChange::Parameters(weight, bias) => (weight, bias),
            _ => base.values(),
        };
        let y = base.apply(x, weight, bias);
        if let (Some(teacher), true) = (&self.adapter.teacher, self.mode.is_train())
            && self.adapter.last_norm == Some(base.site)
            && let Some(output) = self.teacher_output.take()
        {
            let logits = |x: Tensor<2>| teacher.logits(x, Rows::Tokens, &mut NoAdapter);
            self.outputs = logits(y.clone())
                .zip(logits(output))
                .map(|(student, teacher)| distance(FeatureLoss::Mse, student, teacher));
        }
        y
    }

    /// Features are compared token by token, with a teacher that may choose others where routers do.
    fn needs_token_rows(&self) -> bool {
        self.mode.is_train() && self.adapter.teacher.is_some()
    }

    fn take_error(&mut self) -> Option<ModelError> {
        self.error.take()
    }

    fn after_block(&mut self, layer: usize, hidden_states: &Tensor<2>) {
        let (Some(teacher), true) = (&self.adapter.teacher, self.mode.is_train()) else {
            return;
        };
        if let Some(layout) = self.layout.take() {
            let mut features = Features::default();
            let input = Input {
                token_type_ids: &self.types,
                ..Input::tokens(&self.ids, layout)
            };
            match teacher.forward(&input, &mut features, None) {
                Ok(output) => (self.teacher, self.teacher_output) = (features.0, Some(output)),
                Err(error) => self.error = Some(error),
            }
        }
        if let Some(original) = self.teacher.get(&layer)
            && self.adapter.config.feature_weight > 0.0
        {
            self.features.push(distance(
                self.adapter.feature_loss,
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
        let outputs = self.outputs.take().map(|term| term * config.kd_beta);
        let terms = [features, perturbations, outputs];
        terms.into_iter().flatten().reduce(|sum, term| sum + term)
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
        Box::new(PelaPass::new(self, mode))
    }

    fn peft_config(&self) -> Map<String, Value> {
        own_files::to_file(PEFT_TYPE, &self.config, &self.saved_targets)
    }

    fn weight_delta(&self, base: &Linear) -> Result<Option<Tensor<2>>, AdaptError> {
        Ok(self
            .at(base.site)
            .map(|factors| factors.weight(Mode::Eval) - base.weight.dense()))
    }

    fn merged_factors(&self, base: &Linear) -> Option<[Tensor<2>; 2]> {
        let factors = self.at(base.site)?;
        Some([factors.l.get(Mode::Eval), factors.r.get(Mode::Eval)])
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
mod tests;
