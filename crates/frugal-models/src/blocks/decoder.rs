//! The decoder that most architectures share: norms in front of attention and feed-forward layer, rotary positions, one output over the vocabulary.
//!
//! <https://huggingface.co/docs/transformers/model_doc/llama2>

use std::ops::Range;
use std::sync::Arc;

use burn::prelude::*;
use frugal_nn::layers::{Embedding, Linear};
use frugal_nn::layout::{Input, SequenceLayout};
use frugal_nn::rows::drop_prepended;
use frugal_nn::site::SiteTable;
use frugal_nn::state::{DecodeState, StateOptions};
use frugal_nn::{
    AttentionControl, AttentionMask, Backbone, BackboneInfo, BlockAction, BlockState, Frozen,
    ModelError, Pass, RouterState, SiteInfo, SubLayer, SubLayerIo,
};
use serde::Serialize;
use serde_json::Value;

use crate::architecture::ModelConfig;
use crate::blocks::attention::{Attend, SelfAttention};
use crate::blocks::checks::{check_range, look_up};
use crate::blocks::controlled::{check_window, refuse_control};
use crate::blocks::gated_mlp::FeedForward;
use crate::blocks::prefix::prefix_control;
use crate::blocks::sites::Sites;
use crate::blocks::stream_norm::{NormKind, StreamNorm};
use crate::keys::bad;
use crate::rope::{RopeConfig, RopeScaling, inverse_frequencies, rotary_table};
use crate::weights::WeightLoader;

/// What differs between the architectures that share this decoder, beside attention and
/// feed-forward layer.
#[derive(Clone, Debug, Serialize)]
pub struct DecoderSpec {
    /// Rotary settings of full-attention blocks.
    #[serde(skip)]
    pub rope: RopeConfig,
    /// Rotary settings of sliding-window blocks where they differ.
    #[serde(skip)]
    pub rope_local: Option<RopeConfig>,
    /// Width of the part of a head that is rotated.
    #[serde(rename = "partial_rotary_factor")]
    pub rotated: usize,
    /// Window of sliding-window blocks.
    pub sliding_window: Option<usize>,
    /// For each block, whether it attends within the window only.
    #[serde(rename = "layer_types")]
    pub sliding_layers: Vec<bool>,
    /// Whether a token sees what comes after it.
    #[serde(rename = "use_bidirectional_attention")]
    pub bidirectional: bool,
    /// Factor on attention scores.
    #[serde(rename = "query_pre_attn_scalar")]
    pub attention_scale: f64,
    /// Cap on attention scores.
    pub attn_logit_softcapping: Option<f64>,
    /// Cap on the logits of the head.
    pub final_logit_softcapping: Option<f64>,
    /// What files subtract from the gains of norms (1 for Gemma).
    #[serde(skip)]
    pub norm_offset: f32,
    /// Whether the outputs of attention and feed-forward layer are normalised too (Gemma 3).
    #[serde(skip)]
    pub sandwich_norms: bool,
    /// Factor on the token embeddings.
    #[serde(skip)]
    pub embed_scale: Option<f32>,
    /// Factor on what attention and feed-forward layer give before it is added to the residual
    /// stream.
    #[serde(skip)]
    pub residual_scale: Option<f32>,
    /// Norms of the blocks.
    #[serde(skip)]
    pub norm: NormKind,
    /// The norm behind the last block.
    #[serde(skip)]
    pub final_norm: NormKind,
    /// Whether all blocks have the same norms, which are then under [`SHARED`].
    #[serde(skip)]
    pub shares_norms: bool,
    /// What its parts are called.
    #[serde(skip)]
    pub names: DecoderNames,
    /// The token that ends the part of a sequence that blocks read in both directions, where they do.
    #[serde(rename = "gen_token_id", skip_serializing_if = "Option::is_none")]
    pub prefix_token: Option<u32>,
}

/// What the parts of a decoder are called in files.
#[derive(Clone, Copy, Debug)]
pub struct DecoderNames {
    /// The norm in front of what mixes the tokens, within a block.
    pub input_norm: &'static str,
    /// What mixes the tokens, within a block.
    pub attention: &'static str,
    /// The norm in front of the feed-forward layer, within a block.
    pub mlp_norm: &'static str,
    /// The norm behind the last block.
    pub final_norm: &'static str,
}

