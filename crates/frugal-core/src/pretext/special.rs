//! Tokens that objectives put beside those of the text.

/// What the marks of selective copying are called: query, beginning and end of a delimiter, context,
/// end of the target.
pub(super) const MARKS: [&str; 5] = ["copy", "start", "end", "context", "done"];

/// Ids of the tokens that objectives need.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Special {
    /// Separates input and target; the same in every sample.
    pub generate: u32,
    /// Stand for spans that were taken out, in order.
    pub sentinels: Vec<u32>,
    /// Name the class of an objective, in the order of the list of classes.
    pub classes: Vec<u32>,
    /// Of selective copying: query, beginning and end of a delimiter, context, end of the target.
    pub marks: [u32; 5],
}
