//! GGUF metadata to a Hugging Face `config.json`.

use serde_json::{Value as Json, json};

use super::foreign::{self, Widths};
use super::rope::Llama3;
use super::{Architecture, Content, Gguf, GgufError, GgufProblem, Value, split};

/// The table of Llama 3's rotary scaling.
pub(super) const ROPE_FREQS: &str = "rope_freqs.weight";
/// Layers of Gemma 3 27B, whose attention scale alone is not that of the head dimension.
pub(super) const GEMMA3_27B_LAYERS: usize = 62;
/// More layers than any model has: what is made for each must not grow with a number in the file.
const MAX_LAYERS: usize = 4096;
/// Gemma 3 before the key existed: every sixth layer attends to everything.
pub(super) const GEMMA3_PATTERN: usize = 6;

/// The Hugging Face `config.json` of a GGUF model; `all` is the whole file, or all parts.
///
/// Keys are spelled as transformers 4 wrote them, which 5 reads too.
///
/// # Errors
/// [`GgufError`] that names the key which is missing, contradictory or beyond what these families
/// can do.
pub fn hf_config<C: Content + ?Sized>(gguf: &Gguf, all: &C) -> Result<Json, GgufError> {
    let result = Keys::new(gguf).and_then(|keys| match keys.architecture {
        Architecture::Gpt2 => gpt2(&keys),
        _ => decoder(&keys, all),
    });
    result.map_err(|problem| problem.in_file(gguf.source()))
}

struct Keys<'a> {
    gguf: &'a Gguf,
    architecture: Architecture,
}

impl<'a> Keys<'a> {
    fn new(gguf: &'a Gguf) -> Result<Self, GgufProblem> {
        let key = "general.architecture";
        let name = gguf
            .get(key)
            .and_then(Value::as_str)
            .ok_or_else(|| GgufProblem::metadata(key, "missing or not text"))?;
        if let Some(kind) = gguf
            .get("general.type")
            .and_then(Value::as_str)
            .filter(|&kind| kind != "model")
        {
            return Err(GgufProblem::metadata(
                "general.type",
                format!("{kind:?} is not a model"),
            ));
        }
        split::check_whole(gguf)?;
        Ok(Self {
            gguf,
            architecture: Architecture::from_gguf(name)?,
        })
    }

    fn key(&self, suffix: &str) -> String {
        format!("{}.{suffix}", self.architecture.gguf_name())
    }

    fn get(&self, suffix: &str) -> Option<&'a Value> {
        self.gguf.get(&self.key(suffix))
    }

    /// A positive count; an array is one count when all its elements are equal.
    fn optional_count(&self, suffix: &str) -> Result<Option<usize>, GgufProblem> {
        let Some(value) = self.get(suffix) else {
            return Ok(None);
        };
        let single = match value.as_array() {
            None => value.as_u64(),
            Some(array) => {
                let values = array.to_u64s().unwrap_or_default();
                if values.iter().any(|v| Some(v) != values.first()) {
                    return Err(GgufProblem::metadata(
                        &self.key(suffix),
                        "differs between layers, which is not supported",
                    ));
                }
                values.first().copied()
            }
        };
        let count = single
            .and_then(|n| u32::try_from(n).ok())
            .filter(|&n| n > 0);
        count
            .map(|n| Some(n as usize))
            .ok_or_else(|| GgufProblem::metadata(&self.key(suffix), "not a positive count"))
    }

    fn count(&self, suffix: &str) -> Result<usize, GgufProblem> {
        self.optional_count(suffix)?
            .ok_or_else(|| GgufProblem::metadata(&self.key(suffix), "missing"))
    }

    /// The number of layers, of which the last must have tensors.
    fn layers(&self) -> Result<usize, GgufProblem> {
        let layers = self.count("block_count")?;
        if layers > MAX_LAYERS {
            let why = format!("{layers}, but a model can have {MAX_LAYERS} layers at most");
            return Err(GgufProblem::metadata(&self.key("block_count"), why));
        }
        let last = format!("blk.{}.", layers - 1);
        if !self
            .gguf
            .tensors()
            .iter()
            .any(|info| info.name.starts_with(&last))
        {
            return Err(GgufProblem::metadata(
                &self.key("block_count"),
                format!("{layers}, but no tensor is named {last}*"),
            ));
        }
        Ok(layers)
    }

    fn optional_number(&self, suffix: &str) -> Result<Option<f64>, GgufProblem> {
        let Some(value) = self.get(suffix) else {
            return Ok(None);
        };
        let number = value.as_f64().filter(|number| number.is_finite());
        number
            .map(Some)
            .ok_or_else(|| GgufProblem::metadata(&self.key(suffix), "not a finite number"))
    }

    fn number(&self, suffix: &str) -> Result<f64, GgufProblem> {
        self.optional_number(suffix)?
            .ok_or_else(|| GgufProblem::metadata(&self.key(suffix), "missing"))
    }

    fn token(&self, name: &str) -> Option<u64> {
        self.gguf
            .get(&format!("tokenizer.ggml.{name}_token_id"))
            .and_then(Value::as_u64)
    }

    fn has(&self, tensor: &str) -> bool {
        self.gguf.tensor(tensor).is_some()
    }

    fn vocab_size(&self) -> Result<usize, GgufProblem> {
        let name = "token_embd.weight";
        self.gguf
            .tensor(name)
            .map(|info| info.rows())
            .ok_or_else(|| GgufProblem::NoTensor(name.into()))
    }

    /// Adds what every family has.
    fn finish(&self, mut config: Json) -> Result<Json, GgufProblem> {
        config["vocab_size"] = self.vocab_size()?.into();
        config["tie_word_embeddings"] = (!self.has("output.weight")).into();
        let eos = self.token("eos");
        // Chat models end a turn with another token than a text.
        let eot = self
            .token("eot")
            .filter(|_| eos.is_some())
            .filter(|&eot| Some(eot) != eos);
        let ids = [
            ("bos_token_id", json!(self.token("bos"))),
            (
                "eos_token_id",
                eot.map_or(json!(eos), |eot| json!([eos, eot])),
            ),
            ("pad_token_id", json!(self.token("padding"))),
        ];
        for (key, id) in ids.into_iter().filter(|(_, id)| !id.is_null()) {
            config[key] = id;
        }
        config["torch_dtype"] = "float32".into();
        Ok(config)
    }
}

