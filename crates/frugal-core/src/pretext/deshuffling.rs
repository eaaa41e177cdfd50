//! Deshuffling: tokens of the text stand in another order; the target is the text.

use rand::RngCore;
use rand::seq::{SliceRandom, index};

use super::objective::{Lengths, Objective, Pair, range, scaled};
use super::special::Special;

pub(super) const NAME: &str = "deshuffling";

#[derive(Debug)]
struct Deshuffling {
    lengths: Lengths,
    /// Share of the tokens that are shuffled among themselves.
    share: f64,
}

pub(super) fn grid(scale: f64) -> Vec<Box<dyn Objective>> {
    let mut arms: Vec<Box<dyn Objective>> = Vec::new();
    for lengths in [[128, 256], [512, 1024]] {
        for share in [0.5, 1.0] {
            arms.push(Box::new(Deshuffling {
                lengths: scaled(lengths, scale),
                share,
            }));
        }
    }
    arms
}

impl Objective for Deshuffling {
    fn class(&self) -> &'static str {
        NAME
    }

    fn setting(&self) -> String {
        format!(
            "{} tokens, {} % shuffled",
            range(self.lengths),
            self.share * 100.0
        )
    }

    fn lengths(&self) -> Lengths {
        self.lengths
    }

    fn build(&self, text: &[u32], _special: &Special, rng: &mut dyn RngCore) -> Pair {
        let count = ((text.len() as f64 * self.share).round() as usize).min(text.len());
        let mut places = index::sample(rng, text.len(), count).into_vec();
        places.sort_unstable();
        let mut order = places.clone();
        order.shuffle(rng);
        let mut input = text.to_vec();
        for (to, from) in places.into_iter().zip(order) {
            input[to] = text[from];
        }
        Pair {
            input,
            label: text.to_vec(),
        }
    }
}
