//! The studies there are.

use super::StudyError;
use super::run::Study;

/// All studies, one line each.
pub static STUDIES: &[&Study] = &[];

/// The study of a name.
///
/// # Errors
/// A name that no study has.
pub fn find(name: &str) -> Result<&'static Study, StudyError> {
    let found = STUDIES.iter().find(|study| study.name == name);
    found.copied().ok_or_else(|| StudyError::Unknown {
        name: name.to_owned(),
        known: STUDIES
            .iter()
            .map(|study| study.name)
            .collect::<Vec<_>>()
            .join(", "),
    })
}
