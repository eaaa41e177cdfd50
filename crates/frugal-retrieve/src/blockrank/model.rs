//! Ranking by the attention of a model.

use std::sync::Arc;

use burn::prelude::*;
use frugal_core::tokenizer::TextTokenizer;
use frugal_nn::{
    ActiveAdapters, AdapterSet, Backbone, ControlledPass, Input, Mode, ModelError, Pass,
    SequenceLayout, to_vec,
};

use super::blocks::{BlockPrompt, BlockPrompts};
use super::options::BlockRankOptions;
use super::score::document_scores;
use crate::error::RetrieveError;

/// A language model that ranks documents in its context.
pub struct BlockRank<'t> {
    backbone: Arc<dyn Backbone>,
    adapters: Arc<AdapterSet>,
    choice: ActiveAdapters,
    prompts: BlockPrompts<'t>,
    layer: usize,
    offset: Option<u32>,
}

impl<'t> BlockRank<'t> {
    /// A model with adapters of a set that act on it.
    ///
    /// # Errors
    /// Settings that do not fit the model.
    pub fn new(
        backbone: Arc<dyn Backbone>,
        adapters: Arc<AdapterSet>,
        choice: ActiveAdapters,
        tokenizer: &'t TextTokenizer,
        options: &BlockRankOptions,
    ) -> Result<Self, RetrieveError> {
        options.validate().map_err(RetrieveError::BlockRank)?;
        let info = backbone.info();
        let layer = options.layer_of(info).map_err(RetrieveError::BlockRank)?;
        Ok(Self {
            offset: options.offset_of(info),
            prompts: BlockPrompts::new(tokenizer, options),
            backbone,
            adapters,
            choice,
            layer,
        })
    }

    /// The layer whose attention ranks.
    pub fn layer(&self) -> usize {
        self.layer
    }

    /// What writes its prompts.
    pub fn prompts(&self) -> &BlockPrompts<'t> {
        &self.prompts
    }

    /// How well each document answers the query, in their order; together they sum to 1.
    ///
    /// # Errors
    /// Texts that are too long together with each other, outputs that are no numbers, a model that
    /// has no place for block attention.
    pub fn scores(&self, query: &str, documents: &[&str]) -> Result<Vec<f32>, RetrieveError> {
        if documents.is_empty() {
            return Ok(Vec::new());
        }
        self.scores_of(&self.prompts.prompt(query, documents)?)
    }

    /// The scores of the documents of a prompt.
    ///
    /// # Errors
    /// As [`BlockRank::scores`].
    pub fn scores_of(&self, prompt: &BlockPrompt) -> Result<Vec<f32>, RetrieveError> {
        frugal_kernels::on_pool(|| {
            let layout = SequenceLayout::new(&[prompt.ids.len()]);
            let mut pass = self.adapters.pass(&self.choice, &layout, Mode::Eval)?;
            let values = attention_of(
                self.backbone.as_ref(),
                prompt,
                self.layer,
                self.offset,
                pass.as_mut(),
            )?;
            let scores = document_scores(values, &prompt.lengths);
            let scores = to_vec(scores.map_err(RetrieveError::BlockRank)?);
            self.backbone
                .info()
                .check_finite("attention scores", &scores)?;
            Ok(scores)
        })
    }
}

/// Attention scores `[heads, signals, tokens]` of a prompt's signal tokens; blocks behind the layer
/// are not computed.
pub(super) fn attention_of(
    backbone: &dyn Backbone,
    prompt: &BlockPrompt,
    layer: usize,
    offset: Option<u32>,
    pass: &mut dyn Pass,
) -> Result<Tensor<3>, RetrieveError> {
    let control = BlockPrompt::control(&[prompt], layer, offset, backbone.info())
        .map_err(RetrieveError::BlockRank)?;
    let mut pass = ControlledPass::new(pass, control);
    let input = Input::new(&prompt.ids, &[prompt.ids.len()]);
    let state = backbone.stem(&input, &mut pass)?;
    backbone.blocks(0..layer + 1, state, &mut pass, None)?;
    let values = pass.into_scores().pop().map(|scores| scores.values);
    values.ok_or_else(|| {
        ModelError::Attention {
            reason: format!("block {layer}, whose attention ranks, was skipped by the adapter"),
        }
        .into()
    })
}
