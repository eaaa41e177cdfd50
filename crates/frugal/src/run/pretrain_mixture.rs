//! Pre-training on a mixture of objectives: the tokens that it needs, the model that reads prefixes in
//! both directions, and the examples.

use frugal_core::encode::{Target, Tokenized};
use frugal_core::pretext::{Pair, Special, sentinel_name, sequence, special_names};
use frugal_core::tokenizer::TextTokenizer;
use frugal_models::ModelConfig;
use frugal_train::mixture::{Mixture, MixtureConfig, MixtureKind, MixtureText};
use frugal_train::objective::PrefixedLm;
use frugal_train::{CausalLm, Objective, TrainConfig};
use serde_json::Value;

use super::RunError;
use super::corpus::Corpus;
use super::pretrain_config::PretrainConfig;
use super::pretrain_objective::named_mixture;

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
        let Some((kind, settings)) = named_mixture(&config.objective)? else {
            return Ok(None);
        };
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
        // A tokenizer of another mixture may have fewer.
        let known = |i: &usize| tokenizer.id(&sentinel_name(*i)).is_some();
        let wanted = self.sentinels();
        let sentinels = (0..wanted).take_while(known).count();
        Special::find(sentinels.max(wanted.min(1)), |name| tokenizer.id(name)).map_err(|name| {
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
        let honors = |key: &str| honored.iter().any(|known| known == key);
        if !model.raw["gen_token_id"].is_null() {
            let reason = "`shape.gen_token_id` follows from `objective`: leave it out";
            return Err(RunError::Invalid(reason.into()));
        }
        if !self.config.bidirectional || !honors("gen_token_id") {
            return Ok(model);
        }
        let mut raw = model.raw.clone();
        let size = |key: &str| raw.get(key).and_then(Value::as_u64).unwrap_or(0);
        if honors("reverse_size") && size("reverse_size") == 0 {
            let channels = size("state_size").max(size("lru_width"));
            raw["reverse_size"] = (channels / 2).into();
        }
        raw["gen_token_id"] = special.generate.into();
        Ok(ModelConfig::from_json(raw, &model.source)?)
    }

    /// Goes by what the model says of itself, which is how it will be read.
    ///
    /// # Errors
    /// A model that reads prefixes in both directions where the mixture does not.
    pub(super) fn adopt(&mut self, model: &ModelConfig) -> Result<Option<String>, RunError> {
        match (self.config.bidirectional, !model.raw["gen_token_id"].is_null()) {
            (false, true) => Err(RunError::Invalid(
                "`objective.bidirectional` is false, and the model that the run begins with reads prefixes in both directions: leave it out"
                    .into(),
            )),
            (true, false) => {
                self.config.bidirectional = false;
                Ok(Some(format!(
                    "`{}` has no place for `gen_token_id`, or the model has none: prompts are read causally",
                    model.model_type()
                )))
            }
            _ => Ok(None),
        }
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
        let [training, validation] =
            [&corpus.training, &corpus.validation].map(|part| stream(part));
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

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::atomic::{AtomicBool, Ordering};

    use frugal_core::events::{LOG_FILE, read_jsonl};
    use frugal_train::Event;
    use serde_json::json;

    use super::*;
    use crate::run::pretrain::tests::{config, go};
    use crate::run::{Progress, pretrain};

    /// A tiny run whose controller decides from the second step on.
    fn mixed(folder: &Path, arch: &str, objective: Value) -> PretrainConfig {
        let mut config = config(folder);
        config.shape.arch = arch.into();
        config.shape.vocab_size = 440;
        config.shape.num_hidden_layers = 2;
        config.shape.max_position_embeddings = 64;
        config.max_length = 48;
        config.train.max_steps = 6;
        config.train.eval_steps = 0;
        config.objective = serde_json::from_value(objective).unwrap();
        assert!(config.problems().is_empty(), "{:?}", config.problems());
        config.resolve();
        config
    }

    fn birdie() -> Value {
        json!({"name": "birdie", "uniform_steps": 2, "evaluations": [1, 2], "evaluation_interval": 2,
            "candidates": 16, "fit_steps": 3, "reward_width": 8, "eval_samples": 1})
    }

    #[test]
    fn every_mixture_trains_models_that_read_in_both_directions_and_transformers() {
        for arch in ["gated_ssm", "hawk", "llama"] {
            for name in ["ntp", "ul2", "mixture", "birdie"] {
                let folder = tempfile::tempdir().unwrap();
                let objective = match name {
                    "birdie" => birdie(),
                    _ => json!(name),
                };
                let config = mixed(folder.path(), arch, objective);
                let made = go(&config, false).unwrap();
                let loss = made.metrics["loss"];
                assert!(loss < (440f64).ln() + 0.1, "{arch}, {name}: {loss}");
                let written = std::fs::read_to_string(config.out.join("config.json")).unwrap();
                assert!(written.contains("\"gen_token_id\": "), "{written}");
                assert!(!written.contains("\"gen_token_id\": null"), "{written}");
                // Half of the channels of its recurrence.
                let reverse = [("gated_ssm", 16), ("hawk", 8)];
                if let Some((_, size)) = reverse.iter().find(|(name, _)| *name == arch) {
                    let told = format!("\"reverse_size\": {size}");
                    assert!(written.contains(&told), "{written}");
                }
            }
        }
    }

    #[test]
    fn a_run_without_both_directions_has_the_plain_model() {
        let folder = tempfile::tempdir().unwrap();
        let config = mixed(
            folder.path(),
            "gated_ssm",
            json!({"name": "mixture", "bidirectional": false}),
        );
        go(&config, false).unwrap();
        let written = std::fs::read_to_string(config.out.join("config.json")).unwrap();
        assert!(written.contains("\"reverse_size\": 0"), "{written}");
        // A model that has no place for prefixes is trained as it will be read, and the run says so.
        let folder = tempfile::tempdir().unwrap();
        let config = mixed(folder.path(), "mamba", json!("mixture"));
        let mut said = Vec::new();
        let mut observe = |progress: &Progress| {
            if let Progress::Warning { text } = progress {
                said.push(text.clone());
            }
        };
        pretrain(&config, &[], false, &AtomicBool::new(false), &mut observe).unwrap();
        let told = |text: &String| text.contains("mamba") && text.contains("causally");
        assert!(said.iter().any(told), "{said:?}");
        let written = std::fs::read_to_string(config.out.join("config.json")).unwrap();
        assert!(!written.contains("gen_token_id"), "{written}");
    }

    #[test]
    fn a_resumed_run_draws_and_learns_the_same() {
        let [whole, parts] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let config = |folder: &Path| mixed(folder, "gated_ssm", birdie());
        let uninterrupted = config(whole.path());
        go(&uninterrupted, false).unwrap();
        let interrupted = {
            let mut config = config(parts.path());
            config.train.logging_steps = 1;
            config
        };
        for last in [1, 3, 5] {
            let stop = AtomicBool::new(false);
            let mut observe = |progress: &Progress| {
                if let Progress::Train(Event::Step { step, .. }) = progress {
                    stop.store(*step >= last, Ordering::Relaxed);
                }
            };
            let found = pretrain(&interrupted, &[], last > 1, &stop, &mut observe).unwrap();
            assert!(found.interrupted, "after {last}");
        }
        assert!(!go(&interrupted, true).unwrap().interrupted);
        let weights =
            |config: &PretrainConfig| std::fs::read(config.out.join("model.safetensors")).unwrap();
        assert!(
            weights(&uninterrupted) == weights(&interrupted),
            "other weights"
        );
        let measured = |config: &PretrainConfig| -> Vec<(u64, f64)> {
            let log = read_jsonl(&config.out.join(LOG_FILE)).unwrap();
            let share =
                |s: &frugal_core::events::Scalars| Some((s.step, s.get("mixture/share/copying")?));
            log.iter().filter_map(share).collect()
        };
        let told = measured(&uninterrupted);
        let steps: Vec<u64> = told.iter().map(|(step, _)| *step).collect();
        assert_eq!(steps, [0, 1, 2, 4]);
        assert!(told[1].1 != told[2].1, "the controller decides: {told:?}");
        // What was measured before the first checkpoint is told by the process that made it.
        assert_eq!(measured(&interrupted)[1..], told[1..]);
        let mut other = interrupted.clone();
        other.objective = "ul2".into();
        let error = go(&other, true).unwrap_err().to_string();
        assert!(error.contains("`objective`"), "{error}");
    }

    #[test]
    fn settings_that_do_not_fit_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let mut config = config(folder.path());
        for (objective, key) in [
            (json!("birdy"), "objective.name"),
            (
                json!({"name": "birdie", "candidate": 1}),
                "objective.candidate",
            ),
            (
                json!({"name": "causal_lm", "weights": {}}),
                "objective.weights",
            ),
        ] {
            config.objective = serde_json::from_value(objective).unwrap();
            let problems = config.problems();
            assert!(problems.iter().any(|(k, _)| k == key), "{problems:?}");
        }
        config.objective = "ntp".into();
        config.shape.vocab_size = 260;
        let error = go(&config, false).unwrap_err().to_string();
        assert!(error.contains("vocabulary of 260"), "{error}");
    }
}
