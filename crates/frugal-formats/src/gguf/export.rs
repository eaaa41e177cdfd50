//! A Hugging Face `config.json` to GGUF metadata.

use serde_json::Value as Json;

use super::hf::{architecture, count, head_dim, number, optional_count, optional_number, rope};
use super::import::{GEMMA3_27B_LAYERS, GEMMA3_PATTERN, ROPE_FREQS};
use super::rope::Llama3;
use super::{Architecture, FileType, GgufProblem, Value};

/// The metadata of a model without its tokenizer: `general.*` and the family's keys.
///
/// `name` becomes `general.name`.
///
/// # Errors
/// [`GgufProblem`] that names the config's key which is missing or has no GGUF form.
pub fn gguf_metadata(
    config: &Json,
    name: &str,
    file_type: impl Into<FileType>,
) -> Result<Vec<(String, Value)>, GgufProblem> {
    let architecture = architecture(config)?;
    let mut keys = Keys {
        prefix: architecture.gguf_name(),
        list: Vec::new(),
    };
    let general: [(&str, Value); 5] = [
        ("general.architecture", architecture.gguf_name().into()),
        ("general.type", "model".into()),
        ("general.name", name.into()),
        ("general.file_type", file_type.into().code().into()),
        ("general.quantization_version", 2_u32.into()),
    ];
    keys.list
        .extend(general.map(|(key, value)| (key.to_owned(), value)));
    if architecture == Architecture::Gpt2 {
        gpt2(config, &mut keys)?
    } else {
        decoder(config, architecture, &mut keys)?
    }
    Ok(keys.list)
}

/// The tensor `rope_freqs.weight` that goes with a config, if its rotary scaling needs one: name
/// and values.
///
/// # Errors
/// [`GgufProblem`] that names the config's key which is missing.
pub fn rope_freqs(config: &Json) -> Result<Option<(&'static str, Vec<f32>)>, GgufProblem> {
    if architecture(config)? == Architecture::Gpt2 {
        return Ok(None);
    }
    let rope = rope(config)?;
    if rope.kind != "llama3" {
        return Ok(None);
    }
    let settings = Llama3 {
        factor: number(&rope.scaling, "factor")?,
        low_freq_factor: number(&rope.scaling, "low_freq_factor")?,
        high_freq_factor: number(&rope.scaling, "high_freq_factor")?,
        original: number(&rope.scaling, "original_max_position_embeddings")?,
    };
    Ok(Some((
        ROPE_FREQS,
        settings.table(head_dim(config)? / 2, rope.theta),
    )))
}

struct Keys {
    prefix: &'static str,
    list: Vec<(String, Value)>,
}

impl Keys {
    fn push(&mut self, suffix: &str, value: impl Into<Value>) {
        self.list
            .push((format!("{}.{suffix}", self.prefix), value.into()));
    }

    /// Counts come from `hf::count`, which holds them to 32 bits.
    fn push_count(&mut self, suffix: &str, count: usize) {
        self.push(suffix, count as u32);
    }
}

fn gpt2(config: &Json, keys: &mut Keys) -> Result<(), GgufProblem> {
    let activation = config
        .get("activation_function")
        .and_then(Json::as_str)
        .unwrap_or("gelu_new");
    if !matches!(activation, "gelu_new" | "gelu_pytorch_tanh") {
        return Err(unsupported(
            "activation_function",
            "llama.cpp runs GPT-2 with gelu_new only",
        ));
    }
    let embd = count(config, "n_embd")?;
    keys.push_count("context_length", count(config, "n_positions")?);
    keys.push_count("embedding_length", embd);
    keys.push_count("block_count", count(config, "n_layer")?);
    keys.push_count(
        "feed_forward_length",
        optional_count(config, "n_inner")?.unwrap_or(4 * embd),
    );
    keys.push_count("attention.head_count", count(config, "n_head")?);
    keys.push(
        "attention.layer_norm_epsilon",
        number(config, "layer_norm_epsilon")? as f32,
    );
    Ok(())
}

