//! An encoded example and what is learnt from it.

/// Target of a position that is not trained.
pub const IGNORE_INDEX: i32 = -100;

/// What is to be learnt from the ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// For each position the id it must predict, that is the next one of the input, or [`IGNORE_INDEX`].
    /// The last is [`IGNORE_INDEX`].
    Tokens(Vec<i32>),
    /// Position in the list of labels.
    Class(usize),
}

/// One example, ready for a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tokenized {
    /// Ids of the tokens.
    pub input_ids: Vec<u32>,
    /// 0 for the first text, 1 for the second; empty unless there are two.
    pub token_type_ids: Vec<u32>,
    /// What is to be learnt.
    pub labels: Target,
}

impl Tokenized {
    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.input_ids.len()
    }

    /// Whether there is no token.
    pub fn is_empty(&self) -> bool {
        self.input_ids.is_empty()
    }

    /// Number of positions that are trained; 1 for a class.
    pub fn trained(&self) -> usize {
        match &self.labels {
            Target::Tokens(targets) => targets.iter().filter(|t| **t != IGNORE_INDEX).count(),
            Target::Class(_) => 1,
        }
    }
}
