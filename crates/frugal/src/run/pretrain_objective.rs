//! Which mixture of objectives the settings of a run name.

use frugal_train::Named;
use frugal_train::mixture::{MixtureConfig, MixtureKind};

/// The objective of plain text, which is no mixture.
const PLAIN: &str = "causal_lm";

/// The mixture that is named, if one is.
///
/// # Errors
/// A setting and what is wrong with it.
pub(super) fn named_mixture(
    objective: &Named,
) -> Result<Option<(MixtureKind, MixtureConfig)>, (String, String)> {
    if objective.name != PLAIN && !objective.name.is_empty() {
        return MixtureConfig::read(objective).map(Some);
    }
    match objective.settings.keys().next() {
        None => Ok(None),
        Some(key) => {
            let reason = "plain text has no such setting: name a mixture";
            Err((key.clone(), reason.into()))
        }
    }
}
