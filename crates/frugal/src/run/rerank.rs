//! Ordering candidates by a cross-encoder.

use std::path::PathBuf;

use frugal_models::Quantize;
use frugal_models::load::{Lookup, ModelFiles, read_json};
use serde_json::Value;

use super::{DataConfig, Observe, PredictRequest, Predictor, RunError};

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
    activation: Activation,
}

/// What `CrossEncoder.predict` of sentence-transformers makes of a logit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Activation {
    Identity,
    Sigmoid,
    Tanh,
}

impl Activation {
    /// That of a model: the first of its files that names one, as sentence-transformers looks for
    /// it, and the sigmoid where none does. `problem_type` says nothing here.
    fn of(files: &ModelFiles) -> Result<Self, RunError> {
        let settings = files.path().join("config_sentence_transformers.json");
        let saved = match settings.is_file() {
            true => read_json(&settings).map_err(frugal_nn::ModelError::from)?,
            false => Value::Null,
        };
        let prompt = saved.get("default_prompt_name").filter(|v| !v.is_null());
        if let (Some(prompt), Some("CrossEncoder")) =
            (prompt, saved.get("model_type").and_then(Value::as_str))
        {
            return Err(RunError::Invalid(format!(
                "{}: `default_prompt_name` {prompt} of a cross-encoder is not computed here",
                settings.display()
            )));
        }
        let raw = &files.config().raw;
        let in_config = match raw.pointer("/sentence_transformers/activation_fn") {
            None => raw.get("sbert_ce_default_activation_function"),
            found => found,
        };
        let saved = saved.get("activation_fn").filter(|v| !v.is_null());
        match saved.or(in_config).filter(|v| !v.is_null()) {
            None => Ok(Self::Sigmoid),
            Some(value) => Self::named(value).ok_or_else(|| {
                RunError::Invalid(format!(
                    "{}: the activation function {value} of a cross-encoder is none of torch's Identity, Sigmoid and Tanh",
                    files.name()
                ))
            }),
        }
    }

    /// By the path of its class, `torch.nn.modules.activation.Sigmoid` or shorter.
    fn named(value: &Value) -> Option<Self> {
        let path = value.as_str()?.strip_prefix("torch.nn.")?;
        match path.rsplit('.').next()? {
            "Identity" => Some(Self::Identity),
            "Sigmoid" => Some(Self::Sigmoid),
            "Tanh" => Some(Self::Tanh),
            _ => None,
        }
    }

    fn of_logit(self, x: f32) -> f32 {
        match self {
            Self::Identity => x,
            Self::Sigmoid => 1.0 / (1.0 + (-x).exp()),
            Self::Tanh => x.tanh(),
        }
    }
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
    /// A head of several outputs; an activation function that is not computed here.
    pub fn of(name: &str, predictor: Predictor) -> Result<Self, RunError> {
        let labels = predictor.labels();
        if labels.len() != 1 {
            return Err(RunError::Invalid(format!(
                "{name}: a reranker has one output, this classifier has {} ({}): use `frugal predict`",
                labels.len(),
                labels.join(", ")
            )));
        }
        let activation = Activation::of(predictor.files())?;
        Ok(Self {
            predictor,
            activation,
        })
    }

    /// The classifier.
    pub fn predictor(&self) -> &Predictor {
        &self.predictor
    }
}

impl Rerank for Reranker {
    fn scale(&self) -> &'static str {
        match self.activation {
            Activation::Identity => "logit",
            Activation::Sigmoid => "probability",
            Activation::Tanh => "tanh",
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
            let found = self.predictor.logits(&pairs)?;
            let logits = found.iter().filter_map(|values| values.first());
            scores.extend(logits.map(|logit| self.activation.of_logit(*logit)));
            if !progress(batch.len()) {
                return Err(RunError::Interrupted);
            }
        }
        Ok(scores)
    }
}
