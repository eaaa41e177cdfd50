//! How large the models are and how long they learn.

/// How much is learnt and measured.
pub(super) struct Size {
    pub hidden_size: usize,
    pub heads: usize,
    pub intermediate_size: usize,
    /// Unrolled layers of the models that are compared.
    pub layers: usize,
    pub recursions: usize,
    pub vocab_size: usize,
    pub max_length: usize,
    /// Steps of the model that all others are given the operations of.
    pub steps: u64,
    pub batch_tokens: usize,
    /// Rates that are tried for every arm.
    pub rates: &'static [f64],
    /// Pieces of the text of which what is kept while it is read is measured.
    pub read: usize,
}

impl Size {
    pub fn of(smoke: bool) -> Self {
        match smoke {
            true => Self {
                hidden_size: 16,
                heads: 2,
                intermediate_size: 24,
                layers: 8,
                recursions: 2,
                vocab_size: 300,
                max_length: 32,
                steps: 3,
                batch_tokens: 128,
                rates: &[6e-3],
                read: 2,
            },
            false => Self {
                hidden_size: 96,
                heads: 4,
                intermediate_size: 256,
                layers: 8,
                recursions: 2,
                vocab_size: 512,
                max_length: 128,
                steps: 120,
                batch_tokens: 1024,
                rates: &[2e-3, 6e-3, 1.8e-2],
                read: 32,
            },
        }
    }
}
