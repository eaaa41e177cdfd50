//! How large the models are and how long they learn.

/// A model.
pub(super) struct Model {
    /// What the tables call it.
    pub label: &'static str,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    /// Rank of all that has one: a quarter of the width.
    pub rank: usize,
}

impl Model {
    pub fn describe(&self) -> String {
        format!(
            "{} has {} blocks, {} heads and {} features in its feed-forward layers, and rank {}",
            self.label,
            self.num_hidden_layers,
            self.num_attention_heads,
            self.intermediate_size,
            self.rank
        )
    }
}

/// How much is learnt and measured.
pub(super) struct Size {
    pub models: &'static [Model],
    pub vocab_size: usize,
    pub max_length: usize,
    pub steps: u64,
    pub batch_tokens: usize,
    /// Steps between restarts.
    pub restart_steps: u64,
    /// Multiples of an arm's rate that are tried.
    pub factors: &'static [f64],
}

impl Size {
    pub fn of(smoke: bool) -> Self {
        match smoke {
            true => Self {
                models: &[Model {
                    label: "16 wide",
                    hidden_size: 16,
                    intermediate_size: 24,
                    num_hidden_layers: 1,
                    num_attention_heads: 2,
                    rank: 4,
                }],
                vocab_size: 300,
                max_length: 32,
                steps: 4,
                batch_tokens: 128,
                restart_steps: 2,
                factors: &[1.0],
            },
            false => Self {
                models: &[
                    Model {
                        label: "64 wide",
                        hidden_size: 64,
                        intermediate_size: 176,
                        num_hidden_layers: 2,
                        num_attention_heads: 4,
                        rank: 16,
                    },
                    Model {
                        label: "128 wide",
                        hidden_size: 128,
                        intermediate_size: 352,
                        num_hidden_layers: 3,
                        num_attention_heads: 4,
                        rank: 32,
                    },
                ],
                vocab_size: 512,
                max_length: 128,
                steps: 200,
                batch_tokens: 1024,
                restart_steps: 40,
                factors: &[1.0 / 3.0, 1.0, 3.0],
            },
        }
    }
}
