//! TokenFormer: every projection is attention to learnt key and value tokens ([`Pattention`]), whose
//! number is free, so that a trained model grows by more of them.
//!
//! Wang et al., *TokenFormer: Rethinking Transformer Scaling with Tokenized Model Parameters*, ICLR
//! 2025, arXiv 2410.23168. `transformers` has no such class: folders are a type of our own, whose
//! keys are those of the official configurations where they say what others do not.
//!
//! What the official repository (`Haiyang-W/TokenFormer`) computes, and where it differs from the
//! paper or within itself:
//! - The GPU code scales by the root of the *current* number of tokens and adds no epsilon; the TPU
//!   code scales by the root of a constant (`zoom_dim`) where one is given, adds 1e-5 to the norm, and
//!   has GELU by its tanh approximation. Here: exact GELU as on GPU, the epsilon is `pattention_eps`
//!   (1e-5), and the constants are `qkv_zoom_dim`, `proj_zoom_dim` and `ffn_zoom_dim`, by default the
//!   numbers of tokens. Appended tokens with keys of zeros leave the output as it was if and only if
//!   these constants stay.
//! - `norm: layernorm_nonparam` in blocks and `final_norm: layernorm` behind them, as training builds
//!   the latter from `final_norm` (`gpt2_model.py`); the model in `tokenformer_model.py`, which
//!   would not, is not used.
//! - Keys are drawn from N(0, `initializer_range`²), values from N(0, (2 / (L √d))²): `wang_init` is
//!   their standard deviation.
//! - A quarter of each head is rotated, its halves against each other, as in GPT-NeoX.
//!
//! Names of the official checkpoints against those of the files here: `word_embeddings.weight` is
//! `model.embed_tokens.weight`, `attention.` is `self_attn.`, and tensors of tokens end in `.weight`:
//! `model.layers.N.self_attn.{query,key,value,proj}.{key,value}_param_tokens.weight`,
//! `model.layers.N.mlp.{key,value}_param_tokens.weight`, all `[tokens, width]`.

use std::sync::Arc;

