//! Native sparse attention, as described in arXiv 2502.11089; a type of our own, as no public format
//! exists.

use std::sync::Arc;

use frugal_nn::{Backbone, HeadLayout, ModelError, SiteInfo, SiteTable, UsualTargets};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::activation::Activation;
use crate::architecture::{Architecture, Cost, Family, KeyTable, ModelConfig};
use crate::blocks::decoder::{Decoder, DecoderSpec};
use crate::blocks::gated_mlp::GatedMlp;
use crate::blocks::nsa::{Nsa, NsaSpec};
use crate::fresh::{Fresh, FreshSizes, Own};
use crate::keys::{self, Size, TokenId};
use crate::rope::RopeReader;
use crate::weights::WeightLoader;

/// Native sparse attention in a Llama.
pub static NATIVE_SPARSE: Family = Family {
    model_type: "native_sparse",
    class: "NativeSparseForCausalLM",
    classifier_class: "NativeSparseForSequenceClassification",
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
        about: "sparse attention",
        config: fresh,
    }),
    keys: KeyTable {
        honored: keys::names::<NativeSparseConfig>,
        refused: &[("attention_bias", "false")],
        without_effect: &[],
    },
};

/// Keys of the configuration.
#[derive(Debug, Serialize, Deserialize)]
#[serde(default)]
struct NativeSparseConfig {
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
    mlp_bias: bool,
    compress_block: Size,
    compress_stride: Size,
    select_block: Size,
    select_count: Size,
    window: Size,
}

impl Default for NativeSparseConfig {
    fn default() -> Self {
        Self {
            vocab_size: Size(32_000),
            hidden_size: Size(4096),
            intermediate_size: Size(11_008),
            num_hidden_layers: Size(32),
            num_attention_heads: Size(32),
            num_key_value_heads: None,
            head_dim: None,
            hidden_act: Activation::Silu,
            max_position_embeddings: Size(2048),
            rms_norm_eps: 1e-6,
            tie_word_embeddings: false,
            pad_token_id: TokenId(None),
            mlp_bias: false,
            compress_block: Size(16),
            compress_stride: Size(8),
            select_block: Size(16),
            select_count: Size(4),
            window: Size(64),
        }
    }
}

#[derive(Debug)]
struct NativeSparse {
    spec: DecoderSpec,
    attention: NsaSpec,
    mlp_bias: bool,
}

fn fresh(sizes: &FreshSizes, own: &Own<'_>) -> Result<Value, ModelError> {
    sizes.decoder(own).map(Value::Object)
}

fn read(raw: &Value, source: &str) -> Result<ModelConfig, ModelError> {
    let k: NativeSparseConfig = keys::read(raw, source, keys::DECODER_SIZES)?;
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
    let attention = NsaSpec {
        compress_block: k.compress_block.0,
        compress_stride: k.compress_stride.0,
        select_block: k.select_block.0,
        select_count: k.select_count.0,
        window: k.window.0,
    };
    if attention.select_count < 3 {
        return Err(keys::bad(
            source,
            "select_count",
            "the first and the two most recent blocks are always selected: at least 3",
        ));
    }
    let spec = DecoderSpec::new([head_dim, num_hidden_layers], rope.uniform()?)
        .check("head_dim", source)?;
    let architecture = Arc::new(NativeSparse {
        spec,
        attention,
        mlp_bias: k.mlp_bias,
    });
    Ok(ModelConfig {
        family: &NATIVE_SPARSE,
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

impl Architecture for NativeSparse {
    fn arithmetic(&self, config: &ModelConfig) -> Value {
        self.spec.arithmetic(
            config,
            &[json!(self.attention), json!({"mlp_bias": self.mlp_bias})],
        )
    }

    fn sites(&self, c: &ModelConfig) -> Vec<SiteInfo> {
        self.spec.sites(
            c,
            |sites, l, path| Nsa::sites(sites, c, &self.attention, l, path),
            |sites, l, path| GatedMlp::sites(sites, c, self.mlp_bias, l, &format!("{path}.mlp")),
        )
    }

    fn cost(&self, config: &ModelConfig) -> Cost {
        let usual = Cost::of_decoder(config);
        Cost {
            // Each branch has keys and values of its own.
            cache_width: 3 * usual.cache_width,
            key_value_width: 0,
            ..usual
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
            |loader, path| Ok(Box::new(Nsa::load(self.attention, loader, path)?)),
            |loader, path| {
                let path = format!("{path}.mlp");
                Ok(Box::new(GatedMlp::load(config.activation, loader, &path)?))
            },
        )
    }
}
