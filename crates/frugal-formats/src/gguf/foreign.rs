//! Metadata of a model that is not read: what would change its numbers is refused by name.

use super::{Architecture, Gguf, GgufProblem, Value};

/// Keys that `import` reads, for some family at least.
const READ: &[&str] = &[
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.layer_norm_epsilon",
    "attention.layer_norm_rms_epsilon",
    "attention.sliding_window",
    "attention.sliding_window_pattern",
    "attention.value_length",
    "block_count",
    "context_length",
    "embedding_length",
    "expert_count",
    "feed_forward_length",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.freq_base_swa",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.type",
];

/// Keys that change no number of these families: sizes that follow from others, what is said of
/// experts and of latent or recurrent attention, which none of them has, and what llama.cpp does
/// not look at here either.
const WITHOUT_EFFECT: &[&str] = &[
    "attention.decay_lora_rank",
    "attention.gate_lora_rank",
    "attention.group_norm_epsilon",
    "attention.group_norm_groups",
    "attention.iclr_lora_rank",
    "attention.indexer.head_count",
    "attention.indexer.key_length",
    "attention.indexer.top_k",
    "attention.key_length_mla",
    "attention.kv_lora_rank",
    "attention.q_lora_rank",
    "attention.relative_buckets_count",
    "attention.value_length_mla",
    "attention.value_residual_mix_lora_rank",
    "classifier.output_labels",
    "convnext.block_count",
    "convnext.embedding_length",
    "decoder_block_count",
    "decoder_start_token_id",
    "expert_chunk_feed_forward_length",
    "expert_feed_forward_length",
    "expert_gating_func",
    "expert_group_count",
    "expert_group_scale",
    "expert_group_used_count",
    "expert_shared_count",
    "expert_shared_feed_forward_length",
    "expert_used_count",
    "expert_weights_norm",
    "expert_weights_scale",
    "experts_per_group",
    "features_length",
    "interleave_moe_layer_step",
    "kda.head_dim",
    "leading_dense_block_count",
    "moe_every_n_layers",
    "moe_latent_size",
    "nextn_predict_layers",
    "pooling_type",
    "posnet.block_count",
    "posnet.embedding_length",
    "rope.scaling.finetuned",
    "router_logit_softcapping",
    "shortconv.l_cache",
    "ssm.conv_kernel",
    "ssm.dt_b_c_rms",
    "ssm.group_count",
    "ssm.inner_size",
    "ssm.state_size",
    "ssm.time_step_rank",
    "tensor_data_layout",
    "time_decay_extra_dim",
    "time_mix_extra_dim",
    "token_shift_count",
    "vocab_size",
    "wkv.head_size",
];

/// Keys that would change numbers, with the values at which they do not.
const NEUTRAL: &[(&str, &[f64])] = &[
    ("activation_sparsity_scale", &[]),
    ("altup.active_idx", &[]),
    ("altup.num_inputs", &[]),
    ("attention.clamp_kqv", &[0.0]),
    ("attention.max_alibi_bias", &[0.0]),
    ("attention.output_scale", &[0.0, 1.0]),
    ("attention.shared_kv_layers", &[0.0]),
    ("attention.temperature_length", &[0.0]),
    ("attention.temperature_scale", &[0.0]),
    ("attn_logit_softcapping", &[0.0]),
    ("embedding_length_out", &[0.0]),
    ("embedding_length_per_layer_input", &[0.0]),
    ("embedding_scale", &[0.0, 1.0]),
    ("final_logit_softcapping", &[0.0]),
    ("full_attention_interval", &[0.0, 1.0]),
    ("logit_scale", &[0.0, 1.0]),
    ("n_deepstack_layers", &[0.0]),
    ("rescale_every_n_layers", &[0.0]),
    ("residual_scale", &[0.0, 1.0]),
    ("rope.dimension_sections", &[]),
    ("rope.scale_linear", &[1.0]),
    ("rope.scaling.alpha", &[0.0, 1.0]),
    ("rope.scaling.attn_factor", &[1.0]),
    ("rope.scaling.yarn_attn_factor", &[-1.0, 1.0]),
    ("rope.scaling.yarn_beta_fast", &[-1.0, 32.0]),
    ("rope.scaling.yarn_beta_slow", &[-1.0, 1.0]),
    ("rope.scaling.yarn_ext_factor", &[-1.0, 1.0]),
    ("rope.scaling.yarn_log_multiplier", &[0.0]),
    ("swiglu_clamp_exp", &[0.0]),
    ("swiglu_clamp_shexp", &[0.0]),
];

/// Truth values that would change numbers, with the one at which they do not.
const NEUTRAL_TRUTHS: &[(&str, bool)] = &[
    ("attention.causal", true),
    ("swin_norm", false),
    ("use_parallel_residual", false),
];

/// Widths of sliding blocks, which must be those of all blocks.
const WIDTHS: &[&str] = &[
    "attention.key_length_swa",
    "attention.value_length_swa",
    "rope.dimension_count_swa",
];

/// Tensors with divisors of rotary positions by length.
const LONGROPE: &[&str] = &["rope_factors_long.weight", "rope_factors_short.weight"];

/// Widths of a model that some keys repeat.
#[derive(Clone, Copy)]
pub(super) struct Widths {
    /// Of a head.
    pub head: usize,
    /// By whose root attention divides.
    pub scaled_by: usize,
}