impl DecoderNames {
    /// Llama's.
    pub const LLAMA: Self = Self {
        input_norm: "input_layernorm",
        attention: "self_attn",
        mlp_norm: "post_attention_layernorm",
        final_norm: "model.norm",
    };
}

/// Where the parts are that all blocks share.
pub const SHARED: &str = "model.shared";

impl DecoderSpec {
    /// Llama's: full attention in all blocks, nothing capped.
    pub fn new([head_dim, layers]: [usize; 2], rope: RopeConfig) -> Self {
        Self {
            rope,
            rope_local: None,
            rotated: head_dim,
            sliding_window: None,
            sliding_layers: vec![false; layers],
            bidirectional: false,
            attention_scale: 1.0 / (head_dim as f64).sqrt(),
            attn_logit_softcapping: None,
            final_logit_softcapping: None,
            norm_offset: 0.0,
            sandwich_norms: false,
            embed_scale: None,
            residual_scale: None,
            norm: NormKind::Rms,
            final_norm: NormKind::Rms,
            shares_norms: false,
            names: DecoderNames::LLAMA,
            prefix_token: None,
        }
    }

    /// With a window in these blocks; no window is full attention.
    pub fn sliding(mut self, window: Option<usize>, layers: Vec<bool>) -> Self {
        if window.is_some() && layers.contains(&true) {
            self.sliding_window = window;
            self.sliding_layers = layers;
        }
        self
    }

    /// Rotary positions turn pairs.
    ///
    /// # Errors
    /// An odd width or none, with the key that gives it.
    pub fn check(self, key: &str, source: &str) -> Result<Self, ModelError> {
        if self.rotated.is_multiple_of(2) && self.rotated > 0 {
            return Ok(self);
        }
        let reason = format!(
            "{} numbers of a head would be rotated, but rotary positions need an even number above 0",
            self.rotated
        );
        Err(bad(source, key, reason))
    }

    /// This and what a block adds to it, as one object of keys.
    ///
    /// Rotary settings are compared by what they come to, within the trained context and beyond.
    pub fn arithmetic(&self, config: &ModelConfig, more: &[Value]) -> Value {
        let mut all = serde_json::to_value(self).unwrap_or_default();
        let positions = config.max_position_embeddings;
        let come_to = |rope: &RopeConfig| {
            let at = |length| inverse_frequencies(rope, self.rotated, positions, length);
            serde_json::json!([at(1), at(4 * positions)])
        };
        if let Some(all) = all.as_object_mut() {
            all.insert("rope_parameters".into(), come_to(&self.rope));
            let local = self.rope_local.as_ref().map(come_to);
            all.insert("rope_local_base_freq".into(), local.unwrap_or_default());
            for part in more.iter().filter_map(Value::as_object) {
                all.extend(part.clone());
            }
        }
        all
    }

    /// Longest sequence: what the file says, or what its context extension reaches if that is more.
    pub fn max_sequence(&self, config: &ModelConfig) -> usize {
        let given = config.max_position_embeddings;
        let reached = match &self.rope.scaling {
            RopeScaling::Dynamic { factor } => factor * given as f64,
            RopeScaling::Yarn {
                factor,
                original_max_position_embeddings: original,
                ..
            } => factor * original,
            _ => return given,
        };
        given.max(reached as usize)
    }

    /// What a block adds to the residual stream for this output of one of its halves.
    fn branch(&self, output: Tensor<2>) -> Tensor<2> {
        match self.residual_scale {
            Some(scale) => output * scale,
            None => output,
        }
    }

    /// Path of a norm of a block.
    fn norm_path(&self, layer: usize, name: &str) -> String {
        match self.shares_norms {
            true => format!("{SHARED}.{name}"),
            false => format!("model.layers.{layer}.{name}"),
        }
    }

