//! WideNet: one attention and one mixture of experts that all blocks share, each block with norms of
//! its own.
//!
//! *Go Wider Instead of Deeper* (arXiv 2107.11817). `x + Attention(LN1ᵢ(x))`, then
//! `x + MoE(LN2ᵢ(x))`: the depth costs two norms per block, and as each block transforms what the
//! experts read, one router sends a token to other experts at other depths.
//!
//! # What follows the authors' code
//! `XueFuzhao/WideNet_Code`, `widenet/modeling.py` and `model_configs.py`: attention, experts and the
//! weight of the router are made once and called in every block; probabilities are not scaled to
//! sum to 1 over the chosen experts; Gaussian noise of deviation 1/E on the logits while training; the
//! balance loss `E Σ m P` is added up over the calls, each with its weight 0.01; the tokens beyond an
//! expert's capacity `⌊C K T / E⌋`, in the order of the batch, go past it.
//! The later `yuxuan-lou/WideNet` shares attention, experts and its `Top2Router`, which has no
//! weights; the layer around them is made anew in every block, and in Colossal-AI it is that layer
//! which has the linear gate. So the gates of that code are of single blocks: `share_router = false`.
//!
//! # Departures
//! - The paper's models are a vision transformer and an encoder. This one is a decoder that writes
//!   text: root-mean-square norms, rotary positions, grouped-query attention without biases, and
//!   experts `W2(silu(W1 x) ⊙ W3 x)` in place of two dense layers with GELU.
//! - No capacity unless `expert_capacity_factor` says so, and none while nothing is trained, so that
//!   an answer does not depend on its company. The slots of the authors' code are counted from 1 and
//!   compared by `<`, so that it has one fewer.
//! - `router_noise` is 0 unless the file says otherwise; `1/E` is the authors'.
//! - Their groups of blocks (`switch_deepth`) are not there: one group, which is their default of
//!   128 blocks, and a file with smaller ones is refused. (With more, their code has experts in the
//!   last group alone.)
//! - The z-loss (`router_z_loss_coef`, ST-MoE, arXiv 2202.08906, equation 5), which is 0 unless the file
//!   says otherwise, is a mean over the blocks as well as the tokens; neither code has one.
//! - `share_attention`, `share_experts`, `share_router` and `share_norms` make the models that the
//!   paper compares with: with shared norms and one expert, ALBERT's sharing; with nothing shared, a
//!   plain mixture of experts, or with one expert a dense decoder.

use std::sync::Arc;