fn decoder(config: &Json, architecture: Architecture, keys: &mut Keys) -> Result<(), GgufProblem> {
    if config.get("gen_token_id").is_some_and(|id| !id.is_null()) {
        let why = "GGUF has no model that reads a prompt in both directions";
        return Err(unsupported("gen_token_id", why));
    }
    let heads = count(config, "num_attention_heads")?;
    let head_dim = head_dim(config)?;
    let rope = rope(config)?;
    keys.push_count("context_length", count(config, "max_position_embeddings")?);
    keys.push_count("embedding_length", count(config, "hidden_size")?);
    keys.push_count("block_count", count(config, "num_hidden_layers")?);
    keys.push_count("feed_forward_length", count(config, "intermediate_size")?);
    keys.push_count("attention.head_count", heads);
    keys.push_count(
        "attention.head_count_kv",
        optional_count(config, "num_key_value_heads")?.unwrap_or(heads),
    );
    keys.push_count("attention.key_length", head_dim);
    keys.push_count("attention.value_length", head_dim);
    keys.push(
        "attention.layer_norm_rms_epsilon",
        number(config, "rms_norm_eps")? as f32,
    );
    keys.push_count("vocab_size", count(config, "vocab_size")?);
    keys.push_count("rope.dimension_count", head_dim);
    keys.push("rope.freq_base", rope.theta as f32);
    match rope.kind.as_str() {
        // Llama 3's is a tensor.
        "default" | "llama3" => {}
        kind @ ("linear" | "yarn") => {
            keys.push("rope.scaling.type", kind);
            keys.push(
                "rope.scaling.factor",
                number(&rope.scaling, "factor")? as f32,
            );
            if kind == "yarn" {
                keys.push_count(
                    "rope.scaling.original_context_length",
                    count(&rope.scaling, "original_max_position_embeddings")?,
                );
            }
        }
        other => {
            return Err(unsupported(
                "rope_scaling",
                &format!("type {other:?} cannot be written"),
            ));
        }
    }
    if architecture == Architecture::Gemma3 {
        return gemma3(config, head_dim, rope.local_theta, keys);
    }
    let sliding = config
        .get("use_sliding_window")
        .and_then(Json::as_bool)
        .unwrap_or(true);
    if let Some(window) = optional_count(config, "sliding_window")?.filter(|_| sliding) {
        keys.push_count("attention.sliding_window", window);
    }
    Ok(())
}

fn gemma3(
    config: &Json,
    head_dim: usize,
    local_theta: Option<f64>,
    keys: &mut Keys,
) -> Result<(), GgufProblem> {
    let layers = count(config, "num_hidden_layers")?;
    let hidden_per_head = count(config, "hidden_size")? / count(config, "num_attention_heads")?;
    // The file has no key for it: readers know it from the model's size.
    let implied = if layers == GEMMA3_27B_LAYERS {
        hidden_per_head
    } else {
        head_dim
    };
    if optional_number(config, "query_pre_attn_scalar")?
        .is_some_and(|scalar| scalar != implied as f64)
    {
        return Err(unsupported(
            "query_pre_attn_scalar",
            &format!("GGUF readers take {implied} for this model"),
        ));
    }
    if optional_number(config, "attn_logit_softcapping")?.is_some() {
        return Err(unsupported(
            "attn_logit_softcapping",
            "GGUF readers ignore it for this family",
        ));
    }
    if let Some(cap) = optional_number(config, "final_logit_softcapping")? {
        keys.push("final_logit_softcapping", cap as f32);
    }
    keys.push_count("attention.sliding_window", count(config, "sliding_window")?);
    keys.push("rope.freq_base_swa", local_theta.unwrap_or(10_000.0) as f32);
    keys.push_count(
        "attention.sliding_window_pattern",
        sliding_pattern(config, layers)?,
    );
    Ok(())
}

/// The period in which a layer attends to everything; GGUF readers know nothing finer.
fn sliding_pattern(config: &Json, layers: usize) -> Result<usize, GgufProblem> {
    let Some(kinds) = config.get("layer_types").and_then(Json::as_array) else {
        return Ok(optional_count(config, "sliding_window_pattern")?.unwrap_or(GEMMA3_PATTERN));
    };
    let full: Vec<bool> = kinds.iter().map(|kind| kind == "full_attention").collect();
    let pattern = full.iter().position(|&full| full).unwrap_or(layers) + 1;
    if full.len() != layers
        || full
            .iter()
            .enumerate()
            .any(|(layer, &full)| full != ((layer + 1) % pattern == 0))
    {
        return Err(unsupported(
            "layer_types",
            "not one per layer with full_attention at regular distances",
        ));
    }
    Ok(pattern)
}

fn unsupported(key: &str, why: &str) -> GgufProblem {
    GgufProblem::Unsupported(format!("config.json: {key}: {why}"))
}