fn gpt2(keys: &Keys<'_>) -> Result<Json, GgufProblem> {
    let embd = keys.count("embedding_length")?;
    let heads = keys.count("attention.head_count")?;
    let head = embd / heads;
    let widths = Widths {
        head,
        scaled_by: head,
    };
    foreign::check(keys.gguf, keys.architecture, widths)?;
    keys.finish(json!({
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "activation_function": "gelu_new",
        "n_embd": embd,
        "n_head": heads,
        "n_inner": keys.optional_count("feed_forward_length")?.unwrap_or(4 * embd),
        "n_layer": keys.layers()?,
        "n_positions": keys.count("context_length")?,
        "layer_norm_epsilon": keys.number("attention.layer_norm_epsilon")?,
    }))
}

fn decoder<C: Content + ?Sized>(keys: &Keys<'_>, all: &C) -> Result<Json, GgufProblem> {
    if keys.optional_number_or_count("expert_count")? {
        return Err(GgufProblem::metadata(
            &keys.key("expert_count"),
            "mixtures of experts are not supported",
        ));
    }
    let hidden = keys.count("embedding_length")?;
    let heads = keys.count("attention.head_count")?;
    let layers = keys.layers()?;
    let head_dim = keys
        .optional_count("attention.key_length")?
        .unwrap_or(hidden / heads);
    for suffix in ["attention.value_length", "rope.dimension_count"] {
        if let Some(other) = keys
            .optional_count(suffix)?
            .filter(|&other| other != head_dim)
        {
            return Err(GgufProblem::metadata(
                &keys.key(suffix),
                format!("{other} differs from the head dimension {head_dim}"),
            ));
        }
    }
    let scaled_by = match (keys.architecture, layers) {
        (Architecture::Gemma3, GEMMA3_27B_LAYERS) => hidden / heads,
        _ => head_dim,
    };
    let widths = Widths {
        head: head_dim,
        scaled_by,
    };
    foreign::check(keys.gguf, keys.architecture, widths)?;
    let theta = keys.optional_number("rope.freq_base")?.unwrap_or(10_000.0);
    let window = keys.optional_count("attention.sliding_window")?;
    let mut config = json!({
        "architectures": [],
        "model_type": "",
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": keys.count("feed_forward_length")?,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": keys.optional_count("attention.head_count_kv")?.unwrap_or(heads),
        "head_dim": head_dim,
        "max_position_embeddings": keys.count("context_length")?,
        "rms_norm_eps": keys.number("attention.layer_norm_rms_epsilon")?,
        "rope_theta": theta,
        "rope_scaling": rope_scaling(keys, all, theta, head_dim)?,
    });
    let (model_type, class) = match keys.architecture {
        Architecture::Llama if window.is_some() => ("mistral", "MistralForCausalLM"),
        Architecture::Llama => ("llama", "LlamaForCausalLM"),
        Architecture::Qwen2 => ("qwen2", "Qwen2ForCausalLM"),
        Architecture::Qwen3 => ("qwen3", "Qwen3ForCausalLM"),
        Architecture::Gemma3 => ("gemma3_text", "Gemma3ForCausalLM"),
        Architecture::Gpt2 => ("gpt2", "GPT2LMHeadModel"),
    };
    config["model_type"] = model_type.into();
    config["architectures"] = json!([class]);
    match keys.architecture {
        Architecture::Gemma3 => gemma3(keys, &mut config, layers, head_dim, hidden / heads)?,
        Architecture::Llama if window.is_some() => config["sliding_window"] = json!(window),
        Architecture::Llama => {
            config["attention_bias"] = keys.has("blk.0.attn_q.bias").into();
            config["mlp_bias"] = keys.has("blk.0.ffn_up.bias").into();
        }
        _ => {
            config["use_sliding_window"] = false.into();
            config["sliding_window"] = Json::Null;
        }
    }
    keys.finish(config)
}

