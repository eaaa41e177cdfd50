//! Whether a new model fits into memory, before anything is made of it.

use frugal_core::human;
use frugal_nn::{ModelError, SiteInfo};
use serde_json::{Map, Value};

use crate::architecture::ModelConfig;
use crate::fresh::{FreshSizes, NO_SIZES};
use crate::keys::bad;

/// Refuses a new model of these sizes and keys whose parameters, of so many bytes each, do not fit
/// into the `available` bytes.
///
/// # Errors
/// [`ModelError::Config`] that names the largest of the sizes.
pub fn check_memory(
    config: &ModelConfig,
    mut sizes: FreshSizes,
    own: &Map<String, Value>,
    [bytes_each, available]: [u64; 2],
) -> Result<(), ModelError> {
    let count = |site: &SiteInfo| {
        let weight = site.d_in as u128 * site.d_out as u128;
        let weight = if site.tied { 0 } else { weight };
        weight + if site.has_bias { site.d_out as u128 } else { 0 }
    };
    let sites = config.sites();
    let parameters: u128 = sites.iter().map(|(_, site)| count(site)).sum();
    let bytes = parameters.saturating_mul(u128::from(bytes_each));
    if bytes <= u128::from(available) {
        return Ok(());
    }
    let shared = sizes.by_key().map(|(key, size)| (*size as u64, key));
    let own = own.iter();
    let (size, key) = own
        .filter_map(|(key, value)| Some((value.as_u64()?, key.as_str())))
        .chain(shared)
        .filter(|(_, key)| !NO_SIZES.contains(key))
        .max()
        .unwrap_or_default();
    let [bytes, available] =
        [u64::try_from(bytes).unwrap_or(u64::MAX), available].map(human::bytes);
    let reason = format!(
        "{size} among others makes {parameters} parameters, which take at least {bytes} to train, and {available} are available"
    );
    Err(bad(&config.source, key, reason))
}
