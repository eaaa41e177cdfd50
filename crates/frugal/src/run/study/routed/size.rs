//! How large the models are and how long they learn.

/// How much is learnt and measured.
pub(super) struct Size {
    pub hidden_size: usize,
    pub heads: usize,
    /// Blocks unless an arm says otherwise.
    pub blocks: usize,
    /// Width of an expert.
    pub expert_size: usize,
    /// Width of a recurrent router's state.
    pub router_size: usize,
    pub vocab_size: usize,
    pub max_length: usize,
    pub steps: u64,
    pub batch_tokens: usize,
    /// Learning rates that are tried, lowest first.
    pub rates: &'static [f64],
}

impl Size {
    pub fn of(smoke: bool) -> Self {
        match smoke {
            true => Self {
                hidden_size: 16,
                heads: 2,
                blocks: 2,
                expert_size: 16,
                router_size: 8,
                vocab_size: 300,
                max_length: 32,
                steps: 3,
                batch_tokens: 128,
                rates: &[6e-3],
            },
            false => Self {
                hidden_size: 96,
                heads: 4,
                blocks: 6,
                expert_size: 96,
                router_size: 32,
                vocab_size: 512,
                max_length: 128,
                steps: 320,
                batch_tokens: 1024,
                rates: &[2e-4, 6e-4, 2e-3, 6e-3, 2e-2],
            },
        }
    }
}
