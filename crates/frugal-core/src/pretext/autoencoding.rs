//! Autoencoding: spans are taken out, and what is left may stand in another order; the target is the
//! whole text.

use rand::RngCore;
use rand::seq::SliceRandom;

use super::objective::{Lengths, Objective, Pair, range, scaled};
use super::spans::{Masking, kept, with_sentinels};
use super::special::Special;

pub(super) const NAME: &str = "autoencoding";

#[derive(Debug)]
struct Autoencoding {
    lengths: Lengths,
    masking: Masking,
    /// Whether the pieces between the spans are shuffled.
    shuffles: bool,
}

pub(super) fn grid(scale: f64) -> Vec<Box<dyn Objective>> {
    let mut arms: Vec<Box<dyn Objective>> = Vec::new();
    for lengths in [[192, 384], [384, 768], [768, 1536]] {
        for rate in [0.15, 0.85] {
            for mean_span in [3, 8, 32] {
                for shuffles in [false, true] {
                    arms.push(Box::new(Autoencoding {
                        lengths: scaled(lengths, scale),
                        masking: Masking { rate, mean_span },
                        shuffles,
                    }));
                }
            }
        }
    }
    arms
}

impl Objective for Autoencoding {
    fn class(&self) -> &'static str {
        NAME
    }

    fn setting(&self) -> String {
        let Masking { rate, mean_span } = self.masking;
        let order = if self.shuffles { ", shuffled" } else { "" };
        format!(
            "{} tokens, {} % in spans of {mean_span}{order}",
            range(self.lengths),
            rate * 100.0
        )
    }

    fn lengths(&self) -> Lengths {
        self.lengths
    }

    fn sentinels(&self, length: usize) -> usize {
        self.masking.max_spans(length)
    }

    fn build(&self, text: &[u32], special: &Special, rng: &mut dyn RngCore) -> Pair {
        let spans = self.masking.spans(text.len(), special.sentinels.len(), rng);
        let mut pieces = kept(text, &spans);
        if self.shuffles {
            pieces.shuffle(rng);
        }
        Pair {
            input: with_sentinels(&pieces, &special.sentinels),
            label: text.to_vec(),
        }
    }
}
