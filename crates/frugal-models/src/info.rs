//! What adapters, training and decoding may know of a model of this configuration.

use frugal_nn::{BackboneInfo, HeadLayout, UsualTargets};

use crate::config::{ModelConfig, ModelType};

impl ModelConfig {
    /// Sizes and names.
    pub fn info(&self) -> BackboneInfo {
        let t = self.model_type;
        BackboneInfo {
            model_type: t.name(),
            hidden_size: self.hidden_size,
            num_hidden_layers: self.num_hidden_layers,
            num_attention_heads: self.num_attention_heads,
            num_key_value_heads: self.num_key_value_heads,
            head_dim: self.head_dim,
            key_value_width: self.key_value_width(),
            vocab_size: self.vocab_size,
            max_sequence: self.max_sequence(),
            is_encoder: t.is_encoder(),
            final_logit_softcapping: self.final_logit_softcapping,
            base_prefix: t.base_prefix(),
            classifier_class: t.classifier_class(),
            head: match t {
                ModelType::Bert => HeadLayout::Classifier,
                ModelType::Roberta => HeadLayout::DenseOutProj,
                _ => HeadLayout::Score,
            },
            usual_targets: usual_targets(t),
            raw: self.raw.clone(),
        }
    }
}

/// `peft`'s targets of (IA)³ and its feed-forward layers.
fn usual_targets(model_type: ModelType) -> UsualTargets {
    let (ia3, ia3_feedforward): (&[&str], &str) = match model_type {
        ModelType::Llama | ModelType::Mistral => (&["k_proj", "v_proj", "down_proj"], "down_proj"),
        ModelType::Qwen2 | ModelType::Qwen3 | ModelType::Gemma3Text => {
            (&["q_proj", "v_proj", "down_proj"], "down_proj")
        }
        ModelType::Mixtral => (&["k_proj", "v_proj", "w2"], "w2"),
        // Without a choice in peft: what stands closest to the usual one.
        ModelType::DeepseekV3 => (&["kv_b_proj", "down_proj"], "down_proj"),
        ModelType::NativeSparse => (&["k_proj", "v_proj", "down_proj"], "down_proj"),
        ModelType::Gpt2 => (&["c_attn", "mlp.c_proj"], "mlp.c_proj"),
        ModelType::Bert | ModelType::Roberta => (&["key", "value", "output.dense"], "output.dense"),
    };
    UsualTargets {
        ia3,
        ia3_feedforward,
    }
}
