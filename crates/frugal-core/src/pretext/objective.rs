//! What an objective is.

use rand::RngCore;

use super::special::Special;

/// What a model reads, and what it is to say of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pair {
    /// Read as a whole, without loss.
    pub input: Vec<u32>,
    /// Predicted token by token.
    pub label: Vec<u32>,
}

/// Range of a number of tokens, both ends included.
pub type Lengths = [usize; 2];

/// One setting of a class of objectives.
pub trait Objective: Send + Sync + std::fmt::Debug {
    /// Name of its class.
    fn class(&self) -> &'static str;

    /// Its setting in words, unique within the class, for logs and plots.
    fn setting(&self) -> String;

    /// How many tokens of text it takes.
    fn lengths(&self) -> Lengths;

    /// Sentinels that a stretch of text of this length needs at most.
    fn sentinels(&self, _length: usize) -> usize {
        0
    }

    /// Input and target of a stretch of text of at least one token, without the token of the class.
    fn build(&self, text: &[u32], special: &Special, rng: &mut dyn RngCore) -> Pair;
}

/// The full name of an arm.
pub(crate) fn name(objective: &dyn Objective) -> String {
    match objective.setting().as_str() {
        "" => objective.class().to_owned(),
        setting => format!("{} {setting}", objective.class()),
    }
}

impl dyn Objective {
    /// Class and setting.
    pub fn name(&self) -> String {
        name(self)
    }
}

/// A range in words.
pub(crate) fn range([low, high]: Lengths) -> String {
    format!("{low}-{high}")
}

/// These lengths by a factor, at least 2 tokens.
pub(crate) fn scaled(lengths: Lengths, scale: f64) -> Lengths {
    lengths.map(|n| ((n as f64 * scale).round() as usize).max(2))
}
