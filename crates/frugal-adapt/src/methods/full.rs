//! # Full fine-tuning
//!
//! ## What it does
//! Trains every weight of the model: the reference that parameter-efficient methods are measured
//! against, and what pre-training from scratch uses.
//!
//! ## Update rule
//! `W ← W − η · step(∇W)` for every tensor.
//!
//! ## When to use, when not
//! When memory allows and the task is far from what the model knows. It forgets more than low-rank
//! methods and its file is as large as the model. It needs the weights in full
//! (`quantize = "none"`).
//!
//! ## Cost
//! Trainable: everything. Extra memory: a copy of the weights, their gradients and two moments
//! each.
//!
//! ## Defaults and where they come from
//! No settings.
//!
//! ## Departures from the paper
//! None: there is no paper.
//!
//! ## References
//! - Howard, Ruder: Universal Language Model Fine-tuning for Text Classification, 2018, arXiv
//!   1801.06146.

mod pass;

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use burn::prelude::*;
use frugal_models::factor_names;
use frugal_nn::{
    AdaptError, Adapter, Backbone, BuildContext, Conv, Embedding, Frozen, Linear, MergedLinear,
    Mode, Norm, Param, Parameter, Pass, SiteId, StepContext, Weight, to_vec,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::method::{Family, Method, MethodConfig};
use crate::overlay::matrix_of;
use crate::pretraining::layer::Layer;
use crate::settings::Settings;
use crate::support::model_training::{Statistics, param_shape};

const NAME: &str = "full";

/// Registry entry.
pub const METHOD: Method = Method::of::<FullConfig>(
    Family::Full,
    "Trains every weight: the reference, and what pre-training uses",
    include_str!("full.rs"),
)
.aliases(&["full-fine-tuning", "fft"])
.default_lr(6e-5);

impl MethodConfig for FullConfig {
    const NAME: &'static str = NAME;
    const PEFT_TYPE: &'static str = "FULL";

    fn build(self, context: &BuildContext<'_>) -> Result<Box<dyn Adapter>, AdaptError> {
        Ok(Box::new(Full::new(self, context)?))
    }

    fn from_peft(_: &Settings) -> Result<Settings, AdaptError> {
        Ok(Map::new())
    }
}

/// No settings.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FullConfig {}

#[derive(Default)]
struct Site {
    weight: Option<Parameter>,
    /// Where the model holds the weight as two thin matrices: the first, `[rank, d_in]`; `weight` is
    /// then the second.
    first: Option<Parameter>,
    /// What is trained in the place of the weight, which is none then.
    layer: Option<Box<dyn Layer>>,
    bias: Option<Parameter>,
}

impl Site {
    fn parameters(&self) -> impl Iterator<Item = &Parameter> {
        let of_layer = self.layer.iter().flat_map(|layer| layer.parameters());
        let own = self.first.iter().chain(&self.weight);
        own.chain(of_layer).chain(&self.bias)
    }

    fn parameters_mut(&mut self) -> impl Iterator<Item = &mut Parameter> {
        let of_layer = self.layer.iter_mut().flat_map(|l| l.parameters_mut());
        let own = self.first.iter_mut().chain(&mut self.weight);
        own.chain(of_layer).chain(&mut self.bias)
    }
}

impl Site {
    /// Copies of a layer that the model holds as two thin matrices.
    fn factored(linear: &Linear, context: &BuildContext<'_>) -> Self {
        let (path, device) = (&context.sites.info(linear.site).path, &context.device);
        let Weight::Factored(factors) = &linear.weight else {
            return Self::default();
        };
        let [l, r] = factor_names(path);
        let copy = |name: String, weight: &Weight| {
            let values = to_vec(weight.dense());
            Parameter::new(name, &weight.dims(), values, device)
        };
        let bias = linear.bias.clone().map(to_vec);
        Self {
            layer: None,
            first: Some(copy(l, &factors.l)),
            weight: Some(copy(r, &factors.r)),
            bias: bias.map(|b| Parameter::new(format!("{path}.bias"), &[b.len()], b, device)),
        }
    }
}

/// Trainable copies of all weights.
pub struct Full {
    sites: Vec<Site>,
    /// The output head and the token table, when they are one matrix.
    tied_head: Option<(SiteId, SiteId)>,
    /// Of the step so far: what each choice of a router got whose load a bias keeps even, and how far
    /// the bias moves.
    loads: Mutex<BTreeMap<SiteId, (Vec<usize>, f64)>>,
    /// Of the step so far: what statistics of the data move towards, and by how much.
    statistics: Statistics,
    /// What it is called: this method, or what its layers are.
    name: &'static str,
    /// Steps between two restarts of layers that are no weights; 0 for none.
    restart_steps: u64,
}

impl Full {
    /// Copies the backbone's weights; without a backbone (planning) all are zero.
    ///
    /// # Errors
    /// Weights in few bits, whose place the trained ones could not take.
    pub fn new(_config: FullConfig, context: &BuildContext<'_>) -> Result<Self, AdaptError> {
        let mut sites: Vec<Site> = (0..context.sites.len()).map(|_| Site::default()).collect();
        let tied = context.sites.iter().find(|(_, s)| s.tied).map(|(id, _)| id);
        let table = context.sites.iter().next().map(|(id, _)| id);
        let device = &context.device;
        let mut set = |id: SiteId, shape: &[usize], weight: Vec<f32>, bias: Option<Vec<f32>>| {
            let info = context.sites.info(id);
            let path = &info.path;
            let weight = Parameter::new(info.weight_name(), shape, weight, device);
            sites[id.index()] = Site {
                first: None,
                layer: None,
                weight: Some(match info.is_statistic {
                    true => weight.freeze(),
                    false => weight,
                }),
                bias: bias.map(|b| Parameter::new(format!("{path}.bias"), &[b.len()], b, device)),
            };
        };
        context.backbone.map_or(Ok(()), check_dense)?;
        let mut factored: Vec<Linear> = Vec::new();
        match context.backbone {
            Some(backbone) => backbone.visit_weights(&mut |part| match part {
                Frozen::Linear(l) if Some(l.site) == tied => {}
                Frozen::Linear(l) if matches!(l.weight, Weight::Factored(_)) => {
                    factored.push(l.clone())
                }
                Frozen::Linear(l) => set(
                    l.site,
                    &l.weight.dims(),
                    to_vec(l.weight.dense()),
                    l.bias.clone().map(to_vec),
                ),
                Frozen::Embedding(e) => {
                    set(e.site, &e.weight.dims(), to_vec(e.weight.dense()), None)
                }
                Frozen::Norm(n) => set(
                    n.site,
                    &n.weight.dims(),
                    to_vec(n.weight.clone()),
                    n.bias.clone().map(to_vec),
                ),
                Frozen::Conv(c) => set(
                    c.site,
                    &[c.weight.dims()[0], 1, c.weight.dims()[1]],
                    to_vec(c.weight.clone()),
                    c.bias.clone().map(to_vec),
                ),
                Frozen::Param(p) => set(
                    p.site,
                    &param_shape(context.sites.info(p.site)),
                    to_vec(p.value.clone()),
                    None,
                ),
            }),
            None => {
                for (id, s) in context.sites.iter().filter(|(_, s)| !s.tied) {
                    let bias = s.has_bias.then(|| vec![0.0; s.d_out]);
                    set(id, &[s.d_in * s.d_out], vec![0.0; s.d_in * s.d_out], bias);
                }
            }
        }
        for linear in factored {
            sites[linear.site.index()] = Site::factored(&linear, context);
        }
        Ok(Self {
            sites,
            tied_head: tied.zip(table),
            loads: Mutex::default(),
            statistics: Statistics::default(),
            name: NAME,
            restart_steps: 0,
        })
    }

    /// Lets each matrix learn at so many times the learning rate as `scale` says of its site, and what
    /// stands in its place; vectors keep the rate.
    pub fn scale_rates(&mut self, scale: impl Fn(SiteId) -> f64) {
        for (index, site) in self.sites.iter_mut().enumerate() {
            let scale = scale(SiteId(index as u32));
            let matrices = site.parameters_mut().filter(|p| p.shape().len() > 1);
            for parameter in matrices.filter(|_| scale != 1.0) {
                *parameter = parameter.clone().with_lr_scale(scale);
            }
        }
    }

    /// Bytes that are held beside the parameters: places of sparse entries.
    pub fn other_bytes(&self) -> u64 {
        let layers = self.sites.iter().filter_map(|site| site.layer.as_ref());
        layers.map(|layer| layer.other_bytes()).sum()
    }

    pub(crate) fn restarts_as(&mut self, name: &'static str, restart_steps: u64) {
        (self.name, self.restart_steps) = (name, restart_steps);
    }

    /// Takes the weight of a layer out, unless it is in factors.
    pub(crate) fn take_weight(&mut self, site: SiteId) -> Option<Parameter> {
        let site = &mut self.sites[site.index()];
        site.weight.take_if(|_| site.first.is_none())
    }

    /// Puts something in the place of a weight that was taken out.
    pub(crate) fn put_layer(&mut self, site: SiteId, layer: Box<dyn Layer>) {
        self.sites[site.index()].layer = Some(layer);
    }

    fn layer(&self, site: SiteId) -> Option<&dyn Layer> {
        self.sites[site.index()].layer.as_deref()
    }

    /// Moves the biases of routers by the load of the whole step.
    fn follow_load(&mut self) {
        let loads = self.loads.get_mut();
        let loads = std::mem::take(loads.unwrap_or_else(PoisonError::into_inner));
        for (site, (load, rate)) in loads {
            let Some(bias) = self.sites[site.index()].weight.as_mut() else {
                continue;
            };
            let total: usize = load.iter().sum();
            let moved = bias.to_vec().into_iter().zip(&load).map(|(bias, &got)| {
                let missing = total.cmp(&(got * load.len())) as i8;
                bias + f32::from(missing) * rate as f32
            });
            let moved = moved.collect();
            bias.set(moved);
        }
    }

    /// Moves the statistics of the data, in the order in which the batches of the step came.
    fn follow_statistics(&mut self) {
        for moved in self.statistics.take() {
            if let Some(running) = self.sites[moved.site.index()].weight.as_mut() {
                moved.apply(running);
            }
        }
    }

    fn first(&self, site: SiteId) -> Option<&Parameter> {
        self.sites[site.index()].first.as_ref()
    }

    /// The weight of a linear layer, `[d_out, d_in]`.
    fn whole(&self, site: SiteId) -> Option<Tensor<2>> {
        if let Some(layer) = self.layer(site) {
            return Some(layer.weight(Mode::Eval));
        }
        let weight = self.weight(site)?.get::<2>(Mode::Eval);
        Some(match self.first(site) {
            Some(first) => weight.matmul(first.get::<2>(Mode::Eval)),
            None => weight,
        })
    }

    fn weight(&self, site: SiteId) -> Option<&Parameter> {
        let site = match self.tied_head {
            Some((head, table)) if head == site => table,
            _ => site,
        };
        self.sites[site.index()].weight.as_ref()
    }

    fn bias(&self, site: SiteId) -> Option<&Parameter> {
        self.sites[site.index()].bias.as_ref()
    }

    fn conv(&self, base: &Conv, mode: Mode) -> Option<(Tensor<2>, Option<Tensor<1>>)> {
        let weight = self.weight(base.site)?.get::<3>(mode);
        let [d, _, k] = weight.dims();
        let bias = self.bias(base.site).map(|bias| bias.get::<1>(mode));
        Some((weight.reshape([d, k]), bias))
    }

    fn param(&self, base: &Param, mode: Mode) -> Option<Tensor<2>> {
        Some(matrix_of(self.weight(base.site)?, mode))
    }
}

/// Training from weights in few bits would save nothing, and the result could not take their place.
fn check_dense(backbone: &dyn Backbone) -> Result<(), AdaptError> {
    let mut packed = None;
    backbone.visit_weights(&mut |part| {
        let (site, format) = match part {
            Frozen::Linear(l) => (l.site, l.weight.format()),
            Frozen::Embedding(e) => (e.site, e.weight.format()),
            Frozen::Norm(_) | Frozen::Conv(_) | Frozen::Param(_) => return,
        };
        if packed.is_none() {
            packed = format.map(|format| (site, format.to_owned()));
        }
    });
    let Some((site, format)) = packed else {
        return Ok(());
    };
    let path = &backbone.sites().info(site).path;
    let reason = format!("`{path}` is held as {format}: full training needs `quantize = \"none\"`");
    Err(AdaptError::Unsupported {
        method: NAME,
        action: "start from packed weights",
        reason,
    })
}

impl Adapter for Full {
    fn merged_conv(&self, base: &Conv) -> Option<(Tensor<2>, Option<Tensor<1>>)> {
        self.conv(base, Mode::Eval)
    }

    fn merged_param(&self, base: &Param) -> Option<Tensor<2>> {
        self.param(base, Mode::Eval)
    }

    fn method(&self) -> &'static str {
        self.name
    }

    fn replaces_weights(&self) -> bool {
        self.sites.iter().all(|site| site.layer.is_none())
    }

    fn parameters(&self) -> Vec<&Parameter> {
        self.sites.iter().flat_map(Site::parameters).collect()
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        self.sites
            .iter_mut()
            .flat_map(Site::parameters_mut)
            .collect()
    }

    fn after_step(&mut self, context: &StepContext) {
        self.follow_load();
        self.follow_statistics();
        if self.restart_steps == 0 || !context.step.is_multiple_of(self.restart_steps) {
            return;
        }
        for layer in self.sites.iter_mut().filter_map(|s| s.layer.as_mut()) {
            layer.restart(context.seed);
        }
    }

    fn pass(&self, mode: Mode) -> Box<dyn Pass + '_> {
        self.pass_of(mode)
    }

    fn peft_config(&self) -> Map<String, Value> {
        Map::from_iter([("peft_type".to_owned(), json!("FULL"))])
    }

    fn weight_delta(&self, base: &Linear) -> Result<Option<Tensor<2>>, AdaptError> {
        Ok(self
            .whole(base.site)
            .map(|whole| whole - base.weight.dense()))
    }

    fn merged_linear(&self, base: &Linear) -> Result<Option<MergedLinear>, AdaptError> {
        let Some(weight) = self.whole(base.site) else {
            return Ok(None);
        };
        let bias = self.bias(base.site).map(|b| b.get::<1>(Mode::Eval));
        Ok(Some(MergedLinear { weight, bias }))
    }

    fn merged_factors(&self, base: &Linear) -> Option<[Tensor<2>; 2]> {
        let (first, second) = (self.first(base.site)?, self.weight(base.site)?);
        Some([first.get(Mode::Eval), second.get(Mode::Eval)])
    }

    fn unmerged_linear(&self, _merged: &Linear) -> Result<Option<MergedLinear>, AdaptError> {
        Err(AdaptError::Unsupported {
            method: NAME,
            action: "be taken out again",
            reason: "it replaces the weights; load the base model".into(),
        })
    }

    fn merged_embedding(&self, base: &Embedding) -> Option<Tensor<2>> {
        self.weight(base.site).map(|w| w.get::<2>(Mode::Eval))
    }

    fn merged_norm(&self, base: &Norm) -> Option<(Tensor<1>, Option<Tensor<1>>)> {
        let weight = self.weight(base.site)?.get::<1>(Mode::Eval);
        Some((weight, self.bias(base.site).map(|b| b.get::<1>(Mode::Eval))))
    }

    fn supports_mixed_batch(&self) -> bool {
        true
    }
}
