//! One example as a person can check it.

use super::{IGNORE_INDEX, Target, Tokenized};
use crate::tokenizer::{TextTokenizer, TokenizerError};

const DIM: &str = "\x1b[2m";
const GREEN: &str = "\x1b[32m";
const RESET: &str = "\x1b[0m";

/// Shows which tokens are only given and which are trained, each line with its kind in front; with
/// `colour` given ones are dim and trained ones green.
///
/// # Errors
/// When the tokenizer cannot decode the ids.
pub fn show(
    example: &Tokenized,
    tokenizer: &TextTokenizer,
    colour: bool,
) -> Result<String, TokenizerError> {
    let ids = &example.input_ids;
    let targets: &[i32] = match &example.labels {
        Target::Tokens(targets) | Target::Preference { targets, .. } => targets,
        _ => &[],
    };
    // A token is trained where the position before it must predict it.
    let trained = |i: usize| i > 0 && targets.get(i - 1).is_some_and(|t| *t != IGNORE_INDEX);
    let mut out = String::new();
    let mut start = 0;
    while start < ids.len() {
        let end = (start + 1..ids.len())
            .find(|&i| trained(i) != trained(start))
            .unwrap_or(ids.len());
        let before = tokenizer.decode(&ids[..start], false)?;
        let whole = tokenizer.decode(&ids[..end], false)?;
        let text = match whole.strip_prefix(&before) {
            Some(text) => text.to_owned(),
            // The run starts inside a character.
            None => tokenizer.decode(&ids[start..end], false)?,
        };
        let (kind, style) = if trained(start) {
            ("trained", GREEN)
        } else {
            ("given", DIM)
        };
        let (style, reset) = if colour { (style, RESET) } else { ("", "") };
        for (i, line) in text.split_inclusive('\n').enumerate() {
            let kind = if i == 0 { kind } else { "" };
            out.push_str(&format!("{kind:>7} | {style}{}{reset}\n", visible(line)));
        }
        start = end;
    }
    match &example.labels {
        Target::Preference { chosen, .. } => out.push_str(&format!(
            "{} tokens with the better answer, {} with the worse one, {} of them trained\n",
            chosen,
            example.len() - chosen,
            example.trained()
        )),
        Target::Tokens(_) => out.push_str(&format!(
            "{} tokens, {} of them trained\n",
            example.len(),
            example.trained()
        )),
        Target::Tags { .. } => out.push_str(&format!(
            "{} tokens, {} of them with a label\n",
            example.len(),
            example.trained()
        )),
        Target::Class(class) => out.push_str(&format!("{} tokens, class {class}\n", example.len())),
        Target::Classes(classes) => out.push_str(&format!(
            "{} tokens, {}\n",
            example.len(),
            listed("classes", classes)
        )),
        Target::Values(values) => out.push_str(&format!(
            "{} tokens, {}\n",
            example.len(),
            listed("values", values)
        )),
        Target::Texts { lengths, .. } => out.push_str(&format!(
            "{} tokens in {} texts\n",
            example.len(),
            lengths.len()
        )),
    }
    Ok(out)
}

/// A name and what it has; `no` before the name where that is nothing.
fn listed(name: &str, found: &[impl ToString]) -> String {
    if found.is_empty() {
        return format!("no {name}");
    }
    let found: Vec<String> = found.iter().map(ToString::to_string).collect();
    format!("{name} {}", found.join(", "))
}

/// Line breaks can be seen, and control characters cannot reach the terminal.
fn visible(line: &str) -> String {
    let shown = |c: char| match c {
        '\n' => "↵".to_owned(),
        c if c.is_control() => c.escape_default().to_string(),
        c => c.to_string(),
    };
    line.chars().map(shown).collect()
}
