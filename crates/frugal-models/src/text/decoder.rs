//! One decoder for the Llama family: `llama`, `mistral`, `qwen2`, `qwen3` and `gemma3_text`, with
//! other kinds of attention (`deepseek_v3`, `native_sparse`) and feed-forward layers (`mixtral`) in
//! its blocks.
//!
//! - Llama: <https://huggingface.co/docs/transformers/model_doc/llama2>
//! - Gemma 3: <https://huggingface.co/docs/transformers/model_doc/gemma3>

use std::sync::Arc;

use burn::prelude::*;
use frugal_nn::layers::{Embedding, Linear, Norm};
use frugal_nn::layout::{Input, SequenceLayout};
use frugal_nn::site::SiteTable;
use frugal_nn::state::KvCache;
use frugal_nn::{
    Backbone, BackboneInfo, BlockAction, ModelError, Pass, Rows, SubLayer, SubLayerIo,
};

use crate::blocks::attention::{Attend, attend};
use crate::blocks::checks::check_input;
use crate::blocks::gated_mlp::gated_mlp;
use crate::blocks::mla::Latent;
use crate::blocks::nsa::Sparse;
use crate::blocks::sparse_moe::Experts;
use crate::config::{Activation, ModelConfig, ModelType};
use crate::rope::{RotaryTable, rotary_table};
use crate::weights::WeightLoader;

/// How a block attends.
enum Attention {
    Grouped(Grouped),
    Latent(Latent),
    Sparse(Box<Sparse>),
}

/// What follows attention.
enum FeedForward {
    Gated {
        gate_proj: Linear,
        up_proj: Linear,
        down_proj: Linear,
    },
    Experts(Experts),
}

/// Queries that share keys and values in groups: one group per head, one for all, or anything
/// between.
struct Grouped {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    /// Norms of single query and key heads (Qwen 3, Gemma 3).
    qk_norm: Option<(Norm, Norm)>,
}

struct Block {
    input_norm: Norm,
    attention: Attention,
    /// Norm of the attention output (Gemma 3).
    attention_out_norm: Option<Norm>,
    mlp_norm: Norm,
    feed_forward: FeedForward,
    /// Norm of the feed-forward output (Gemma 3).
    mlp_out_norm: Option<Norm>,
    sliding: bool,
}

/// A frozen decoder of the Llama family.
pub struct Decoder {
    config: ModelConfig,
    info: BackboneInfo,
    sites: Arc<SiteTable>,
    device: Device,
    embed_tokens: Embedding,
    /// Factor on the token embeddings (Gemma: `sqrt(hidden_size)`).
    embed_scale: Option<f32>,
    blocks: Vec<Block>,
    norm: Norm,
    lm_head: Linear,
}

