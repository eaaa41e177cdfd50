//! How large models are and how long they learn.

use crate::run::{PretrainConfig, Shape};

/// How large models are and how long they learn.
pub(super) struct Size {
    pub hidden_size: usize,
    pub num_hidden_layers: usize,
    pub vocab_size: usize,
    pub max_length: usize,
    pub batch_tokens: usize,
    /// Tokens around attention and in feed-forward layers of the small model.
    pub tokens: [usize; 2],
    /// Steps of the first stage and of the second.
    pub steps: [u64; 2],
    /// Multiples of the rate that are tried.
    pub factors: &'static [f64],
}

impl Size {
    pub fn of(smoke: bool) -> Self {
        match smoke {
            true => Self {
                hidden_size: 32,
                num_hidden_layers: 1,
                vocab_size: 300,
                max_length: 32,
                batch_tokens: 128,
                tokens: [8, 16],
                steps: [4, 2],
                factors: &[1.0],
            },
            false => Self {
                hidden_size: 64,
                num_hidden_layers: 4,
                vocab_size: 512,
                max_length: 128,
                batch_tokens: 1024,
                tokens: [48, 192],
                steps: [450, 150],
                factors: &[1.0 / 3.0, 1.0, 3.0],
            },
        }
    }

    /// A run on a model with these numbers of tokens.
    pub fn config(&self, [around, feed_forward]: [usize; 2]) -> PretrainConfig {
        let tokens = toml::Table::from_iter([
            ("qkv_slot_num".to_owned(), (around as i64).into()),
            ("proj_slot_num".to_owned(), (around as i64).into()),
        ]);
        PretrainConfig {
            shape: Shape {
                arch: "tokenformer".into(),
                vocab_size: self.vocab_size,
                hidden_size: self.hidden_size,
                intermediate_size: feed_forward,
                num_hidden_layers: self.num_hidden_layers,
                num_attention_heads: 4,
                max_position_embeddings: self.max_length,
                own: tokens,
                ..Shape::default()
            },
            ..PretrainConfig::default()
        }
    }
}
