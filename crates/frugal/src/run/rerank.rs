//! Ordering candidates by a cross-encoder.

use std::path::PathBuf;

use frugal_models::Quantize;
use frugal_models::load::Lookup;

use super::{DataConfig, Observe, PredictRequest, Predictor, ProblemType, RunError};

/// Pairs that are computed together.
const BATCH: usize = 16;

/// What orders candidates by how well they answer a query.
pub trait Rerank {
    /// How well each candidate answers the query, in their order; higher is better, and equal ones
    /// stay as they were. `progress` is told how many more are done, and ends the work by answering
    /// false.
    ///
    /// # Errors
    /// Texts that the tokenizer cannot spell, numbers that are not finite, an interruption.
    fn scores(
        &self,
        query: &str,
        candidates: &[&str],
        progress: &mut dyn FnMut(usize) -> bool,
    ) -> Result<Vec<f32>, RunError>;

    /// What a score is, in a word or two.
    fn scale(&self) -> &'static str;
}

/// A cross-encoder: a classifier with one output that reads a query and a candidate together.
pub struct Reranker {
    predictor: Predictor,
}

impl Reranker {
    /// Finds and reads model, adapter and head. Pairs that are too long are cut, the longer text
    /// first.
    ///
    /// # Errors
    /// Anything wrong with them; a head of several outputs.
    pub fn open(
        model: &str,
        adapter: Option<PathBuf>,
        device: &str,
        lookup: &Lookup,
        observe: Observe<'_>,
    ) -> Result<Self, RunError> {
        let request = PredictRequest {
            model: model.to_owned(),
            adapter,
            data: DataConfig {
                truncate: true,
                ..DataConfig::default()
            },
            device: device.to_owned(),
            quantize: Quantize::None,
        };
        Self::of(model, Predictor::open(&request, lookup, observe)?)
    }

    /// A classifier that is there already; `name` is for the message.
    ///
    /// # Errors
    /// A head of several outputs.
    pub fn of(name: &str, predictor: Predictor) -> Result<Self, RunError> {
        let labels = predictor.labels();
        if labels.len() != 1 {
            return Err(RunError::Invalid(format!(
                "{name}: a reranker has one output, this classifier has {} ({}): use `frugal predict`",
                labels.len(),
                labels.join(", ")
            )));
        }
        Ok(Self { predictor })
    }

    /// The classifier.
    pub fn predictor(&self) -> &Predictor {
        &self.predictor
    }
}

impl Rerank for Reranker {
    fn scale(&self) -> &'static str {
        match self.predictor.problem() {
            ProblemType::Regression => "logit",
            _ => "probability",
        }
    }

    fn scores(
        &self,
        query: &str,
        candidates: &[&str],
        progress: &mut dyn FnMut(usize) -> bool,
    ) -> Result<Vec<f32>, RunError> {
        let mut scores = Vec::with_capacity(candidates.len());
        for batch in candidates.chunks(BATCH) {
            let pairs = batch
                .iter()
                .map(|candidate| self.predictor.encode(query, Some(candidate)))
                .collect::<Result<Vec<_>, _>>()?;
            let found = self.predictor.predict(&pairs)?;
            scores.extend(found.iter().filter_map(|values| values.first()));
            if !progress(batch.len()) {
                return Err(RunError::Interrupted);
            }
        }
        Ok(scores)
    }
}