impl Decoder {
    /// Takes the weights from `loader`.
    ///
    /// # Errors
    /// Whatever reading a tensor gives.
    pub fn load(
        config: ModelConfig,
        sites: Arc<SiteTable>,
        loader: &mut WeightLoader<'_>,
    ) -> Result<Self, ModelError> {
        let gemma = config.model_type == ModelType::Gemma3Text;
        // Gemma stores gains as an offset from 1.
        let offset = if gemma { 1.0 } else { 0.0 };
        let eps = config.norm_eps;
        let mut blocks = Vec::with_capacity(config.num_hidden_layers);
        for i in 0..config.num_hidden_layers {
            let p = |name: &str| format!("model.layers.{i}.{name}");
            let mut norm = |name: &str| loader.rms_norm(&p(name), eps, offset);
            let input_norm = norm("input_layernorm")?;
            let (attention_out_norm, mlp_norm, mlp_out_norm) = if gemma {
                (
                    Some(norm("post_attention_layernorm")?),
                    norm("pre_feedforward_layernorm")?,
                    Some(norm("post_feedforward_layernorm")?),
                )
            } else {
                (None, norm("post_attention_layernorm")?, None)
            };
            let qk_norm = match config.model_type {
                ModelType::Qwen3 | ModelType::Gemma3Text => {
                    Some((norm("self_attn.q_norm")?, norm("self_attn.k_norm")?))
                }
                _ => None,
            };
            let attention = match (&config.latent, &config.sparse) {
                (Some(latent), _) => {
                    Attention::Latent(Latent::load(*latent, &config, loader, &p("self_attn"))?)
                }
                (None, Some(sparse)) => {
                    Attention::Sparse(Box::new(Sparse::load(*sparse, loader, &p("self_attn"))?))
                }
                (None, None) => Attention::Grouped(Grouped {
                    q_proj: loader.linear(&p("self_attn.q_proj"))?,
                    k_proj: loader.linear(&p("self_attn.k_proj"))?,
                    v_proj: loader.linear(&p("self_attn.v_proj"))?,
                    o_proj: loader.linear(&p("self_attn.o_proj"))?,
                    qk_norm,
                }),
            };
            let feed_forward = match &config.experts {
                Some(experts) => {
                    FeedForward::Experts(Experts::load(*experts, loader, &p("block_sparse_moe"))?)
                }
                None => FeedForward::Gated {
                    gate_proj: loader.linear(&p("mlp.gate_proj"))?,
                    up_proj: loader.linear(&p("mlp.up_proj"))?,
                    down_proj: loader.linear(&p("mlp.down_proj"))?,
                },
            };
            blocks.push(Block {
                input_norm,
                attention,
                attention_out_norm,
                mlp_norm,
                feed_forward,
                mlp_out_norm,
                sliding: config.sliding_layers[i],
            });
        }
        let embed_tokens = loader.embedding("model.embed_tokens")?;
        let lm_head = loader.lm_head(&embed_tokens)?;
        let norm = loader.rms_norm("model.norm", eps, offset)?;
        // The reference keeps this factor in the embedding's precision, f32 here.
        let embed_scale = gemma.then(|| (config.hidden_size as f32).sqrt());
        Ok(Self {
            sites,
            device: loader.device().clone(),
            embed_tokens,
            embed_scale,
            blocks,
            norm,
            lm_head,
            info: config.info(),
            config,
        })
    }

    fn tables(&self, layout: &SequenceLayout, prefix: usize) -> (RotaryTable, Option<RotaryTable>) {
        let c = &self.config;
        let positions: Vec<u32> = layout
            .position_ids
            .iter()
            .map(|p| p + prefix as u32)
            .collect();
        let table = |rope| {
            rotary_table(
                rope,
                c.rotary_dim(),
                c.max_position_embeddings,
                &positions,
                &self.device,
            )
        };
        let global = c
            .rope
            .as_ref()
            .expect("every decoder configuration has rotary settings");
        (table(global), c.rope_local.as_ref().map(table))
    }
}

impl Grouped {
    fn forward(
        &self,
        c: &ModelConfig,
        at: &Attend<'_>,
        rotary: &RotaryTable,
        x: Tensor<2>,
        pass: &mut dyn Pass,
        cache: Option<&mut KvCache>,
    ) -> Tensor<2> {
        let mut q = pass.linear(&self.q_proj, x.clone());
        let mut k = pass.linear(&self.k_proj, x.clone());
        let v = pass.linear(&self.v_proj, x);
        if let Some((q_norm, k_norm)) = &self.qk_norm {
            q = per_head(q, c.head_dim, |q, rows| pass.norm_rows(q_norm, q, rows));
            k = per_head(k, c.head_dim, |k, rows| pass.norm_rows(k_norm, k, rows));
        }
        let q = frugal_kernels::rope(q, rotary.cos.clone(), rotary.sin.clone(), c.head_dim);
        let k = frugal_kernels::rope(k, rotary.cos.clone(), rotary.sin.clone(), c.head_dim);
        let y = attend(at, q, k, v, pass, cache);
        pass.linear(&self.o_proj, y)
    }
}

impl FeedForward {
    fn forward(
        &self,
        activation: Activation,
        layer: usize,
        x: Tensor<2>,
        pass: &mut dyn Pass,
    ) -> Tensor<2> {
        match self {
            Self::Gated {
                gate_proj,
                up_proj,
                down_proj,
            } => gated_mlp(activation, [gate_proj, up_proj, down_proj], x, pass),
            Self::Experts(experts) => experts.forward(activation, layer, x, pass),
        }
    }
}

