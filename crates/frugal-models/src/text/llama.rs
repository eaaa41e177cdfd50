//! Llama 2 and 3, SmolLM2; and Mistral, which is Llama with a sliding window.
//!
//! <https://huggingface.co/docs/transformers/model_doc/llama2>,
//! <https://huggingface.co/docs/transformers/model_doc/mistral>

use std::sync::Arc;

use frugal_nn::{HeadLayout, ModelError, UsualTargets};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::activation::Activation;
use crate::architecture::{Family, KeyTable, ModelConfig};
use crate::blocks::decoder::DecoderSpec;
use crate::blocks::gqa::GqaSpec;
use crate::blocks::grouped::GroupedDecoder;
use crate::blocks::prefix::check_gen_token;
use crate::fresh::{Fresh, FreshSizes, Own};
use crate::keys::{self, Size, TokenId};
use crate::rope::RopeReader;

const TARGETS: UsualTargets = UsualTargets {
    ia3: &["k_proj", "v_proj", "down_proj"],
    ia3_feedforward: "down_proj",
};

/// Llama.
pub static LLAMA: Family = Family {
    model_type: "llama",
    class: "LlamaForCausalLM",
    classifier_class: "LlamaForSequenceClassification",
    base_prefix: "model.",
    is_encoder: false,
    in_transformers: true,
    head: HeadLayout::Score,
    usual_targets: TARGETS,
    read: read_llama,
    fresh: Some(Fresh {
        about: "attention and a gated feed-forward layer",
        config: fresh,
    }),
    keys: KeyTable {
        honored: keys::names::<LlamaConfig>,
        refused: &[("pretraining_tp", "1"), ("partial_rotary_factor", "1.0")],
        without_effect: &["attention_dropout"],
    },
};

/// Mistral.
pub static MISTRAL: Family = Family {
    model_type: "mistral",
    class: "MistralForCausalLM",
    classifier_class: "MistralForSequenceClassification",
    base_prefix: "model.",
    is_encoder: false,
    in_transformers: true,
    head: HeadLayout::Score,
    usual_targets: TARGETS,
    read: read_mistral,
    fresh: None,
    keys: KeyTable {
        honored: keys::names::<MistralConfig>,
        refused: &[("partial_rotary_factor", "1.0")],
        without_effect: &["attention_dropout"],
    },
};

/// Keys of `LlamaConfig`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(default)]
struct LlamaConfig {
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
    attention_bias: bool,
    mlp_bias: bool,
    pad_token_id: TokenId,
    /// The token in front of which a text is read in both directions, as models trained with
    /// prefixes have it; a key of our own.
    gen_token_id: TokenId,
}

impl Default for LlamaConfig {
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
            attention_bias: false,
            mlp_bias: false,
            pad_token_id: TokenId(None),
            gen_token_id: TokenId(None),
        }
    }
}

/// Keys of `MistralConfig`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(default)]
struct MistralConfig {
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
    sliding_window: Option<Size>,
    /// Which layers have the window, all without it; transformers reads such a file as `ministral`.
    layer_types: Option<Vec<String>>,
    pad_token_id: TokenId,
}

impl Default for MistralConfig {
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
            rms_norm_eps: 1e-6,
            tie_word_embeddings: false,
            sliding_window: Some(Size(4096)),
            layer_types: None,
            pad_token_id: TokenId(None),
        }
    }
}

/// A new Llama.
fn fresh(sizes: &FreshSizes, own: &Own<'_>) -> Result<Value, ModelError> {
    sizes.decoder(own).map(Value::Object)
}

