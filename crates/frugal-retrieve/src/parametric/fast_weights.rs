//! Weights that come with a request instead of being part of a model.

use burn::prelude::*;
use frugal_nn::{AdaptError, Adapter, Linear, LinearChange, LowRankChange, Mode, Parameter, Pass};
use serde_json::{Map, Value};

use super::error::ParametricError;
use super::feed_forward::FeedForward;
use super::weights::DocumentWeights;

/// A low-rank change of a model's feed-forward matrices by tensors that are given: those of documents
/// at hand, or those that a hypernetwork forms, to which gradients flow.
///
/// It trains nothing itself. As an [`Adapter`] it joins a set under a name, is chosen for each
/// sequence, and leaves the model as it was when it is removed.
#[derive(Clone, Debug)]
pub struct FastWeights {
    /// By site.
    changes: Vec<Option<LowRankChange>>,
}

impl FastWeights {
    /// The change `scale · B A` of every matrix.
    ///
    /// # Errors
    /// Parameters of another model.
    pub fn new(
        places: &FeedForward,
        weights: &DocumentWeights,
        scale: f32,
    ) -> Result<Self, ParametricError> {
        weights.check(places)?;
        let mut changes = vec![None; places.sites()];
        for (place, pair) in places.places().iter().zip(&weights.factors) {
            changes[place.site.index()] = Some(LowRankChange {
                a: pair.a.clone(),
                b: pair.b.clone(),
                scale,
            });
        }
        Ok(Self { changes })
    }

    fn at(&self, base: &Linear) -> Option<&LowRankChange> {
        self.changes.get(base.site.index())?.as_ref()
    }

    /// Hooks for a pass.
    pub fn hooks(&self) -> impl Pass + '_ {
        FastWeightsPass(self)
    }
}

struct FastWeightsPass<'a>(&'a FastWeights);

impl Pass for FastWeightsPass<'_> {
    fn linear_change(&mut self, base: &Linear) -> LinearChange {
        match self.0.at(base) {
            Some(change) => LinearChange::LowRank(change.clone()),
            None => LinearChange::None,
        }
    }
}

impl Adapter for FastWeights {
    fn method(&self) -> &'static str {
        "fast_weights"
    }

    fn parameters(&self) -> Vec<&Parameter> {
        Vec::new()
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        Vec::new()
    }

    fn pass(&self, _mode: Mode) -> Box<dyn Pass + '_> {
        Box::new(FastWeightsPass(self))
    }

    fn peft_config(&self) -> Map<String, Value> {
        Map::new()
    }

    fn weight_delta(&self, base: &Linear) -> Result<Option<Tensor<2>>, AdaptError> {
        let product =
            |change: &LowRankChange| change.b.clone().matmul(change.a.clone()) * change.scale;
        Ok(self.at(base).map(product))
    }

    fn supports_mixed_batch(&self) -> bool {
        true
    }
}
