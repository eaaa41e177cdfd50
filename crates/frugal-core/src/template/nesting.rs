//! How deep a template nests, before it is compiled: the compiler recurses into what it parses, and
//! a hundred thousand operators in a row would end the program instead of the rendering.

use super::error::TemplateError;

/// Operators in one tag, or brackets around each other. Templates in use have a few dozen.
const LIMIT: usize = 500;

/// Counts operators and brackets of every tag.
pub(super) fn check(source: &str) -> Result<(), TemplateError> {
    // Each `elif` is parsed inside the condition before it.
    if let Some((at, _)) = source.match_indices("elif").nth(LIMIT) {
        return Err(TemplateError::Nested {
            line: line_of(source, at),
            found: source.matches("elif").count(),
            limit: LIMIT,
        });
    }
    let bytes = source.as_bytes();
    let mut at = 0;
    while let Some(found) = source[at..].find('{') {
        let start = at + found;
        at = match bytes.get(start + 1) {
            Some(b'#') => source[start..]
                .find("#}")
                .map_or(source.len(), |length| start + length + 2),
            Some(b'{' | b'%') => {
                let (found, length) = tag(&source[start + 2..]);
                if found > LIMIT {
                    return Err(TemplateError::Nested {
                        line: line_of(source, start),
                        found,
                        limit: LIMIT,
                    });
                }
                start + 2 + length
            }
            _ => start + 1,
        };
    }
    Ok(())
}

fn line_of(source: &str, at: usize) -> usize {
    1 + source[..at].matches('\n').count()
}

/// The larger of operators and depth of a tag, and where it ends. Counting stops above the limit.
pub(super) fn tag(text: &str) -> (usize, usize) {
    let bytes = text.as_bytes();
    let (mut operators, mut depth, mut deepest) = (0, 0_usize, 0);
    let mut at = 0;
    while at < bytes.len() && operators.max(deepest) <= LIMIT {
        match bytes[at] {
            quote @ (b'"' | b'\'') => at = after_text(bytes, at, quote),
            b'}' | b'%' if bytes.get(at + 1) == Some(&b'}') && depth == 0 => {
                return (operators.max(deepest), at + 2);
            }
            b'(' | b'[' | b'{' => {
                depth += 1;
                deepest = deepest.max(depth);
                // A call or a subscript is an operator of the chain that it stands in.
                operators += 1;
                at += 1;
            }
            b')' | b']' | b'}' => {
                depth = depth.saturating_sub(1);
                at += 1;
            }
            b'+' | b'-' | b'*' | b'/' | b'%' | b'~' | b'|' | b'.' | b'<' | b'>' | b'=' | b'!' => {
                operators += 1;
                at += 1;
            }
            c if c.is_ascii_alphabetic() || c == b'_' => {
                let end = word_end(bytes, at);
                let word = &text[at..end];
                operators += usize::from(matches!(
                    word,
                    "not" | "and" | "or" | "in" | "is" | "if" | "else" | "elif"
                ));
                at = end;
            }
            _ => at += 1,
        }
    }
    (operators.max(deepest), at.min(bytes.len()))
}

pub(super) fn after_text(bytes: &[u8], start: usize, quote: u8) -> usize {
    let mut at = start + 1;
    while at < bytes.len() && bytes[at] != quote {
        at += 1 + usize::from(bytes[at] == b'\\');
    }
    (at + 1).min(bytes.len())
}

pub(super) fn word_end(bytes: &[u8], start: usize) -> usize {
    let word = |b: &u8| b.is_ascii_alphanumeric() || *b == b'_';
    start + bytes[start..].iter().take_while(|b| word(b)).count()
}
