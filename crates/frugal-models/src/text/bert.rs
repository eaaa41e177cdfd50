//! BERT and its sentence-embedding descendants, and RoBERTa, which is BERT with shifted positions:
//! post-norm blocks, learned positions, attention in both directions.
//!
//! <https://huggingface.co/docs/transformers/model_doc/bert>,
//! <https://huggingface.co/docs/transformers/model_doc/roberta>

use std::ops::Range;
use std::sync::Arc;

use burn::prelude::*;
use frugal_nn::layers::{Embedding, Linear, Norm};
use frugal_nn::layout::{Input, SequenceLayout};
use frugal_nn::rows::drop_prepended;
use frugal_nn::state::DecodeState;
use frugal_nn::{
    Backbone, BackboneInfo, BlockAction, BlockState, Frozen, HeadLayout, ModelError, Pass,
    RouterState, SiteInfo, SiteKind, SiteTable, SubLayer, SubLayerIo, UsualTargets,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::activation::Activation;
use crate::architecture::{Architecture, Cost, Family, KeyTable, ModelConfig};
use crate::blocks::attention::{Attend, attend};
use crate::blocks::checks::{activate, check_positions, check_range, look_up};
use crate::blocks::controlled::refuse_control;
use crate::blocks::sites::Sites;
use crate::keys::{self, Size, TokenId};
use crate::weights::WeightLoader;

const TARGETS: UsualTargets = UsualTargets {
    ia3: &["key", "value", "output.dense"],
    ia3_feedforward: "output.dense",
};

/// BERT.
pub static BERT: Family = Family {
    model_type: "bert",
    class: "BertModel",
    classifier_class: "BertForSequenceClassification",
    base_prefix: "bert.",
    is_encoder: true,
    in_transformers: true,
    head: HeadLayout::Classifier,
    usual_targets: TARGETS,
    read: read_bert,
    fresh: None,
    keys: KeyTable {
        honored: keys::names::<EncoderConfig>,
        refused: &[("position_embedding_type", "\"absolute\"")],
        without_effect: &[
            "attention_probs_dropout_prob",
            "hidden_dropout_prob",
            "classifier_dropout",
            "tie_word_embeddings",
        ],
    },
};

/// RoBERTa.
pub static ROBERTA: Family = Family {
    model_type: "roberta",
    class: "RobertaModel",
    classifier_class: "RobertaForSequenceClassification",
    base_prefix: "roberta.",
    is_encoder: true,
    in_transformers: true,
    head: HeadLayout::DenseOutProj,
    usual_targets: TARGETS,
    read: read_roberta,
    fresh: None,
    keys: KeyTable {
        honored: keys::names::<EncoderConfig>,
        refused: &[("position_embedding_type", "\"absolute\"")],
        without_effect: &[
            "attention_probs_dropout_prob",
            "hidden_dropout_prob",
            "classifier_dropout",
            "tie_word_embeddings",
        ],
    },
};

/// Keys of `BertConfig` and `RobertaConfig`, which have the same.
#[derive(Debug, Serialize, Deserialize)]
#[serde(default)]
struct EncoderConfig {
    vocab_size: Size,
    hidden_size: Size,
    num_hidden_layers: Size,
    num_attention_heads: Size,
    intermediate_size: Size,
    hidden_act: Activation,
    max_position_embeddings: Size,
    type_vocab_size: Size,
    layer_norm_eps: f64,
    pad_token_id: Option<TokenId>,
}

impl Default for EncoderConfig {
    fn default() -> Self {
        Self {
            vocab_size: Size(30_522),
            hidden_size: Size(768),
            num_hidden_layers: Size(12),
            num_attention_heads: Size(12),
            intermediate_size: Size(3072),
            hidden_act: Activation::Gelu,
            max_position_embeddings: Size(512),
            type_vocab_size: Size(2),
            layer_norm_eps: 1e-12,
            pad_token_id: None,
        }
    }
}

fn read_bert(raw: &Value, source: &str) -> Result<ModelConfig, ModelError> {
    read(&BERT, 0, raw, source)
}

fn read_roberta(raw: &Value, source: &str) -> Result<ModelConfig, ModelError> {
    read(&ROBERTA, 1, raw, source)
}

fn read(
    family: &'static Family,
    padding: u32,
    raw: &Value,
    source: &str,
) -> Result<ModelConfig, ModelError> {
    let required = [
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "max_position_embeddings",
    ];
    let k: EncoderConfig = keys::read(raw, source, &required)?;
    let (width, heads) = (k.hidden_size.0, k.num_attention_heads.0);
    let num_hidden_layers = keys::layers("num_hidden_layers", k.num_hidden_layers, source)?;
    let architecture = Arc::new(Arithmetic {
        type_vocab_size: k.type_vocab_size.0,
        shifted_positions: padding == 1,
    });
    Ok(ModelConfig {
        family,
        hidden_size: width,
        intermediate_size: k.intermediate_size.0,
        num_hidden_layers,
        num_attention_heads: heads,
        num_key_value_heads: heads,
        head_dim: keys::shared_head_dim(width, heads, "num_attention_heads", source)?,
        vocab_size: k.vocab_size.0,
        max_position_embeddings: k.max_position_embeddings.0,
        norm_eps: k.layer_norm_eps,
        activation: k.hidden_act,
        tie_word_embeddings: true,
        pad_token_id: k.pad_token_id.and_then(|id| id.0).or(Some(padding)),
        architecture,
        raw: raw.clone(),
        source: source.into(),
    })
}

/// What an encoder adds to its sizes.
#[derive(Debug)]
struct Arithmetic {
    /// Segment types.
    type_vocab_size: usize,
    /// Whether positions are counted from behind the padding id, and there is no pooler (RoBERTa).
    shifted_positions: bool,
}

impl Architecture for Arithmetic {
    fn arithmetic(&self, _config: &ModelConfig) -> Value {
        json!({"type_vocab_size": self.type_vocab_size, "model_type": self.shifted_positions})
    }

    fn sites(&self, c: &ModelConfig) -> Vec<SiteInfo> {
        let (mut sites, d, ff) = (Sites::default(), c.hidden_size, c.intermediate_size);
        let base = c.family.base_prefix;
        let e = |name: &str| format!("{base}embeddings.{name}");
        sites.token_table(e("word_embeddings"), c);
        sites.table(e("position_embeddings"), c.max_position_embeddings, d);
        sites.table(e("token_type_embeddings"), self.type_vocab_size, d);
        sites.layer_norm(e("LayerNorm"), None, d);
        for i in 0..c.num_hidden_layers {
            let p = |name: &str| format!("{base}encoder.layer.{i}.{name}");
            let l = Some(i);
            sites.linear(p("attention.self.query"), i, [d, d], true);
            sites.linear(p("attention.self.key"), i, [d, d], true);
            sites.linear(p("attention.self.value"), i, [d, d], true);
            sites.linear(p("attention.output.dense"), i, [d, d], true);
            sites.layer_norm(p("attention.output.LayerNorm"), l, d);
            sites.linear(p("intermediate.dense"), i, [d, ff], true);
            sites.linear(p("output.dense"), i, [ff, d], true);
            sites.layer_norm(p("output.LayerNorm"), l, d);
        }
        if !self.shifted_positions {
            let path = format!("{base}pooler.dense");
            sites
                .add(path, SiteKind::Linear, None, [d, d], true)
                .optional = true;
        }
        sites.finish()
    }

    fn cost(&self, config: &ModelConfig) -> Cost {
        Cost {
            gated: false,
            ..Cost::of_decoder(config)
        }
    }

    fn first_position(&self, config: &ModelConfig) -> u32 {
        match config.pad_token_id {
            Some(padding) if self.shifted_positions => padding + 1,
            _ => 0,
        }
    }

    fn build(
        &self,
        config: &ModelConfig,
        sites: Arc<SiteTable>,
        loader: &mut WeightLoader<'_>,
    ) -> Result<Arc<dyn Backbone>, ModelError> {
        Ok(Arc::new(Encoder::load(config, sites, loader)?))
    }
}

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
    fn load(
        config: &ModelConfig,
        sites: Arc<SiteTable>,
        loader: &mut WeightLoader<'_>,
    ) -> Result<Self, ModelError> {
        let eps = config.norm_eps;
        let base = config.family.base_prefix;
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
            config: config.clone(),
            sites,
            blocks,
            pooler,
        })
    }
}

