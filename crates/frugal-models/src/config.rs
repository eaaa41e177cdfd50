//! Model configuration: a Hugging Face `config.json`, read into one structure for every backbone.
//!
//! Both spellings of the rotary settings are understood: `rope_theta` + `rope_scaling`
//! (transformers 4) and `rope_parameters` (transformers 5).

mod read;

use serde_json::Value;

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
    /// DeepSeek V3 without experts: keys and values from one narrow vector per token (multi-head
    /// latent attention).
    DeepseekV3,
    /// Native sparse attention, as described in arXiv 2502.11089; a type of our own, as no public
    /// format exists.
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
        Self::ALL
            .iter()
            .find(|(_, t)| *t == self)
            .map_or("unknown", |(name, _)| name)
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

/// Latent attention: what is remembered of a token is one narrow vector, from which all heads' keys
/// and values are made.
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

/// Native sparse attention: compressed blocks, selected blocks and a window, each with keys and
/// values of its own.
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

impl ModelConfig {
    /// Whether the model was saved with a classification head.
    pub fn is_classifier(&self) -> bool {
        read::is_classifier(&self.raw)
    }

    /// Width of the part of a head that is rotated.
    pub fn rotary_dim(&self) -> usize {
        self.latent
            .map_or(self.head_dim, |latent| latent.qk_rope_head_dim)
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

    /// Width of a row of keys or values that a method may put in front of a sequence; 0 where
    /// attention has no such rows.
    pub fn key_value_width(&self) -> usize {
        if self.latent.is_some() || self.sparse.is_some() {
            0
        } else {
            self.num_key_value_heads * self.head_dim
        }
    }

    /// Longest sequence in tokens that the positions cover.
    pub fn max_sequence(&self) -> usize {
        match self.model_type {
            // RoBERTa's position table starts at `padding id + 1`.
            ModelType::Roberta => self
                .max_position_embeddings
                .saturating_sub(self.first_position() as usize),
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
