//! Mixture-of-Recursions: a stack of layers that several recursion steps share, and routers that
//! decide for every token how many of them it takes. A type of our own, as no public format exists.
//!
//! ## What it does
//! A Llama of `num_hidden_layers` unrolled layers, some of which have the same weights (`sharing`).
//! With `middle_cycle`, the paper's choice, the first and the last layer have weights of their own,
//! and the layers between are one stack `f` that is passed through `num_recursion` times.
//!
//! - **Expert choice** (`mor_type = "expert_choice"`): step `r` takes the tokens with the highest
//!   scores `s_t = θᵣ · H_t` among those that step `r - 1` took, `⌊T (N - r + 1) / N⌋` of a sequence
//!   of `T`, and adds `α σ(s_t) f(H)_t` to them; the others pass by. In the code the residual stream
//!   is in `f` already, so that it enters twice.
//! - **Token choice** (`"token_choice"`): one router in front of the stack gives every token a number
//!   of steps `i = argmax p_t`, and `H_t + p_{t,i} fⁱ(H)_t` is what comes out.
//! - **Recursive transformer** (`"none"`): all tokens take all steps, `H ← f(H)`.
//!
//! A step computes the rows of its tokens alone, as a shorter ragged batch with the rotary angles of
//! their own positions; attention is among them, and the cache of a step holds their keys and values
//! only. With `kv_sharing` all steps read those of the first one, which then are the only ones.
//!
//! ## Training and use
//! The highest scores of a sequence are not known before its end. Where the model itself is trained
//! (method `full`, `frugal pretrain`) steps take the highest scores, and binary cross-entropy teaches
//! the scores who was taken (`sampling = "aux_loss"`), or teaches a second router on an input without
//! gradient (`"aux_router"`). Everywhere else, training of adapters included, a token is taken when
//! its own score says so, `σ(s) ≥ router_threshold`, so that whole texts and generation agree; the
//! first step takes all. `inference_routing = "top_k"` measures whole texts as in training.
//!
//! ## Keys
//! Those of Llama, and
//!
//! | key | default | meaning |
//! |---|---|---|
//! | `num_recursion` | 3 | recursion steps |
//! | `sharing` | `middle_cycle` | or `cycle`, `sequence`, `middle_sequence`; routers go with the cycles |
//! | `share_layer_norm` | true | whether norms are shared too |
//! | `layer_rounding` | `ceil` | layers that the steps do not divide: add some, or leave some out (`floor`) |
//! | `mor_type` | `expert_choice` | or `token_choice`, `none` |
//! | `kv_sharing` | false | all steps read the first one's keys and values |
//! | `router_type` | `linear` | or `mlp`: two maps with a GELU between them, twice as wide as the model |
//! | `router_func` | `sigmoid`, of token choice `softmax` | or `tanh` for expert choice, `sigmoid` for token choice |
//! | `router_alpha` | 0.1, of `softmax` 1 | factor on the router's values |
//! | `router_temperature` | 1 | what the router's input is divided by |
//! | `router_gating` | `weighted` | `none`: the stack's output is added as it is |
//! | `mor_aux_loss_coef` | 0.001, of token choice 0.1 | weight of the loss above, of token choice that of an even load |
//! | `router_z_loss_coef` | 0, of token choice 1e-5 | weight of `logsumexp²`, a mean over tokens and a sum over steps |
//! | `capacity_factors` | `(N - r + 1) / N` | expert choice: the steps' shares of a sequence |
//! | `sampling`, `router_threshold`, `inference_routing` | `aux_loss`, 0.5, `threshold` | expert choice, see above |
//! | `balancing` | `loss` | token choice; `loss_free`: a bias on the choice that follows the load by `router_bias_update_rate` (0.001) |
//!
//! Files name a layer's tensors after the first unrolled layer that has them, as Llama does; routers
//! are `model.mor_router.R.router.weight` (`router.0`, `router.2` of two maps), the second ones
//! `model.mlp_router.R...`, and the bias is `model.router_bias`.
//!
//! ## Departures
//! - Read in the official code: `expert_choice_router.py` and `token_choice_router.py` choose among
//!   survivors, sort what they chose, gate with `α σ(s)` while the loss reads `s`, and multiply by a
//!   token-choice router's value at the last step only (the paper's equation 2.2 does at each); the
//!   second router's input is not divided by the temperature. `mlp` and `wide_mlp` are the same there.
//! - The released routers take the highest scores in generation too, so that a single token takes all
//!   steps (its issues 9 to 11 say that code for inference is not part of it); here a threshold
//!   decides, as the paper describes the auxiliary loss.
//! - The z-losses of the steps are added up, as each step's router of the code returns one of its own,
//!   where `rmoe` and `widenet` take a mean over their blocks; the file of the code that joins them
//!   was not compared.
//! - The code's means are over padded batches, ours over tokens. Its random router, capacity warm-up
//!   and mixed cache are left out; those keys are none here.
//! - Layers that the steps do not divide: the paper adds some, the code leaves some out. How layers
//!   are shared and trained follows the paper; those files of the code were not compared.
//!
//! ## References
//! - Bae, Kim, Bayat et al.: Mixture-of-Recursions: Learning Dynamic Recursive Depths for Adaptive
//!   Token-Level Computation, 2025, arXiv 2507.10524; official code raymin0223/mixture_of_recursions.
//! - Wang, Gao et al.: Auxiliary-Loss-Free Load Balancing Strategy for Mixture-of-Experts, 2024, arXiv
//!   2408.15664.

