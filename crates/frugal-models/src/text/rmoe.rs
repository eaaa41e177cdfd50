//! RMoE: a mixture of experts whose routers are one recurrence over the blocks.
//!
//! *Layerwise Recurrent Router for Mixture-of-Experts* (arXiv 2408.06793). In block i the token x,
//! behind the norm, is projected to `x' = Pᵢ x` (equation 4), one GRU of all blocks makes
//! `hᵢ = GRU(x', hᵢ₋₁)` of it from zeros in front of the first block (equation 5), and
//! `softmax(Gᵢ hᵢ)` chooses the experts, which read x. There is no recurrence over time: the state
//! is of one pass, and a cache holds nothing of it.
//!
//! # What follows the authors' repository
//! `qiuzh20/RMoE`, `llama_moe_rnn/llama_moe_modeling.py` and `rnn.py`: no biases in P and G; the gates
//! and both biases of PyTorch's `GRUCell` (the paper writes none and has one symbol for both weights
//! of the candidate); probabilities of the chosen experts scaled to sum to 1 (the paper does not
//! say); experts `W2(silu(W1 x) ⊙ W3 x)` without biases; no token dropped; the cells `gru` and `rnn`,
//! and any other `moe_router_type` a linear router.
//!
//! # Departures
//! - The three maps of each cell are one tensor, as in PyTorch's cells. `model.rnn_router.ih.weight`
//!   is the repository's `weight_ir`, `weight_iz` and `weight_in` one above the other, `.hh` its
//!   `weight_hr`, `weight_hz`, `weight_hn`; `block_sparse_moe.router_proj.weight` is its `weight1`
//!   and `block_sparse_moe.gate.weight` its `weight2`.
//! - `moe_router_rnn_hidden_size` is 128 (the paper) unless the file says otherwise; the repository's
//!   default is 256. `router_aux_loss_coef` is 0.01 (the paper; the repository 0.001).
//! - The balance loss is `E Σ f P` of each block, 1 under an even load, and its mean over the blocks
//!   (Switch Transformers). The repository takes shares and probabilities of all blocks together
//!   before it multiplies, where one block can make up for another, and counts each of the k choices
//!   in full, so that its loss of an even load is k.
//! - The z-loss (`router_z_loss_coef`, ST-MoE, arXiv 2202.08906, equation 5), which is 0 unless the file
//!   says otherwise, is a mean over the blocks as well as the tokens; the repository has none.
//! - Its shared expert (`add_moe_share_expert`), bias behind the experts (`add_moe_bias`) and blocks
//!   without experts (`moe_num_layers`) are refused away from their defaults; in the last, its code
//!   leaves the state of such a block undefined.
//! - The ablations of the paper (tables 4 to 7) are settings: `moe_router_recurrent` (false is `NP`),
//!   `moe_router_detach`, `moe_router_residual` (`r-α`), `moe_router_share_projection`,
//!   `moe_router_type` `rnn` or `lstm`. The repository has but `rnn` of these.

use std::sync::Arc;

use frugal_nn::{
    Backbone, HeadLayout, ModelError, RouterTraining, SiteInfo, SiteTable, UsualTargets,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::activation::Activation;
use crate::architecture::{Architecture, Cost, Family, KeyTable, ModelConfig};
use crate::blocks::decoder::{Decoder, DecoderSpec};
use crate::blocks::gqa::{GqaSpec, GroupedQueryAttention};
use crate::blocks::router::{
    CellKind, LinearRouter, RecurrentCell, RecurrentRouter, RecurrentSpec, Router,
};
use crate::blocks::shared::Sharing;
use crate::blocks::sites::Sites;
use crate::blocks::sparse_moe::{Experts, MoeSpec, SparseMoe};
use crate::fresh::{Fresh, FreshSizes, Own};
use crate::keys::{self, Size, TokenId};
use crate::rope::RopeReader;
use crate::weights::WeightLoader;

/// RMoE.
pub static RMOE: Family = Family {
    model_type: "rmoe",
    class: "RmoeForCausalLM",
    classifier_class: "RmoeForSequenceClassification",
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
        about: "a mixture of experts whose routers are one recurrence over the blocks",
        config: fresh,
    }),
    keys: KeyTable {
        honored: keys::names::<RmoeConfig>,
        refused: &[
            ("add_moe_share_expert", "false"),
            ("add_moe_bias", "false"),
            ("partial_rotary_factor", "1.0"),
            ("pretraining_tp", "1"),
        ],
        without_effect: &[
            "attention_dropout",
            "output_router_logits",
            // Of the shared expert.
            "moe_share_expert_intermediate_size",
            "share_weight",
            "moe_weight",
        ],
    },
};