/// Refuses metadata and tensors that are not read and that would change what the model computes.
///
/// # Errors
/// [`GgufProblem`] that names the first such key or tensor.
pub(super) fn check(
    gguf: &Gguf,
    architecture: Architecture,
    widths: Widths,
) -> Result<(), GgufProblem> {
    let prefix = format!("{}.", architecture.gguf_name());
    for (key, value) in gguf.metadata() {
        let Some(suffix) = key.strip_prefix(&prefix) else {
            continue;
        };
        if is_read(architecture, suffix) || is_neutral(suffix, value, widths) {
            continue;
        }
        let found = match (number(value), value.as_bool()) {
            (Some(number), _) => format!(" {number}"),
            (None, Some(truth)) => format!(" {truth}"),
            (None, None) => String::new(),
        };
        return Err(GgufProblem::metadata(
            key,
            format!("the value{found} changes what the model computes and is not supported"),
        ));
    }
    match LONGROPE.iter().find(|name| gguf.tensor(name).is_some()) {
        Some(name) => Err(GgufProblem::Unsupported(format!(
            "tensor {name}: rotary positions of this kind (longrope) are not supported in GGUF files"
        ))),
        None => Ok(()),
    }
}

/// A number, whole or not.
fn number(value: &Value) -> Option<f64> {
    value.as_f64().or_else(|| value.as_u64().map(|n| n as f64))
}

/// Whether the import of this family looks at the key itself, or none need.
fn is_read(architecture: Architecture, suffix: &str) -> bool {
    match suffix {
        "rope.scale_linear" => architecture != Architecture::Gpt2,
        "final_logit_softcapping" => architecture == Architecture::Gemma3,
        _ => READ.contains(&suffix) || WITHOUT_EFFECT.contains(&suffix),
    }
}

/// Whether the value changes nothing. A key that llama.cpp does not know changes nothing there.
fn is_neutral(suffix: &str, value: &Value, widths: Widths) -> bool {
    if suffix == "attention.scale" {
        let usual = (widths.scaled_by as f64).sqrt().recip();
        return number(value)
            .is_some_and(|scale| scale == 0.0 || (scale - usual).abs() <= 1e-5 * usual);
    }
    if WIDTHS.contains(&suffix) {
        return value.as_u64() == Some(widths.head as u64);
    }
    if let Some((_, neutral)) = NEUTRAL_TRUTHS.iter().find(|(key, _)| *key == suffix) {
        return value.as_bool() == Some(*neutral);
    }
    match NEUTRAL.iter().find(|(key, _)| *key == suffix) {
        Some((_, neutral)) => number(value).is_some_and(|found| neutral.contains(&found)),
        None => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::{GgmlType, TensorInfo};

    const KEYS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/gguf/keys.json");

    fn checked(key: &str, value: Value, tensor: &str) -> Result<(), GgufProblem> {
        let tensor = TensorInfo {
            name: tensor.into(),
            dims: vec![4],
            ggml_type: GgmlType::F32,
            range: 0..16,
            part: 0,
        };
        let file = Gguf::planned("a.gguf", vec![(key.into(), value)], vec![tensor]);
        let widths = Widths {
            head: 8,
            scaled_by: 8,
        };
        check(&file, Architecture::Llama, widths)
    }

    #[test]
    fn every_key_of_a_model_that_gguf_knows_is_read_or_refused_or_known_to_change_nothing() {
        let golden: serde_json::Value =
            serde_json::from_slice(&std::fs::read(KEYS).unwrap()).unwrap();
        let keys = golden["keys"].as_array().unwrap();
        assert!(keys.len() > 90);
        let is_known = |key: &str| {
            READ.contains(&key)
                || WITHOUT_EFFECT.contains(&key)
                || WIDTHS.contains(&key)
                || key == "attention.scale"
                || NEUTRAL.iter().any(|(k, _)| *k == key)
                || NEUTRAL_TRUTHS.iter().any(|(k, _)| *k == key)
        };
        let unknown: Vec<_> = keys
            .iter()
            .filter_map(serde_json::Value::as_str)
            .filter(|key| !is_known(key))
            .collect();
        assert!(unknown.is_empty(), "{unknown:?}");
    }

    #[test]
    fn metadata_that_would_change_numbers_is_refused_by_name() {
        for (key, refused, neutral) in [
            ("attention.causal", Value::Bool(false), Value::Bool(true)),
            ("attention.scale", Value::F32(0.9), Value::F32(0.353_553_4)),
            ("attention.key_length_swa", Value::U32(4), Value::U32(8)),
            ("logit_scale", Value::F32(0.5), Value::F32(1.0)),
            ("rope.scaling.attn_factor", Value::F32(1.7), Value::F32(1.0)),
            (
                "rope.scaling.yarn_beta_fast",
                Value::F32(8.0),
                Value::F32(32.0),
            ),
            ("final_logit_softcapping", Value::F32(30.0), Value::F32(0.0)),
            (
                "use_parallel_residual",
                Value::Bool(true),
                Value::Bool(false),
            ),
        ] {
            let key = format!("llama.{key}");
            let error = checked(&key, refused, "token_embd.weight").unwrap_err();
            assert!(error.to_string().contains(&key), "{error}");
            checked(&key, neutral, "token_embd.weight").unwrap();
        }
        let name = "rope_factors_long.weight";
        let error = checked("llama.vocab_size", Value::U32(4), name).unwrap_err();
        assert!(error.to_string().contains(name), "{error}");
        // Of another family, and unknown to llama.cpp.
        checked("qwen2.logit_scale", Value::F32(0.5), "a").unwrap();
        checked("llama.made_up", Value::F32(0.5), "a").unwrap();
    }
}
