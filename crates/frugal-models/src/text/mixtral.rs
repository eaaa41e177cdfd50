//! Mixtral: Mistral with a mixture of experts in every block.
//!
//! <https://huggingface.co/docs/transformers/model_doc/mixtral>

use std::sync::Arc;

use frugal_nn::{Backbone, HeadLayout, ModelError, SiteInfo, SiteTable, UsualTargets};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::activation::Activation;
use crate::architecture::{Architecture, Cost, Family, KeyTable, ModelConfig};
use crate::blocks::decoder::{Decoder, DecoderSpec};
use crate::blocks::gqa::{GqaSpec, GroupedQueryAttention};
use crate::blocks::router::LinearRouter;
use crate::blocks::sparse_moe::{Experts, MoeSpec, SparseMoe};
use crate::fresh::{Fresh, FreshSizes, Own};
use crate::keys::{self, Size, TokenId};
use crate::rope::RopeReader;
use crate::weights::WeightLoader;

/// Mixtral.
pub static MIXTRAL: Family = Family {
    model_type: "mixtral",
    class: "MixtralForCausalLM",
    classifier_class: "MixtralForSequenceClassification",
    base_prefix: "model.",
    is_encoder: false,
    in_transformers: true,
    head: HeadLayout::Score,
    usual_targets: UsualTargets {
        ia3: &["k_proj", "v_proj", "w2"],
        ia3_feedforward: "w2",
    },
    read,
    fresh: Some(Fresh {
        about: "a mixture of experts in every block",
        config: fresh,
    }),
    keys: KeyTable {
        honored: keys::names::<MixtralConfig>,
        refused: &[
            ("router_jitter_noise", "0.0"),
            ("partial_rotary_factor", "1.0"),
        ],
        without_effect: &["attention_dropout", "output_router_logits"],
    },
};

/// Keys of `MixtralConfig`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(default)]
struct MixtralConfig {
    vocab_size: Size,
    hidden_size: Size,
    intermediate_size: Size,
    num_hidden_layers: Size,
    num_attention_heads: Size,
    num_key_value_heads: Option<Size>,
    head_dim: Option<Size>,
    hidden_act: Activation,
    max_position_embeddings: Size,
    rms_norm_eps: f64,
    tie_word_embeddings: bool,
    pad_token_id: TokenId,
    sliding_window: Option<Size>,
    num_local_experts: Size,
    num_experts_per_tok: Size,
    router_aux_loss_coef: f64,
}

impl Default for MixtralConfig {
    fn default() -> Self {
        Self {
            vocab_size: Size(32_000),
            hidden_size: Size(4096),
            intermediate_size: Size(14_336),
            num_hidden_layers: Size(32),
            num_attention_heads: Size(32),
            num_key_value_heads: Some(Size(8)),
            head_dim: None,
            hidden_act: Activation::Silu,
            max_position_embeddings: Size(131_072),
            rms_norm_eps: 1e-5,
            tie_word_embeddings: false,
            pad_token_id: TokenId(None),
            sliding_window: None,
            num_local_experts: Size(8),
            num_experts_per_tok: Size(2),
            router_aux_loss_coef: 0.001,
        }
    }
}

#[derive(Debug)]
struct Mixtral {
    spec: DecoderSpec,
    experts: MoeSpec,
}

fn fresh(sizes: &FreshSizes, own: &Own<'_>) -> Result<Value, ModelError> {
    let mut keys = sizes.decoder(own)?;
    keys.insert("num_local_experts".into(), json!(8));
    keys.insert("num_experts_per_tok".into(), json!(2));
    // A small model is trained on few tokens: ten times the weight of the configuration class.
    keys.insert("router_aux_loss_coef".into(), json!(0.01));
    Ok(Value::Object(keys))
}

fn read(raw: &Value, source: &str) -> Result<ModelConfig, ModelError> {
    let k: MixtralConfig = keys::read(raw, source, keys::DECODER_SIZES)?;
    let head_dim = match k.head_dim {
        Some(dim) => dim.0,
        None => k.hidden_size.0 / k.num_attention_heads.0,
    };
    let rope = RopeReader {
        raw,
        source,
        default_theta: 1_000_000.0,
        max_positions: k.max_position_embeddings.0,
        rotated: head_dim,
    };
    let num_hidden_layers = keys::layers("num_hidden_layers", k.num_hidden_layers, source)?;
    let sizes = [k.num_local_experts.0, k.num_experts_per_tok.0];
    let experts = MoeSpec::new(sizes, k.router_aux_loss_coef).check(num_hidden_layers, source)?;
    let window = k.sliding_window.map(|window| window.0);
    let all = vec![true; num_hidden_layers];
    let spec = DecoderSpec::new([head_dim, num_hidden_layers], rope.uniform()?)
        .sliding(window, all)
        .check("head_dim", source)?;
    let architecture = Arc::new(Mixtral { spec, experts });
    Ok(ModelConfig {
        family: &MIXTRAL,
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
        architecture,
        raw: raw.clone(),
        source: source.into(),
    })
}

impl Architecture for Mixtral {
    fn arithmetic(&self, config: &ModelConfig) -> Value {
        self.spec.arithmetic(config, &[json!(self.experts)])
    }

    fn sites(&self, c: &ModelConfig) -> Vec<SiteInfo> {
        let attention = GqaSpec::default();
        self.spec.sites(
            c,
            |sites, l, path| GroupedQueryAttention::sites(sites, c, attention, l, path),
            |sites, l, path| {
                let path = format!("{path}.block_sparse_moe");
                let (d, count) = (c.hidden_size, self.experts.num_local_experts);
                LinearRouter::sites(sites, [d, count], l, &path);
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
        Decoder::load(
            config,
            &self.spec,
            sites,
            loader,
            |loader, path| {
                let spec = GqaSpec::default();
                let attention = GroupedQueryAttention::load(config, spec, loader, path)?;
                Ok(Box::new(attention))
            },
            |loader, path| {
                let path = format!("{path}.block_sparse_moe");
                let router = Box::new(LinearRouter::load(loader, &path)?);
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
