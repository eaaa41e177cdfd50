//! Examples one after another, without padding.

use burn::prelude::*;
use frugal_nn::{Backbone, Head, Input, Mode, ModelError, Pass, SequenceLayout};

use crate::{Target, Tokenized};

/// The model that an objective trains or measures.
#[derive(Clone, Copy)]
pub struct ModelParts<'a> {
    /// The frozen model.
    pub backbone: &'a dyn Backbone,
    /// The head on it, if there is one.
    pub head: Option<&'a Head>,
}

impl<'a> ModelParts<'a> {
    /// A backbone with a head, or without.
    pub fn new(backbone: &'a dyn Backbone, head: Option<&'a Head>) -> Self {
        Self { backbone, head }
    }

    /// How many outputs the head has; 0 without one.
    pub fn outputs(self) -> usize {
        self.labels().len()
    }

    /// Names of the outputs of the head; none without one.
    pub fn labels(self) -> &'a [String] {
        self.head.map_or(&[], |head| &head.config().labels)
    }

    /// Refuses a model without a head for an objective that this sentence begins with.
    pub(super) fn needs_head(self, begin: &str) -> Result<(), String> {
        match self.head {
            Some(head) if head.config().labels_tokens() => {
                Err(format!("{begin} head, and this one labels every token"))
            }
            Some(_) => Ok(()),
            None => Err(format!("{begin} head")),
        }
    }
}

impl<'a> From<&'a dyn Backbone> for ModelParts<'a> {
    fn from(backbone: &'a dyn Backbone) -> Self {
        Self::new(backbone, None)
    }
}

/// One forward pass of a model with what is adapted in it.
pub struct Forward<'a> {
    /// The model.
    pub model: ModelParts<'a>,
    /// The hooks of the adapter.
    pub pass: &'a mut dyn Pass,
    /// Whether gradients are recorded.
    pub mode: Mode,
}

/// Sequences of tokens, ready for a forward pass: those of the examples, and of each of their texts
/// where an example has several.
#[derive(Debug, Default)]
pub struct MicroBatch {
    input_ids: Vec<u32>,
    token_type_ids: Vec<u32>,
    lengths: Vec<usize>,
}

impl MicroBatch {
    /// The sequences of some examples. Those of an example with several texts stand one after
    /// another.
    pub fn new(examples: &[&Tokenized]) -> Self {
        let mut batch = Self::default();
        for example in examples {
            batch.input_ids.extend(&example.input_ids);
            match &example.labels {
                Target::Texts { lengths, .. } => batch.lengths.extend(lengths),
                Target::Preference { chosen, .. } => {
                    let lengths = [*chosen, example.input_ids.len() - chosen];
                    batch.lengths.extend(lengths);
                }
                _ => batch.lengths.push(example.input_ids.len()),
            }
            if !example.token_type_ids.is_empty() {
                // Examples before this one had segment 0 throughout.
                batch
                    .token_type_ids
                    .resize(batch.input_ids.len() - example.input_ids.len(), 0);
                batch.token_type_ids.extend(&example.token_type_ids);
            }
        }
        if !batch.token_type_ids.is_empty() {
            batch.token_type_ids.resize(batch.input_ids.len(), 0);
        }
        batch
    }

    /// Final hidden states `[tokens, d_model]`, and where each sequence is.
    ///
    /// # Errors
    /// What the backbone refuses.
    pub fn hidden_states(
        &self,
        forward: &mut Forward<'_>,
    ) -> Result<(Tensor<2>, SequenceLayout), ModelError> {
        let input = self.input();
        let hidden_states = forward.model.backbone.forward(&input, forward.pass, None)?;
        Ok((hidden_states, input.layout))
    }

    /// As a backbone reads them.
    pub(crate) fn input(&self) -> Input<'_> {
        Input {
            token_type_ids: &self.token_type_ids,
            ..Input::tokens(&self.input_ids, SequenceLayout::new(&self.lengths))
        }
    }

    /// Logits of the head `[sequences, outputs]`, or of one that labels tokens `[tokens, outputs]`.
    ///
    /// # Errors
    /// What the backbone refuses.
    pub fn head_logits(&self, forward: &mut Forward<'_>) -> Result<Tensor<2>, ModelError> {
        let head = forward
            .model
            .head
            .expect("objectives with a head are checked to have one");
        let (backbone, mode) = (forward.model.backbone, forward.mode);
        head.classify(&self.input(), backbone, forward.pass, mode)
    }
}
