//! What routers do: which experts tokens go to, block by block.

use burn::prelude::*;
use frugal_core::encode::Tokenized;
use frugal_nn::{Backbone, Input, ModelError, Pass};

/// What a model's routers do with a text.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Routes {
    /// Of the choices of each expert: deviation by mean, a mean over the blocks.
    pub load_variation: f64,
    /// Between the likeliest experts of a token in blocks that follow each other, in bits, a mean
    /// over the pairs of blocks.
    pub information: f64,
    /// Of the likeliest experts of a token over the blocks, in bits, a mean over the tokens.
    pub path_entropy: f64,
}

/// Remembers the experts of each token in each block.
#[derive(Default)]
struct Choices {
    experts: usize,
    /// By block: the choices of all tokens, the likeliest of each first.
    chosen: Vec<Vec<usize>>,
    per_token: usize,
}

impl Pass for Choices {
    fn router(&mut self, layer: usize, probabilities: &Tensor<2>, chosen: &[usize], _: f64) {
        let [tokens, experts] = probabilities.dims();
        (self.experts, self.per_token) = (experts, chosen.len() / tokens.max(1));
        if self.chosen.len() <= layer {
            self.chosen.resize(layer + 1, Vec::new());
        }
        self.chosen[layer].extend_from_slice(chosen);
    }
}

/// The routes of these pieces; nothing of a model whose tokens have no choice.
///
/// # Errors
/// Those of the forward pass.
pub(super) fn routes(
    backbone: &dyn Backbone,
    pieces: &[Tokenized],
) -> Result<Option<Routes>, ModelError> {
    let mut choices = Choices::default();
    for piece in pieces {
        let ids = &piece.input_ids;
        backbone.forward(&Input::new(ids, &[ids.len()]), &mut choices, None)?;
    }
    Ok((choices.experts > 1).then(|| choices.summary()))
}

impl Choices {
    fn summary(&self) -> Routes {
        let first: Vec<Vec<usize>> = self
            .chosen
            .iter()
            .map(|of_block| of_block.iter().step_by(self.per_token).copied().collect())
            .collect();
        let variations = self
            .chosen
            .iter()
            .map(|block| variation(block, self.experts));
        let pairs = first.windows(2);
        let information = pairs.map(|pair| mutual_information(&pair[0], &pair[1], self.experts));
        let tokens = first.first().map_or(0, Vec::len);
        let paths = (0..tokens).map(|token| {
            let mut counts = vec![0.0; self.experts];
            first.iter().for_each(|block| counts[block[token]] += 1.0);
            entropy(&counts)
        });
        Routes {
            load_variation: mean(variations),
            information: mean(information),
            path_entropy: mean(paths),
        }
    }
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (mut sum, mut count) = (0.0, 0.0);
    values.for_each(|v| (sum, count) = (sum + v, count + 1.0));
    if count > 0.0 { sum / count } else { 0.0 }
}

fn variation(choices: &[usize], experts: usize) -> f64 {
    let mut counts = vec![0.0; experts];
    choices.iter().for_each(|&e| counts[e] += 1.0);
    let mean = choices.len() as f64 / experts as f64;
    let square: f64 = counts.iter().map(|c| (c - mean).powi(2)).sum();
    (square / experts as f64).sqrt() / mean.max(f64::MIN_POSITIVE)
}

/// In bits, of counts.
fn entropy(counts: &[f64]) -> f64 {
    let total: f64 = counts.iter().sum();
    let some = counts.iter().filter(|c| **c > 0.0);
    -some.map(|c| c / total * (c / total).log2()).sum::<f64>()
}

/// `H(a) + H(b) - H(a, b)` in bits.
fn mutual_information(a: &[usize], b: &[usize], experts: usize) -> f64 {
    let mut joint = vec![0.0; experts * experts];
    for (&a, &b) in a.iter().zip(b) {
        joint[a * experts + b] += 1.0;
    }
    let of_a: Vec<f64> = joint.chunks(experts).map(|row| row.iter().sum()).collect();
    let of_b: Vec<f64> = (0..experts)
        .map(|b| joint.iter().skip(b).step_by(experts).sum())
        .collect();
    entropy(&of_a) + entropy(&of_b) - entropy(&joint)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(found: f64, expected: f64) {
        assert!((found - expected).abs() < 1e-12, "{found}, not {expected}");
    }

    #[test]
    fn measures_are_what_is_counted_by_hand() {
        close(variation(&[0, 1, 2, 3], 4), 0.0);
        // Counts 4, 0 around a mean of 2.
        close(variation(&[0, 0, 0, 0], 2), 1.0);
        close(mutual_information(&[0, 1, 0, 1], &[1, 0, 1, 0], 2), 1.0);
        close(mutual_information(&[0, 1, 0, 1], &[0, 0, 1, 1], 2), 0.0);
        let choices = Choices {
            experts: 2,
            per_token: 2,
            // Token 0 goes to 0 and 1 first, token 1 to 1 and 1.
            chosen: vec![vec![0, 1, 1, 0], vec![1, 0, 1, 0]],
        };
        let found = choices.summary();
        close(found.path_entropy, 0.5);
        close(found.load_variation, 0.0);
    }
}
