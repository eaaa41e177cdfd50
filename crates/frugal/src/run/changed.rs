//! Continuing a prompt with weights that come with the request.

use std::sync::Arc;

use frugal_decode::{GenerateConfig, Next, generate_until};
use frugal_nn::{ActiveAdapters, AdapterSet, LoadedAdapter};
use frugal_retrieve::parametric::FastWeights;

use super::generate::{AnswerText, Continued, stop_texts};
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
    let tokenizer = opened.files.tokenizer()?;
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
    let stops = stop_texts(tokenizer, stop);
    let mut answer = AnswerText::new(tokenizer, &stops);
    let mut failed = None;
    let prompt_tokens = prompt.len();
    let found = generate_until(
        &opened.backbone,
        &Arc::new(adapters),
        &choice,
        &[prompt],
        config,
        &mut |_, token| match answer.push(token) {
            Err(error) => {
                failed = Some(error);
                Next::Nothing
            }
            Ok(text) => match (on_text(&text), answer.is_stopped()) {
                (false, _) => Next::Nothing,
                (true, true) => Next::Others,
                (true, false) => Next::Sequence,
            },
        },
    )?;
    if let Some(error) = failed {
        return Err(error.into());
    }
    let found = found.into_iter().next();
    let found = found.ok_or_else(|| RunError::Invalid("nothing was generated".into()))?;
    let (text, rest) = answer.finish()?;
    on_text(&rest);
    Ok(Continued {
        prompt_tokens,
        tokens: found.tokens,
        text,
        finish: found.finish,
    })
}
