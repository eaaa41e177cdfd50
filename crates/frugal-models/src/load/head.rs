//! The classification head that a model was saved with.

use burn::prelude::*;
use frugal_core::label_names::label_names;
use frugal_nn::{Head, HeadConfig, ModelError, Pooling, ProblemType};

use crate::architecture::ModelConfig;
use crate::source::{WeightSource, read_values};

/// The head of a model that was saved as a classifier; `None` for other models.
///
/// # Errors
/// A head that is missing, damaged or of another shape than the model's list of classes.
pub(super) fn of_model(
    model: &ModelConfig,
    source: &dyn WeightSource,
    device: &Device,
) -> Result<Option<Head>, ModelError> {
    if !model.is_classifier() {
        return Ok(None);
    }
    let names = model
        .raw
        .get("id2label")
        .and_then(|names| names.as_object());
    let count = names
        .map(|names| names.len())
        .or_else(|| usize::try_from(model.raw.get("num_labels")?.as_u64()?).ok())
        .unwrap_or(2);
    let labels = label_names(&model.raw, count).map_err(|reason| ModelError::Config {
        source_name: "config.json".into(),
        key: "id2label".into(),
        reason,
    })?;
    let info = model.info();
    let problem = || {
        ProblemType::of_config(&model.raw, count).map_err(|reason| ModelError::Config {
            source_name: "config.json".into(),
            key: "problem_type".into(),
            reason,
        })
    };
    // The classes that label tokens do not look at `problem_type`.
    let (pooling, problem_type) = if model.labels_tokens() {
        (Pooling::Tokens, ProblemType::SingleLabel)
    } else {
        (Pooling::default_for(&info), problem()?)
    };
    let config = HeadConfig {
        labels,
        pooling,
        problem_type,
    };
    let mut head = Head::new(config, &info, device, 0);
    for parameter in head.parameters_mut() {
        let values = read_values(source, parameter.name(), parameter.shape())?;
        parameter.set(values);
    }
    Ok(Some(head))
}