use frugal_nn::{
    Backbone, HeadLayout, ModelError, SiteInfo, SiteTable, UsualTargets, named_rng, standard_normal,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::activation::Activation;
use crate::architecture::{
    Architecture, Cost, Family, FirstValues, KeyTable, ModelConfig, TokenCost,
};
use crate::blocks::decoder::{Decoder, DecoderSpec};
use crate::blocks::pattention::{ParamNorm, Pattention, PattentionHeads, PattentionSpec, VALUES};
use crate::blocks::stream_norm::NormKind;
use crate::fresh::{Fresh, FreshSizes, Own};
use crate::keys::{self, Size, TokenId, bad};
use crate::rope::RopeReader;
use crate::weights::WeightLoader;

/// TokenFormer.
pub static TOKENFORMER: Family = Family {
    model_type: MODEL_TYPE,
    class: "TokenFormerForCausalLM",
    classifier_class: "TokenFormerForSequenceClassification",
    base_prefix: "model.",
    is_encoder: false,
    in_transformers: false,
    head: HeadLayout::Score,
    // Without a choice in peft: what gives attention its keys and values, and what the feed-forward
    // layer weighs its values by.
    usual_targets: UsualTargets {
        ia3: &[
            "self_attn.key.value_param_tokens",
            "self_attn.value.value_param_tokens",
            "mlp.value_param_tokens",
        ],
        ia3_feedforward: "mlp.value_param_tokens",
    },
    read,
    fresh: Some(Fresh {
        about: "attention to learnt tokens in place of projections, which can grow",
        config: fresh,
    }),
    keys: KeyTable {
        honored: keys::names::<TokenFormerConfig>,
        refused: &[],
        without_effect: &["attention_dropout", "hidden_dropout"],
    },
};

/// The `model_type` of such folders.
pub const MODEL_TYPE: &str = "tokenformer";

/// Keys of the numbers of tokens: of queries, keys and values, of attention's output, of the
/// feed-forward layer.
pub const TOKEN_KEYS: [&str; 3] = ["qkv_slot_num", "proj_slot_num", "ffn_slot_num"];

/// Keys of the numbers that their scales are made for.
pub const SCALE_KEYS: [&str; 3] = ["qkv_zoom_dim", "proj_zoom_dim", "ffn_zoom_dim"];

/// Keys of the configuration; defaults are the official 150M model's.
#[derive(Debug, Serialize, Deserialize)]
#[serde(default)]
struct TokenFormerConfig {
    vocab_size: Size,
    hidden_size: Size,
    num_hidden_layers: Size,
    num_attention_heads: Size,
    /// There are no groups.
    num_key_value_heads: Option<Size>,
    /// Pairs of tokens of each of the query, key and value layers.
    qkv_slot_num: Size,
    /// Those of the layer behind attention.
    proj_slot_num: Size,
    /// Those of the feed-forward layer.
    ffn_slot_num: Size,
    /// The number whose root scales; by default that of the tokens.
    qkv_zoom_dim: Option<Size>,
    proj_zoom_dim: Option<Size>,
    ffn_zoom_dim: Option<Size>,
    norm_activation_type: ParamNorm,
    /// Added to the norms of scores.
    pattention_eps: f64,
    /// Biases of scores and outputs, as the TPU code may have them.
    attention_bias: bool,
    mlp_bias: bool,
    norm: NormKind,
    /// By default as in blocks.
    final_norm: Option<NormKind>,
    layer_norm_eps: f64,
    partial_rotary_factor: f64,
    max_position_embeddings: Size,
    tie_word_embeddings: bool,
    pad_token_id: TokenId,
}

impl Default for TokenFormerConfig {
    fn default() -> Self {
        Self {
            vocab_size: Size(50_304),
            hidden_size: Size(768),
            num_hidden_layers: Size(12),
            num_attention_heads: Size(12),
            num_key_value_heads: None,
            qkv_slot_num: Size(768),
            proj_slot_num: Size(768),
            ffn_slot_num: Size(3072),
            qkv_zoom_dim: None,
            proj_zoom_dim: None,
            ffn_zoom_dim: None,
            norm_activation_type: ParamNorm::L2NormGelu,
            pattention_eps: 1e-5,
            attention_bias: false,
            mlp_bias: false,
            norm: NormKind::Plain,
            final_norm: None,
            layer_norm_eps: 1e-5,
            partial_rotary_factor: 0.25,
            max_position_embeddings: Size(2048),
            tie_word_embeddings: true,
            pad_token_id: TokenId(None),
        }
    }
}

/// What differs between models of this type.
#[derive(Debug)]
struct TokenFormer {
    spec: DecoderSpec,
    /// In the order of [`TOKEN_KEYS`].
    layers: [PattentionSpec; 3],
}

/// As many tokens as the model is wide around attention, and as the feed-forward layer is wide there.
fn fresh(sizes: &FreshSizes, own: &Own<'_>) -> Result<Value, ModelError> {
    sizes.head_dim(own)?;
    Ok(json!({
        "hidden_size": sizes.hidden_size, "num_hidden_layers": sizes.num_hidden_layers,
        "num_attention_heads": sizes.num_attention_heads,
        "qkv_slot_num": sizes.hidden_size, "proj_slot_num": sizes.hidden_size,
        "ffn_slot_num": sizes.intermediate_size, "norm_activation_type": "l2_norm_gelu",
        "pattention_eps": 1e-5, "norm": "layernorm_nonparam", "final_norm": "layernorm",
        "layer_norm_eps": 1e-5, "partial_rotary_factor": 0.25, "rope_theta": 10000.0,
        "max_position_embeddings": sizes.max_position_embeddings, "tie_word_embeddings": true,
        "initializer_range": 0.02,
    }))
}

fn read(raw: &Value, source: &str) -> Result<ModelConfig, ModelError> {
    let required = [
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        TOKEN_KEYS[0],
        TOKEN_KEYS[1],
        TOKEN_KEYS[2],
    ];
    let k: TokenFormerConfig = keys::read(raw, source, &required)?;
    let (width, heads) = (k.hidden_size.0, k.num_attention_heads.0);
    let head_dim = keys::shared_head_dim(width, heads, "num_attention_heads", source)?;
    if k.num_key_value_heads
        .is_some_and(|groups| groups.0 != heads)
    {
        let reason = format!("only as many as the {heads} of `num_attention_heads` are supported");
        return Err(bad(source, "num_key_value_heads", reason));
    }
    let num_hidden_layers = keys::layers("num_hidden_layers", k.num_hidden_layers, source)?;
    let share = k.partial_rotary_factor;
    if !(share > 0.0 && share <= 1.0) {
        let reason = format!(
            "{} of a head given, but it must be above 0 and at most 1",
            keys::shown(share)
        );
        return Err(bad(source, "partial_rotary_factor", reason));
    }
    keys::not_negative("pattention_eps", k.pattention_eps, source)?;
    let final_norm = k.final_norm.unwrap_or(k.norm);
    for (key, norm) in [("norm", k.norm), ("final_norm", final_norm)] {
        if norm == NormKind::Rms {
            let reason = "`rmsnorm` is not supported; layernorm and layernorm_nonparam are";
            return Err(bad(source, key, reason));
        }
    }
    let rotated = (head_dim as f64 * share) as usize;
    let rope = RopeReader {
        raw,
        source,
        default_theta: 10_000.0,
        max_positions: k.max_position_embeddings.0,
        rotated,
    };
    let spec = DecoderSpec {
        rotated,
        norm: k.norm,
        final_norm,
        ..DecoderSpec::new([head_dim, num_hidden_layers], rope.uniform()?)
    };
    let spec = spec.check("partial_rotary_factor", source)?;
    let layer = |tokens: Size, scale: Option<Size>, bias| PattentionSpec {
        tokens: tokens.0,
        scale_tokens: scale.unwrap_or(tokens).0,
        norm: k.norm_activation_type,
        eps: k.pattention_eps,
        bias,
    };
    let layers = [
        layer(k.qkv_slot_num, k.qkv_zoom_dim, k.attention_bias),
        layer(k.proj_slot_num, k.proj_zoom_dim, k.attention_bias),
        layer(k.ffn_slot_num, k.ffn_zoom_dim, k.mlp_bias),
    ];
    Ok(ModelConfig {
        family: &TOKENFORMER,
        hidden_size: width,
        intermediate_size: k.ffn_slot_num.0,
        num_hidden_layers,
        num_attention_heads: heads,
        num_key_value_heads: heads,
        head_dim,
        vocab_size: k.vocab_size.0,
        max_position_embeddings: k.max_position_embeddings.0,
        norm_eps: k.layer_norm_eps,
        activation: Activation::Gelu,
        tie_word_embeddings: k.tie_word_embeddings,
        pad_token_id: k.pad_token_id.0,
        architecture: Arc::new(TokenFormer { spec, layers }),
        raw: raw.clone(),
        source: source.into(),
    })
}

impl Architecture for TokenFormer {
    fn arithmetic(&self, config: &ModelConfig) -> Value {
        let mut own = json!({
            "norm": self.spec.norm,
            "final_norm": self.spec.final_norm,
            "norm_activation_type": self.layers[0].norm,
            "pattention_eps": self.layers[0].eps,
            "attention_bias": self.layers[0].bias,
            "mlp_bias": self.layers[2].bias,
        });
        for (i, layer) in self.layers.iter().enumerate() {
            own[TOKEN_KEYS[i]] = layer.tokens.into();
            own[SCALE_KEYS[i]] = layer.scale_tokens.into();
        }
        self.spec.arithmetic(config, &[own])
    }

    fn sites(&self, c: &ModelConfig) -> Vec<SiteInfo> {
        let (d, [qkv, proj, ffn]) = (c.hidden_size, &self.layers);
        self.spec.sites(
            c,
            |sites, l, path| PattentionHeads::sites(sites, [qkv, proj], l, path, d),
            |sites, l, path| {
                Pattention::sites(sites, ffn, l, &format!("{path}.mlp"), [d, d], true);
            },
        )
    }

    fn cost(&self, config: &ModelConfig) -> Cost {
        let [qkv, proj, _] = self.layers.map(|layer| layer.tokens);
        Cost {
            gated: false,
            param_tokens: Some(TokenCost { qkv, proj }),
            ..Cost::of_decoder(config)
        }
    }

    fn max_sequence(&self, config: &ModelConfig) -> usize {
        self.spec.max_sequence(config)
    }

    /// Values as `wang_init` draws them.
    fn first_values(
        &self,
        config: &ModelConfig,
        site: &SiteInfo,
        tensor: FirstValues,
        seed: u64,
    ) -> Option<Vec<f32>> {
        if site.name() != VALUES || tensor != FirstValues::Weight {
            return None;
        }
        let (layers, width) = (config.num_hidden_layers, config.hidden_size);
        let std = (2.0 / (layers as f64 * (width as f64).sqrt())) as f32;
        let mut rng = named_rng(seed, &site.weight_name());
        let draw = |_| std * standard_normal(&mut rng);
        Some((0..site.d_in * site.d_out).map(draw).collect())
    }

    fn build(
        &self,
        config: &ModelConfig,
        sites: Arc<SiteTable>,
        loader: &mut WeightLoader<'_>,
    ) -> Result<Arc<dyn Backbone>, ModelError> {
        let [qkv, proj, ffn] = self.layers;
        Decoder::load(
            config,
            &self.spec,
            sites,
            loader,
            |loader, path| Ok(Box::new(PattentionHeads::load([qkv, proj], loader, path)?)),
            |loader, path| {
                let path = format!("{path}.mlp");
                Ok(Box::new(Pattention::load(ffn, loader, &path)?))
            },
        )
    }
}
