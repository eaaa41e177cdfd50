//! Copying: the target is the input.

use rand::RngCore;

use super::objective::{Lengths, Objective, Pair, range, scaled};
use super::special::Special;

pub(super) const NAME: &str = "copying";

#[derive(Debug)]
struct Copying {
    lengths: Lengths,
}

/// The longer one's end is the paper's.
pub(super) fn grid(scale: f64) -> Vec<Box<dyn Objective>> {
    let arm = |lengths| {
        Box::new(Copying {
            lengths: scaled(lengths, scale),
        }) as Box<dyn Objective>
    };
    [[64, 256], [256, 2014]].map(arm).into()
}

impl Objective for Copying {
    fn class(&self) -> &'static str {
        NAME
    }

    fn setting(&self) -> String {
        format!("{} tokens", range(self.lengths))
    }

    fn lengths(&self) -> Lengths {
        self.lengths
    }

    fn build(&self, text: &[u32], _special: &Special, _rng: &mut dyn RngCore) -> Pair {
        Pair {
            input: text.to_vec(),
            label: text.to_vec(),
        }
    }
}