fn gemma3(
    keys: &Keys<'_>,
    config: &mut Json,
    layers: usize,
    head_dim: usize,
    hidden_per_head: usize,
) -> Result<(), GgufProblem> {
    let pattern_key = "attention.sliding_window_pattern";
    let full: Vec<bool> = match keys.get(pattern_key) {
        Some(Value::Array(super::Array::Bool(sliding))) if sliding.len() == layers => {
            sliding.iter().map(|sliding| !sliding).collect()
        }
        Some(Value::Array(_)) => {
            return Err(GgufProblem::metadata(
                &keys.key(pattern_key),
                "not one truth value per layer",
            ));
        }
        _ => {
            let pattern = keys.optional_count(pattern_key)?.unwrap_or(GEMMA3_PATTERN);
            config["sliding_window_pattern"] = pattern.into();
            (0..layers)
                .map(|layer| (layer + 1) % pattern == 0)
                .collect()
        }
    };
    if let Some(object) = config.as_object_mut() {
        object.remove("hidden_act");
    }
    let kinds = full.iter().map(|&full| {
        if full {
            "full_attention"
        } else {
            "sliding_attention"
        }
    });
    config["layer_types"] = kinds.collect::<Vec<_>>().into();
    config["hidden_activation"] = "gelu_pytorch_tanh".into();
    config["query_pre_attn_scalar"] = if layers == GEMMA3_27B_LAYERS {
        hidden_per_head
    } else {
        head_dim
    }
    .into();
    config["rope_local_base_freq"] = keys
        .optional_number("rope.freq_base_swa")?
        .unwrap_or(10_000.0)
        .into();
    config["sliding_window"] = keys.count("attention.sliding_window")?.into();
    config["attention_bias"] = false.into();
    config["attn_logit_softcapping"] = Json::Null;
    config["final_logit_softcapping"] = json!(keys.optional_number("final_logit_softcapping")?);
    Ok(())
}

fn rope_scaling<C: Content + ?Sized>(
    keys: &Keys<'_>,
    all: &C,
    theta: f64,
    head_dim: usize,
) -> Result<Json, GgufProblem> {
    if let Some(info) = keys.gguf.tensor(ROPE_FREQS) {
        let table = keys
            .gguf
            .tensor_f32(all, ROPE_FREQS)
            .map_err(|error| error.problem)?;
        if table.len() != head_dim / 2 {
            let dims = info.dims.iter().map(|&dim| dim as u64).collect();
            return Err(GgufProblem::Dims {
                name: ROPE_FREQS.into(),
                dims,
                why: format!("expected {} elements", head_dim / 2),
            });
        }
        let Some(settings) = Llama3::from_table(&table, theta)? else {
            return Ok(Json::Null);
        };
        return Ok(json!({
            "rope_type": "llama3",
            "factor": settings.factor,
            "low_freq_factor": settings.low_freq_factor,
            "high_freq_factor": settings.high_freq_factor,
            "original_max_position_embeddings": settings.original as u64,
        }));
    }
    // Files before GGUF settled on `scaling.factor`.
    let factor = keys
        .optional_number("rope.scaling.factor")?
        .or(keys.optional_number("rope.scale_linear")?);
    let kind = match keys.get("rope.scaling.type") {
        Some(value) => value
            .as_str()
            .ok_or_else(|| GgufProblem::metadata(&keys.key("rope.scaling.type"), "not text"))?,
        None if factor.is_some_and(|factor| factor != 1.0) => "linear",
        None => "none",
    };
    let factor =
        || factor.ok_or_else(|| GgufProblem::metadata(&keys.key("rope.scaling.factor"), "missing"));
    match kind {
        "none" => Ok(Json::Null),
        "linear" => Ok(json!({"rope_type": "linear", "factor": factor()?})),
        "yarn" => Ok(json!({
            "rope_type": "yarn",
            "factor": factor()?,
            "original_max_position_embeddings": keys.count("rope.scaling.original_context_length")?,
        })),
        other => Err(GgufProblem::metadata(
            &keys.key("rope.scaling.type"),
            format!("{other:?} is not supported"),
        )),
    }
}

impl Keys<'_> {
    /// Whether the key holds something other than zero.
    fn optional_number_or_count(&self, suffix: &str) -> Result<bool, GgufProblem> {
        match self.get(suffix) {
            None => Ok(false),
            Some(value) => value
                .as_u64()
                .map(|n| n > 0)
                .ok_or_else(|| GgufProblem::metadata(&self.key(suffix), "not a count")),
        }
    }
}
