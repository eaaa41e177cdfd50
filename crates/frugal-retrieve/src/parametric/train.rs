//! Stage C: the translator learns to write what training would have.

use frugal_kernels::on_pool;
use frugal_nn::{Backbone, GradientSum, Mode, named_rng};
use rand::seq::SliceRandom;

use super::config::TranslatorTraining;
use super::encode::Steps;
use super::error::ParametricError;
use super::loss::{Losses, translator_loss};
use super::prompt::Sequence;
use super::translator::Translator;
use super::weights::DocumentWeights;

/// A document to learn from.
#[derive(Clone, Debug)]
pub struct TranslatorExample {
    /// What the translator reads of it.
    pub embedding: Vec<f32>,
    /// Its trained parameters.
    pub trained: DocumentWeights,
    /// Its sequences.
    pub sequences: Vec<Sequence>,
}

/// One step of training.
#[derive(Clone, Copy, Debug)]
pub struct TranslatorStep {
    /// Steps done, from 1.
    pub step: usize,
    /// Steps of the training.
    pub of: usize,
    /// Losses before the update.
    pub losses: Losses,
}

/// Trains a translator: a step of AdamW for each document, in an order of its own in each pass.
/// `on_step` sees each step and ends the training by returning false.
///
/// # Errors
/// Settings out of range, examples that do not fit the model, losses that are no numbers, a `false`
/// of `on_step`.
pub fn train_translator(
    translator: &mut Translator,
    backbone: &dyn Backbone,
    examples: &[TranslatorExample],
    options: &TranslatorTraining,
    on_step: &mut (dyn FnMut(TranslatorStep) -> bool + Send),
) -> Result<(), ParametricError> {
    options.validate()?;
    if examples.iter().any(|example| example.sequences.is_empty()) {
        return Err(ParametricError::Sequence(
            "a document has none to train the translator on".into(),
        ));
    }
    on_pool(|| {
        let mut steps = Steps::new(options.lr, options.weight_decay);
        let mode = Mode::Train { seed: options.seed };
        let scale = translator.config().parameters.translated_scale();
        let places = translator.places().clone();
        let of = options.epochs * examples.len();
        for epoch in 0..options.epochs {
            let mut order: Vec<usize> = (0..examples.len()).collect();
            order.shuffle(&mut named_rng(
                options.seed,
                &format!("translator epoch {epoch}"),
            ));
            for (done, number) in order.into_iter().enumerate() {
                let example = &examples[number];
                let sequence = match options.all_sequences {
                    true => &example.sequences[epoch % example.sequences.len()],
                    false => &example.sequences[0],
                };
                let translated = translator.translate(&example.embedding, mode)?;
                let loss = translator_loss(
                    backbone,
                    &places,
                    [&translated, &example.trained],
                    scale,
                    sequence,
                    options,
                )?;
                let step = epoch * examples.len() + done + 1;
                let losses = loss.numbers();
                if !losses.total.is_finite() {
                    return Err(ParametricError::NotFinite {
                        what: "the loss",
                        step,
                    });
                }
                let mut found = loss.total.backward();
                let mut gradients = GradientSum::default();
                gradients.add(translator.parameters(), &mut found);
                steps.step(translator.parameters_mut(), &gradients);
                if !on_step(TranslatorStep { step, of, losses }) {
                    return Err(ParametricError::Interrupted);
                }
            }
        }
        Ok(())
    })
}
