//! Model configuration: a Hugging Face `config.json`, read into one structure for every backbone.
//!
//! Both spellings of the rotary settings are understood: `rope_theta` + `rope_scaling` (transformers 4)
//! and `rope_parameters` (transformers 5).

use serde_json::Value;

use super::ModelError;

/// The architectures that the backbones cover, by Hugging Face's `model_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ModelType {
    /// Llama 2 and 3, SmolLM2.
    Llama,
    /// Mistral: Llama with sliding-window attention.
    Mistral,
    /// Qwen 2 and 2.5: Llama with biases on query, key and value.
    Qwen2,
    /// Qwen 3: Llama with normalised queries and keys.
    Qwen3,
    /// Gemma 3, text only: sandwich norms, alternating local and global attention.
    Gemma3Text,
    /// Mixtral: Llama with a mixture of experts in every block.
    Mixtral,
    /// DeepSeek V3 without experts: keys and values from one narrow vector per token (multi-head latent attention).
    DeepseekV3,
    /// Native sparse attention, as described in arXiv 2502.11089; a type of our own, as no public format exists.
    NativeSparse,
    /// GPT-2: learned positions, fused query/key/value.
    Gpt2,
    /// BERT and its sentence-embedding descendants.
    Bert,
    /// RoBERTa: BERT with shifted positions.
    Roberta,
}

impl ModelType {
    /// All architectures with their `model_type` spelling.
    pub const ALL: [(&'static str, ModelType); 11] = [
        ("llama", Self::Llama),
        ("mistral", Self::Mistral),
        ("qwen2", Self::Qwen2),
        ("qwen3", Self::Qwen3),
        ("gemma3_text", Self::Gemma3Text),
        ("mixtral", Self::Mixtral),
        ("deepseek_v3", Self::DeepseekV3),
        ("native_sparse", Self::NativeSparse),
        ("gpt2", Self::Gpt2),
        ("bert", Self::Bert),
        ("roberta", Self::Roberta),
    ];

    /// Hugging Face's `model_type`.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, t)| *t == self).map_or("unknown", |(name, _)| name)
    }

    /// Whether the model reads its input in both directions and has no language-model head.
    pub fn is_encoder(self) -> bool {
        matches!(self, Self::Bert | Self::Roberta)
    }

    /// Hugging Face's class of this architecture with a classification head.
    pub fn classifier_class(self) -> &'static str {
        match self {
            Self::Llama => "LlamaForSequenceClassification",
            Self::Mistral => "MistralForSequenceClassification",
            Self::Qwen2 => "Qwen2ForSequenceClassification",
            Self::Qwen3 => "Qwen3ForSequenceClassification",
            Self::Gemma3Text => "Gemma3TextForSequenceClassification",
            Self::Mixtral => "MixtralForSequenceClassification",
            Self::DeepseekV3 => "DeepseekV3ForSequenceClassification",
            Self::NativeSparse => "NativeSparseForSequenceClassification",
            Self::Gpt2 => "GPT2ForSequenceClassification",
            Self::Bert => "BertForSequenceClassification",
            Self::Roberta => "RobertaForSequenceClassification",
        }
    }

    /// The attribute under which Hugging Face's task classes keep the base model, with its dot.
    pub fn base_prefix(self) -> &'static str {
        match self {
            Self::Gpt2 => "transformer.",
            Self::Bert => "bert.",
            Self::Roberta => "roberta.",
            _ => "model.",
        }
    }
}

/// Element-wise non-linearity of the feed-forward layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x * sigmoid(x)`.
    Silu,
    /// GELU with the error function.
    Gelu,
    /// GELU in its tanh approximation.
    GeluTanh,
    /// Rectified linear.
    Relu,
}

/// How rotary frequencies are stretched beyond the trained context.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// All positions divided by `factor`.
    Linear {
        /// Divisor of the positions.
        factor: f64,
    },
    /// The base grows once a sequence is longer than the trained context.
    Dynamic {
        /// Growth factor.
        factor: f64,
    },
    /// Llama 3.1: low frequencies are divided, high ones kept, those between are blended.
    Llama3 {
        /// Divisor of the low frequencies.
        factor: f64,
        /// Wavelengths above `original / low_freq_factor` are divided in full.
        low_freq_factor: f64,
        /// Wavelengths below `original / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// Context length of the original training.
        original_max_position_embeddings: f64,
    },
    /// YaRN: as Llama 3 with a ramp over dimensions and a temperature on the attention.
    Yarn {
        /// Divisor of the low frequencies.
        factor: f64,
        /// Context length of the original training.
        original_max_position_embeddings: f64,
        /// Rotations above which a dimension is kept.
        beta_fast: f64,
        /// Rotations below which a dimension is divided in full.
        beta_slow: f64,
        /// Factor on cosine and sine.
        attention_factor: f64,
    },
}