mod active;
mod backbone;
mod keys_values;
mod router;
mod routes;
mod settings;
mod sharing;
mod spec;
mod stack;
#[cfg(test)]
mod tests;
pub mod uptrain;

use std::sync::Arc;

use frugal_nn::{Backbone, HeadLayout, ModelError, SiteInfo, SiteTable, UsualTargets};
use serde_json::{Value, json};

use crate::architecture::{Architecture, Cost, Family, FirstValues, KeyTable, ModelConfig};
use crate::blocks::decoder::DecoderSpec;
use crate::blocks::gated_mlp::GatedMlp;
use crate::blocks::gqa::{GqaSpec, GroupedQueryAttention};
use crate::blocks::sites::Sites;
use crate::fresh::{Fresh, FreshSizes, Own};
use crate::keys;
use crate::rope::RopeReader;
use crate::weights::WeightLoader;
use backbone::MorBackbone;
use routes::Routes;
use settings::{MorConfig, RouterSpec};
use sharing::Plan;
use spec::MorSpec;

/// Mixture-of-Recursions.
pub static MOR: Family = Family {
    model_type: "mor",
    class: "MorForCausalLM",
    classifier_class: "MorForSequenceClassification",
    base_prefix: "model.",
    is_encoder: false,
    in_transformers: false,
    head: HeadLayout::Score,
    usual_targets: UsualTargets {
        ia3: &["k_proj", "v_proj", "down_proj"],
        ia3_feedforward: "down_proj",
    },
    read,
    fresh: Some(Fresh {
        about: "layers that recursion steps share, and routers that say how many a token takes",
        config: fresh,
    }),
    keys: KeyTable {
        honored: keys::names::<MorConfig>,
        refused: &[("pretraining_tp", "1"), ("partial_rotary_factor", "1.0")],
        without_effect: &["attention_dropout"],
    },
};

#[derive(Debug)]
struct Mor {
    spec: MorSpec,
}

/// Which layers of a model of this type share weights, and whether norms do too.
fn shared_layers(config: &ModelConfig) -> Option<(Plan, bool)> {
    let k: MorConfig = keys::read(&config.raw, &config.source, &[]).ok()?;
    let (steps, layers) = (k.num_recursion.0, k.num_hidden_layers.0);
    let plan = Plan::new(k.sharing, steps, layers, k.layer_rounding)?;
    Some((plan, k.share_layer_norm))
}

fn fresh(sizes: &FreshSizes, own: &Own<'_>) -> Result<Value, ModelError> {
    let mut keys = sizes.decoder(own)?;
    // Two steps of a small model's few layers.
    keys.insert("num_recursion".into(), json!(2));
    keys.insert("sharing".into(), json!("middle_cycle"));
    keys.insert("mor_type".into(), json!("expert_choice"));
    Ok(Value::Object(keys))
}

fn read(raw: &Value, source: &str) -> Result<ModelConfig, ModelError> {
    let k: MorConfig = keys::read(raw, source, keys::DECODER_SIZES)?;
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
    let rope = rope.uniform()?;
    let given = keys::layers("num_hidden_layers", k.num_hidden_layers, source)?;
    let recursions = keys::layers("num_recursion", k.num_recursion, source)?;
    let Some(plan) = Plan::new(k.sharing, recursions, given, k.layer_rounding) else {
        let reason =
            format!("{given} layers are too few to share some among {recursions} recursions");
        return Err(keys::bad(source, "num_hidden_layers", reason));
    };
    DecoderSpec::new([head_dim, 1], rope.clone()).check("head_dim", source)?;
    let router = k.router(raw, source)?;
    if router.is_some() && !k.sharing.is_cycle() {
        let reason = "routers decide how often a token goes through the whole shared stack: they need cycle or middle_cycle, or `mor_type` none";
        return Err(keys::bad(source, "sharing", reason));
    }
    if let Some(RouterSpec::Expert(spec)) = &router
        && k.kv_sharing
        && !spec.begins_with_all()
    {
        let reason =
            "`kv_sharing` needs keys and values of every token: the first step must take all";
        return Err(keys::bad(source, "capacity_factors", reason));
    }
    let spec = MorSpec {
        share_layer_norm: k.share_layer_norm,
        kv_sharing: k.kv_sharing,
        router,
        rope,
        attention: GqaSpec {
            qkv_bias: k.attention_bias,
            output_bias: k.attention_bias,
            qk_norm: false,
        },
        mlp_bias: k.mlp_bias,
        plan,
    };
    Ok(ModelConfig {
        family: &MOR,
        hidden_size: k.hidden_size.0,
        intermediate_size: k.intermediate_size.0,
        num_hidden_layers: spec.plan.layers(),
        num_attention_heads: k.num_attention_heads.0,
        num_key_value_heads: k.num_key_value_heads.unwrap_or(k.num_attention_heads).0,
        head_dim,
        vocab_size: k.vocab_size.0,
        max_position_embeddings: k.max_position_embeddings.0,
        norm_eps: k.rms_norm_eps,
        activation: k.hidden_act,
        tie_word_embeddings: k.tie_word_embeddings,
        pad_token_id: k.pad_token_id.0,
        architecture: Arc::new(Mor { spec }),
        raw: raw.clone(),
        source: source.into(),
    })
}

