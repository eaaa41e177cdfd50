//! Measuring a model on examples, without gradients.

use std::sync::atomic::{AtomicBool, Ordering};

use frugal_nn::{Adapter, Backbone, Fixed, Head, Mode, to_vec};

use crate::Tokenized;
use crate::error::{Set, TrainError};
use crate::objective::{
    Evaluation, Forward, MicroBatch, ModelParts, Objective, check, check_tokens,
};

/// For each example the logits of a head, of one that labels tokens those of all tokens one after
/// another. Targets are not looked at.
///
/// # Errors
/// Examples that do not fit the model, and logits that are not finite.
pub fn head_logits(
    backbone: &dyn Backbone,
    adapter: Option<&dyn Adapter>,
    head: &Head,
    examples: &[Tokenized],
) -> Result<Vec<Vec<f32>>, TrainError> {
    if examples.is_empty() {
        return Ok(Vec::new());
    }
    let (model, set) = (ModelParts::new(backbone, Some(head)), Set::Evaluation);
    for (row, example) in examples.iter().enumerate() {
        check_tokens(model, example).map_err(|reason| TrainError::Example { set, row, reason })?;
    }
    let fixed = Fixed::new(adapter);
    let mut pass = fixed.pass();
    let failed = |source| TrainError::Forward {
        set,
        rows: (0..examples.len() as u32).collect(),
        source,
    };
    let batch = MicroBatch::new(&examples.iter().collect::<Vec<_>>());
    let mut forward = Forward {
        model,
        pass: pass.as_mut(),
        mode: Mode::Eval,
    };
    let logits = batch.head_logits(&mut forward).map_err(failed)?;
    let labels = logits.dims()[1];
    let values = to_vec(logits);
    if let Some(at) = values.iter().position(|value| !value.is_finite()) {
        return Err(TrainError::Example {
            set,
            row: row_of(at / labels, head, examples),
            reason: "the model's logits are not finite: its weights are damaged".into(),
        });
    }
    if !head.config().labels_tokens() {
        return Ok(values.chunks(labels).map(<[f32]>::to_vec).collect());
    }
    let mut values = values.into_iter();
    let mut of = |example: &Tokenized| values.by_ref().take(example.len() * labels).collect();
    Ok(examples.iter().map(&mut of).collect())
}

/// The example of a row of logits.
fn row_of(row: usize, head: &Head, examples: &[Tokenized]) -> usize {
    if !head.config().labels_tokens() {
        return row;
    }
    let mut before = 0;
    let holds = |example: &Tokenized| {
        before += example.len();
        row < before
    };
    examples.iter().position(holds).unwrap_or_default()
}

/// Evaluates a model, with `adapter` if one is given, in batches of at most `max_tokens` tokens.
///
/// The loss is the plain one of the objective, without label smoothing. Returns `None` if `stop`
/// was set before the end.
///
/// # Errors
/// No example, examples that do not fit the objective or the model, a model without what the
/// objective takes.
pub fn evaluate<'a>(
    model: impl Into<ModelParts<'a>>,
    adapter: Option<&dyn Adapter>,
    objective: &dyn Objective,
    examples: &[Tokenized],
    max_tokens: usize,
    stop: &AtomicBool,
) -> Result<Option<Evaluation>, TrainError> {
    evaluate_observed(
        model,
        adapter,
        objective,
        examples,
        max_tokens,
        stop,
        &mut |_, _| {},
    )
}

/// [`evaluate`], which tells after each batch how many examples are done, and of how many.
///
/// # Errors
/// As [`evaluate`].
pub fn evaluate_observed<'a>(
    model: impl Into<ModelParts<'a>>,
    adapter: Option<&dyn Adapter>,
    objective: &dyn Objective,
    examples: &[Tokenized],
    max_tokens: usize,
    stop: &AtomicBool,
    observe: &mut dyn FnMut(usize, usize),
) -> Result<Option<Evaluation>, TrainError> {
    let _span = tracing::debug_span!("evaluate", examples = examples.len()).entered();
    let model = model.into();
    check(objective, Set::Evaluation, model, examples)?;
    let rows: Vec<u32> = (0..examples.len() as u32)
        .filter(|&i| examples[i as usize].trained() > 0)
        .collect();
    let mut meter = objective.meter(model);
    let fixed = Fixed::new(adapter);
    let (mut done, of) = (0, rows.len());
    for range in crate::batch::pack(&rows, max_tokens, |row| {
        examples[row as usize].input_ids.len()
    }) {
        if stop.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let rows = &rows[range];
        let batch: Vec<&Tokenized> = rows.iter().map(|&row| &examples[row as usize]).collect();
        let mut pass = fixed.pass();
        let mut forward = Forward {
            model,
            pass: pass.as_mut(),
            mode: Mode::Eval,
        };
        meter
            .add(&batch, &mut forward)
            .map_err(|source| TrainError::Forward {
                set: Set::Evaluation,
                rows: rows.to_vec(),
                source,
            })?;
        done += rows.len();
        observe(done, of);
    }
    Ok(Some(meter.finish()))
}
