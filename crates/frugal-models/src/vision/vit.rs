//! Vision Transformer: patches of an image as tokens, a class token in front of them, pre-norm blocks
//! with attention in both directions (Dosovitskiy et al., *An Image is Worth 16x16 Words*, arXiv
//! 2010.11929).
//!
//! <https://huggingface.co/docs/transformers/model_doc/vit>

use std::ops::Range;
use std::sync::Arc;

use burn::prelude::*;
use frugal_nn::rows::drop_prepended;
use frugal_nn::state::DecodeState;
use frugal_nn::{
    Backbone, BackboneInfo, BlockAction, BlockState, Frozen, HeadLayout, ImageInput, Input, Linear,
    ModelError, Norm, Param, Pass, RouterState, Rows, SequenceLayout, SiteInfo, SiteKind,
    SiteTable, SubLayer, SubLayerIo, UsualTargets,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::pixels::{COLORS, Pixels, Sides, check_pass, embed};
use crate::activation::Activation;
use crate::architecture::{Architecture, Cost, Family, KeyTable, ModelConfig};
use crate::blocks::attention::{Attend, attend};
use crate::blocks::checks::{activate, check_range};
use crate::blocks::controlled::refuse_control;
use crate::blocks::sites::Sites;
use crate::fresh::{Fresh, FreshSizes, Own};
use crate::keys::{self, Size};
use crate::weights::WeightLoader;

/// ViT.
pub static VIT: Family = Family {
    model_type: "vit",
    class: "ViTModel",
    classifier_class: "ViTForImageClassification",
    base_prefix: "vit.",
    is_encoder: true,
    in_transformers: true,
    head: HeadLayout::Classifier,
    usual_targets: UsualTargets {
        ia3: &["key", "value", "output.dense"],
        ia3_feedforward: "output.dense",
    },
    read,
    fresh: Some(Fresh {
        about: "patches of an image as tokens of an encoder",
        config: fresh,
    }),
    keys: KeyTable {
        honored: keys::names::<ViTConfig>,
        refused: &[],
        without_effect: &[
            "attention_probs_dropout_prob",
            "hidden_dropout_prob",
            // Of masked image modelling.
            "encoder_stride",
            // Of the pooler, which classifiers do not have.
            "pooler_act",
            "pooler_output_size",
        ],
    },
};

/// Keys of `ViTConfig`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(default)]
struct ViTConfig {
    hidden_size: Size,
    num_hidden_layers: Size,
    num_attention_heads: Size,
    intermediate_size: Size,
    hidden_act: Activation,
    layer_norm_eps: f64,
    image_size: Sides,
    patch_size: Sides,
    num_channels: Size,
    qkv_bias: bool,
}

impl Default for ViTConfig {
    fn default() -> Self {
        Self {
            hidden_size: Size(768),
            num_hidden_layers: Size(12),
            num_attention_heads: Size(12),
            intermediate_size: Size(3072),
            hidden_act: Activation::Gelu,
            layer_norm_eps: 1e-12,
            image_size: Sides([224; 2]),
            patch_size: Sides([16; 2]),
            num_channels: Size(3),
            qkv_bias: true,
        }
    }
}

fn fresh(sizes: &FreshSizes, _own: &Own<'_>) -> Result<Value, ModelError> {
    Ok(json!({
        "hidden_size": sizes.hidden_size, "num_hidden_layers": sizes.num_hidden_layers,
        "num_attention_heads": sizes.num_attention_heads, "intermediate_size": sizes.intermediate_size,
        "hidden_act": "gelu", "layer_norm_eps": 1e-12, "image_size": 32, "patch_size": 4,
        "num_channels": 3, "qkv_bias": true, "initializer_range": 0.02,
    }))
}

fn read(raw: &Value, source: &str) -> Result<ModelConfig, ModelError> {
    let required = ["hidden_size", "num_hidden_layers", "num_attention_heads"];
    let k: ViTConfig = keys::read(raw, source, &required)?;
    let (width, heads) = (k.hidden_size.0, k.num_attention_heads.0);
    let num_hidden_layers = keys::layers("num_hidden_layers", k.num_hidden_layers, source)?;
    let pixels = Pixels::read(raw, k.image_size, k.patch_size, k.num_channels.0, source)?;
    Ok(ModelConfig {
        family: &VIT,
        hidden_size: width,
        intermediate_size: k.intermediate_size.0,
        num_hidden_layers,
        num_attention_heads: heads,
        num_key_value_heads: heads,
        head_dim: keys::shared_head_dim(width, heads, "num_attention_heads", source)?,
        vocab_size: COLORS,
        max_position_embeddings: pixels.image.pixels(),
        norm_eps: k.layer_norm_eps,
        activation: k.hidden_act,
        tie_word_embeddings: true,
        pad_token_id: None,
        architecture: Arc::new(ViT {
            pixels,
            qkv_bias: k.qkv_bias,
        }),
        raw: raw.clone(),
        source: source.into(),
    })
}

/// What differs between models of this type.
#[derive(Clone, Debug)]
struct ViT {
    pixels: Pixels,
    qkv_bias: bool,
}

impl ViT {
    fn patches(&self) -> usize {
        self.pixels.grid().iter().product()
    }
}

impl Architecture for ViT {
    fn arithmetic(&self, _config: &ModelConfig) -> Value {
        let ImageInput { height, width } = self.pixels.image;
        json!({"image_size": [height, width], "patch_size": self.pixels.patch, "qkv_bias": self.qkv_bias})
    }

    fn sites(&self, c: &ModelConfig) -> Vec<SiteInfo> {
        let (mut sites, d, ff) = (Sites::default(), c.hidden_size, c.intermediate_size);
        let e = |name: &str| format!("vit.embeddings.{name}");
        let param = SiteKind::Param;
        sites.add(e("cls_token"), param, None, [d, 1], false).stored = Some(vec![1, 1, d]);
        let positions = 1 + self.patches();
        sites
            .add(e("position_embeddings"), param, None, [d, positions], false)
            .stored = Some(vec![1, positions, d]);
        let [height, width] = self.pixels.patch;
        let size = [self.pixels.patch_width(), d];
        let path = e("patch_embeddings.projection");
        sites.add(path, SiteKind::Conv2d, None, size, true).stored =
            Some(vec![d, 3, height, width]);
        for i in 0..c.num_hidden_layers {
            let p = |name: &str| format!("vit.encoder.layer.{i}.{name}");
            let l = Some(i);
            sites.layer_norm(p("layernorm_before"), l, d);
            for name in ["query", "key", "value"] {
                let path = p(&format!("attention.attention.{name}"));
                sites.linear(path, i, [d, d], self.qkv_bias);
            }
            sites.linear(p("attention.output.dense"), i, [d, d], true);
            sites.layer_norm(p("layernorm_after"), l, d);
            sites.linear(p("intermediate.dense"), i, [d, ff], true);
            sites.linear(p("output.dense"), i, [ff, d], true);
        }
        sites.layer_norm("vit.layernorm".into(), None, d);
        sites.finish()
    }

    fn cost(&self, config: &ModelConfig) -> Cost {
        Cost {
            gated: false,
            ..Cost::of_decoder(config)
        }
    }

    fn image(&self) -> Option<ImageInput> {
        Some(self.pixels.image)
    }

    fn build(
        &self,
        config: &ModelConfig,
        sites: Arc<SiteTable>,
        loader: &mut WeightLoader<'_>,
    ) -> Result<Arc<dyn Backbone>, ModelError> {
        let eps = config.norm_eps;
        let mut blocks = Vec::with_capacity(config.num_hidden_layers);
        for i in 0..config.num_hidden_layers {
            let p = |name: &str| format!("vit.encoder.layer.{i}.{name}");
            blocks.push(Block {
                norm_before: loader.layer_norm(&p("layernorm_before"), eps)?,
                query: loader.linear(&p("attention.attention.query"))?,
                key: loader.linear(&p("attention.attention.key"))?,
                value: loader.linear(&p("attention.attention.value"))?,
                attention_output: loader.linear(&p("attention.output.dense"))?,
                norm_after: loader.layer_norm(&p("layernorm_after"), eps)?,
                intermediate: loader.linear(&p("intermediate.dense"))?,
                output: loader.linear(&p("output.dense"))?,
            });
        }
        Ok(Arc::new(Encoder {
            vit: self.clone(),
            cls_token: loader.param("vit.embeddings.cls_token")?,
            positions: loader.param("vit.embeddings.position_embeddings")?,
            projection: loader.patch_conv("vit.embeddings.patch_embeddings.projection")?,
            norm: loader.layer_norm("vit.layernorm", eps)?,
            device: loader.device().clone(),
            info: config.info(),
            config: config.clone(),
            sites,
            blocks,
        }))
    }
}

struct Block {
    norm_before: Norm,
    query: Linear,
    key: Linear,
    value: Linear,
    attention_output: Linear,
    norm_after: Norm,
    intermediate: Linear,
    output: Linear,
}

/// A frozen ViT.
struct Encoder {
    vit: ViT,
    config: ModelConfig,
    info: BackboneInfo,
    sites: Arc<SiteTable>,
    device: Device,
    cls_token: Param,
    positions: Param,
    projection: Linear,
    blocks: Vec<Block>,
    norm: Norm,
}

impl Encoder {
    fn block(&self, layer: usize, state: &mut BlockState, pass: &mut dyn Pass) {
        let (block, x) = (&self.blocks[layer], state.hidden_states.clone());
        if pass.before_block(layer, &x) == BlockAction::Skip {
            return;
        }
        let at = Attend::new(&self.config, &state.layout, layer, false);
        let y = pass.norm(&block.norm_before, x.clone());
        pass.before_sub_layer(layer, SubLayer::Attention, &y);
        let q = pass.linear(&block.query, y.clone());
        let k = pass.linear(&block.key, y.clone());
        let v = pass.linear(&block.value, y.clone());
        let a = attend(&at, q, k, v, pass, None);
        let a = pass.linear(&block.attention_output, a);
        let a = pass.sub_layer(SubLayerIo {
            layer,
            kind: SubLayer::Attention,
            input: &y,
            output: a,
            residual: &x,
            norm_behind: None,
        });
        let [x, y] = pass.add_norm(&block.norm_after, x, a);
        pass.before_sub_layer(layer, SubLayer::Mlp, &y);
        let m = pass.linear(&block.intermediate, y.clone());
        let m = pass.linear(&block.output, activate(self.config.activation, m));
        let m = pass.sub_layer(SubLayerIo {
            layer,
            kind: SubLayer::Mlp,
            input: &y,
            output: m,
            residual: &x,
            norm_behind: None,
        });
        state.hidden_states = frugal_kernels::add(x, m);
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
        check_pass(&self.config, pass)?;
        let patches = self.vit.pixels.patches(&self.config, input, &self.device)?;
        let (images, count, d) = (
            input.layout.sequences(),
            self.vit.patches(),
            self.config.hidden_size,
        );
        let x = embed(&self.projection, patches, pass).reshape([images, count, d]);
        let cls = pass.param(&self.cls_token, Rows::Chosen);
        let cls = cls.reshape([1, 1, d]).repeat_dim(0, images);
        let positions = pass.param(&self.positions, Rows::Chosen);
        let x = Tensor::cat(vec![cls, x], 1) + positions.unsqueeze::<3>();
        let mut layout = SequenceLayout::new(&vec![1 + count; images]);
        let hidden_states = pass.embed(x.reshape([images * (1 + count), d]), &mut layout);
        refuse_control(self.config.model_type(), &layout, pass)?;
        Ok(BlockState {
            hidden_states,
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

    fn readout(&self, state: BlockState, pass: &mut dyn Pass) -> Tensor<2> {
        drop_prepended(pass.norm(&self.norm, state.hidden_states), &state.layout)
    }

    fn visit_weights(&self, visit: &mut dyn FnMut(Frozen<'_>)) {
        visit(Frozen::Param(&self.cls_token));
        visit(Frozen::Param(&self.positions));
        visit(Frozen::Linear(&self.projection));
        for b in &self.blocks {
            visit(Frozen::Norm(&b.norm_before));
            for linear in [&b.query, &b.key, &b.value, &b.attention_output] {
                visit(Frozen::Linear(linear));
            }
            visit(Frozen::Norm(&b.norm_after));
            visit(Frozen::Linear(&b.intermediate));
            visit(Frozen::Linear(&b.output));
        }
        visit(Frozen::Norm(&self.norm));
    }
}
