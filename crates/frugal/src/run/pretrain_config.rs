//! What a pre-training run is: its configuration, and the model that it describes.

use std::path::PathBuf;

use frugal_core::tokenizer::TextTokenizer;
use frugal_models::save::StoredType;
use frugal_models::{ModelConfig, registry};
use frugal_train::{Named, Scheduler, TrainConfig};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{RunError, pretrain_memory};

/// Marks the end of a document.
pub(super) const END: &str = "<|endoftext|>";

/// Sizes of the new model, a decoder with tied embeddings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Shape {
    /// Which architecture.
    pub arch: Arch,
    /// Tokens of the new tokenizer.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward layer.
    pub intermediate_size: usize,
    /// Blocks.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads.
    pub num_key_value_heads: usize,
    /// Longest sequence.
    pub max_position_embeddings: usize,
    /// How blocks attend.
    pub attention: AttentionKind,
    /// Latent attention: width of what is remembered of a token; four heads by default.
    pub kv_lora_rank: Option<usize>,
    /// Latent attention: rotated part of a head; half a head by default.
    pub qk_rope_head_dim: Option<usize>,
    /// Experts of a block; 0 for a plain feed-forward layer.
    pub num_local_experts: usize,
    /// Experts that each token goes through.
    pub num_experts_per_tok: usize,
    /// Weight of the loss that keeps the load of the experts even.
    pub router_aux_loss_coef: f64,
    /// Mamba: numbers that each channel remembers.
    pub state_size: usize,
    /// Mamba: channels of a block for each of the residual stream.
    pub expand: usize,
    /// Mamba: taps of the convolution.
    pub conv_kernel: usize,
}

/// What a new model is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Arch {
    /// Attention and feed-forward layers, of the kinds that `attention` and `num_local_experts`
    /// say.
    #[default]
    Llama,
    /// Selective state spaces, without attention.
    Mamba,
}

/// Ways to attend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AttentionKind {
    /// Keys and values for groups of heads: `num_key_value_heads` from 1 (multi-query) to the
    /// number of heads (multi-head).
    #[default]
    Grouped,
    /// Multi-head latent attention.
    Latent,
    /// Native sparse attention.
    Sparse,
}

impl Shape {
    /// Rows of a projection to queries that belong to one head.
    fn head_dim(&self) -> usize {
        (self.hidden_size / self.num_attention_heads.max(1)).max(1)
    }
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            arch: Arch::Llama,
            vocab_size: 4096,
            hidden_size: 192,
            intermediate_size: 512,
            num_hidden_layers: 6,
            num_attention_heads: 6,
            num_key_value_heads: 2,
            max_position_embeddings: 1024,
            attention: AttentionKind::Grouped,
            kv_lora_rank: None,
            qk_rope_head_dim: None,
            num_local_experts: 0,
            num_experts_per_tok: 2,
            router_aux_loss_coef: 0.01,
            state_size: 16,
            expand: 2,
            conv_kernel: 4,
        }
    }
}

/// A pre-training run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PretrainConfig {
    /// Text file; each line, or each block between blank lines, is a document.
    pub data: String,
    /// Share of the documents held out to measure on.
    pub validation_share: f64,
    /// Longest piece of a document in tokens.
    pub max_length: usize,
    /// Output folder.
    pub out: PathBuf,
    /// Where to compute.
    pub device: String,
    /// Decides every random choice.
    pub seed: u64,
    /// Number format of the saved weights.
    pub dtype: StoredType,
    /// Sizes.
    pub shape: Shape,
    /// What the linear layers of the blocks are while they are trained, by its name in
    /// [`REPARAMETERIZATIONS`](frugal_adapt::pretraining::REPARAMETERIZATIONS), with settings of its
    /// own; plain weights where there is none.
    #[serde(skip_serializing_if = "Named::is_unset")]
    pub reparam: Named,
    /// Training.
    pub train: TrainConfig,
}

impl Default for PretrainConfig {
    fn default() -> Self {
        Self {
            data: String::new(),
            validation_share: 0.01,
            max_length: 256,
            out: PathBuf::new(),
            device: "cpu".into(),
            seed: 0,
            dtype: StoredType::F16,
            shape: Shape::default(),
            reparam: Named::default(),
            train: TrainConfig {
                lr: 3e-3,
                epochs: 1.0,
                packing: true,
                max_tokens: 4096,
                weight_decay: 0.1,
                adam_beta2: 0.95,
                lr_scheduler_type: Scheduler::Cosine,
                warmup_ratio: 0.02,
                min_lr_ratio: 0.05,
                group_by_length: false,
                ..TrainConfig::default()
            },
        }
    }
}

impl PretrainConfig {
    /// Fills in what depends on other settings.
    pub fn resolve(&mut self) {
        self.train.seed = self.seed;
        pretrain_memory::resolve(&mut self.train, &self.reparam, self.shape.head_dim());
    }

