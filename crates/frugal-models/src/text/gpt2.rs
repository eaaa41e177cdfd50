//! GPT-2: learned positions, pre-norm blocks, fused query/key/value.
//!
//! <https://huggingface.co/docs/transformers/model_doc/gpt2>

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
    info: BackboneInfo,
    sites: Arc<SiteTable>,
    device: Device,
    wte: Embedding,
    wpe: Embedding,
    blocks: Vec<Block>,
    ln_f: Norm,
    lm_head: Linear,
}

impl Gpt2 {
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
            config,
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

    fn forward(
        &self,
        input: &Input<'_>,
        pass: &mut dyn Pass,
        mut cache: Option<&mut KvCache>,
    ) -> Result<Tensor<2>, ModelError> {
        check_input(&self.config, input)?;
        let d = self.config.hidden_size;
        let mut layout = input.layout.clone();
        let tokens = pass.embedding(&self.wte, input.input_ids);
        let tokens = pass.embed(tokens, &mut layout);
        let offset = pass.prefix_length() as u32;
        let positions: Vec<u32> = layout.position_ids.iter().map(|p| p + offset).collect();
        crate::blocks::checks::check_positions(&self.config, &positions)?;
        let mut x = tokens + pass.embedding(&self.wpe, &positions);
        for (layer, block) in self.blocks.iter().enumerate() {
            if pass.before_block(layer, &x) == BlockAction::Skip {
                continue;
            }
            let at = Attend::new(&self.config, &layout, layer, true);
            let y = pass.norm(&block.ln_1, x.clone());
            pass.before_sub_layer(layer, SubLayer::Attention, &y);
            let qkv = pass.linear(&block.c_attn, y.clone());
            let part = |i: usize| qkv.clone().narrow(1, i * d, d);
            let a = attend(&at, part(0), part(1), part(2), pass, cache.as_deref_mut());
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
            x = frugal_kernels::add(h, m);
            pass.after_block(layer, &x);
        }
        if let Some(cache) = cache {
            cache.advance(&layout);
        }
        Ok(drop_prepended(pass.norm(&self.ln_f, x), &layout))
    }

    fn lm_head(&self) -> Option<&Linear> {
        Some(&self.lm_head)
    }

    fn export(&self, visit: &mut dyn FnMut(Frozen<'_>)) {
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
        visit(Frozen::Linear(&self.lm_head));
    }
}
