//! Measuring the machine and what runs on it.

use frugal_core::tokenizer::TextTokenizer;

pub mod language_model;
pub mod machine;
pub mod runtime;
mod samples;

/// SHA-256 over a tokenizer's tokens in the order of their ids: models that share it are given the
/// same tokens, so that what is counted for each token can be compared.
pub fn vocabulary_sha256(tokenizer: &TextTokenizer) -> String {
    let mut tokens: Vec<(u32, String)> = tokenizer
        .inner()
        .get_vocab(true)
        .into_iter()
        .map(|(token, id)| (id, token))
        .collect();
    tokens.sort_unstable();
    let mut all = Vec::new();
    for (id, token) in tokens {
        all.extend(id.to_le_bytes());
        all.extend(token.as_bytes());
        all.push(0);
    }
    frugal_eval::measurement::sha256(&all)
}

/// Threads that computations are shared among; `RAYON_NUM_THREADS` sets their number.
pub fn threads() -> usize {
    rayon::current_num_threads()
}
