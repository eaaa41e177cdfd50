//! Rates of learning that the width of a model decides.

use frugal_adapt::methods::full::Full;
use frugal_models::ModelConfig;

/// Gives every matrix the rate that the architecture has for it ([`Architecture::lr_scale`]), on top
/// of the run's and of `param_groups`. Weight decay follows, as optimizers multiply it by the rate.
///
/// [`Architecture::lr_scale`]: frugal_models::Architecture::lr_scale
pub(super) fn scale_rates(adapter: &mut Full, model: &ModelConfig) {
    let sites = model.sites();
    adapter.scale_rates(|site| model.architecture.lr_scale(model, sites.info(site)));
}