impl Mor {
    fn decoder(&self, config: &ModelConfig) -> DecoderSpec {
        let sizes = [config.head_dim, config.num_hidden_layers];
        DecoderSpec::new(sizes, self.spec.rope.clone())
    }
}

impl Architecture for Mor {
    fn arithmetic(&self, config: &ModelConfig) -> Value {
        let MorSpec {
            plan,
            share_layer_norm,
            kv_sharing,
            attention,
            mlp_bias,
            ..
        } = &self.spec;
        let layers: Vec<usize> = (0..plan.layers()).map(|layer| plan.first(layer)).collect();
        let own = json!({
            "sharing": layers, "num_recursion": plan.recursions(), "mlp_bias": mlp_bias,
            "share_layer_norm": share_layer_norm, "kv_sharing": kv_sharing,
        });
        let router = match &self.spec.router {
            None => json!({"mor_type": "none"}),
            Some(RouterSpec::Expert(spec)) => json!({"mor_type": "expert_choice", "router": spec}),
            Some(RouterSpec::Token(spec)) => json!({"mor_type": "token_choice", "router": spec}),
        };
        self.decoder(config)
            .arithmetic(config, &[json!(attention), own, router])
    }

    fn sites(&self, c: &ModelConfig) -> Vec<SiteInfo> {
        let (spec, d) = (&self.spec, c.hidden_size);
        let mut sites = Sites::default();
        sites.token_table("model.embed_tokens".into(), c);
        for l in 0..spec.plan.layers() {
            let path = format!("model.layers.{l}");
            let (norms, own) = (spec.norm_layer(l) == l, spec.plan.first(l) == l);
            if norms {
                sites.norm(format!("{path}.input_layernorm"), Some(l), d);
            }
            if own {
                let p = format!("{path}.self_attn");
                GroupedQueryAttention::sites(&mut sites, c, spec.attention, l, &p);
            }
            if norms {
                sites.norm(format!("{path}.post_attention_layernorm"), Some(l), d);
            }
            if own {
                GatedMlp::sites(&mut sites, c, spec.mlp_bias, l, &format!("{path}.mlp"));
            }
        }
        if let Some(router) = &spec.router {
            Routes::sites(&mut sites, c, router, &spec.plan);
        }
        sites.norm("model.norm".into(), None, d);
        sites.lm_head(c);
        sites.finish()
    }

    /// Memory as if all tokens took all steps: a text decides how many do.
    fn cost(&self, config: &ModelConfig) -> Cost {
        let usual = Cost {
            routes_tokens: self.spec.router.is_some(),
            ..Cost::of_decoder(config)
        };
        if !self.spec.kv_sharing {
            return usual;
        }
        let plan = &self.spec.plan;
        Cost {
            cache_width: (usual.cache_width * plan.unique().count()).div_ceil(plan.layers()),
            key_value_width: 0,
            ..usual
        }
    }

    fn max_sequence(&self, config: &ModelConfig) -> usize {
        self.decoder(config).max_sequence(config)
    }

    /// The bias of a choice begins without a say.
    fn first_values(
        &self,
        _config: &ModelConfig,
        site: &SiteInfo,
        _tensor: FirstValues,
        _seed: u64,
    ) -> Option<Vec<f32>> {
        Routes::is_bias(&site.path).then(|| vec![0.0; site.d_out])
    }

    fn build(
        &self,
        config: &ModelConfig,
        sites: Arc<SiteTable>,
        loader: &mut WeightLoader<'_>,
    ) -> Result<Arc<dyn Backbone>, ModelError> {
        MorBackbone::load(config, &self.spec, sites, loader)
    }
}