/// Rotary position settings of one kind of layer.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeConfig {
    /// Base of the geometric sequence of wavelengths.
    pub theta: f64,
    /// Context extension.
    pub scaling: RopeScaling,
}

/// A mixture of experts in place of the feed-forward layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ExpertsConfig {
    /// Experts of a block.
    pub num_local_experts: usize,
    /// Experts that each token goes through.
    pub num_experts_per_tok: usize,
    /// Weight of the loss that keeps the load even.
    pub router_aux_loss_coef: f64,
}

/// Latent attention: what is remembered of a token is one narrow vector, from which all heads' keys and values are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LatentConfig {
    /// Width of the queries' narrow vector; `None` for queries straight from the hidden states.
    pub q_lora_rank: Option<usize>,
    /// Width of the keys' and values' narrow vector.
    pub kv_lora_rank: usize,
    /// Part of a query or key head without position.
    pub qk_nope_head_dim: usize,
    /// Part of a query or key head that is rotated; the key's is shared by all heads.
    pub qk_rope_head_dim: usize,
    /// Width of a value head.
    pub v_head_dim: usize,
    /// Whether rotated pairs are neighbours rather than halves apart.
    pub rope_interleave: bool,
}

/// Native sparse attention: compressed blocks, selected blocks and a window, each with keys and values of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SparseConfig {
    /// Tokens of a compressed block.
    pub compress_block: usize,
    /// Tokens between the starts of two compressed blocks.
    pub compress_stride: usize,
    /// Tokens of a block that is selected as a whole.
    pub select_block: usize,
    /// Blocks selected for each query, the first and the two most recent ones among them.
    pub select_count: usize,
    /// Tokens of the window.
    pub window: usize,
}

/// Settings that define a backbone's shape and arithmetic.
#[derive(Clone, Debug)]
pub struct ModelConfig {
    /// Architecture.
    pub model_type: ModelType,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward layer.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads.
    pub num_key_value_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Rows of the token table.
    pub vocab_size: usize,
    /// Longest sequence that the positions cover.
    pub max_position_embeddings: usize,
    /// Epsilon of the norms.
    pub norm_eps: f64,
    /// Feed-forward non-linearity.
    pub activation: Activation,
    /// Rotary settings of full-attention layers; `None` for learned positions.
    pub rope: Option<RopeConfig>,
    /// Rotary settings of sliding-window layers where they differ.
    pub rope_local: Option<RopeConfig>,
    /// Whether the output head shares the token table.
    pub tie_word_embeddings: bool,
    /// Window of sliding-window layers.
    pub sliding_window: Option<usize>,
    /// For each block, whether it attends within the window only.
    pub sliding_layers: Vec<bool>,
    /// Scale of attention scores.
    pub attention_scale: f64,
    /// Cap on the logits of the head: `cap * tanh(x / cap)`.
    pub final_logit_softcapping: Option<f64>,
    /// Whether query, key and value projections have biases.
    pub qkv_bias: bool,
    /// Whether the attention output projection has a bias.
    pub output_bias: bool,
    /// Whether the feed-forward projections have biases.
    pub mlp_bias: bool,
    /// Mixture of experts.
    pub experts: Option<ExpertsConfig>,
    /// Latent attention.
    pub latent: Option<LatentConfig>,
    /// Native sparse attention.
    pub sparse: Option<SparseConfig>,
    /// Segment types of an encoder.
    pub type_vocab_size: usize,
    /// Padding id, which RoBERTa's positions start from and decoder heads look for.
    pub pad_token_id: Option<u32>,
    /// The file as read, so that what is not used here is written back unchanged.
    pub raw: Value,
}

struct Reader<'a> {
    value: &'a Value,
    source: &'a str,
}

