//! GPT-2: learned positions, pre-norm blocks, fused query/key/value.
//!
//! <https://huggingface.co/docs/transformers/model_doc/gpt2>

use std::ops::Range;
use std::sync::Arc;

use burn::prelude::*;
use frugal_nn::layers::{Embedding, Linear, Norm};
use frugal_nn::layout::Input;
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

/// GPT-2.
pub static GPT2: Family = Family {
    model_type: "gpt2",
    class: "GPT2LMHeadModel",
    classifier_class: "GPT2ForSequenceClassification",
    base_prefix: "transformer.",
    is_encoder: false,
    in_transformers: true,
    head: HeadLayout::ScoreOrClassifier,
    usual_targets: UsualTargets {
        ia3: &["c_attn", "mlp.c_proj"],
        ia3_feedforward: "mlp.c_proj",
    },
    read,
    fresh: None,
    keys: KeyTable {
        honored: keys::names::<Gpt2Config>,
        refused: &[
            ("scale_attn_by_inverse_layer_idx", "false"),
            ("reorder_and_upcast_attn", "false"),
        ],
        without_effect: &[
            "attn_pdrop",
            "embd_pdrop",
            "resid_pdrop",
            "summary_activation",
            "summary_first_dropout",
            "summary_proj_to_labels",
            "summary_type",
            "summary_use_proj",
        ],
    },
};

/// Keys of `GPT2Config`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(default)]
struct Gpt2Config {
    vocab_size: Size,
    n_positions: Size,
    n_embd: Size,
    n_layer: Size,
    n_head: Size,
    n_inner: Option<Size>,
    activation_function: Activation,
    layer_norm_epsilon: f64,
    scale_attn_weights: bool,
    tie_word_embeddings: bool,
    pad_token_id: TokenId,
}

impl Default for Gpt2Config {
    fn default() -> Self {
        Self {
            vocab_size: Size(50_257),
            n_positions: Size(1024),
            n_embd: Size(768),
            n_layer: Size(12),
            n_head: Size(12),
            n_inner: None,
            activation_function: Activation::GeluTanh,
            layer_norm_epsilon: 1e-5,
            scale_attn_weights: true,
            tie_word_embeddings: true,
            pad_token_id: TokenId(None),
        }
    }
}

/// What GPT-2 adds to its sizes.
#[derive(Debug)]
struct Arithmetic {
    /// Whether attention scores are divided by the root of a head's width.
    scale_attn_weights: bool,
}

fn read(raw: &Value, source: &str) -> Result<ModelConfig, ModelError> {
    let required = ["vocab_size", "n_positions", "n_embd", "n_layer", "n_head"];
    let k: Gpt2Config = keys::read(raw, source, &required)?;
    let (width, heads) = (k.n_embd.0, k.n_head.0);
    let num_hidden_layers = keys::layers("n_layer", k.n_layer, source)?;
    let architecture = Arc::new(Arithmetic {
        scale_attn_weights: k.scale_attn_weights,
    });
    Ok(ModelConfig {
        family: &GPT2,
        hidden_size: width,
        intermediate_size: k.n_inner.map_or(4 * width, |inner| inner.0),
        num_hidden_layers,
        num_attention_heads: heads,
        num_key_value_heads: heads,
        head_dim: keys::shared_head_dim(width, heads, "n_head", source)?,
        vocab_size: k.vocab_size.0,
        max_position_embeddings: k.n_positions.0,
        norm_eps: k.layer_norm_epsilon,
        activation: k.activation_function,
        tie_word_embeddings: k.tie_word_embeddings,
        pad_token_id: k.pad_token_id.0,
        architecture,
        raw: raw.clone(),
        source: source.into(),
    })
}

impl Architecture for Arithmetic {
    fn arithmetic(&self, _config: &ModelConfig) -> Value {
        json!({"scale_attn_weights": self.scale_attn_weights})
    }

