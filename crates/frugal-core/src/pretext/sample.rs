//! From an input and a target to an example of language modelling.

use rand::{Rng, RngCore};

use super::names::class_token;
use super::objective::{Objective, Pair};
use super::special::Special;
use crate::encode::{IGNORE_INDEX, Target, Tokenized};

/// A sample: `input ++ [GEN] ++ label` without the last token, and as targets the label's tokens, each
/// at the position before it. The loss is on these alone: input `4 5 6`, label `7 8 9`, GEN 1 give the
/// tokens `4 5 6 1 7 8` with the targets `- - - 7 8 9`.
pub fn sequence(pair: &Pair, generate: u32) -> Tokenized {
    let mut ids = pair.input.clone();
    ids.push(generate);
    ids.extend_from_slice(&pair.label[..pair.label.len().saturating_sub(1)]);
    let mut targets = vec![IGNORE_INDEX; pair.input.len()];
    targets.extend(pair.label.iter().map(|&id| id as i32));
    targets.resize(ids.len(), IGNORE_INDEX);
    Tokenized {
        input_ids: ids,
        token_type_ids: Vec::new(),
        labels: Target::Tokens(targets),
    }
}

/// How many tokens stand in front of the first GEN; 0 where there is none.
pub fn prefix_length(ids: &[u32], generate: u32) -> usize {
    ids.iter().position(|&id| id == generate).unwrap_or(0)
}

/// A sample and the text that it is made of.
#[derive(Clone, Debug, PartialEq)]
pub struct Fitted {
    /// The sample.
    pub example: Tokenized,
    /// Tokens of the text.
    pub text: usize,
}

/// A sample of an objective from a stream of text, of at most `max_length` tokens: a stretch of a
/// length and a place that are drawn, shorter where it would not fit. The token of the class stands in
/// front of the input or behind it, as likely one as the other (appendix A.2).
///
/// `None` if the stream is empty or not even a single token of text fits.
pub fn fitted(
    objective: &dyn Objective,
    stream: &[u32],
    special: &Special,
    max_length: usize,
    rng: &mut dyn RngCore,
) -> Option<Fitted> {
    let [low, high] = objective.lengths();
    let drawn = rng.random_range(low..=high.max(low));
    let in_front: bool = rng.random();
    let place: f64 = rng.random();
    let mut length = drawn.min(stream.len());
    while length > 0 {
        let from = (place * (stream.len() - length + 1) as f64) as usize;
        let mut pair = objective.build(&stream[from..from + length], special, rng);
        if let Some(class) = class_token(special, objective.class()) {
            match in_front {
                true => pair.input.insert(0, class),
                false => pair.input.push(class),
            }
        }
        let example = sequence(&pair, special.generate);
        let total = example.len();
        if total <= max_length {
            return Some(Fitted {
                example,
                text: length,
            });
        }
        // What is made of a text grows with it.
        length = (length * max_length / total).min(length - 1);
    }
    None
}
