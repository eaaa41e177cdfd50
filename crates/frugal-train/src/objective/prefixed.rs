//! Predicting the target token at every position that has one, where what stands in front of a
//! separator is read in both directions.

use burn::prelude::*;
use frugal_core::pretext::prefix_length;
use frugal_nn::{
    AttentionControl, AttentionMask, ControlledPass, Input, ModelError, NoAdapter, Pass,
};

use super::Objective;
use super::batch::{Forward, ModelParts};
use super::causal_lm::CausalLm;
use super::meter::{Evaluation, Meter, Metric};
use crate::Tokenized;

/// [`CausalLm`] under the prefix language modelling mask: the tokens of an example before the first
/// separator see each other, all others what is before them. Examples do not see each other, as always.
#[derive(Clone, Copy, Debug)]
pub struct PrefixedLm {
    /// The loss.
    pub inner: CausalLm,
    /// The separator.
    pub generate: u32,
}

impl PrefixedLm {
    /// `pass` with the mask of these examples.
    fn controlled<'p>(
        &self,
        examples: &[&Tokenized],
        pass: &'p mut dyn Pass,
    ) -> ControlledPass<'p> {
        let prefixes = examples
            .iter()
            .map(|example| prefix_length(&example.input_ids, self.generate));
        let control = AttentionControl {
            mask: AttentionMask::Prefix(prefixes.collect()),
            ..AttentionControl::default()
        };
        ControlledPass::new(pass, control)
    }
}

impl Objective for PrefixedLm {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn check_model(&self, model: ModelParts<'_>) -> Result<(), String> {
        self.inner.check_model(model)?;
        // Whether the model takes such a mask only a pass can tell.
        let ids = [0, 0];
        let control = AttentionControl {
            mask: AttentionMask::Prefix(vec![1]),
            ..AttentionControl::default()
        };
        let mut none = NoAdapter;
        let mut pass = ControlledPass::new(&mut none, control);
        let found = model
            .backbone
            .forward(&Input::new(&ids, &[2]), &mut pass, None);
        found.map(|_| ()).map_err(|error| error.to_string())
    }

    fn check_example(&self, model: ModelParts<'_>, example: &Tokenized) -> Result<(), String> {
        self.inner.check_example(model, example)
    }

    fn num_targets(&self, model: ModelParts<'_>, example: &Tokenized) -> f64 {
        self.inner.num_targets(model, example)
    }

    fn loss(
        &self,
        examples: &[&Tokenized],
        forward: &mut Forward<'_>,
    ) -> Result<Tensor<1>, ModelError> {
        let mut pass = self.controlled(examples, forward.pass);
        let mut forward = Forward {
            model: forward.model,
            pass: &mut pass,
            mode: forward.mode,
        };
        self.inner.loss(examples, &mut forward)
    }

    fn metrics(&self) -> &'static [Metric] {
        self.inner.metrics()
    }

    fn meter<'a>(&'a self, model: ModelParts<'a>) -> Box<dyn Meter + 'a> {
        Box::new(PrefixedMeter {
            objective: self,
            inner: self.inner.meter(model),
        })
    }
}

struct PrefixedMeter<'a> {
    objective: &'a PrefixedLm,
    inner: Box<dyn Meter + 'a>,
}

impl Meter for PrefixedMeter<'_> {
    fn add(
        &mut self,
        examples: &[&Tokenized],
        forward: &mut Forward<'_>,
    ) -> Result<(), ModelError> {
        let mut pass = self.objective.controlled(examples, forward.pass);
        let mut forward = Forward {
            model: forward.model,
            pass: &mut pass,
            mode: forward.mode,
        };
        self.inner.add(examples, &mut forward)
    }

    fn finish(self: Box<Self>) -> Evaluation {
        self.inner.finish()
    }
}