impl Reader<'_> {
    fn bad(&self, key: &str, reason: impl Into<String>) -> ModelError {
        ModelError::Config { source_name: self.source.into(), key: key.into(), reason: reason.into() }
    }

    fn get(&self, key: &str) -> Option<&Value> {
        self.value.get(key).filter(|v| !v.is_null())
    }

    fn size(&self, key: &str) -> Result<usize, ModelError> {
        self.opt_size(key)?.ok_or_else(|| self.bad(key, "the key is missing"))
    }

    fn opt_size(&self, key: &str) -> Result<Option<usize>, ModelError> {
        let Some(v) = self.get(key) else { return Ok(None) };
        match v.as_u64() {
            // A bound that no real model reaches keeps products of sizes from overflowing.
            Some(n) if n > 0 && n < (1 << 31) => Ok(Some(n as usize)),
            _ => Err(self.bad(key, format!("expected a positive whole number, found {v}"))),
        }
    }

    fn float(&self, key: &str, default: f64) -> Result<f64, ModelError> {
        match self.get(key) {
            None => Ok(default),
            Some(v) => v.as_f64().ok_or_else(|| self.bad(key, format!("expected a number, found {v}"))),
        }
    }

    fn flag(&self, key: &str, default: bool) -> Result<bool, ModelError> {
        match self.get(key) {
            None => Ok(default),
            Some(v) => v.as_bool().ok_or_else(|| self.bad(key, format!("expected true or false, found {v}"))),
        }
    }

    fn rope(&self, theta: f64, block: Option<&Value>, max_positions: usize) -> Result<RopeConfig, ModelError> {
        let Some(block) = block else {
            return Ok(RopeConfig { theta, scaling: RopeScaling::None });
        };
        let r = Reader { value: block, source: self.source };
        let theta = r.float("rope_theta", theta)?;
        let kind = r.get("rope_type").or_else(|| r.get("type")).and_then(Value::as_str).unwrap_or("default");
        let original = r.float("original_max_position_embeddings", max_positions as f64)?;
        let factor = r.float("factor", 1.0)?;
        let scaling = match kind {
            "default" => RopeScaling::None,
            "linear" => RopeScaling::Linear { factor },
            "dynamic" => RopeScaling::Dynamic { factor },
            "llama3" => RopeScaling::Llama3 {
                factor,
                low_freq_factor: r.float("low_freq_factor", 1.0)?,
                high_freq_factor: r.float("high_freq_factor", 4.0)?,
                original_max_position_embeddings: original,
            },
            "yarn" => RopeScaling::Yarn {
                factor,
                original_max_position_embeddings: original,
                beta_fast: r.float("beta_fast", 32.0)?,
                beta_slow: r.float("beta_slow", 1.0)?,
                attention_factor: r.float("attention_factor", 0.1 * factor.ln() + 1.0)?,
            },
            other => {
                return Err(
                    self.bad("rope_scaling", format!("kind `{other}` is not supported; supported: default, linear, dynamic, llama3, yarn"))
                );
            }
        };
        if factor <= 0.0 || theta <= 0.0 {
            return Err(self.bad("rope_scaling", "theta and factor must be positive"));
        }
        Ok(RopeConfig { theta, scaling })
    }
}

fn is_classifier(config: &Value) -> bool {
    let class = config.get("architectures").and_then(|a| a.get(0)).and_then(Value::as_str);
    class.is_some_and(|class| class.ends_with("ForSequenceClassification"))
}

impl ModelConfig {
    /// Reads a `config.json` value; `source` names it in errors.
    ///
    /// # Errors
    /// An unsupported `model_type`, a missing key, a value of the wrong kind or sizes that do not fit.
    pub fn from_json(raw: Value, source: &str) -> Result<Self, ModelError> {
        let r = Reader { value: &raw, source };
        let name = r.get("model_type").and_then(Value::as_str).ok_or_else(|| r.bad("model_type", "the key is missing"))?;
        let Some(&(_, model_type)) = ModelType::ALL.iter().find(|(n, _)| *n == name) else {
            return Err(ModelError::Architecture { source_name: source.into(), model_type: name.into() });
        };
        let config = match model_type {
            ModelType::Gpt2 => Self::gpt2(&r)?,
            t if t.is_encoder() => Self::encoder(&r, t)?,
            t => Self::decoder(&r, t)?,
        };
        config.check(&r)?;
        // A decoder that was saved as a classifier has no output over the vocabulary; the token table stands in for it.
        let tie_word_embeddings = config.tie_word_embeddings || (is_classifier(&raw) && !model_type.is_encoder());
        Ok(Self { raw, tie_word_embeddings, ..config })
    }