fn read_llama(raw: &Value, source: &str) -> Result<ModelConfig, ModelError> {
    let k: LlamaConfig = keys::read(raw, source, keys::DECODER_SIZES)?;
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
    let spec = DecoderSpec {
        prefix_token: check_gen_token(k.gen_token_id, k.vocab_size.0, source)?,
        ..DecoderSpec::new([head_dim, num_hidden_layers], rope.uniform()?)
    };
    let architecture = Arc::new(GroupedDecoder {
        spec: spec.check("head_dim", source)?,
        attention: GqaSpec {
            qkv_bias: k.attention_bias,
            output_bias: k.attention_bias,
            qk_norm: false,
        },
        mlp_bias: k.mlp_bias,
    });
    Ok(ModelConfig {
        family: &LLAMA,
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

fn read_mistral(raw: &Value, source: &str) -> Result<ModelConfig, ModelError> {
    let k: MistralConfig = keys::read(raw, source, keys::DECODER_SIZES)?;
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
    let window = k.sliding_window.map(|window| window.0);
    let layers = keys::sliding_layers(k.layer_types.as_deref(), num_hidden_layers, source, |_| {
        true
    })?;
    let architecture = Arc::new(GroupedDecoder {
        spec: DecoderSpec::new([head_dim, num_hidden_layers], rope.uniform()?)
            .sliding(window, layers)
            .check("head_dim", source)?,
        attention: GqaSpec::default(),
        mlp_bias: false,
    });
    Ok(ModelConfig {
        family: &MISTRAL,
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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use burn::prelude::Device;
    use frugal_nn::{
        Backbone, Head, HeadConfig, Input, Mode, NoAdapter, Pooling, ProblemType, Rows, to_vec,
    };
    use serde_json::json;

    use super::*;
    use crate::build;
    use crate::load::{SafetensorsSource, read_json};

    fn fixture(name: &str, changes: &Value) -> Result<Arc<dyn Backbone>, ModelError> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../../fixtures/models")
            .join(name);
        let mut raw = read_json(&folder.join("config.json")).unwrap();
        for (key, value) in changes.as_object().unwrap() {
            raw[key] = value.clone();
        }
        let config = ModelConfig::from_json(raw, name)?;
        let source = SafetensorsSource::open(&folder).unwrap();
        build(config, &source, &Device::flex())
    }

    /// The first four logits behind 24 tokens by transformers 5.24, which makes a `ministral` of such
    /// a file: `AutoModelForCausalLM.from_pretrained(folder)(ids).logits[0, -1, :4]`.
    #[test]
    fn layer_types_of_mistral_say_which_blocks_have_the_window() {
        let ids: Vec<u32> = (0..24).map(|i| (7 * i + 3) % 60).collect();
        let (full, sliding) = ("full_attention", "sliding_attention");
        let window = [-0.956_119, -0.241_264, 2.216_813, -0.808_236];
        for (kinds, expected) in [
            (json!(null), window),
            (json!([sliding, sliding]), window),
            (
                json!([full, sliding]),
                [-0.973_152, 1.749_698, 0.722_101, -0.328_622],
            ),
            (
                json!([sliding, full]),
                [-1.07034, -0.102_588, 1.3264, 0.286_005],
            ),
            (
                json!([full, full]),
                [-0.95282, 1.520_483, 0.378_479, -0.487_232],
            ),
        ] {
            let model = fixture("mistral", &json!({"layer_types": kinds})).unwrap();
            let input = Input::new(&ids, &[ids.len()]);
            let hidden = model.forward(&input, &mut NoAdapter, None).unwrap();
            let logits = model.logits(hidden, Rows::Tokens, &mut NoAdapter).unwrap();
            let found = to_vec(logits);
            let last = &found[23 * 64..23 * 64 + 4];
            for (found, expected) in last.iter().zip(expected) {
                assert!((found - expected).abs() < 1e-4, "{kinds}: {last:?}");
            }
        }
        for wrong in [json!([full]), json!([full, "chunked_attention"])] {
            let error = fixture("mistral", &json!({"layer_types": wrong}))
                .err()
                .unwrap();
            assert!(error.to_string().contains("layer_types"), "{error}");
        }
    }

    /// `GenericForSequenceClassification` of transformers reads the rightmost token that is not
    /// `pad_token_id`, and the first where all are. What stands behind it changes nothing, as blocks
    /// are causal.
    #[test]
    fn a_text_that_ends_in_the_padding_token_is_classified_by_the_token_before() {
        let logits = |pad: Value, ids: &[u32], lengths: &[usize]| -> Vec<f32> {
            let model = fixture("llama", &json!({"pad_token_id": pad})).unwrap();
            let config = HeadConfig {
                labels: ["a", "b", "c"].map(str::to_owned).to_vec(),
                pooling: Pooling::Last,
                problem_type: ProblemType::SingleLabel,
            };
            let head = Head::new(config, model.info(), &Device::flex(), 7);
            let input = Input::new(ids, lengths);
            let found = head.classify(&input, model.as_ref(), &mut NoAdapter, Mode::Eval);
            to_vec(found.unwrap())
        };
        let close = |a: &[f32], b: &[f32]| {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-5)
        };
        let texts = [5, 9, 2, 9, 9, 9, 9, 4];
        let found = logits(json!(9), &texts, &[5, 2, 1]);
        let expected = [
            logits(json!(null), &[5, 9, 2], &[3]),
            logits(json!(null), &[9], &[1]),
            logits(json!(null), &[4], &[1]),
        ];
        assert!(close(&found, &expected.concat()), "{found:?} {expected:?}");
        let last = logits(json!(null), &texts, &[5, 2, 1]);
        assert!(!close(&found[..3], &last[..3]), "{last:?}");
        assert!(close(&logits(json!(-1), &texts, &[5, 2, 1]), &last));
    }
}