use frugal_nn::{
    Backbone, HeadLayout, ModelError, RouterTraining, SiteInfo, SiteTable, UsualTargets,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::activation::Activation;
use crate::architecture::{Architecture, Cost, Family, KeyTable, ModelConfig};
use crate::blocks::decoder::{Decoder, DecoderSpec, SHARED};
use crate::blocks::gqa::{GqaSpec, GroupedQueryAttention};
use crate::blocks::router::LinearRouter;
use crate::blocks::shared::Sharing;
use crate::blocks::sites::Sites;
use crate::blocks::sparse_moe::{Experts, MoeSpec, SparseMoe};
use crate::fresh::{Fresh, FreshSizes, Own};
use crate::keys::{self, Size, TokenId};
use crate::rope::RopeReader;
use crate::weights::WeightLoader;

/// WideNet.
pub static WIDENET: Family = Family {
    model_type: "widenet",
    class: "WidenetForCausalLM",
    classifier_class: "WidenetForSequenceClassification",
    base_prefix: "model.",
    is_encoder: false,
    in_transformers: false,
    head: HeadLayout::Score,
    // As for Mixtral.
    usual_targets: UsualTargets {
        ia3: &["k_proj", "v_proj", "w2"],
        ia3_feedforward: "w2",
    },
    read,
    fresh: Some(Fresh {
        about: "one attention and one mixture of experts that all blocks share",
        config: fresh,
    }),
    keys: KeyTable {
        honored: keys::names::<WidenetConfig>,
        refused: &[("partial_rotary_factor", "1.0")],
        without_effect: &["attention_dropout", "output_router_logits"],
    },
};

/// Keys of a WideNet that writes text.
#[derive(Debug, Serialize, Deserialize)]
#[serde(default)]
struct WidenetConfig {
    vocab_size: Size,
    hidden_size: Size,
    /// Width of an expert.
    intermediate_size: Size,
    num_hidden_layers: Size,
    num_attention_heads: Size,
    num_key_value_heads: Option<Size>,
    head_dim: Option<Size>,
    hidden_act: Activation,
    max_position_embeddings: Size,
    rms_norm_eps: f64,
    tie_word_embeddings: bool,
    attention_bias: bool,
    pad_token_id: TokenId,
    num_local_experts: Size,
    num_experts_per_tok: Size,
    /// Whether the probabilities of the chosen experts are scaled to sum to 1.
    norm_topk_prob: bool,
    /// Weight of the balance loss of each block, of which the sum counts.
    router_aux_loss_coef: f64,
    router_z_loss_coef: f64,
    /// Deviation of the noise on the router's logits while training.
    router_noise: f64,
    expert_capacity_factor: Option<f64>,
    share_attention: bool,
    share_experts: bool,
    share_router: bool,
    share_norms: bool,
}

impl Default for WidenetConfig {
    fn default() -> Self {
        Self {
            vocab_size: Size(32_000),
            hidden_size: Size(768),
            intermediate_size: Size(4096),
            num_hidden_layers: Size(12),
            num_attention_heads: Size(12),
            num_key_value_heads: None,
            head_dim: None,
            hidden_act: Activation::Silu,
            max_position_embeddings: Size(2048),
            rms_norm_eps: 1e-5,
            tie_word_embeddings: false,
            attention_bias: false,
            pad_token_id: TokenId(None),
            num_local_experts: Size(4),
            num_experts_per_tok: Size(2),
            norm_topk_prob: false,
            router_aux_loss_coef: 0.01,
            router_z_loss_coef: 0.0,
            router_noise: 0.0,
            expert_capacity_factor: None,
            share_attention: true,
            share_experts: true,
            share_router: true,
            share_norms: false,
        }
    }
}

/// Which parts all blocks share, beside norms.
#[derive(Clone, Copy, Debug, Serialize)]
struct Shares {
    #[serde(rename = "share_attention")]
    attention: bool,
    #[serde(rename = "share_experts")]
    experts: bool,
    #[serde(rename = "share_router")]
    router: bool,
}

#[derive(Debug)]
struct Widenet {
    spec: DecoderSpec,
    attention: GqaSpec,
    experts: MoeSpec,
    shares: Shares,
}

fn fresh(sizes: &FreshSizes, own: &Own<'_>) -> Result<Value, ModelError> {
    let mut keys = sizes.decoder(own)?;
    // Experts have no biases.
    keys.remove("mlp_bias");
    let experts = own.size("num_local_experts", 4)?;
    let more = json!({
        "num_local_experts": experts, "num_experts_per_tok": 2.min(experts),
        "router_aux_loss_coef": 0.01, "router_noise": 1.0 / experts as f64,
    });
    keys.extend(more.as_object().cloned().unwrap_or_default());
    Ok(Value::Object(keys))
}

fn read(raw: &Value, source: &str) -> Result<ModelConfig, ModelError> {
    let k: WidenetConfig = keys::read(raw, source, keys::DECODER_SIZES)?;
    let head_dim = match k.head_dim {
        Some(dim) => dim.0,
        None => k.hidden_size.0 / k.num_attention_heads.0,
    };
    let rope = RopeReader {
        raw,
        source,
        default_theta: 10_000.0,
        max_positions: k.max_position_embeddings.0,
        rotated: head_dim,
    };
    let num_hidden_layers = keys::layers("num_hidden_layers", k.num_hidden_layers, source)?;
    let at_least_zero = [
        ("router_noise", Some(k.router_noise)),
        ("router_z_loss_coef", Some(k.router_z_loss_coef)),
        ("expert_capacity_factor", k.expert_capacity_factor),
    ];
    for (key, value) in at_least_zero {
        value.map_or(Ok(0.0), |value| keys::not_negative(key, value, source))?;
    }
    let depth = raw.get("switch_deepth").filter(|depth| !depth.is_null());
    if let Some(depth) = depth
        && depth
            .as_u64()
            .is_none_or(|depth| depth < num_hidden_layers as u64)
    {
        let reason = format!(
            "groups of {depth} blocks are not supported, only one of all {num_hidden_layers}: leave it out"
        );
        return Err(keys::bad(source, "switch_deepth", reason));
    }
    let sizes = [k.num_local_experts.0, k.num_experts_per_tok.0];
    // What counts elsewhere is the mean over the blocks.
    let balance = k.router_aux_loss_coef * num_hidden_layers as f64;
    let experts = MoeSpec {
        norm_topk_prob: k.norm_topk_prob,
        capacity_factor: k.expert_capacity_factor,
        training: RouterTraining {
            noise_std: k.router_noise,
            z_loss_coef: k.router_z_loss_coef,
        },
        ..MoeSpec::new(sizes, balance).check(num_hidden_layers, source)?
    };
    let mut spec = DecoderSpec::new([head_dim, num_hidden_layers], rope.uniform()?)
        .check("head_dim", source)?;
    spec.shares_norms = k.share_norms;
    Ok(ModelConfig {
        family: &WIDENET,
        hidden_size: k.hidden_size.0,
        intermediate_size: k.intermediate_size.0,
        num_hidden_layers,
        num_attention_heads: k.num_attention_heads.0,
        num_key_value_heads: k.num_key_value_heads.unwrap_or(k.num_attention_heads).0,
        head_dim,
        vocab_size: k.vocab_size.0,
        max_position_embeddings: k.max_position_embeddings.0,
        norm_eps: k.rms_norm_eps,
        activation: k.hidden_act,
        tie_word_embeddings: k.tie_word_embeddings,
        pad_token_id: k.pad_token_id.0,
        architecture: Arc::new(Widenet {
            spec,
            attention: GqaSpec {
                qkv_bias: k.attention_bias,
                output_bias: k.attention_bias,
                qk_norm: false,
            },
            experts,
            shares: Shares {
                attention: k.share_attention,
                experts: k.share_experts,
                router: k.share_router,
            },
        }),
        raw: raw.clone(),
        source: source.into(),
    })
}

/// Where a part of a block is: `path`, or what stands for all blocks in its place.
fn at(shared: bool, path: &str, name: &str) -> String {
    let block = path.strip_suffix(name).unwrap_or(path);
    match shared {
        true => format!("{SHARED}.{name}"),
        false => format!("{}.{name}", block.trim_end_matches('.')),
    }
}

/// Lists a part of block `layer`, unless the first block's has stood for it.
fn list(sites: &mut Sites, shared: bool, layer: usize, part: impl FnOnce(&mut Sites)) {
    match (shared, layer) {
        (false, _) => part(sites),
        (true, 0) => sites.of_no_block(part),
        (true, _) => {}
    }
}

const MOE: &str = "block_sparse_moe";
const ATTENTION: &str = "self_attn";

impl Architecture for Widenet {
    fn arithmetic(&self, config: &ModelConfig) -> Value {
        let MoeSpec {
            norm_topk_prob,
            capacity_factor,
            training,
            ..
        } = self.experts;
        let own = [
            json!(self.attention),
            json!(self.experts),
            json!(self.shares),
            json!({
                "share_norms": self.spec.shares_norms,
                "norm_topk_prob": norm_topk_prob,
                "expert_capacity_factor": capacity_factor,
                "router_noise": training.noise_std,
                "router_z_loss_coef": training.z_loss_coef,
            }),
        ];
        self.spec.arithmetic(config, &own)
    }

    fn sites(&self, c: &ModelConfig) -> Vec<SiteInfo> {
        let (d, count, shares) = (c.hidden_size, self.experts.num_local_experts, self.shares);
        self.spec.sites(
            c,
            |sites, l, path| {
                let path = at(shares.attention, path, ATTENTION);
                list(sites, shares.attention, l, |sites| {
                    GroupedQueryAttention::sites(sites, c, self.attention, l, &path);
                });
            },
            |sites, l, path| {
                let router = at(shares.router, path, MOE);
                list(sites, shares.router, l, |sites| {
                    LinearRouter::sites(sites, [d, count], l, &router);
                });
                let experts = at(shares.experts, path, MOE);
                list(sites, shares.experts, l, |sites| {
                    Experts::sites(sites, [d, c.intermediate_size], count, l, &experts);
                });
            },
        )
    }

    fn cost(&self, config: &ModelConfig) -> Cost {
        Cost {
            experts: self.experts.num_local_experts,
            active_experts: self.experts.num_experts_per_tok,
            ..Cost::of_decoder(config)
        }
    }

    fn max_sequence(&self, config: &ModelConfig) -> usize {
        self.spec.max_sequence(config)
    }

    fn build(
        &self,
        config: &ModelConfig,
        sites: Arc<SiteTable>,
        loader: &mut WeightLoader<'_>,
    ) -> Result<Arc<dyn Backbone>, ModelError> {
        let (shares, count) = (self.shares, self.experts.num_local_experts);
        let attentions = Sharing::new(shares.attention);
        let (routers, experts) = (Sharing::new(shares.router), Sharing::new(shares.experts));
        Decoder::load(
            config,
            &self.spec,
            sites,
            loader,
            |loader, path| {
                let path = at(shares.attention, path, ATTENTION);
                let attention = attentions
                    .part(|| GroupedQueryAttention::load(config, self.attention, loader, &path))?;
                Ok(Box::new(attention))
            },
            |loader, path| {
                let router = at(shares.router, path, MOE);
                let router = routers.part(|| LinearRouter::load(loader, &router))?;
                let own = at(shares.experts, path, MOE);
                let experts = experts.part(|| Experts::load(count, loader, &own))?;
                Ok(Box::new(SparseMoe::new(
                    self.experts,
                    config.activation,
                    Box::new(router),
                    experts,
                )))
            },
        )
    }
}