    /// Sites in the order of the forward pass, with those of attention and feed-forward layer
    /// under the paths that they are given.
    pub fn sites(
        &self,
        c: &ModelConfig,
        attention: impl Fn(&mut Sites, usize, &str),
        feed_forward: impl Fn(&mut Sites, usize, &str),
    ) -> Vec<SiteInfo> {
        let (mut sites, d) = (Sites::default(), c.hidden_size);
        sites.token_table("model.embed_tokens".into(), c);
        for i in 0..c.num_hidden_layers {
            let norm = |sites: &mut Sites, name: &str| {
                if i == 0 || !self.shares_norms {
                    let layer = (!self.shares_norms).then_some(i);
                    self.norm.site(sites, self.norm_path(i, name), layer, d);
                }
            };
            let names = &self.names;
            norm(&mut sites, names.input_norm);
            attention(
                &mut sites,
                i,
                &format!("model.layers.{i}.{}", names.attention),
            );
            norm(&mut sites, names.mlp_norm);
            if self.sandwich_norms {
                norm(&mut sites, "pre_feedforward_layernorm");
            }
            feed_forward(&mut sites, i, &format!("model.layers.{i}"));
            if self.sandwich_norms {
                norm(&mut sites, "post_feedforward_layernorm");
            }
        }
        self.final_norm
            .site(&mut sites, self.names.final_norm.into(), None, d);
        sites.lm_head(c);
        sites.finish()
    }
}

struct Block {
    input_norm: StreamNorm,
    attention: Box<dyn SelfAttention>,
    /// Norm of the attention output.
    attention_out_norm: Option<StreamNorm>,
    mlp_norm: StreamNorm,
    feed_forward: Box<dyn FeedForward>,
    /// Norm of the feed-forward output.
    mlp_out_norm: Option<StreamNorm>,
    sliding: bool,
}

/// A frozen decoder.
pub struct Decoder {
    config: ModelConfig,
    spec: DecoderSpec,
    info: BackboneInfo,
    sites: Arc<SiteTable>,
    device: Device,
    embed_tokens: Embedding,
    blocks: Vec<Block>,
    norm: StreamNorm,
    lm_head: Option<Linear>,
}

