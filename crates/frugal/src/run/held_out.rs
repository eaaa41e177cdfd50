//! Parts that are held out of the data.

use frugal_core::data::Dataset;

use super::RunError;

/// Divides the records at random into what is left and what is held out for validation; `help` says
/// what to give where there are too few of them.
pub(super) fn hold_out(
    dataset: &Dataset,
    share: f64,
    seed: u64,
    help: &'static str,
) -> Result<[Dataset; 2], RunError> {
    hold_out_for("validation", dataset, share, seed, help)
}

/// The same for a part of this name.
pub(super) fn hold_out_for(
    part: &'static str,
    dataset: &Dataset,
    share: f64,
    seed: u64,
    help: &'static str,
) -> Result<[Dataset; 2], RunError> {
    let parts = dataset
        .split(&[1.0 - share, share], seed)
        .ok()
        .and_then(|parts| parts.try_into().ok());
    parts.ok_or_else(|| RunError::TooFewRows {
        path: dataset.source.clone(),
        rows: dataset.len(),
        share,
        part,
        help,
    })
}
