//! Lines of TREC's files.

use super::error::RetrievalError;

/// Whether a line says nothing. An identifier may begin with `#`, so a space has to follow it.
pub(super) fn is_comment(line: &str) -> bool {
    line.trim().is_empty() || line.starts_with("# ") || line.trim() == "#"
}

/// Refuses an identifier that a line of such a file cannot hold.
pub(super) fn check_id(id: &str) -> Result<(), RetrievalError> {
    match id.is_empty() || id.contains(char::is_whitespace) {
        false => Ok(()),
        true => Err(RetrievalError::Identifier { id: id.into() }),
    }
}