    /// Whether the model was saved with a classification head.
    pub fn is_classifier(&self) -> bool {
        is_classifier(&self.raw)
    }

    fn check(&self, r: &Reader<'_>) -> Result<(), ModelError> {
        if !self.num_attention_heads.is_multiple_of(self.num_key_value_heads) {
            return Err(r.bad(
                "num_key_value_heads",
                format!("{} does not divide the {} attention heads", self.num_key_value_heads, self.num_attention_heads),
            ));
        }
        if self.rope.is_some() && !self.head_dim.is_multiple_of(2) {
            return Err(r.bad("head_dim", format!("{} is odd, rotary positions need an even width", self.head_dim)));
        }
        if self.num_hidden_layers > 4096 {
            return Err(r.bad("num_hidden_layers", format!("{} blocks are more than any known model has", self.num_hidden_layers)));
        }
        Ok(())
    }

    fn decoder(r: &Reader<'_>, model_type: ModelType) -> Result<Self, ModelError> {
        let gemma = model_type == ModelType::Gemma3Text;
        let hidden_size = r.size("hidden_size")?;
        let heads = r.size("num_attention_heads")?;
        let layers = r.size("num_hidden_layers")?;
        let default_head_dim = if gemma { 256 } else { hidden_size / heads };
        let latent = if model_type == ModelType::DeepseekV3 { Some(latent(r, layers)?) } else { None };
        let head_dim = match &latent {
            // The file's `head_dim` is that of the rotated part.
            Some(latent) => latent.qk_nope_head_dim + latent.qk_rope_head_dim,
            None => r.opt_size("head_dim")?.unwrap_or(default_head_dim),
        };
        let max_positions = r.opt_size("max_position_embeddings")?.unwrap_or(if gemma { 131_072 } else { 2048 });
        let theta = r.float("rope_theta", if gemma { 1_000_000.0 } else { 10_000.0 })?;

        // transformers 5 writes `rope_parameters`, for Gemma one block per kind of layer.
        let parameters = r.get("rope_parameters");
        let block = parameters.and_then(|p| p.get("full_attention")).or(parameters).or_else(|| r.get("rope_scaling"));
        let rope = r.rope(theta, block, max_positions)?;
        let rope_local = if gemma {
            let local = r.float("rope_local_base_freq", 10_000.0)?;
            Some(r.rope(local, parameters.and_then(|p| p.get("sliding_attention")), max_positions)?)
        } else {
            None
        };

        let use_window = match model_type {
            ModelType::Qwen2 | ModelType::Qwen3 => r.flag("use_sliding_window", false)?,
            _ => true,
        };
        let sliding_window = if use_window { r.opt_size("sliding_window")? } else { None };
        let pattern = r.opt_size("sliding_window_pattern")?.or(r.opt_size("_sliding_window_pattern")?).unwrap_or(6);
        let max_window_layers = r.get("max_window_layers").and_then(Value::as_u64).unwrap_or(0) as usize;
        let sliding_layers = match r.get("layer_types").and_then(Value::as_array) {
            Some(kinds) if kinds.len() == layers => kinds.iter().map(|k| k.as_str() == Some("sliding_attention")).collect(),
            Some(kinds) => return Err(r.bad("layer_types", format!("{} entries for {layers} blocks", kinds.len()))),
            None => (0..layers)
                .map(|i| match model_type {
                    ModelType::Gemma3Text => (i + 1) % pattern != 0,
                    ModelType::Mistral | ModelType::Mixtral => true,
                    ModelType::Qwen2 | ModelType::Qwen3 => i >= max_window_layers,
                    _ => false,
                })
                .map(|sliding| sliding && sliding_window.is_some())
                .collect(),
        };
        let attention_bias = r.flag("attention_bias", model_type == ModelType::Qwen2)?;
        let scalar = r.float("query_pre_attn_scalar", head_dim as f64)?;
        Ok(Self {
            model_type,
            hidden_size,
            intermediate_size: r.size("intermediate_size")?,
            num_hidden_layers: layers,
            num_attention_heads: heads,
            num_key_value_heads: r.opt_size("num_key_value_heads")?.unwrap_or(heads),
            head_dim,
            vocab_size: r.size("vocab_size")?,
            max_position_embeddings: max_positions,
            norm_eps: r.float("rms_norm_eps", 1e-6)?,
            activation: activation(r, &["hidden_activation", "hidden_act"], if gemma { "gelu_pytorch_tanh" } else { "silu" })?,
            rope: Some(rope),
            rope_local,
            tie_word_embeddings: r.flag("tie_word_embeddings", gemma)?,
            sliding_window,
            sliding_layers,
            attention_scale: 1.0 / scalar.sqrt(),
            final_logit_softcapping: r.get("final_logit_softcapping").and_then(Value::as_f64),
            qkv_bias: attention_bias,
            output_bias: attention_bias && model_type != ModelType::Qwen2,
            mlp_bias: r.flag("mlp_bias", false)?,
            experts: if model_type == ModelType::Mixtral { Some(experts(r)?) } else { None },
            latent,
            sparse: if model_type == ModelType::NativeSparse { Some(sparse(r)?) } else { None },
            type_vocab_size: 0,
            pad_token_id: token_id(r, "pad_token_id"),
            raw: Value::Null,
        })
    }

