//! Definitions in front of a statement, for the model that writes the code.

use std::fmt::Write as _;

use super::knowledge::Definition;

/// How much of the definitions a model is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PromptOptions {
    /// Most characters of a signature.
    pub signature: usize,
    /// Most characters of a description, of which the first sentence is shown.
    pub description: usize,
}

impl Default for PromptOptions {
    fn default() -> Self {
        Self {
            signature: 160,
            description: 120,
        }
    }
}

/// The definitions, a line for each, and the statement behind them. Signatures and descriptions are cut,
/// names never.
#[must_use]
pub fn prompt(
    statement: &str,
    definitions: &[&Definition],
    task: &str,
    options: PromptOptions,
) -> String {
    let mut text = String::new();
    if !definitions.is_empty() {
        text += "Definitions of the library:\n";
    }
    for definition in definitions {
        let name = &definition.name;
        let rest = definition.signature.trim();
        let rest = rest.strip_prefix(name.as_str()).unwrap_or(rest).trim();
        let signature = cut(rest, options.signature);
        let first = definition.doc.split(". ").next().unwrap_or_default();
        let description = cut(first.trim(), options.description);
        let _ = writeln!(text, "- {name} {signature}: {description}");
    }
    let _ = write!(text, "{}\n{task}", statement.trim());
    text
}

fn cut(text: &str, most: usize) -> String {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}
