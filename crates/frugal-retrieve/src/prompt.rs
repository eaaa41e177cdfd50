//! What goes before a text.

/// What goes before a text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Prompt {
    /// The model's own default, which is mostly nothing.
    #[default]
    Default,
    /// Nothing.
    None,
    /// The model's prompt of this name.
    Named(String),
    /// This text.
    Text(String),
}
