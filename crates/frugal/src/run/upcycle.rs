//! A dense model as a mixture of copies of its feed-forward layers.

use std::path::PathBuf;

use burn::prelude::Device;
use frugal_core::stage::Stage;
use frugal_models::load::{Lookup, ModelFiles};
use frugal_models::merge;
use frugal_models::save::{StoredType, write_model_with};
use frugal_models::upcycle::{Upcycling, upcycle as upcycle_weights, upcycled_config};
use serde::Serialize;

use super::grow::stored_type;
use super::{RunError, carry};

/// What becomes what.
#[derive(Clone, Debug)]
pub struct UpcycleRequest {
    /// Name, folder, or `org/name` on the hub.
    pub model: String,
    /// Folder to write, new or empty.
    pub out: PathBuf,
    /// How many experts, and how they are chosen.
    pub upcycling: Upcycling,
    /// Number format of the weights; by default the model's.
    pub dtype: Option<StoredType>,
    /// Check everything, write nothing.
    pub dry_run: bool,
}

/// What [`upcycle`] came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Upcycled {
    /// The new folder.
    pub out: PathBuf,
    /// Its `model_type`.
    pub model_type: &'static str,
    /// Experts of a block.
    pub experts: usize,
    /// Those that a token goes through.
    pub experts_per_token: usize,
    /// Parameters before.
    pub parameters_before: usize,
    /// Parameters now.
    pub parameters: usize,
}

/// Writes a folder of the model as a mixture of experts, which computes what it did: weights,
/// configuration and tokenizer.
///
/// # Errors
/// A model of which no mixture is made or that cannot be read, numbers of experts out of range, a
/// folder that is in use or cannot be written.
pub fn upcycle(
    request: &UpcycleRequest,
    lookup: &Lookup,
    device: &Device,
) -> Result<Upcycled, RunError> {
    let files = ModelFiles::open(&request.model, lookup)?;
    let upcycling = &request.upcycling;
    let dtype = request.dtype.unwrap_or_else(|| stored_type(&files));
    dtype
        .check_deviation(upcycling.router_std)
        .map_err(|reason| RunError::Invalid(format!("`--router-std`: {reason}")))?;
    let config = upcycled_config(files.config(), upcycling)?;
    let upcycled = Upcycled {
        out: request.out.clone(),
        model_type: config.model_type(),
        experts: upcycling.experts,
        experts_per_token: upcycling.experts_per_token,
        parameters_before: files.sites().num_parameters(),
        parameters: config.sites().num_parameters(),
    };
    if request.dry_run {
        return Ok(upcycled);
    }
    let stage = Stage::replace(&request.out)?;
    let folder = stage.path();
    let backbone = files.load(device)?;
    let dense = merge::weights(backbone.as_ref(), None)?;
    let weights = upcycle_weights(&dense, upcycling, device)?;
    let carried = carry::tensors(&files, dtype)?;
    write_model_with(folder, &weights.config, &weights.tensors, carried, dtype)?;
    carry::files(&files, folder)?;
    stage.finish("config.json")?;
    Ok(upcycled)
}