impl Decoder {
    /// Takes the weights from `loader`; attention and feed-forward layer of each block come from
    /// these functions, which are given the paths that they are under.
    ///
    /// # Errors
    /// Whatever reading a tensor gives.
    pub fn load(
        config: &ModelConfig,
        spec: &DecoderSpec,
        sites: Arc<SiteTable>,
        loader: &mut WeightLoader<'_>,
        attention: impl Fn(&mut WeightLoader<'_>, &str) -> Result<Box<dyn SelfAttention>, ModelError>,
        feed_forward: impl Fn(&mut WeightLoader<'_>, &str) -> Result<Box<dyn FeedForward>, ModelError>,
    ) -> Result<Arc<dyn Backbone>, ModelError> {
        let (d, constants) = (
            config.hidden_size,
            [config.norm_eps, spec.norm_offset.into()],
        );
        let mut blocks = Vec::with_capacity(config.num_hidden_layers);
        for i in 0..config.num_hidden_layers {
            let p = |name: &str| format!("model.layers.{i}.{name}");
            let mut norm = |name: &str| {
                StreamNorm::load(spec.norm, loader, &spec.norm_path(i, name), d, constants)
            };
            let input_norm = norm(spec.names.input_norm)?;
            let (attention_out_norm, mlp_norm, mlp_out_norm) = if spec.sandwich_norms {
                (
                    Some(norm(spec.names.mlp_norm)?),
                    norm("pre_feedforward_layernorm")?,
                    Some(norm("post_feedforward_layernorm")?),
                )
            } else {
                (None, norm(spec.names.mlp_norm)?, None)
            };
            blocks.push(Block {
                input_norm,
                attention: attention(loader, &p(spec.names.attention))?,
                attention_out_norm,
                mlp_norm,
                feed_forward: feed_forward(loader, &format!("model.layers.{i}"))?,
                mlp_out_norm,
                sliding: spec.sliding_layers[i],
            });
        }
        let embed_tokens = loader.embedding("model.embed_tokens")?;
        let lm_head = loader.lm_head(&embed_tokens)?;
        Ok(Arc::new(Self {
            norm: StreamNorm::load(spec.final_norm, loader, spec.names.final_norm, d, constants)?,
            sites,
            device: loader.device().clone(),
            embed_tokens,
            blocks,
            lm_head,
            info: config.info(),
            spec: spec.clone(),
            config: config.clone(),
        }))
    }

    /// Prefixes fit blocks that say so.
    fn check_prefix(&self, pass: &dyn Pass) -> Result<(), ModelError> {
        if pass.prefix_length() == 0 || self.blocks.iter().all(|b| b.attention.takes_prefix()) {
            return Ok(());
        }
        let reason = "keys and values in front of a block fit grouped attention only: use a method that changes weights or the input";
        Err(ModelError::Method {
            model_type: self.config.model_type(),
            reason: reason.into(),
        })
    }

    /// What the pass wants of attention, which must fit the batch and the model.
    fn control(
        &self,
        layout: &SequenceLayout,
        pass: &mut dyn Pass,
    ) -> Result<Option<Arc<AttentionControl>>, ModelError> {
        if !self.blocks.iter().all(|b| b.attention.takes_control()) {
            return refuse_control(self.config.model_type(), layout, pass).map(|()| None);
        }
        let Some(control) = pass.attention(layout)? else {
            return Ok(None);
        };
        let refused = |reason| ModelError::Attention { reason };
        let own = self
            .blocks
            .iter()
            .map(|b| b.attention.check_control(&control));
        own.collect::<Result<(), String>>().map_err(refused)?;
        if pass.prefix_length() > 0 {
            return Err(refused(
                "the adapter puts keys and values in front of each sequence".into(),
            ));
        }
        control
            .check(layout, self.config.num_attention_heads, self.blocks.len())
            .map_err(refused)?;
        if self.blocks.iter().any(|block| block.sliding) {
            check_window(&control, self.spec.sliding_window, layout)?;
        }
        Ok(Some(Arc::new(control)))
    }

    fn block(
        &self,
        layer: usize,
        state: &mut BlockState,
        pass: &mut dyn Pass,
        cache: Option<&mut DecodeState>,
    ) {
        let (block, spec) = (&self.blocks[layer], &self.spec);
        let x = state.hidden_states.clone();
        if pass.before_block(layer, &x) == BlockAction::Skip {
            return;
        }
        let local = state.rotary.get(1).filter(|_| block.sliding);
        let rotary = local.unwrap_or(&state.rotary[0]);
        let at = Attend {
            window: spec.sliding_window.filter(|_| block.sliding),
            scale: spec.attention_scale as f32,
            softcap: spec.attn_logit_softcapping.map(|cap| cap as f32),
            control: state.attention.as_deref(),
            ..Attend::new(&self.config, &state.layout, layer, !spec.bidirectional)
        };

        let y = block.input_norm.forward(x.clone(), pass);
        pass.before_sub_layer(layer, SubLayer::Attention, &y);
        let mut a = block.attention.forward(&at, rotary, y.clone(), pass, cache);
        if let Some(norm) = &block.attention_out_norm {
            a = norm.forward(a, pass);
        }
        let a = pass.sub_layer(SubLayerIo {
            layer,
            kind: SubLayer::Attention,
            input: &y,
            output: spec.branch(a),
            residual: &x,
            norm_behind: None,
        });

        let [h, y] = block.mlp_norm.of_sum(x, a, pass);
        pass.before_sub_layer(layer, SubLayer::Mlp, &y);
        let routing = &mut state.routing;
        let mut m = block
            .feed_forward
            .forward_routed(layer, y.clone(), routing, pass);
        if let Some(norm) = &block.mlp_out_norm {
            m = norm.forward(m, pass);
        }
        let m = pass.sub_layer(SubLayerIo {
            layer,
            kind: SubLayer::Mlp,
            input: &y,
            output: spec.branch(m),
            residual: &h,
            norm_behind: None,
        });
        state.hidden_states = frugal_kernels::add(h, m);
        pass.after_block(layer, &state.hidden_states);
    }
}

impl Backbone for Decoder {
    fn info(&self) -> &BackboneInfo {
        &self.info
    }

    fn sites(&self) -> &Arc<SiteTable> {
        &self.sites
    }

    fn device(&self) -> &Device {
        &self.device
    }

    fn new_state(
        &self,
        sequences: usize,
        options: StateOptions,
    ) -> Result<DecodeState, ModelError> {
        if self.spec.bidirectional {
            return Err(ModelError::NotCausal {
                model_type: self.config.model_type(),
            });
        }
        let layers = self.blocks.iter().map(|block| {
            let window = self.spec.sliding_window.filter(|_| block.sliding);
            block.attention.new_state(window)
        });
        Ok(DecodeState::new(layers.collect(), sequences, options))
    }

    fn stem(&self, input: &Input<'_>, pass: &mut dyn Pass) -> Result<BlockState, ModelError> {
        let (c, spec) = (&self.config, &self.spec);
        let x = look_up(c, &self.embed_tokens, spec.embed_scale, input, pass)?;
        self.check_prefix(pass)?;
        let mut layout = input.layout.clone();
        let hidden_states = pass.embed(x, &mut layout);
        let mut attention = self.control(&layout, pass)?;
        if attention.is_none() {
            attention = prefix_control(spec.prefix_token, input, &layout).map(Arc::new);
        }
        if let Some(ids) = attention.as_ref().and_then(|a| a.position_ids.as_ref()) {
            layout.position_ids.clone_from(ids);
        }
        let (offset, positions) = (pass.prefix_length() as u32, c.max_position_embeddings);
        let table =
            |rope| rotary_table(rope, spec.rotated, positions, &layout, offset, &self.device);
        Ok(BlockState {
            hidden_states,
            rotary: std::iter::once(&spec.rope)
                .chain(&spec.rope_local)
                .map(table)
                .collect(),
            layout,
            attention,
            routing: RouterState::default(),
        })
    }

    fn blocks(
        &self,
        range: Range<usize>,
        mut state: BlockState,
        pass: &mut dyn Pass,
        mut cache: Option<&mut DecodeState>,
    ) -> Result<BlockState, ModelError> {
        check_range(&self.config, &range)?;
        if cache.is_some() && self.spec.bidirectional {
            return Err(ModelError::NotCausal {
                model_type: self.config.model_type(),
            });
        }
        // Keys and values in a prefix are those of any other pass.
        let is_prefix = |control: &Arc<AttentionControl>| {
            matches!(control.mask, AttentionMask::Prefix(_)) && control.score_rows.is_none()
        };
        if cache.is_some() && !state.attention.as_ref().is_none_or(is_prefix) {
            return Err(ModelError::Attention {
                reason: "what was computed under it cannot be kept for later tokens".into(),
            });
        }
        if let Some(cache) = &cache {
            cache.check(&state.layout, self.blocks.len())?;
            for layer in range.clone() {
                self.blocks[layer]
                    .attention
                    .check_state(layer, cache, pass)?;
            }
        }
        for layer in range {
            self.block(layer, &mut state, pass, cache.as_deref_mut());
        }
        Ok(state)
    }

    fn readout(&self, state: BlockState, pass: &mut dyn Pass) -> Tensor<2> {
        drop_prepended(self.norm.forward(state.hidden_states, pass), &state.layout)
    }

    fn lm_head(&self) -> Option<&Linear> {
        self.lm_head.as_ref()
    }

    fn visit_weights(&self, visit: &mut dyn FnMut(Frozen<'_>)) {
        visit(Frozen::Embedding(&self.embed_tokens));
        for (i, b) in self.blocks.iter().enumerate() {
            let norms = [
                Some(&b.input_norm),
                b.attention_out_norm.as_ref(),
                Some(&b.mlp_norm),
                b.mlp_out_norm.as_ref(),
            ];
            norms
                .into_iter()
                .flatten()
                .filter(|_| i == 0 || !self.spec.shares_norms)
                .for_each(|n| n.visit_weights(visit));
            b.attention.visit_weights(visit);
            b.feed_forward.visit_weights(visit);
        }
        self.norm.visit_weights(visit);
        if let Some(head) = &self.lm_head {
            visit(Frozen::Linear(head));
        }
    }
}
