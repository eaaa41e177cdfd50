//! How large models are and how long they learn.

use frugal_train::mixture::ControllerConfig;

use crate::run::{PretrainConfig, Shape};

/// How large models are and how long they learn.
pub(super) struct Size {
    pub hidden_size: usize,
    pub state_size: usize,
    pub num_hidden_layers: usize,
    pub vocab_size: usize,
    pub max_length: usize,
    pub batch_tokens: usize,
    /// Steps of pre-training.
    pub steps: u64,
    /// Multiples of the rate that are tried.
    pub factors: &'static [f64],
    /// Steps of fine-tuning on phone books, of so many tokens each, and rates that are tried.
    pub book_steps: u64,
    pub book_tokens: usize,
    pub book_rates: &'static [f64],
    /// Entries of a phone book, and numbers that are asked for.
    pub entries: [usize; 2],
    pub queries: [usize; 2],
    /// Books, and examples of selective copying, that are measured on.
    pub measured: usize,
    pub controller: ControllerConfig,
}

impl Size {
    pub fn of(smoke: bool) -> Self {
        match smoke {
            true => Self {
                hidden_size: 16,
                state_size: 16,
                num_hidden_layers: 2,
                vocab_size: 420,
                max_length: 64,
                batch_tokens: 128,
                steps: 3,
                factors: &[1.0],
                book_steps: 2,
                book_tokens: 128,
                book_rates: &[1e-3],
                entries: [4, 6],
                queries: [1, 2],
                measured: 3,
                controller: ControllerConfig {
                    uniform_steps: 1,
                    evaluations: vec![1, 2],
                    evaluation_interval: 1,
                    candidates: 16,
                    fit_steps: 2,
                    reward_width: 8,
                    ..ControllerConfig::default()
                },
            },
            false => Self {
                hidden_size: 96,
                state_size: 128,
                num_hidden_layers: 4,
                vocab_size: 640,
                max_length: 256,
                batch_tokens: 2048,
                steps: 700,
                factors: &[1.0 / 3.0, 1.0, 3.0],
                book_steps: 200,
                book_tokens: 2048,
                book_rates: &[3e-4, 1e-3, 3e-3],
                entries: [8, 32],
                queries: [1, 4],
                measured: 200,
                // The paper's by the length of a run, 32,000 steps.
                controller: ControllerConfig {
                    uniform_steps: 40,
                    evaluations: vec![5, 20, 40],
                    evaluation_interval: 60,
                    candidates: 512,
                    ..ControllerConfig::default()
                },
            },
        }
    }

    /// A run on a new model.
    pub fn config(&self, transformer: bool) -> PretrainConfig {
        let own = match transformer {
            true => toml::Table::new(),
            false => {
                toml::Table::from_iter([("state_size".to_owned(), (self.state_size as i64).into())])
            }
        };
        PretrainConfig {
            max_length: self.max_length,
            shape: Shape {
                arch: if transformer { "llama" } else { "gated_ssm" }.into(),
                vocab_size: self.vocab_size,
                hidden_size: self.hidden_size,
                intermediate_size: 8 * self.hidden_size / 3,
                num_hidden_layers: self.num_hidden_layers,
                num_attention_heads: 4,
                num_key_value_heads: 4,
                // Phone books are longer than examples of text.
                max_position_embeddings: 1024,
                own,
                ..Shape::default()
            },
            ..PretrainConfig::default()
        }
    }
}
