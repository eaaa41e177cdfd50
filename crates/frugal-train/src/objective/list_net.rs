//! Learning which text of a list comes first.

use burn::prelude::*;
use burn::tensor::activation::log_softmax;

use super::reranking::ListLoss;
use super::text_sets::constant;

/// ListNet (Cao et al. 2007), as sentence-transformers' `ListNetLoss`: cross-entropy between the
/// softmax of the labels of a list and that of its scores.
#[derive(Clone, Copy, Debug, Default)]
pub struct ListNet;

fn softmax(labels: &[f32]) -> Vec<f32> {
    let largest = labels.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let parts: Vec<f32> = labels.iter().map(|l| (l - largest).exp()).collect();
    let sum: f32 = parts.iter().sum();
    parts.iter().map(|part| part / sum).collect()
}

impl ListLoss for ListNet {
    fn name(&self) -> &'static str {
        "list_net"
    }

    fn check(&self, labels: &[f32]) -> Result<(), String> {
        if labels.len() > 1 {
            return Ok(());
        }
        Err("the query has one text: `list_net` compares several of one query; `bce` learns from single ones".into())
    }

    fn num_targets(&self, _labels: &[f32]) -> f64 {
        1.0
    }

    fn loss(&self, scores: Tensor<2>, lists: &[&[f32]]) -> Tensor<1> {
        let mut start = 0;
        let parts = lists.iter().map(|labels| {
            let end = start + labels.len();
            let own = scores.clone().slice([start..end, 0..1]);
            start = end;
            let shares = constant(softmax(labels), own.dims(), &own);
            (log_softmax(own, 0) * shares).sum()
        });
        Tensor::cat(parts.collect(), 0).sum().neg()
    }
}
