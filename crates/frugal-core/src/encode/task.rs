//! What is learnt.

/// What the model learns from an example.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task<'a> {
    /// To predict the next token.
    CausalLm,
    /// To tell the class of a text.
    SequenceClassification {
        /// Names of the classes; the target is a position in this list.
        labels: &'a [String],
    },
    /// To tell which labels a text has.
    MultiLabelClassification {
        /// Names of the labels; the targets are positions in this list.
        labels: &'a [String],
    },
    /// To tell the tag of each word.
    TokenClassification {
        /// Names of the tags; the targets are positions in this list.
        labels: &'a [String],
        /// Whether every token of a word has its tag, or the first alone.
        label_all_tokens: bool,
    },
    /// To give numbers for a text.
    Regression {
        /// How many.
        outputs: usize,
    },
}