    fn gpt2(r: &Reader<'_>) -> Result<Self, ModelError> {
        let hidden_size = r.size("n_embd")?;
        let heads = r.size("n_head")?;
        let layers = r.size("n_layer")?;
        let positions = r.size("n_positions")?;
        for key in ["scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn"] {
            if r.flag(key, false)? {
                return Err(r.bad(key, "this GPT-2 variant is not supported"));
            }
        }
        Ok(Self {
            model_type: ModelType::Gpt2,
            hidden_size,
            intermediate_size: r.opt_size("n_inner")?.unwrap_or(4 * hidden_size),
            num_hidden_layers: layers,
            num_attention_heads: heads,
            num_key_value_heads: heads,
            head_dim: hidden_size / heads,
            vocab_size: r.size("vocab_size")?,
            max_position_embeddings: positions,
            norm_eps: r.float("layer_norm_epsilon", 1e-5)?,
            activation: activation(r, &["activation_function"], "gelu_new")?,
            rope: None,
            rope_local: None,
            tie_word_embeddings: r.flag("tie_word_embeddings", true)?,
            sliding_window: None,
            sliding_layers: vec![false; layers],
            attention_scale: if r.flag("scale_attn_weights", true)? { 1.0 / ((hidden_size / heads) as f64).sqrt() } else { 1.0 },
            final_logit_softcapping: None,
            qkv_bias: true,
            output_bias: true,
            mlp_bias: true,
            experts: None,
            latent: None,
            sparse: None,
            type_vocab_size: 0,
            pad_token_id: token_id(r, "pad_token_id"),
            raw: Value::Null,
        })
    }

    fn encoder(r: &Reader<'_>, model_type: ModelType) -> Result<Self, ModelError> {
        let hidden_size = r.size("hidden_size")?;
        let heads = r.size("num_attention_heads")?;
        let layers = r.size("num_hidden_layers")?;
        let positions = r.get("position_embedding_type").and_then(Value::as_str).unwrap_or("absolute");
        if positions != "absolute" {
            return Err(r.bad("position_embedding_type", format!("`{positions}` is not supported, only `absolute`")));
        }
        Ok(Self {
            model_type,
            hidden_size,
            intermediate_size: r.size("intermediate_size")?,
            num_hidden_layers: layers,
            num_attention_heads: heads,
            num_key_value_heads: heads,
            head_dim: hidden_size / heads,
            vocab_size: r.size("vocab_size")?,
            max_position_embeddings: r.size("max_position_embeddings")?,
            norm_eps: r.float("layer_norm_eps", 1e-12)?,
            activation: activation(r, &["hidden_act"], "gelu")?,
            rope: None,
            rope_local: None,
            tie_word_embeddings: true,
            sliding_window: None,
            sliding_layers: vec![false; layers],
            attention_scale: 1.0 / ((hidden_size / heads) as f64).sqrt(),
            final_logit_softcapping: None,
            qkv_bias: true,
            output_bias: true,
            mlp_bias: true,
            experts: None,
            latent: None,
            sparse: None,
            type_vocab_size: r.opt_size("type_vocab_size")?.unwrap_or(2),
            pad_token_id: token_id(r, "pad_token_id").or(Some(if model_type == ModelType::Roberta { 1 } else { 0 })),
            raw: Value::Null,
        })
    }

    /// Width of the part of a head that is rotated.
    pub fn rotary_dim(&self) -> usize {
        self.latent.map_or(self.head_dim, |latent| latent.qk_rope_head_dim)
    }