impl Encoder {
    fn block(&self, layer: usize, state: &mut BlockState, pass: &mut dyn Pass) {
        let (block, mut x) = (&self.blocks[layer], state.hidden_states.clone());
        if pass.before_block(layer, &x) == BlockAction::Skip {
            return;
        }
        let at = Attend::new(&self.config, &state.layout, layer, false);
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
        state.hidden_states = x;
        pass.after_block(layer, &state.hidden_states);
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

    fn stem(&self, input: &Input<'_>, pass: &mut dyn Pass) -> Result<BlockState, ModelError> {
        let words = look_up(&self.config, &self.word_embeddings, None, input, pass)?;
        let mut layout = input.layout.clone();
        let words = pass.embed(words, &mut layout);
        refuse_control(self.config.model_type(), &layout, pass)?;
        let first = self.config.first_position() + pass.prefix_length() as u32;
        let positions: Vec<u32> = layout.position_ids.iter().map(|p| p + first).collect();
        check_positions(&self.config, &positions)?;
        let types = segment_ids(input, &layout);
        let x = words
            + pass.embedding(&self.position_embeddings, &positions)
            + pass.embedding(&self.token_type_embeddings, &types);
        Ok(BlockState {
            hidden_states: pass.norm(&self.embedding_norm, x),
            layout,
            rotary: Vec::new(),
            attention: None,
            routing: RouterState::default(),
        })
    }

    fn blocks(
        &self,
        range: Range<usize>,
        mut state: BlockState,
        pass: &mut dyn Pass,
        cache: Option<&mut DecodeState>,
    ) -> Result<BlockState, ModelError> {
        check_range(&self.config, &range)?;
        if cache.is_some() {
            return Err(ModelError::NotCausal {
                model_type: self.config.model_type(),
            });
        }
        range.for_each(|layer| self.block(layer, &mut state, pass));
        Ok(state)
    }

    fn readout(&self, state: BlockState, _pass: &mut dyn Pass) -> Tensor<2> {
        drop_prepended(state.hidden_states, &state.layout)
    }

    fn pooler(&self) -> Option<&Linear> {
        self.pooler.as_ref()
    }

    fn visit_weights(&self, visit: &mut dyn FnMut(Frozen<'_>)) {
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
fn segment_ids(input: &Input<'_>, layout: &SequenceLayout) -> Vec<u32> {
    let added = layout.prepended;
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
