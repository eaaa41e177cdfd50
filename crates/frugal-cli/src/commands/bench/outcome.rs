//! How a suite ended.

use crate::outcome::Outcome;

pub(super) fn end(stopped: bool, failed: bool) -> Outcome {
    match (stopped, failed) {
        (true, _) => Outcome::Interrupted,
        (false, true) => Outcome::Negative,
        (false, false) => Outcome::Done,
    }
}
