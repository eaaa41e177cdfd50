//! The studies there are.

use super::StudyError;
use super::run::Study;

/// All studies, one line each.
#[rustfmt::skip]
pub static STUDIES: &[&Study] = &[
    &super::anncur::ANNCUR,
    &super::blockrank::BLOCKRANK,
    &super::cramf::CRAMF,
    &super::dyprag::DYPRAG,
    &super::efficientvmamba::EFFICIENT_VMAMBA,
    &super::iaa::IAA,
    &super::low_memory::LOW_MEMORY,
    &super::mor::MOR,
    &super::perk::PERK,
    &super::prp::PRP,
    &super::rag_hyperparameters::STUDY,
    &super::tokenformer::TOKENFORMER,
    &super::routed::RMOE,
    &super::routed::WIDENET,
];

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
