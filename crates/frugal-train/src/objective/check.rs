//! Whether data fit an objective and a model, before any work.

use super::{ModelParts, Objective};
use crate::Tokenized;
use crate::error::{Set, TrainError};

/// Checks that every example fits the objective and the model, and that there is something to
/// predict.
///
/// # Errors
/// A model without what the objective takes, or the first example at fault.
pub fn check(
    objective: &dyn Objective,
    set: Set,
    model: ModelParts<'_>,
    examples: &[Tokenized],
) -> Result<(), TrainError> {
    objective.check_model(model).map_err(TrainError::Setup)?;
    let mut any = false;
    for (row, example) in examples.iter().enumerate() {
        check_tokens(model, example)
            .and_then(|()| objective.check_example(model, example))
            .map_err(|reason| TrainError::Example { set, row, reason })?;
        any = any || example.trained() > 0;
    }
    if any {
        Ok(())
    } else {
        Err(TrainError::Empty { set })
    }
}

/// Checks that the tokens of an example fit the model.
///
/// # Errors
/// What is wrong with them.
pub fn check_tokens(model: ModelParts<'_>, example: &Tokenized) -> Result<(), String> {
    let (tokens, types, vocab) = (
        example.input_ids.len(),
        example.token_type_ids.len(),
        model.backbone.info().vocab_size,
    );
    if tokens == 0 {
        return Err("it has no tokens".into());
    }
    if types != 0 && types != tokens {
        return Err(format!("{types} segment ids for {tokens} tokens"));
    }
    if let Some(id) = example.input_ids.iter().find(|&&id| id as usize >= vocab) {
        return Err(format!(
            "token id {id} is outside the vocabulary of {vocab}: the tokenizer does not belong to this model"
        ));
    }
    Ok(())
}
