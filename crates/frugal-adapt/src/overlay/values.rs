//! What the base has at the places whose parameters are trained.

use std::collections::BTreeMap;

use burn::prelude::*;
use frugal_nn::{BuildContext, Frozen, Mode, Parameter, SiteId, SiteKind, SiteTable, to_vec};
use serde_json::{Map, Value};

/// Which parameters of the base are trained, by site, and what files call them.
#[derive(Default)]
pub(crate) struct Wanted {
    /// Sites whose weight and bias are.
    pub modules: Vec<SiteId>,
    /// Sites whose bias alone is, with its key in the file.
    pub biases: Vec<(SiteId, String)>,
    /// Tables with the ids of their trained rows.
    pub tokens: Vec<(SiteId, Vec<u32>)>,
    /// Fields of the configuration that say so, as the file has them.
    pub fields: Map<String, Value>,
}

impl Wanted {
    pub fn is_empty(&self) -> bool {
        self.modules.is_empty() && self.biases.is_empty() && self.tokens.is_empty()
    }
}

/// A bare parameter as a matrix, whose columns are one where it is a vector.
pub(crate) fn matrix_of(parameter: &Parameter, mode: Mode) -> Tensor<2> {
    match parameter.shape() {
        [n] => parameter.get::<1>(mode).reshape([*n, 1]),
        _ => parameter.get::<2>(mode),
    }
}

type Values = BTreeMap<SiteId, (Vec<f32>, Option<Vec<f32>>)>;

/// What the base has at these sites, in the layout of files; nothing when planning.
pub(super) fn values_of(context: &BuildContext<'_>, wanted: &Wanted) -> Values {
    let mut values = Values::new();
    let Some(backbone) = context.backbone else {
        return values;
    };
    let mut needs_weight = vec![false; context.sites.len()];
    let mut needs_bias = needs_weight.clone();
    for id in &wanted.modules {
        needs_weight[id.index()] = true;
        needs_bias[id.index()] = true;
    }
    for (id, _) in &wanted.biases {
        needs_bias[id.index()] = true;
    }
    let is_transposed = |id: SiteId| context.sites.info(id).kind == SiteKind::Conv1d;
    backbone.visit_weights(&mut |part| {
        let (site, bias) = match &part {
            Frozen::Linear(l) => (l.site, l.bias.clone()),
            Frozen::Embedding(e) => (e.site, None),
            Frozen::Norm(n) => (n.site, n.bias.clone()),
            Frozen::Conv(c) => (c.site, c.bias.clone()),
            Frozen::Param(p) => (p.site, None),
        };
        if !needs_bias[site.index()] {
            return;
        }
        let weight = match &part {
            _ if !needs_weight[site.index()] => Vec::new(),
            Frozen::Linear(l) if is_transposed(site) => to_vec(l.weight.dense().transpose()),
            Frozen::Linear(l) => to_vec(l.weight.dense()),
            Frozen::Embedding(e) => to_vec(e.weight.dense()),
            Frozen::Norm(n) => to_vec(n.weight.clone() - n.stored_offset),
            Frozen::Conv(c) => to_vec(c.weight.clone()),
            Frozen::Param(p) => to_vec(p.value.clone()),
        };
        values.insert(site, (weight, bias.map(to_vec)));
    });
    values
}

/// Shape of a site's weight in files.
pub(crate) fn stored_shape(sites: &SiteTable, id: SiteId) -> Vec<usize> {
    sites.info(id).stored_shape()
}
