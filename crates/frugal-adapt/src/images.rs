//! Which methods act on models that read images.

use frugal_nn::{AdaptError, BuildContext};

/// Methods that have been checked on models that read images; those that count on tokens, on attention or
/// on one width of all blocks are none of them.
pub const ON_IMAGES: &[&str] = &[
    "dora",
    "full",
    "hra",
    "ln-tuning",
    "loha",
    "lokr",
    "lora",
    "lora-fa",
    "pissa",
    "road",
];

/// Refuses other methods on such models.
pub(crate) fn check(method: &'static str, context: &BuildContext<'_>) -> Result<(), AdaptError> {
    if context.info.image.is_none() || ON_IMAGES.contains(&method) {
        return Ok(());
    }
    Err(AdaptError::Unsupported {
        method,
        action: "act on a model that reads images",
        reason: format!(
            "`{}` models have no tokens, and blocks of several widths: use one of {}",
            context.info.model_type,
            ON_IMAGES.join(", ")
        ),
    })
}
