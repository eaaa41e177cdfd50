//! How large models are and how long they learn.

use crate::run::{PretrainConfig, Shape};

/// How large models are and how long they learn.
pub(super) struct Size {
    pub vocab_size: usize,
    pub max_length: usize,
    pub batch_tokens: usize,
    /// Width and blocks of the models of schedules and data.
    pub model: [usize; 2],
    /// Lengths at which schedules are compared, in steps.
    pub lengths: &'static [u64],
    /// Multiples of the rate that are tried.
    pub factors: &'static [f64],
    /// Widths and depths between which rates are carried over; where one is varied, the other is the
    /// middle one.
    pub widths: [usize; 3],
    pub depths: [usize; 3],
    pub rates: &'static [f64],
    /// Steps of each of these runs.
    pub transfer_steps: u64,
    /// Steps of the stable stage before target data come, of the decay, and of target data.
    pub stages: [u64; 3],
    /// Target documents to learn from, and those held out.
    pub documents: [usize; 2],
}

impl Size {
    pub(super) fn of(smoke: bool) -> Self {
        match smoke {
            true => Self {
                vocab_size: 300,
                max_length: 32,
                batch_tokens: 128,
                model: [32, 1],
                lengths: &[40],
                factors: &[1.0],
                widths: [16, 32, 48],
                depths: [1, 2, 3],
                rates: &[1e-2],
                transfer_steps: 2,
                stages: [4, 2, 2],
                documents: [40, 8],
            },
            false => Self {
                vocab_size: 512,
                max_length: 128,
                batch_tokens: 1024,
                model: [64, 4],
                lengths: &[160, 320, 640],
                factors: &[1.0 / 3.0, 1.0, 3.0],
                widths: [32, 64, 128],
                depths: [2, 4, 8],
                rates: &[1e-3, 3e-3, 1e-2, 3e-2],
                transfer_steps: 150,
                stages: [300, 40, 80],
                documents: [1500, 200],
            },
        }
    }

    /// The width at which the rules do nothing to spreads, rates and logits.
    pub(super) fn base_width(&self) -> usize {
        self.widths[0]
    }

    /// A run on a model of this width and depth, with the rules of MiniCPM or as a plain Llama.
    pub(super) fn config(&self, [width, layers]: [usize; 2], rules: bool) -> PretrainConfig {
        let base = toml::Table::from_iter([(
            "dim_model_base".to_owned(),
            (self.base_width() as i64).into(),
        )]);
        let heads = (width / 16).max(1);
        PretrainConfig {
            shape: Shape {
                arch: if rules { "minicpm" } else { "llama" }.into(),
                vocab_size: self.vocab_size,
                hidden_size: width,
                intermediate_size: 5 * width / 2,
                num_hidden_layers: layers,
                num_attention_heads: heads,
                num_key_value_heads: heads,
                max_position_embeddings: self.max_length,
                own: if rules { base } else { toml::Table::new() },
                ..Shape::default()
            },
            ..PretrainConfig::default()
        }
    }
}