/// Keys of the repository's `LlamaMoeRNNConfig`, and those of the ablations.
#[derive(Debug, Serialize, Deserialize)]
#[serde(default)]
struct RmoeConfig {
    vocab_size: Size,
    hidden_size: Size,
    intermediate_size: Size,
    /// Width of an expert, where it is another.
    moe_expert_intermediate_size: Option<Size>,
    num_hidden_layers: Size,
    /// Blocks with experts: all of them.
    moe_num_layers: Option<Size>,
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
    router_aux_loss_coef: f64,
    router_z_loss_coef: f64,
    moe_router_type: RouterType,
    moe_router_rnn_hidden_size: Size,
    moe_router_recurrent: bool,
    moe_router_detach: bool,
    moe_router_residual: f64,
    moe_router_share_projection: bool,
}

impl Default for RmoeConfig {
    fn default() -> Self {
        Self {
            vocab_size: Size(32_000),
            hidden_size: Size(4096),
            intermediate_size: Size(11_008),
            moe_expert_intermediate_size: None,
            num_hidden_layers: Size(32),
            moe_num_layers: None,
            num_attention_heads: Size(32),
            num_key_value_heads: None,
            head_dim: None,
            hidden_act: Activation::Silu,
            max_position_embeddings: Size(2048),
            rms_norm_eps: 1e-6,
            tie_word_embeddings: false,
            attention_bias: false,
            pad_token_id: TokenId(None),
            num_local_experts: Size(8),
            num_experts_per_tok: Size(2),
            router_aux_loss_coef: 0.01,
            router_z_loss_coef: 0.0,
            moe_router_type: RouterType::Gru,
            moe_router_rnn_hidden_size: Size(128),
            moe_router_recurrent: true,
            moe_router_detach: false,
            moe_router_residual: 0.0,
            moe_router_share_projection: false,
        }
    }
}

/// What the experts are chosen by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum RouterType {
    Gru,
    Rnn,
    Lstm,
    /// Mixtral's, in each block by itself.
    Linear,
}

impl RouterType {
    fn cell(self) -> Option<CellKind> {
        match self {
            Self::Gru => Some(CellKind::Gru),
            Self::Rnn => Some(CellKind::Rnn),
            Self::Lstm => Some(CellKind::Lstm),
            Self::Linear => None,
        }
    }
}

/// Where the cell of all blocks is.
const CELL: &str = "model.rnn_router";
/// Where the projection is that all blocks share, if they do.
const PROJECTION: &str = "model.router_proj";

#[derive(Debug)]
struct Rmoe {
    spec: DecoderSpec,
    attention: GqaSpec,
    experts: MoeSpec,
    cell: Option<CellKind>,
    /// Width of the state.
    width: usize,
    router: RecurrentSpec,
    shares_projection: bool,
}

fn fresh(sizes: &FreshSizes, own: &Own<'_>) -> Result<Value, ModelError> {
    let mut keys = sizes.decoder(own)?;
    // Experts have no biases.
    keys.remove("mlp_bias");
    let more = json!({
        "num_local_experts": 8, "num_experts_per_tok": 2, "router_aux_loss_coef": 0.01,
        "moe_router_type": "gru",
    });
    keys.extend(more.as_object().cloned().unwrap_or_default());
    let (kind, width) = ("moe_router_type", "moe_router_rnn_hidden_size");
    match own.or(kind, RouterType::Gru)?.cell() {
        Some(_) => {
            keys.insert(width.into(), sizes.hidden_size.min(128).into());
        }
        None if own.has(width) => {
            let reason = format!("a linear router (`{kind}`) has no state: leave it out");
            return Err(own.refuse(width, reason));
        }
        None => {}
    }
    Ok(Value::Object(keys))
}

