//! Next tokens: nothing is read, all of the text is the target.

use rand::RngCore;

use super::objective::{Lengths, Objective, Pair, scaled};
use super::special::Special;

pub(super) const NAME: &str = "next_token";

#[derive(Debug)]
struct NextToken {
    lengths: Lengths,
}

/// Rows of the length that the paper trains with.
pub(super) fn grid(scale: f64) -> Vec<Box<dyn Objective>> {
    let lengths = scaled([2048, 2048], scale);
    vec![Box::new(NextToken { lengths })]
}

impl Objective for NextToken {
    fn class(&self) -> &'static str {
        NAME
    }

    fn setting(&self) -> String {
        String::new()
    }

    fn lengths(&self) -> Lengths {
        self.lengths
    }

    fn build(&self, text: &[u32], _special: &Special, _rng: &mut dyn RngCore) -> Pair {
        Pair {
            input: Vec::new(),
            label: text.to_vec(),
        }
    }
}