    /// Numbers that a block remembers of each token while it generates.
    pub fn cache_width(&self) -> usize {
        match (&self.latent, &self.sparse) {
            (Some(latent), _) => latent.kv_lora_rank + latent.qk_rope_head_dim,
            // Each branch has keys and values of its own.
            (None, Some(_)) => 3 * 2 * self.num_key_value_heads * self.head_dim,
            (None, None) => 2 * self.num_key_value_heads * self.head_dim,
        }
    }

    /// Longest sequence in tokens that the positions cover.
    pub fn max_sequence(&self) -> usize {
        match self.model_type {
            // RoBERTa's position table starts at `padding id + 1`.
            ModelType::Roberta => self.max_position_embeddings.saturating_sub(self.first_position() as usize),
            _ => self.max_position_embeddings,
        }
    }

    /// Position of a sequence's first token.
    pub fn first_position(&self) -> u32 {
        match self.model_type {
            ModelType::Roberta => self.pad_token_id.unwrap_or(1) + 1,
            _ => 0,
        }
    }
}

fn experts(r: &Reader<'_>) -> Result<ExpertsConfig, ModelError> {
    let num_local_experts = r.size("num_local_experts")?;
    let num_experts_per_tok = r.opt_size("num_experts_per_tok")?.unwrap_or(2);
    if num_experts_per_tok > num_local_experts {
        return Err(r.bad("num_experts_per_tok", format!("{num_experts_per_tok} of {num_local_experts} experts")));
    }
    Ok(ExpertsConfig { num_local_experts, num_experts_per_tok, router_aux_loss_coef: r.float("router_aux_loss_coef", 0.001)? })
}

fn latent(r: &Reader<'_>, layers: usize) -> Result<LatentConfig, ModelError> {
    if r.get("first_k_dense_replace").and_then(Value::as_u64).unwrap_or(3) < layers as u64 {
        return Err(r.bad("first_k_dense_replace", "blocks with experts are not supported for this architecture: only dense ones are"));
    }
    let scaling = r.get("rope_parameters").or_else(|| r.get("rope_scaling"));
    if scaling.and_then(|s| s.get("mscale_all_dim")).and_then(Value::as_f64).is_some_and(|m| m != 0.0) {
        return Err(r.bad("rope_scaling", "`mscale_all_dim` is not supported"));
    }
    let latent = LatentConfig {
        q_lora_rank: r.opt_size("q_lora_rank")?,
        kv_lora_rank: r.size("kv_lora_rank")?,
        qk_nope_head_dim: r.size("qk_nope_head_dim")?,
        qk_rope_head_dim: r.size("qk_rope_head_dim")?,
        v_head_dim: r.size("v_head_dim")?,
        rope_interleave: r.flag("rope_interleave", true)?,
    };
    if !latent.qk_rope_head_dim.is_multiple_of(2) {
        return Err(r.bad("qk_rope_head_dim", "rotary positions need an even width"));
    }
    Ok(latent)
}

fn sparse(r: &Reader<'_>) -> Result<SparseConfig, ModelError> {
    let size = |key: &str, default: usize| Ok::<_, ModelError>(r.opt_size(key)?.unwrap_or(default));
    let sparse = SparseConfig {
        compress_block: size("compress_block", 16)?,
        compress_stride: size("compress_stride", 8)?,
        select_block: size("select_block", 16)?,
        select_count: size("select_count", 4)?,
        window: size("window", 64)?,
    };
    if sparse.select_count < 3 {
        return Err(r.bad("select_count", "the first and the two most recent blocks are always selected: at least 3"));
    }
    Ok(sparse)
}

fn token_id(r: &Reader<'_>, key: &str) -> Option<u32> {
    r.get(key).and_then(Value::as_u64).and_then(|id| u32::try_from(id).ok())
}

fn activation(r: &Reader<'_>, keys: &[&str], default: &str) -> Result<Activation, ModelError> {
    let (key, name) = keys.iter().find_map(|k| r.get(k).and_then(Value::as_str).map(|v| (*k, v))).unwrap_or((keys[0], default));
    Ok(match name {
        "silu" | "swish" => Activation::Silu,
        "gelu" => Activation::Gelu,
        "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Activation::GeluTanh,
        "relu" => Activation::Relu,
        other => return Err(r.bad(key, format!("activation `{other}` is not supported"))),
    })
}