    fn sites(&self, c: &ModelConfig) -> Vec<SiteInfo> {
        let (mut sites, d, ff) = (Sites::default(), c.hidden_size, c.intermediate_size);
        sites.token_table("transformer.wte".into(), c);
        sites.table("transformer.wpe".into(), c.max_position_embeddings, d);
        for i in 0..c.num_hidden_layers {
            let p = |name: &str| format!("transformer.h.{i}.{name}");
            let l = Some(i);
            sites.layer_norm(p("ln_1"), l, d);
            sites.add(p("attn.c_attn"), SiteKind::Conv1d, l, [d, 3 * d], true);
            sites
                .add(p("attn.c_proj"), SiteKind::Conv1d, l, [d, d], true)
                .writes_to_residual = true;
            sites.layer_norm(p("ln_2"), l, d);
            sites.add(p("mlp.c_fc"), SiteKind::Conv1d, l, [d, ff], true);
            sites
                .add(p("mlp.c_proj"), SiteKind::Conv1d, l, [ff, d], true)
                .writes_to_residual = true;
        }
        sites.layer_norm("transformer.ln_f".into(), None, d);
        sites.lm_head(c);
        sites.finish()
    }

    fn cost(&self, config: &ModelConfig) -> Cost {
        Cost {
            gated: false,
            ..Cost::of_decoder(config)
        }
    }

    fn build(
        &self,
        config: &ModelConfig,
        sites: Arc<SiteTable>,
        loader: &mut WeightLoader<'_>,
    ) -> Result<Arc<dyn Backbone>, ModelError> {
        Ok(Arc::new(Gpt2::load(config, self, sites, loader)?))
    }
}

struct Block {
    ln_1: Norm,
    c_attn: Linear,
    attn_c_proj: Linear,
    ln_2: Norm,
    c_fc: Linear,
    mlp_c_proj: Linear,
}

/// A frozen GPT-2.
pub struct Gpt2 {
    config: ModelConfig,
    scale: f32,
    info: BackboneInfo,
    sites: Arc<SiteTable>,
    device: Device,
    wte: Embedding,
    wpe: Embedding,
    blocks: Vec<Block>,
    ln_f: Norm,
    lm_head: Option<Linear>,
}

impl Gpt2 {
    /// Takes the weights from `loader`.
    ///
    /// # Errors
    /// Whatever reading a tensor gives.
    fn load(
        config: &ModelConfig,
        arithmetic: &Arithmetic,
        sites: Arc<SiteTable>,
        loader: &mut WeightLoader<'_>,
    ) -> Result<Self, ModelError> {
        let eps = config.norm_eps;
        let mut blocks = Vec::with_capacity(config.num_hidden_layers);
        for i in 0..config.num_hidden_layers {
            let p = |name: &str| format!("transformer.h.{i}.{name}");
            blocks.push(Block {
                ln_1: loader.layer_norm(&p("ln_1"), eps)?,
                c_attn: loader.linear(&p("attn.c_attn"))?,
                attn_c_proj: loader.linear(&p("attn.c_proj"))?,
                ln_2: loader.layer_norm(&p("ln_2"), eps)?,
                c_fc: loader.linear(&p("mlp.c_fc"))?,
                mlp_c_proj: loader.linear(&p("mlp.c_proj"))?,
            });
        }
        let wte = loader.embedding("transformer.wte")?;
        let wpe = loader.embedding("transformer.wpe")?;
        let ln_f = loader.layer_norm("transformer.ln_f", eps)?;
        let lm_head = loader.lm_head(&wte)?;
        Ok(Self {
            info: config.info(),
            scale: if arithmetic.scale_attn_weights {
                (1.0 / (config.head_dim as f64).sqrt()) as f32
            } else {
                1.0
            },
            config: config.clone(),
            sites,
            device: loader.device().clone(),
            wte,
            wpe,
            blocks,
            ln_f,
            lm_head,
        })
    }
}

