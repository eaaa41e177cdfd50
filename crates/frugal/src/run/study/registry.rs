//! The studies there are.

use super::StudyError;
use super::rag_hyperparameters;
use super::run::Study;

/// All studies, one line each.
#[rustfmt::skip]
pub static STUDIES: &[&Study] = &[
    &super::cramf::CRAMF,
    &super::iaa::IAA,
];
pub static STUDIES: &[&Study] = &[&super::anncur::ANNCUR];
pub static STUDIES: &[&Study] = &[&super::blockrank::BLOCKRANK, &super::prp::PRP];
pub static STUDIES: &[&Study] = &[&rag_hyperparameters::STUDY];

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
