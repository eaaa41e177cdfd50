//! From a configuration and a source of weights to a backbone.

use std::sync::Arc;

use burn::prelude::*;
use frugal_nn::{Backbone, ModelError};

use crate::architecture::ModelConfig;
use crate::source::WeightSource;
use crate::weights::{LoadOptions, WeightLoader};

/// Builds the backbone that `config` describes from `source`.
///
/// # Errors
/// When tensors are missing, mis-shaped or unreadable.
pub fn build(
    config: ModelConfig,
    source: &dyn WeightSource,
    device: &Device,
) -> Result<Arc<dyn Backbone>, ModelError> {
    build_with(config, source, device, LoadOptions::default())
}

/// [`build`] with a choice of how matrices are held.
///
/// # Errors
/// As [`build`].
pub fn build_with(
    config: ModelConfig,
    source: &dyn WeightSource,
    device: &Device,
    options: LoadOptions,
) -> Result<Arc<dyn Backbone>, ModelError> {
    let sites = Arc::new(config.sites());
    let mut loader = WeightLoader::new(source, &config.info(), &sites, device, options)?;
    config
        .architecture
        .build(&config, sites.clone(), &mut loader)
}