fn read(raw: &Value, source: &str) -> Result<ModelConfig, ModelError> {
    let k: RmoeConfig = keys::read(raw, source, keys::DECODER_SIZES)?;
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
    if let Some(Size(with)) = k.moe_num_layers
        && with != num_hidden_layers
    {
        let reason = format!("{with} of {num_hidden_layers} blocks: all of them have experts here");
        return Err(keys::bad(source, "moe_num_layers", reason));
    }
    if !(k.moe_router_residual as f32).is_finite() {
        let reason = format!("{} is no number of single precision", k.moe_router_residual);
        return Err(keys::bad(source, "moe_router_residual", reason));
    }
    keys::not_negative("router_z_loss_coef", k.router_z_loss_coef, source)?;
    // As many maps of it as a cell has must not overflow.
    let width = k.moe_router_rnn_hidden_size.0;
    if width > 1 << 20 {
        let reason = format!("{width} is wider than any known router");
        return Err(keys::bad(source, "moe_router_rnn_hidden_size", reason));
    }
    let cell = k.moe_router_type.cell();
    let router = RecurrentSpec {
        recurrent: k.moe_router_recurrent,
        detach: k.moe_router_detach,
        residual: k.moe_router_residual,
    };
    let changed = [
        ("moe_router_recurrent", !router.recurrent),
        ("moe_router_detach", router.detach),
        ("moe_router_residual", router.residual != 0.0),
        ("moe_router_share_projection", k.moe_router_share_projection),
    ];
    if let (None, Some((key, _))) = (cell, changed.into_iter().find(|(_, changed)| *changed)) {
        let reason = "a linear router (`moe_router_type`) has nothing that this could change";
        return Err(keys::bad(source, key, reason));
    }
    let sizes = [k.num_local_experts.0, k.num_experts_per_tok.0];
    let experts = MoeSpec {
        training: RouterTraining {
            noise_std: 0.0,
            z_loss_coef: k.router_z_loss_coef,
        },
        ..MoeSpec::new(sizes, k.router_aux_loss_coef).check(num_hidden_layers, source)?
    };
    let spec = DecoderSpec::new([head_dim, num_hidden_layers], rope.uniform()?)
        .check("head_dim", source)?;
    Ok(ModelConfig {
        family: &RMOE,
        hidden_size: k.hidden_size.0,
        intermediate_size: k
            .moe_expert_intermediate_size
            .unwrap_or(k.intermediate_size)
            .0,
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
        architecture: Arc::new(Rmoe {
            spec,
            attention: GqaSpec {
                qkv_bias: k.attention_bias,
                output_bias: k.attention_bias,
                qk_norm: false,
            },
            experts,
            cell,
            width,
            router,
            shares_projection: k.moe_router_share_projection,
        }),
        raw: raw.clone(),
        source: source.into(),
    })
}

impl Architecture for Rmoe {
    fn arithmetic(&self, config: &ModelConfig) -> Value {
        let of_cell = self.cell.map(|cell| {
            json!({
                "moe_router_rnn_hidden_size": self.width,
                "moe_router_type": cell,
                "moe_router_share_projection": self.shares_projection,
            })
        });
        let of_router = self.cell.map(|_| json!(self.router));
        let own = [
            json!(self.attention),
            json!(self.experts),
            json!({"router_z_loss_coef": self.experts.training.z_loss_coef}),
            of_cell.unwrap_or_default(),
            of_router.unwrap_or_default(),
        ];
        self.spec.arithmetic(config, &own)
    }

    fn sites(&self, c: &ModelConfig) -> Vec<SiteInfo> {
        let (d, count, p) = (c.hidden_size, self.experts.num_local_experts, self.width);
        self.spec.sites(
            c,
            |sites, l, path| GroupedQueryAttention::sites(sites, c, self.attention, l, path),
            |sites, l, path| {
                let path = format!("{path}.block_sparse_moe");
                match self.cell {
                    None => LinearRouter::sites(sites, [d, count], l, &path),
                    Some(kind) => {
                        if !self.shares_projection {
                            sites.linear(format!("{path}.router_proj"), l, [d, p], false);
                        } else if l == 0 {
                            let linear = |s: &mut Sites| {
                                s.linear(PROJECTION.into(), l, [d, p], false);
                            };
                            sites.of_no_block(linear);
                        }
                        if l == 0 {
                            RecurrentCell::sites(sites, kind, p, CELL);
                        }
                        sites.linear(format!("{path}.gate"), l, [p, count], false);
                    }
                }
                Experts::sites(sites, [d, c.intermediate_size], count, l, &path);
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
        let (cells, projections) = (Sharing::new(true), Sharing::new(self.shares_projection));
        Decoder::load(
            config,
            &self.spec,
            sites,
            loader,
            |loader, path| {
                let attention = GroupedQueryAttention::load(config, self.attention, loader, path)?;
                Ok(Box::new(attention))
            },
            |loader, path| {
                let path = format!("{path}.block_sparse_moe");
                let router: Box<dyn Router> = match self.cell {
                    None => Box::new(LinearRouter::load(loader, &path)?),
                    Some(kind) => {
                        let own = format!("{path}.router_proj");
                        let projection = match self.shares_projection {
                            true => PROJECTION,
                            false => &own,
                        };
                        Box::new(RecurrentRouter {
                            spec: self.router,
                            projection: projections.part(|| loader.linear(projection))?,
                            cell: cells.part(|| RecurrentCell::load(kind, loader, CELL))?,
                            gate: loader.linear(&format!("{path}.gate"))?,
                        })
                    }
                };
                let experts = Experts::load(self.experts.num_local_experts, loader, &path)?;
                Ok(Box::new(SparseMoe::new(
                    self.experts,
                    config.activation,
                    router,
                    experts.into(),
                )))
            },
        )
    }
}
