//! What TREC's files of both kinds share.

use super::error::RetrievalError;

/// Whether a line says nothing. An identifier may begin with `#`, so a space has to follow it.
pub(super) fn is_comment(line: &str) -> bool {
    line.trim().is_empty() || line.starts_with("# ") || line.trim() == "#"
}

/// Refuses an identifier that would not be read back.
pub(super) fn check_id(id: &str) -> Result<(), RetrievalError> {
    match id.is_empty() || id.contains(char::is_whitespace) {
        false => Ok(()),
        true => Err(RetrievalError::Identifier { id: id.into() }),
    }
}
