//! The studies there are.

use super::StudyError;
use super::run::{Study, StudyKind};

/// All studies, one line each.
#[rustfmt::skip]
pub static STUDIES: &[&Study] = &[
    &super::anncur::ANNCUR,
    &super::birdie::BIRDIE,
    &super::blockrank::BLOCKRANK,
    &super::cramf::CRAMF,
    &super::dyprag::DYPRAG,
    &super::efficientvmamba::EFFICIENT_VMAMBA,
    &super::iaa::IAA,
    &super::low_memory::LOW_MEMORY,
    &super::minicpm::MINICPM,
    &super::mor::MOR,
    &super::perk::PERK,
    &super::prp::PRP,
    &super::rag_hyperparameters::STUDY,
    &super::tokenformer::TOKENFORMER,
    &super::routed::RMOE,
    &super::routed::WIDENET,
];

/// The study of a kind and name.
///
/// # Errors
/// A name that no study has, or one of another kind.
pub fn find(kind: StudyKind, name: &str) -> Result<&'static Study, StudyError> {
    let found = STUDIES.iter().find(|study| study.name == name);
    match found {
        Some(study) if study.kind == kind => Ok(study),
        Some(study) => Err(StudyError::Kind {
            name: name.to_owned(),
            command: study.kind.command(),
        }),
        None => Err(StudyError::Unknown {
            name: name.to_owned(),
            known: STUDIES
                .iter()
                .filter(|study| study.kind == kind)
                .map(|study| study.name)
                .collect::<Vec<_>>()
                .join(", "),
        }),
    }
}
