//! What is learnt from while the learning rate decays: parts of the examples by weight.
//!
//! Hu et al., *MiniCPM*, arXiv 2404.06395, section 5: the stable stage learns from coarse text alone,
//! the decay from it and from text of high quality together.

use std::collections::VecDeque;

use frugal_nn::named_rng;
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};

/// Consecutive training examples, and how much of the decay they are.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MixturePart {
    /// How many there are; the parts lie one behind the other.
    pub examples: usize,
    /// Their share of the tokens, in proportion to the weights of the others; 0 for none.
    pub weight: f64,
}

/// What is wrong with a list of parts.
pub(crate) fn problem(parts: &[MixturePart]) -> Option<String> {
    let bad = |part: &MixturePart| !(part.weight.is_finite() && part.weight >= 0.0);
    if let Some(part) = parts.iter().find(|part| bad(part)) {
        return Some(format!(
            "a weight of {} given, but it must be 0 or a positive number",
            part.weight
        ));
    }
    let total: f64 = parts.iter().map(|part| part.weight).sum();
    (!parts.is_empty() && total == 0.0).then(|| "all weights are 0".to_owned())
}

/// The rows of a decay in their order, without end: each next row is of the part that is furthest
/// behind its share of the tokens, and the rows of a part come in passes, each in an order of its own.
pub(crate) struct Mixture<'a> {
    seed: u64,
    parts: Vec<Source>,
    length: &'a dyn Fn(u32) -> usize,
    tokens: f64,
}

struct Source {
    number: usize,
    share: f64,
    rows: Vec<u32>,
    /// What is left of the pass.
    left: VecDeque<u32>,
    passes: u64,
    tokens: f64,
}

impl<'a> Mixture<'a> {
    /// Of these rows of each part, with their weights; parts without rows or weight are left out.
    pub(crate) fn new(
        seed: u64,
        parts: impl Iterator<Item = (Vec<u32>, f64)>,
        length: &'a dyn Fn(u32) -> usize,
    ) -> Self {
        let source = |(number, (rows, share)): (usize, (Vec<u32>, f64))| Source {
            number,
            share,
            rows,
            left: VecDeque::new(),
            passes: 0,
            tokens: 0.0,
        };
        let parts = parts.enumerate().map(source);
        let mut parts: Vec<Source> = parts
            .filter(|part| !part.rows.is_empty() && part.share > 0.0)
            .collect();
        let total: f64 = parts.iter().map(|part| part.share).sum();
        parts.iter_mut().for_each(|part| part.share /= total);
        Self {
            seed,
            parts,
            length,
            tokens: 0.0,
        }
    }
}

impl Iterator for Mixture<'_> {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        let (seed, tokens) = (self.seed, self.tokens);
        let behind = |part: &Source| part.share * tokens - part.tokens;
        // Of equals the one of the larger share, so that the first row does not depend on the order.
        let next = self.parts.iter_mut().max_by(|a, b| {
            let by_share = a.share.total_cmp(&b.share);
            behind(a).total_cmp(&behind(b)).then(by_share)
        })?;
        if next.left.is_empty() {
            let (pass, part) = (next.passes, next.number);
            let mut rng = named_rng(seed, &format!("pass {pass} of part {part} of the decay"));
            let mut rows = next.rows.clone();
            rows.shuffle(&mut rng);
            next.left = rows.into();
            next.passes += 1;
        }
        let row = next.left.pop_front()?;
        let length = (self.length)(row) as f64;
        next.tokens += length;
        self.tokens += length;
        Some(row)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Shares are of tokens, not of rows: rows of the second part are three times as long.
    #[test]
    fn parts_have_their_shares_of_the_tokens_and_rows_come_in_passes() {
        let length = |row: u32| if row < 10 { 4 } else { 12 };
        let parts = || [((0..10).collect(), 3.0), ((10..14).collect(), 1.0)].into_iter();
        let rows: Vec<u32> = Mixture::new(5, parts(), &length).take(200).collect();
        let tokens = |of: fn(&u32) -> bool| -> usize {
            rows.iter().filter(|r| of(r)).map(|r| length(*r)).sum()
        };
        let (first, second) = (tokens(|r| *r < 10), tokens(|r| *r >= 10));
        let share = second as f64 / (first + second) as f64;
        assert!((share - 0.25).abs() < 0.01, "{share}");
        let of_second: Vec<u32> = rows.iter().copied().filter(|r| *r >= 10).collect();
        for pass in of_second.chunks_exact(4) {
            let mut sorted = pass.to_vec();
            sorted.sort_unstable();
            assert_eq!(sorted, [10, 11, 12, 13]);
        }
        assert_ne!(of_second[..4], of_second[4..8], "each pass has its order");
        let again: Vec<u32> = Mixture::new(5, parts(), &length).take(200).collect();
        let other: Vec<u32> = Mixture::new(6, parts(), &length).take(200).collect();
        assert!(rows == again && rows != other);
    }

    #[test]
    fn a_part_of_no_weight_is_left_out_and_nothing_else_is_refused() {
        let length = |_| 3;
        let parts = [((0..3).collect(), 0.0), ((3..5).collect(), 1.0)].into_iter();
        assert!(Mixture::new(0, parts, &length).take(9).all(|row| row >= 3));
        let none = [(Vec::new(), 1.0)].into_iter();
        assert_eq!(Mixture::new(0, none, &length).next(), None);
        let part = |weight| MixturePart {
            examples: 1,
            weight,
        };
        assert_eq!(problem(&[part(0.0), part(2.0)]), None);
        for parts in [vec![part(0.0)], vec![part(-1.0)], vec![part(f64::NAN)]] {
            assert!(problem(&parts).is_some(), "{parts:?}");
        }
    }
}
