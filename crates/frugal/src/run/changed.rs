//! Continuing a prompt with weights that come with the request.

use std::sync::Arc;

use frugal_decode::GenerateConfig;
use frugal_nn::{ActiveAdapters, AdapterSet, LoadedAdapter};
use frugal_retrieve::parametric::FastWeights;

use super::generate::{Continued, continue_tokens};
use super::{Opened, RunError};

/// Name of the weights while they are in the model.
const NAME: &str = "documents";

/// Continues a prompt in tokens under a change of the model, or as the model is. `on_text` sees what
/// is certain to belong to the answer, and ends it by returning false. The change is gone afterwards.
pub(super) fn generate_changed(
    opened: &Opened,
    change: Option<FastWeights>,
    prompt: Vec<u32>,
    config: &GenerateConfig,
    stop: &[String],
    on_text: &mut dyn FnMut(&str) -> bool,
) -> Result<Continued, RunError> {
    let mut adapters = AdapterSet::default();
    let choice = match change {
        None => ActiveAdapters::Base,
        Some(change) => {
            let adapter = Box::new(change);
            adapters.insert(
                NAME,
                LoadedAdapter {
                    adapter,
                    head: None,
                },
            );
            ActiveAdapters::One(NAME.to_owned())
        }
    };
    let found = continue_tokens(
        opened,
        (&Arc::new(adapters), &choice),
        &[prompt],
        config,
        stop,
        &mut |piece| on_text(piece.text),
    )?;
    let first = found.into_iter().next();
    first.ok_or_else(|| RunError::Invalid("nothing was generated".into()))
}
