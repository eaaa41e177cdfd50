//! Frozen models, and what adapters, training and decoding may know of them.

use std::ops::Range;
use std::sync::Arc;

use burn::prelude::*;
use serde_json::Value;

use crate::error::ModelError;
use crate::layers::{Conv, Embedding, Linear, Norm, Param};
use crate::layout::{Input, SequenceLayout};
use crate::seam::attention::AttentionControl;
use crate::seam::hooks::{Pass, Rows};
use crate::site::SiteTable;
use crate::state::{DecodeState, LayerState, StateOptions};

/// Endings of module names that a method acts on by default, as published for an architecture.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UsualTargets {
    /// Linear layers whose output (or input) (IA)³ rescales.
    pub ia3: &'static [&'static str],
    /// The one of them at the end of the feed-forward layer, whose input is rescaled.
    pub ia3_feedforward: &'static str,
}

/// The layers of Hugging Face's class with a classification head, by architecture.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HeadLayout {
    /// `score` without bias on the last token (decoders).
    #[default]
    Score,
    /// `score` likewise; a head that labels tokens is called `classifier` (GPT-2).
    ScoreOrClassifier,
    /// `classifier` behind the pooler (BERT), or on the first position where there is none.
    Classifier,
    /// `classifier` on the mean of all positions (image models without a class token).
    MeanClassifier,
    /// `classifier.dense` and `classifier.out_proj` (RoBERTa).
    DenseOutProj,
}

impl HeadLayout {
    /// The layer of Hugging Face's class that labels every token.
    pub fn of_tokens(self) -> &'static str {
        match self {
            Self::Score => "score",
            Self::ScoreOrClassifier
            | Self::Classifier
            | Self::MeanClassifier
            | Self::DenseOutProj => "classifier",
        }
    }
}

/// The images that a backbone reads.
///
/// An image is a sequence of `height * width` pixels, line by line: as colours
/// `red * 65536 + green * 256 + blue` ([`Content::Tokens`](crate::Content::Tokens)), which the
/// backbone scales itself, or as rows `[pixels, 3]` of values that were scaled before
/// ([`Content::Rows`](crate::Content::Rows)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageInput {
    /// Rows of pixels.
    pub height: usize,
    /// Columns of pixels.
    pub width: usize,
}

impl ImageInput {
    /// Number of pixels.
    pub fn pixels(self) -> usize {
        self.height * self.width
    }
}

/// What may be known of a backbone without its architecture: sizes and names.
#[derive(Clone, Debug, Default)]
pub struct BackboneInfo {
    /// Hugging Face's `model_type`.
    pub model_type: &'static str,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads.
    pub num_key_value_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Width of a row of [`KeyValue`](crate::seam::hooks::KeyValue)s, where every block takes
    /// them; 0 where attention is of another kind.
    pub key_value_width: usize,
    /// Whether a block is one sub-layer that mixes tokens, without a feed-forward layer behind it.
    pub is_attention_only: bool,
    /// Rows of the token embedding.
    pub vocab_size: usize,
    /// Longest sequence in tokens that the positions cover.
    pub max_sequence: usize,
    /// Length beyond which all positions of a sequence are rotated otherwise, so that what was kept
    /// of its tokens is computed again.
    pub rotates_anew_beyond: Option<usize>,
    /// Whether the model reads in both directions and has no language-model head.
    pub is_encoder: bool,
    /// The token that a classifier takes for padding, wherever it stands (`pad_token_id`).
    pub pad_token_id: Option<u32>,
    /// Whether transformers has the architecture.
    pub in_transformers: bool,
    /// The images that it reads in place of text.
    pub image: Option<ImageInput>,
    /// Cap on the logits of the head: `cap * tanh(x / cap)`.
    pub final_logit_softcapping: Option<f64>,
    /// Factor on the final hidden states before the output head reads them.
    pub logit_scale: Option<f64>,
    /// The attribute under which Hugging Face's task classes keep the base model, with its dot.
    pub base_prefix: &'static str,
    /// Hugging Face's class with a classification head.
    pub classifier_class: &'static str,
    /// Layers of that head.
    pub head: HeadLayout,
    /// Default targets of methods that the literature names by architecture.
    pub usual_targets: UsualTargets,
    /// `config.json` as read.
    pub raw: Value,
    /// What errors call the model: the path of its configuration.
    pub source: String,
}