    /// Checks values, not files: (dotted key, what is wrong).
    pub fn problems(&self) -> Vec<(String, String)> {
        let mut found = Vec::new();
        let mut add = |key: &str, reason: String| found.push((key.to_owned(), reason));
        if self.data.is_empty() {
            add("data", "no text: give `--data FILE`".into());
        }
        if self.out.as_os_str().is_empty() {
            add("out", "no output folder: give `--out DIR`".into());
        }
        if !(self.validation_share > 0.0 && self.validation_share < 1.0) {
            add(
                "validation_share",
                format!(
                    "{} given, but it must be above 0 and below 1",
                    self.validation_share
                ),
            );
        }
        if self.max_length < 2 || self.max_length > self.shape.max_position_embeddings {
            add(
                "max_length",
                format!(
                    "{} given, but it must be 2 to shape.max_position_embeddings",
                    self.max_length
                ),
            );
        }
        let s = &self.shape;
        let with_attention = s.arch == Arch::Llama;
        if !with_attention && (s.attention != AttentionKind::Grouped || s.num_local_experts > 0) {
            add(
                "shape.arch",
                "mamba has no attention and no experts: leave `attention` and `num_local_experts` out".into(),
            );
        }
        let sizes = [
            ("state_size", s.state_size),
            ("expand", s.expand),
            ("conv_kernel", s.conv_kernel),
        ];
        for (key, size) in sizes {
            if size == 0 || size > 1024 {
                let reason = format!("{size} given, but it must be 1 to 1024");
                add(&format!("shape.{key}"), reason);
            }
        }
        if with_attention
            && (s.num_attention_heads == 0
                || !s
                    .hidden_size
                    .is_multiple_of(2 * s.num_attention_heads.max(1)))
        {
            add(
                "shape.hidden_size",
                format!(
                    "{} must be a multiple of twice the {} heads",
                    s.hidden_size, s.num_attention_heads
                ),
            );
        }
        if s.num_local_experts > 0 && s.attention != AttentionKind::Grouped {
            add(
                "shape.num_local_experts",
                "experts go with grouped attention only".into(),
            );
        }
        if s.num_local_experts > 0 && !(1..=s.num_local_experts).contains(&s.num_experts_per_tok) {
            add(
                "shape.num_experts_per_tok",
                format!(
                    "{} of {} experts",
                    s.num_experts_per_tok, s.num_local_experts
                ),
            );
        }
        if s.qk_rope_head_dim
            .is_some_and(|width| width == 0 || !width.is_multiple_of(2))
        {
            add(
                "shape.qk_rope_head_dim",
                "rotary positions need an even width".into(),
            );
        }
        if let Err(error) = crate::device::known(&self.device) {
            add("device", error.to_string());
        }
        let mut train = self.train.clone();
        pretrain_memory::resolve(&mut train, &Named::default(), self.shape.head_dim());
        for problem in train.validate().err().into_iter().flatten() {
            add(&format!("train.{}", problem.field), problem.reason);
        }
        found.extend(pretrain_memory::problems(&self.reparam, &self.train));
        found
    }

    pub(super) fn model(&self, tokenizer: &TextTokenizer) -> Result<ModelConfig, RunError> {
        let s = &self.shape;
        let end = tokenizer.id(END);
        if s.arch == Arch::Mamba {
            return self.mamba(end);
        }
        let head_dim = s.hidden_size / s.num_attention_heads;
        let model_type = match s.attention {
            AttentionKind::Latent => "deepseek_v3",
            AttentionKind::Sparse => "native_sparse",
            AttentionKind::Grouped if s.num_local_experts > 0 => "mixtral",
            AttentionKind::Grouped => "llama",
        };
        let class = registry::find(model_type).map(|family| family.class);
        let mut raw = json!({
            "architectures": [class], "model_type": model_type, "vocab_size": s.vocab_size, "hidden_size": s.hidden_size,
            "intermediate_size": s.intermediate_size, "num_hidden_layers": s.num_hidden_layers,
            "num_attention_heads": s.num_attention_heads, "num_key_value_heads": s.num_key_value_heads,
            "head_dim": head_dim, "max_position_embeddings": s.max_position_embeddings,
            "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": true,
            "attention_bias": false, "mlp_bias": false, "initializer_range": 0.02, "bos_token_id": end, "eos_token_id": end,
            "pad_token_id": end, "dtype": self.dtype.torch_name(),
        });
        let rope = s.qk_rope_head_dim.unwrap_or(head_dim / 2);
        let more = match s.attention {
            AttentionKind::Latent => json!({
                "q_lora_rank": null, "kv_lora_rank": s.kv_lora_rank.unwrap_or(4 * head_dim), "qk_nope_head_dim": head_dim,
                "qk_rope_head_dim": rope, "v_head_dim": head_dim, "head_dim": rope, "rope_interleave": false,
                "first_k_dense_replace": s.num_hidden_layers, "num_key_value_heads": s.num_attention_heads,
            }),
            AttentionKind::Grouped if s.num_local_experts > 0 => json!({
                "num_local_experts": s.num_local_experts, "num_experts_per_tok": s.num_experts_per_tok,
                "router_aux_loss_coef": s.router_aux_loss_coef,
            }),
            _ => json!({}),
        };
        if let (Some(raw), Some(more)) = (raw.as_object_mut(), more.as_object()) {
            raw.extend(more.clone());
        }
        Ok(ModelConfig::from_json(raw, "shape")?)
    }

    fn mamba(&self, end: Option<u32>) -> Result<ModelConfig, RunError> {
        let s = &self.shape;
        let class = registry::find("mamba").map(|family| family.class);
        let raw = json!({
            "architectures": [class], "model_type": "mamba", "vocab_size": s.vocab_size, "hidden_size": s.hidden_size,
            "num_hidden_layers": s.num_hidden_layers, "state_size": s.state_size, "expand": s.expand,
            "intermediate_size": s.expand * s.hidden_size, "conv_kernel": s.conv_kernel, "use_bias": false,
            "use_conv_bias": true, "hidden_act": "silu", "layer_norm_epsilon": 1e-5, "initializer_range": 0.1,
            "time_step_rank": s.hidden_size.div_ceil(16), "tie_word_embeddings": true, "bos_token_id": end,
            "eos_token_id": end, "pad_token_id": end, "dtype": self.dtype.torch_name(),
        });
        Ok(ModelConfig::from_json(raw, "shape")?)
    }
}