/// Applies `f` to single heads: `[tokens, heads * head_dim]` viewed as
/// `[tokens * heads, head_dim]`.
fn per_head(
    x: Tensor<2>,
    head_dim: usize,
    f: impl FnOnce(Tensor<2>, Rows) -> Tensor<2>,
) -> Tensor<2> {
    let [tokens, width] = x.dims();
    let heads = width / head_dim;
    f(x.reshape([tokens * heads, head_dim]), Rows::PerToken(heads)).reshape([tokens, width])
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

    fn forward(
        &self,
        input: &Input<'_>,
        pass: &mut dyn Pass,
        mut cache: Option<&mut KvCache>,
    ) -> Result<Tensor<2>, ModelError> {
        check_input(&self.config, input)?;
        if pass.prefix_length() > 0
            && (self.config.latent.is_some() || self.config.sparse.is_some())
        {
            let reason = "keys and values in front of a block fit grouped attention only: use a method that changes weights or the input";
            return Err(ModelError::Method {
                model_type: self.config.model_type.name(),
                reason: reason.into(),
            });
        }
        let mut layout = input.layout.clone();
        let mut x = pass.embedding(&self.embed_tokens, input.input_ids);
        if let Some(scale) = self.embed_scale {
            x = x * scale;
        }
        x = pass.embed(x, &mut layout);
        let (global, local) = self.tables(&layout, pass.prefix_length());
        for (layer, block) in self.blocks.iter().enumerate() {
            if pass.before_block(layer, &x) == BlockAction::Skip {
                continue;
            }
            let window = if block.sliding {
                self.config.sliding_window
            } else {
                None
            };
            let rotary = if block.sliding {
                local.as_ref().unwrap_or(&global)
            } else {
                &global
            };
            let at = Attend {
                window,
                ..Attend::new(&self.config, &layout, layer, true)
            };

            let y = pass.norm(&block.input_norm, x.clone());
            pass.before_sub_layer(layer, SubLayer::Attention, &y);
            let mut a = match &block.attention {
                Attention::Grouped(grouped) => grouped.forward(
                    &self.config,
                    &at,
                    rotary,
                    y.clone(),
                    pass,
                    cache.as_deref_mut(),
                ),
                Attention::Latent(latent) => {
                    latent.forward(&at, rotary, y.clone(), pass, cache.as_deref_mut())
                }
                Attention::Sparse(sparse) => {
                    sparse.forward(&at, rotary, y.clone(), pass, cache.as_deref_mut())
                }
            };
            if let Some(norm) = &block.attention_out_norm {
                a = pass.norm(norm, a);
            }
            let a = pass.sub_layer(SubLayerIo {
                layer,
                kind: SubLayer::Attention,
                input: &y,
                output: a,
                residual: &x,
                norm_behind: None,
            });

            let [h, y] = pass.add_norm(&block.mlp_norm, x, a);
            pass.before_sub_layer(layer, SubLayer::Mlp, &y);
            let mut m = block
                .feed_forward
                .forward(self.config.activation, layer, y.clone(), pass);
            if let Some(norm) = &block.mlp_out_norm {
                m = pass.norm(norm, m);
            }
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
        let x = pass.norm(&self.norm, x);
        Ok(frugal_nn::rows::drop_prepended(x, &layout))
    }

    fn lm_head(&self) -> Option<&Linear> {
        Some(&self.lm_head)
    }

    fn export(&self, visit: &mut dyn FnMut(frugal_nn::Frozen<'_>)) {
        use frugal_nn::Frozen;
        visit(Frozen::Embedding(&self.embed_tokens));
        for b in &self.blocks {
            let norms = [
                Some(&b.input_norm),
                b.attention_out_norm.as_ref(),
                Some(&b.mlp_norm),
                b.mlp_out_norm.as_ref(),
            ];
            norms
                .into_iter()
                .flatten()
                .for_each(|n| visit(Frozen::Norm(n)));
            match &b.attention {
                Attention::Grouped(a) => {
                    a.qk_norm
                        .iter()
                        .flat_map(|(q, k)| [q, k])
                        .for_each(|n| visit(Frozen::Norm(n)));
                    [&a.q_proj, &a.k_proj, &a.v_proj, &a.o_proj]
                        .into_iter()
                        .for_each(|l| visit(Frozen::Linear(l)));
                }
                Attention::Latent(a) => a.export(visit),
                Attention::Sparse(a) => a.export(visit),
            }
            match &b.feed_forward {
                FeedForward::Gated {
                    gate_proj,
                    up_proj,
                    down_proj,
                } => {
                    [gate_proj, up_proj, down_proj]
                        .into_iter()
                        .for_each(|l| visit(Frozen::Linear(l)));
                }
                FeedForward::Experts(experts) => experts.export(visit),
            }
        }
        visit(Frozen::Norm(&self.norm));
        visit(Frozen::Linear(&self.lm_head));
    }
}
