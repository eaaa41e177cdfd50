//! A model as tasks see it.

use super::answers::Written;
use super::error::ModelFailure;
use super::task::Generation;
use frugal_core::data::Message;

/// Receives the answer to a request by the request's number; false ends the work.
pub type Sink<'a, T> = &'a mut dyn FnMut(usize, T) -> bool;

/// How a text may be continued.
#[derive(Clone, Copy, Debug)]
pub struct Continuations<'a> {
    /// What is given; may be empty.
    pub context: &'a str,
    /// What may follow.
    pub continuations: &'a [String],
}

/// A text to continue.
#[derive(Clone, Copy, Debug)]
pub struct ToContinue<'a> {
    /// What is given; may be empty.
    pub context: &'a str,
    /// Decides what is drawn.
    pub seed: u64,
}

/// A model as tasks see it. Answers may come in any order.
pub trait LanguageModel {
    /// Identifies model and adapter by content, for resuming.
    fn fingerprint(&self) -> &str;

    /// Log-likelihood of every continuation in nats, with whether greedy decoding would write it.
    ///
    /// # Errors
    /// What the model cannot do.
    fn loglikelihood(
        &mut self,
        requests: &[Continuations<'_>],
        answer: Sink<'_, Vec<(f64, bool)>>,
    ) -> Result<(), ModelFailure>;

    /// Log-likelihood of whole texts in nats and their numbers of tokens; long ones in disjoint
    /// windows.
    ///
    /// # Errors
    /// What the model cannot do.
    fn loglikelihood_rolling(
        &mut self,
        texts: &[&str],
        answer: Sink<'_, (f64, usize)>,
    ) -> Result<(), ModelFailure>;

    /// Continues texts until one of `generation.until`, the model's own end, or the longest length.
    ///
    /// # Errors
    /// What the model cannot do.
    fn generate_until(
        &mut self,
        requests: &[ToContinue<'_>],
        generation: &Generation,
        answer: Sink<'_, Written>,
    ) -> Result<(), ModelFailure>;

    /// A conversation as the model reads it, up to where its answer begins.
    ///
    /// # Errors
    /// Models without a chat template, conversations that the template refuses.
    fn chat(&self, messages: &[Message]) -> Result<String, ModelFailure>;
}
