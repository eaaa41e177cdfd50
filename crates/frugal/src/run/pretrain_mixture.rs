//! Pre-training on a mixture of objectives: the tokens that it needs, the model that reads prefixes in
//! both directions, and the examples.

use frugal_core::encode::{Target, Tokenized};
use frugal_core::pretext::{Pair, Special, sequence, special_names};
use frugal_core::tokenizer::TextTokenizer;
use frugal_models::ModelConfig;
use frugal_train::mixture::{Mixture, MixtureConfig, MixtureKind, MixtureText};
use frugal_train::objective::PrefixedLm;
use frugal_train::{CausalLm, Objective, TrainConfig};
use serde_json::Value;

use super::RunError;
use super::corpus::Corpus;
use super::pretrain_config::PretrainConfig;

/// The objective of plain text, which is no mixture.
const PLAIN: &str = "causal_lm";

/// A mixture as a run has it.
#[derive(Clone, Debug)]
pub(super) struct Chosen {
    pub(super) kind: MixtureKind,
    pub(super) config: MixtureConfig,
    /// Longest example.
    max_length: usize,
}

impl Chosen {
    /// The mixture of a run, if it has one.
    ///
    /// # Errors
    /// A setting and what is wrong with it.
    pub(super) fn of(config: &PretrainConfig) -> Result<Option<Self>, (String, String)> {
        if config.objective.is_unset() {
            return Ok(None);
        }
        if config.objective.name == PLAIN || config.objective.name.is_empty() {
            let mut keys = config.objective.settings.keys();
            return match keys.next() {
                None => Ok(None),
                Some(key) => Err((key.clone(), "plain text has no such setting: name a mixture".into())),
            };
        }
        let (kind, settings) = MixtureConfig::read(&config.objective)?;
        Ok(Some(Self {
            kind,
            config: settings,
            max_length: config.max_length,
        }))
    }

    fn sentinels(&self) -> usize {
        self.config.num_sentinels(self.kind, self.max_length)
    }

    /// The names of the tokens that it needs.
    pub(super) fn tokens(&self) -> Vec<String> {
        special_names(self.sentinels())
    }

    /// The ids of these tokens.
    pub(super) fn special(&self, tokenizer: &TextTokenizer) -> Result<Special, RunError> {
        Special::find(self.sentinels(), |name| tokenizer.id(name)).map_err(|name| {
            RunError::Invalid(format!(
                "the tokenizer has no token `{name}`, which the objective needs: begin with a new model, or with one that was trained with such an objective"
            ))
        })
    }

    /// The model, which reads prefixes in both directions where the mixture does and the architecture
    /// has a place to say so; half of its channels then run backwards unless it says how many.
    pub(super) fn model(
        &self,
        model: ModelConfig,
        special: &Special,
    ) -> Result<ModelConfig, RunError> {
        let honored = (model.family.keys.honored)();
        if !self.config.bidirectional || !honored.iter().any(|key| key == "reverse_size") {
            return Ok(model);
        }
        let mut raw = model.raw.clone();
        let size = |key: &str| raw.get(key).and_then(Value::as_u64).unwrap_or(0);
        if size("reverse_size") == 0 {
            let channels = size("state_size").max(size("lru_width"));
            raw["reverse_size"] = (channels / 2).into();
        }
        raw["gen_token_id"] = special.generate.into();
        Ok(ModelConfig::from_json(raw, &model.source)?)
    }

    /// What is minimised.
    pub(super) fn objective(&self, special: &Special, label_smoothing: f64) -> Box<dyn Objective> {
        let inner = CausalLm { label_smoothing };
        match self.config.bidirectional {
            true => Box::new(PrefixedLm {
                inner,
                generate: special.generate,
            }),
            false => Box::new(inner),
        }
    }

    /// The examples of a run.
    pub(super) fn source(
        &self,
        corpus: &Corpus,
        special: &Special,
        train: &TrainConfig,
    ) -> Result<Mixture, RunError> {
        let [training, validation] = [&corpus.training, &corpus.validation].map(|part| stream(part));
        let text = MixtureText {
            train: &training,
            validation: &validation,
            max_length: self.max_length,
            max_tokens: train.max_tokens,
            micro_batches: train.gradient_accumulation_steps,
        };
        Mixture::new(self.kind, &self.config, special.clone(), &text, train.seed)
            .map_err(RunError::Invalid)
    }

    /// Held-out text as next-token examples of the mixture: behind the token of that class and the
    /// separator.
    pub(super) fn held_out(&self, pieces: &[Tokenized], special: &Special) -> Vec<Tokenized> {
        as_next_tokens(pieces, special, self.max_length)
    }
}

/// Pieces of text as examples of next-token prediction, of at most so many tokens.
pub(super) fn as_next_tokens(
    pieces: &[Tokenized],
    special: &Special,
    max_length: usize,
) -> Vec<Tokenized> {
    let class = special.classes.get(1).copied();
    let most = max_length.saturating_sub(1).max(1);
    let pieces = pieces.iter().filter(|piece| !piece.is_empty());
    let example = |piece: &Tokenized| {
        let pair = Pair {
            input: class.into_iter().collect(),
            label: piece.input_ids[..piece.len().min(most)].to_vec(),
        };
        sequence(&pair, special.generate)
    };
    pieces.map(example).collect()
}

/// The tokens of pieces, one after another.
pub(super) fn stream(pieces: &[Tokenized]) -> Vec<u32> {
    let of = |piece: &Tokenized| match piece.labels {
        Target::Tokens(_) => piece.input_ids.clone(),
        _ => Vec::new(),
    };
    pieces.iter().flat_map(of).collect()
}