impl Gpt2 {
    fn block(
        &self,
        layer: usize,
        state: &mut BlockState,
        pass: &mut dyn Pass,
        cache: Option<&mut DecodeState>,
    ) {
        let (block, d) = (&self.blocks[layer], self.config.hidden_size);
        let x = state.hidden_states.clone();
        if pass.before_block(layer, &x) == BlockAction::Skip {
            return;
        }
        let at = Attend {
            scale: self.scale,
            ..Attend::new(&self.config, &state.layout, layer, true)
        };
        let y = pass.norm(&block.ln_1, x.clone());
        pass.before_sub_layer(layer, SubLayer::Attention, &y);
        let qkv = pass.linear(&block.c_attn, y.clone());
        let part = |i: usize| qkv.clone().narrow(1, i * d, d);
        let a = attend(&at, part(0), part(1), part(2), pass, cache);
        let a = pass.linear(&block.attn_c_proj, a);
        let a = pass.sub_layer(SubLayerIo {
            layer,
            kind: SubLayer::Attention,
            input: &y,
            output: a,
            residual: &x,
            norm_behind: None,
        });

        let [h, y] = pass.add_norm(&block.ln_2, x, a);
        pass.before_sub_layer(layer, SubLayer::Mlp, &y);
        let m = pass.linear(&block.c_fc, y.clone());
        let m = pass.linear(&block.mlp_c_proj, activate(self.config.activation, m));
        let m = pass.sub_layer(SubLayerIo {
            layer,
            kind: SubLayer::Mlp,
            input: &y,
            output: m,
            residual: &h,
            norm_behind: None,
        });
        state.hidden_states = frugal_kernels::add(h, m);
        pass.after_block(layer, &state.hidden_states);
    }
}

impl Backbone for Gpt2 {
    fn info(&self) -> &BackboneInfo {
        &self.info
    }

    fn sites(&self) -> &Arc<SiteTable> {
        &self.sites
    }

    fn device(&self) -> &Device {
        &self.device
    }

    fn prefix_takes_positions(&self) -> bool {
        true
    }

    fn stem(&self, input: &Input<'_>, pass: &mut dyn Pass) -> Result<BlockState, ModelError> {
        let rows = look_up(&self.config, &self.wte, None, input, pass)?;
        let mut layout = input.layout.clone();
        let rows = pass.embed(rows, &mut layout);
        refuse_control(self.config.model_type(), &layout, pass)?;
        let offset = pass.prefix_length() as u32;
        let positions: Vec<u32> = layout.position_ids.iter().map(|p| p + offset).collect();
        check_positions(&self.config, &positions)?;
        Ok(BlockState {
            hidden_states: rows + pass.embedding(&self.wpe, &positions),
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
        mut cache: Option<&mut DecodeState>,
    ) -> Result<BlockState, ModelError> {
        check_range(&self.config, &range)?;
        if let Some(cache) = &cache {
            cache.check(&state.layout, self.blocks.len())?;
        }
        for layer in range {
            self.block(layer, &mut state, pass, cache.as_deref_mut());
        }
        Ok(state)
    }

    fn readout(&self, state: BlockState, pass: &mut dyn Pass) -> Tensor<2> {
        drop_prepended(pass.norm(&self.ln_f, state.hidden_states), &state.layout)
    }

    fn lm_head(&self) -> Option<&Linear> {
        self.lm_head.as_ref()
    }

    fn visit_weights(&self, visit: &mut dyn FnMut(Frozen<'_>)) {
        visit(Frozen::Embedding(&self.wte));
        visit(Frozen::Embedding(&self.wpe));
        for b in &self.blocks {
            visit(Frozen::Norm(&b.ln_1));
            visit(Frozen::Norm(&b.ln_2));
            for linear in [&b.c_attn, &b.attn_c_proj, &b.c_fc, &b.mlp_c_proj] {
                visit(Frozen::Linear(linear));
            }
        }
        visit(Frozen::Norm(&self.ln_f));
        if let Some(head) = &self.lm_head {
            visit(Frozen::Linear(head));
        }
    }
}
