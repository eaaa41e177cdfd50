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
    /// To give numbers for a text.
    Regression {
        /// How many.
        outputs: usize,
    },
}
