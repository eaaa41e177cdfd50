//! Infilling: spans are taken out and named by sentinels; the target is each sentinel with its span.

use rand::RngCore;

use super::objective::{Lengths, Objective, Pair, range, scaled};
use super::spans::{Masking, kept, with_sentinels};
use super::special::Special;

pub(super) const NAME: &str = "infilling";

#[derive(Debug)]
struct Infilling {
    lengths: Lengths,
    masking: Masking,
}

pub(super) fn grid(scale: f64) -> Vec<Box<dyn Objective>> {
    let mut arms: Vec<Box<dyn Objective>> = Vec::new();
    for lengths in [[128, 256], [256, 512], [512, 1024], [1024, 2048]] {
        for rate in [0.05, 0.15, 0.5] {
            for mean_span in [3, 8, 32] {
                arms.push(Box::new(Infilling {
                    lengths: scaled(lengths, scale),
                    masking: Masking { rate, mean_span },
                }));
            }
        }
    }
    arms
}

impl Objective for Infilling {
    fn class(&self) -> &'static str {
        NAME
    }

    fn setting(&self) -> String {
        let Masking { rate, mean_span } = self.masking;
        format!(
            "{} tokens, {} % in spans of {mean_span}",
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
        let input = with_sentinels(&kept(text, &spans), &special.sentinels);
        let mut label = Vec::new();
        for (span, sentinel) in spans.into_iter().zip(&special.sentinels) {
            label.push(*sentinel);
            label.extend_from_slice(&text[span]);
        }
        Pair { input, label }
    }
}