impl BackboneInfo {
    /// Final hidden states `[rows, d_model]` as the output head over the vocabulary reads them.
    pub fn scaled_for_head(&self, hidden_states: Tensor<2>) -> Tensor<2> {
        match self.logit_scale {
            Some(scale) => hidden_states * scale,
            None => hidden_states,
        }
    }

    /// Computed values of this model, of which none may be infinite or not a number.
    ///
    /// # Errors
    /// [`ModelError::NotFinite`] that names the model.
    pub fn check_finite(&self, what: &'static str, values: &[f32]) -> Result<(), ModelError> {
        // An entry that is masked is at minus infinity.
        if values.iter().all(|v| *v < f32::INFINITY) {
            return Ok(());
        }
        Err(ModelError::NotFinite {
            source_name: self.source.clone(),
            model_type: self.model_type,
            what,
        })
    }

    /// Hugging Face's class with a head that labels every token; none where transformers has no such
    /// class of this architecture.
    pub fn token_classifier_class(&self) -> Option<String> {
        let stem = self
            .classifier_class
            .strip_suffix("ForSequenceClassification")?;
        let has = self.in_transformers && stem != "Gemma3Text";
        has.then(|| format!("{stem}ForTokenClassification"))
    }

    /// Why a model has no output over the vocabulary, and what to do where it could have one.
    pub fn why_no_head(&self) -> String {
        if self.is_encoder {
            return format!("`{}` models have no language-model head", self.model_type);
        }
        format!(
            "{}: the model has no language-model head: its files lack the tensor `lm_head.weight`, and \
             `tie_word_embeddings` is false; take a folder that was saved from `AutoModelForCausalLM`",
            self.source
        )
    }
}

