//! An encoded example and what is learnt from it.

/// Target of a position that is not trained.
pub const IGNORE_INDEX: i32 = -100;

/// What is to be learnt from the ids.
#[derive(Clone, Debug, PartialEq)]
pub enum Target {
    /// For each position the id it must predict, that is the next one of the input, or [`IGNORE_INDEX`].
    /// The last is [`IGNORE_INDEX`].
    Tokens(Vec<i32>),
    /// Position in the list of labels.
    Class(usize),
    /// Positions in the list of labels, by rising position: those that hold, maybe none.
    Classes(Vec<usize>),
    /// What is to be told of each token.
    Tags {
        /// For each token the position in the list of labels, or [`IGNORE_INDEX`].
        classes: Vec<i32>,
        /// For each token the word that it begins, from 0; none for the other tokens of a word and
        /// for special ones.
        words: Vec<Option<u32>>,
    },
    /// A number for each output of the head.
    Values(Vec<f32>),
    /// The ids are those of several texts, one after another, and what is learnt is how these lie
    /// to each other: a pair, an anchor with a positive and negatives.
    Texts {
        /// Tokens of each text.
        lengths: Vec<usize>,
        /// How near they are, where somebody has said so.
        scores: Vec<f32>,
    },
    /// The ids are those of a prompt with the better answer, then of the prompt with the worse one.
    Preference {
        /// For each position the id that it must predict, as in [`Target::Tokens`]; prompts have none.
        targets: Vec<i32>,
        /// Tokens of the first sequence.
        chosen: usize,
    },
}

/// One example, ready for a batch.
#[derive(Clone, Debug, PartialEq)]
pub struct Tokenized {
    /// Ids of the tokens.
    pub input_ids: Vec<u32>,
    /// 0 for the first text, 1 for the second; empty where all are 0 or the tokenizer gives none.
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

    /// Number of positions that are trained; 1 for what is learnt of an example as a whole.
    pub fn trained(&self) -> usize {
        match &self.labels {
            Target::Tokens(targets) => targets.iter().filter(|t| **t != IGNORE_INDEX).count(),
            Target::Tags { classes, .. } => classes.iter().filter(|t| **t != IGNORE_INDEX).count(),
            Target::Preference { targets, chosen } => {
                let count = |part: &[i32]| part.iter().filter(|t| **t != IGNORE_INDEX).count();
                let (better, worse) = targets.split_at(*chosen.min(&targets.len()));
                match (count(better), count(worse)) {
                    // Nothing to compare.
                    (0, _) | (_, 0) => 0,
                    (better, worse) => better + worse,
                }
            }
            Target::Class(_) | Target::Classes(_) | Target::Values(_) | Target::Texts { .. } => 1,
        }
    }
}
