//! From a configuration and a source of weights to a backbone.

use std::sync::Arc;

use burn::prelude::*;
use frugal_nn::{Backbone, ModelError};

use crate::config::{ModelConfig, ModelType};
use crate::text::decoder::Decoder;
use crate::text::encoder::Encoder;
use crate::text::gpt2::Gpt2;
use crate::weights::{LoadOptions, WeightLoader, WeightSource};

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
    let mut loader = WeightLoader::new(
        source,
        &sites,
        device,
        config.model_type.base_prefix(),
        options,
    )?;
    let sites = sites.clone();
    Ok(match config.model_type {
        ModelType::Gpt2 => Arc::new(Gpt2::load(config, sites, &mut loader)?),
        t if t.is_encoder() => Arc::new(Encoder::load(config, sites, &mut loader)?),
        _ => Arc::new(Decoder::load(config, sites, &mut loader)?),
    })
}
