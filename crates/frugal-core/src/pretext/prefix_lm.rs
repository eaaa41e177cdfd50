//! Prefix language modelling: the first part of a text is read, the rest is the target.

use rand::{Rng, RngCore};

use super::objective::{Lengths, Objective, Pair, scaled};
use super::special::Special;

pub(super) const NAME: &str = "prefix_lm";

/// Prefix language modelling.
#[derive(Debug)]
pub struct PrefixLm {
    lengths: Lengths,
    /// Share of the text that is read; drawn anew for each where there is none.
    share: Option<f64>,
}

impl PrefixLm {
    /// With this share of the text read, 75 % in UL2; `None` draws it anew for each text.
    pub fn new(scale: f64, share: Option<f64>) -> Self {
        Self {
            lengths: scaled([2048, 2048], scale),
            share,
        }
    }
}

pub(super) fn grid(scale: f64) -> Vec<Box<dyn Objective>> {
    vec![Box::new(PrefixLm::new(scale, None))]
}

impl Objective for PrefixLm {
    fn class(&self) -> &'static str {
        NAME
    }

    fn setting(&self) -> String {
        self.share
            .map_or(String::new(), |share| format!("{} %", share * 100.0))
    }

    fn lengths(&self) -> Lengths {
        self.lengths
    }

    fn build(&self, text: &[u32], _special: &Special, rng: &mut dyn RngCore) -> Pair {
        let last = text.len().saturating_sub(1);
        let read = match self.share {
            Some(share) => ((text.len() as f64 * share).round() as usize).min(last),
            None => rng.random_range(last.min(1)..=last),
        };
        Pair {
            input: text[..read].to_vec(),
            label: text[read..].to_vec(),
        }
    }
}
