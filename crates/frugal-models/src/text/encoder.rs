//! One encoder for `bert` and `roberta`: post-norm blocks, learned positions, attention in both
//! directions.
//!
//! <https://huggingface.co/docs/transformers/model_doc/bert>

use std::sync::Arc;

use burn::prelude::*;
use frugal_nn::layers::{Embedding, Linear, Norm};
use frugal_nn::layout::Input;
use frugal_nn::rows::drop_prepended;
use frugal_nn::site::SiteTable;
use frugal_nn::state::KvCache;
use frugal_nn::{
    Backbone, BackboneInfo, BlockAction, Frozen, ModelError, Pass, SubLayer, SubLayerIo,
};

use crate::blocks::attention::{Attend, attend};
use crate::blocks::checks::{activate, check_input};
use crate::config::ModelConfig;
use crate::weights::WeightLoader;

struct Block {
    query: Linear,
    key: Linear,
    value: Linear,
    attention_output: Linear,
    attention_norm: Norm,
    intermediate: Linear,
    output: Linear,
    output_norm: Norm,
}

/// A frozen BERT or RoBERTa.
pub struct Encoder {
    config: ModelConfig,
    info: BackboneInfo,
    sites: Arc<SiteTable>,
    device: Device,
    word_embeddings: Embedding,
    position_embeddings: Embedding,
    token_type_embeddings: Embedding,
    embedding_norm: Norm,
    blocks: Vec<Block>,
    pooler: Option<Linear>,
}

impl Encoder {
    /// Takes the weights from `loader`.
    ///
    /// # Errors
    /// Whatever reading a tensor gives.
    pub fn load(
        config: ModelConfig,
        sites: Arc<SiteTable>,
        loader: &mut WeightLoader<'_>,
    ) -> Result<Self, ModelError> {
        let eps = config.norm_eps;
        let base = config.model_type.base_prefix();
        let mut blocks = Vec::with_capacity(config.num_hidden_layers);
        for i in 0..config.num_hidden_layers {
            let p = |name: &str| format!("{base}encoder.layer.{i}.{name}");
            blocks.push(Block {
                query: loader.linear(&p("attention.self.query"))?,
                key: loader.linear(&p("attention.self.key"))?,
                value: loader.linear(&p("attention.self.value"))?,
                attention_output: loader.linear(&p("attention.output.dense"))?,
                attention_norm: loader.layer_norm(&p("attention.output.LayerNorm"), eps)?,
                intermediate: loader.linear(&p("intermediate.dense"))?,
                output: loader.linear(&p("output.dense"))?,
                output_norm: loader.layer_norm(&p("output.LayerNorm"), eps)?,
            });
        }
        let pooler_path = format!("{base}pooler.dense");
        let pooler = if sites.find(&pooler_path).is_some() {
            loader.optional_linear(&pooler_path)?
        } else {
            None
        };
        Ok(Self {
            word_embeddings: loader.embedding(&format!("{base}embeddings.word_embeddings"))?,
            position_embeddings: loader
                .embedding(&format!("{base}embeddings.position_embeddings"))?,
            token_type_embeddings: loader
                .embedding(&format!("{base}embeddings.token_type_embeddings"))?,
            embedding_norm: loader.layer_norm(&format!("{base}embeddings.LayerNorm"), eps)?,
            device: loader.device().clone(),
            info: config.info(),
            config,
            sites,
            blocks,
            pooler,
        })
    }
}

impl Backbone for Encoder {
    fn info(&self) -> &BackboneInfo {
        &self.info
    }

    fn sites(&self) -> &Arc<SiteTable> {
        &self.sites
    }

    fn device(&self) -> &Device {
        &self.device
    }

    fn forward(
        &self,
        input: &Input<'_>,
        pass: &mut dyn Pass,
        cache: Option<&mut KvCache>,
    ) -> Result<Tensor<2>, ModelError> {
        if cache.is_some() {
            return Err(ModelError::NotCausal {
                model_type: self.config.model_type.name(),
            });
        }
        check_input(&self.config, input)?;
        let mut layout = input.layout.clone();
        let words = pass.embedding(&self.word_embeddings, input.input_ids);
        let words = pass.embed(words, &mut layout);
        let added = layout.prepended;
        let first = self.config.first_position() + pass.prefix_length() as u32;
        let positions: Vec<u32> = layout.position_ids.iter().map(|p| p + first).collect();
        crate::blocks::checks::check_positions(&self.config, &positions)?;
        let types = segment_ids(input, &layout, added);
        let x = words
            + pass.embedding(&self.position_embeddings, &positions)
            + pass.embedding(&self.token_type_embeddings, &types);
        let mut x = pass.norm(&self.embedding_norm, x);
        for (layer, block) in self.blocks.iter().enumerate() {
            if pass.before_block(layer, &x) == BlockAction::Skip {
                continue;
            }
            let at = Attend::new(&self.config, &layout, layer, false);
            pass.before_sub_layer(layer, SubLayer::Attention, &x);
            let q = pass.linear(&block.query, x.clone());
            let k = pass.linear(&block.key, x.clone());
            let v = pass.linear(&block.value, x.clone());
            let a = attend(&at, q, k, v, pass, None);
            let a = pass.linear(&block.attention_output, a);
            let a = pass.sub_layer(SubLayerIo {
                layer,
                kind: SubLayer::Attention,
                input: &x,
                output: a,
                residual: &x,
                norm_behind: Some(&block.attention_norm),
            });
            [_, x] = pass.add_norm(&block.attention_norm, x, a);

            pass.before_sub_layer(layer, SubLayer::Mlp, &x);
            let m = pass.linear(&block.intermediate, x.clone());
            let m = pass.linear(&block.output, activate(self.config.activation, m));
            let m = pass.sub_layer(SubLayerIo {
                layer,
                kind: SubLayer::Mlp,
                input: &x,
                output: m,
                residual: &x,
                norm_behind: Some(&block.output_norm),
            });
            [_, x] = pass.add_norm(&block.output_norm, x, m);
            pass.after_block(layer, &x);
        }
        Ok(drop_prepended(x, &layout))
    }

    fn pooler(&self) -> Option<&Linear> {
        self.pooler.as_ref()
    }

    fn export(&self, visit: &mut dyn FnMut(Frozen<'_>)) {
        visit(Frozen::Embedding(&self.word_embeddings));
        visit(Frozen::Embedding(&self.position_embeddings));
        visit(Frozen::Embedding(&self.token_type_embeddings));
        visit(Frozen::Norm(&self.embedding_norm));
        for b in &self.blocks {
            for linear in [
                &b.query,
                &b.key,
                &b.value,
                &b.attention_output,
                &b.intermediate,
                &b.output,
            ] {
                visit(Frozen::Linear(linear));
            }
            visit(Frozen::Norm(&b.attention_norm));
            visit(Frozen::Norm(&b.output_norm));
        }
        if let Some(pooler) = &self.pooler {
            visit(Frozen::Linear(pooler));
        }
    }
}

/// Segment id of every position; positions that a method added get segment 0.
fn segment_ids(
    input: &Input<'_>,
    layout: &frugal_nn::layout::SequenceLayout,
    added: usize,
) -> Vec<u32> {
    if input.token_type_ids.is_empty() {
        return vec![0; layout.tokens()];
    }
    let mut types = Vec::with_capacity(layout.tokens());
    for range in input.layout.cu_seqlens.windows(2) {
        types.extend(std::iter::repeat_n(0, added));
        types.extend_from_slice(&input.token_type_ids[range[0]..range[1]]);
    }
    types
}
