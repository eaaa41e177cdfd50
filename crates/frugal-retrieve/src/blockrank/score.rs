//! From attention to scores of documents, and the loss that teaches them.

use burn::prelude::*;
use burn::tensor::activation::{log_softmax, softmax};

/// Scores of documents: raw attention scores of the signal tokens, softmax over all tokens of all
/// documents, summed over each document's tokens, mean over heads and signal tokens. They are not
/// negative and sum to 1.
///
/// `blocks` are the tokens of each block, of which the first and the last are no documents.
///
/// # Shapes
/// values: `[heads, signals, tokens] -> [documents]`
///
/// # Errors
/// Blocks that are not those of the tokens.
pub fn document_scores(values: Tensor<3>, blocks: &[usize]) -> Result<Tensor<1>, String> {
    let [heads, signals, tokens] = values.dims();
    let [first, documents @ .., last] = blocks else {
        return Err("scores need an instruction, documents and a question".into());
    };
    let total = blocks.iter().sum::<usize>();
    if documents.is_empty() || total != tokens || tokens <= first + last {
        return Err(format!(
            "{tokens} scores for blocks of {total} tokens with {} documents",
            documents.len()
        ));
    }
    let count = tokens - first - last;
    let probabilities = softmax(values.narrow(2, *first, count), 2);
    let mean = probabilities
        .reshape([heads * signals, count])
        .mean_dim(0)
        .reshape([count]);
    let mut start = 0;
    let sums = documents.iter().map(|&length| {
        let own = mean.clone().narrow(0, start, length).sum();
        start += length;
        own
    });
    Ok(Tensor::cat(sums.collect(), 0))
}

/// `−log( Σ_{k∈P} e^{S_k/τ} / Σ_k e^{S_k/τ} )` of scores `[documents]` and the positives P: `[1]`.
///
/// # Errors
/// No positive, or one that there is not.
pub fn contrastive_loss(
    scores: Tensor<1>,
    positives: &[usize],
    temperature: f64,
) -> Result<Tensor<1>, String> {
    let [count] = scores.dims();
    if positives.is_empty() || positives.iter().any(|&p| p >= count) {
        return Err(format!("positives {positives:?} of {count} documents"));
    }
    let device = scores.device().inner();
    let rows: Vec<i64> = positives.iter().map(|&p| p as i64).collect();
    let rows = Tensor::<1, Int>::from_data(TensorData::from(rows.as_slice()), &device);
    let log = log_softmax(scores / temperature, 0).select(0, rows);
    // Log-sum-exp; logarithms of probabilities are bounded by 0.
    let largest = log.clone().max().detach();
    let sum = (log - largest.clone()).exp().sum();
    Ok(-(sum.log() + largest))
}