/// One frozen part, as [`Backbone::visit_weights`] shows it.
pub enum Frozen<'a> {
    /// Linear layer.
    Linear(&'a Linear),
    /// Table.
    Embedding(&'a Embedding),
    /// Normalisation.
    Norm(&'a Norm),
    /// Depth-wise convolution.
    Conv(&'a Conv),
    /// Bare parameter.
    Param(&'a Param),
}

/// Cosines and sines of a batch's positions, each `[tokens, rotated / 2]`.
#[derive(Clone, Debug)]
pub struct RotaryTable {
    /// Cosines.
    pub cos: Tensor<2>,
    /// Sines.
    pub sin: Tensor<2>,
}

/// What routers hand from block to block within one pass, a row for each token; nothing where no
/// router has one. It begins empty in front of the first block of every pass, also of those that go
/// on from a cache: it runs over depth, not over time.
#[derive(Clone, Debug, Default)]
pub struct RouterState {
    /// Hidden state of a recurrent router, `[tokens, width]`.
    pub hidden: Option<Tensor<2>>,
    /// Cell state of an LSTM, `[tokens, width]`.
    pub cell: Option<Tensor<2>>,
    /// Scores of the router before, `[tokens, experts]`.
    pub scores: Option<Tensor<2>>,
}

/// What goes from block to block.
#[derive(Clone, Debug)]
pub struct BlockState {
    /// The residual stream, `[tokens, d_model]`.
    pub hidden_states: Tensor<2>,
    /// Sequence boundaries, with what a method put in front of the sequences.
    pub layout: SequenceLayout,
    /// Rotary positions by kind of block; empty for learned positions.
    pub rotary: Vec<RotaryTable>,
    /// What the pass wants of attention.
    pub attention: Option<Arc<AttentionControl>>,
    /// What routers know of the blocks before.
    pub routing: RouterState,
}

/// A frozen model. It lives on the plain device and never enters the gradient graph; adapters meet
/// it in [`Backbone::forward`].
pub trait Backbone: Send + Sync {
    /// Sizes and names.
    fn info(&self) -> &BackboneInfo;
    /// What the blocks remember of these sequences, which have not begun: keys and values of every
    /// token, unless an architecture says otherwise.
    ///
    /// # Errors
    /// [`ModelError::NotCausal`] for models that read in both directions.
    fn new_state(
        &self,
        sequences: usize,
        options: StateOptions,
    ) -> Result<DecodeState, ModelError> {
        let info = self.info();
        if info.is_encoder {
            return Err(ModelError::NotCausal {
                model_type: info.model_type,
            });
        }
        let layers = vec![LayerState::key_value(); info.num_hidden_layers];
        Ok(DecodeState::new(layers, sequences, options))
    }

    /// Whether positions that a method's keys and values stand for count towards
    /// [`BackboneInfo::max_sequence`]: learned ones, of which there are no more.
    fn prefix_takes_positions(&self) -> bool {
        false
    }

    /// Places that a method can act on.
    fn sites(&self) -> &Arc<SiteTable>;
    /// The plain device that the weights are on.
    fn device(&self) -> &Device;
    /// From the input to what the first block reads.
    ///
    /// # Errors
    /// Ids outside the vocabulary, sequences longer than the positions, content of a kind that the
    /// model has no place for.
    fn stem(&self, input: &Input<'_>, pass: &mut dyn Pass) -> Result<BlockState, ModelError>;
    /// Through the blocks of this range, in order; fills their part of the cache if one is given.
    /// A range may be run again, or left out.
    ///
    /// # Errors
    /// [`ModelError::Blocks`] for blocks that there are not, a cache given to an encoder.
    fn blocks(
        &self,
        range: Range<usize>,
        state: BlockState,
        pass: &mut dyn Pass,
        cache: Option<&mut DecodeState>,
    ) -> Result<BlockState, ModelError>;
    /// The final norm: hidden states `[tokens, d_model]` of the tokens of the input.
    fn readout(&self, state: BlockState, pass: &mut dyn Pass) -> Tensor<2>;

    /// [`Backbone::stem`], all [`Backbone::blocks`] and [`Backbone::readout`]: hidden states after
    /// the final norm, `[tokens, d_model]`; fills the cache if one is given.
    ///
    /// # Errors
    /// Those of the parts.
    fn forward(
        &self,
        input: &Input<'_>,
        pass: &mut dyn Pass,
        mut cache: Option<&mut DecodeState>,
    ) -> Result<Tensor<2>, ModelError> {
        let state = match &cache {
            Some(cache) if cache.len() == input.layout.sequences() => {
                let mut input = input.clone();
                input.layout.invoked_at = cache.invoked_at();
                self.stem(&input, pass)?
            }
            _ => self.stem(input, pass)?,
        };
        let all = 0..self.info().num_hidden_layers;
        let state = self.blocks(all, state, pass, cache.as_deref_mut())?;
        if let Some(cache) = cache {
            cache.advance(&state.layout);
        }
        Ok(self.readout(state, pass))
    }

    /// The output head over the vocabulary, where there is one.
    fn lm_head(&self) -> Option<&Linear> {
        None
    }
    /// The dense layer over the first token that `bert` classification uses.
    fn pooler(&self) -> Option<&Linear> {
        None
    }
    /// Shows every frozen part once.
    fn visit_weights(&self, visit: &mut dyn FnMut(Frozen<'_>));

    /// Logits `[rows, vocab]` of final hidden states `[rows, d_model]`.
    fn logits(
        &self,
        hidden_states: Tensor<2>,
        rows: Rows,
        pass: &mut dyn Pass,
    ) -> Option<Tensor<2>> {
        let hidden_states = self.info().scaled_for_head(hidden_states);
        let logits = pass.linear_rows(self.lm_head()?, hidden_states, rows);
        Some(match self.info().final_logit_softcapping {
            Some(cap) => (logits / cap).tanh() * cap,
            None => logits,
        })
    }
}
