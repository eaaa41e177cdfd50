//! What a pre-training run trains instead of plain weights, and what it keeps for that.

use frugal_adapt::methods::full::{Full, FullConfig};
use frugal_adapt::pretraining;
use frugal_nn::{Adapter, BuildContext};
use frugal_train::{Named, TrainConfig, TrainError, optim};
use serde::Serialize;
use serde_json::json;

use super::RunError;

/// Bytes of what is trained, counted from names and shapes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct TrainedMemory {
    /// Weights in single precision, with those that are not trained, and places of sparse ones.
    pub weights: u64,
    /// Gradients of one step.
    pub gradients: u64,
    /// The tensors that the optimizer keeps.
    pub states: u64,
}

impl TrainedMemory {
    /// Of an adapter under the optimizer of a run.
    ///
    /// # Errors
    /// Settings of the optimizer that are out of range.
    pub fn of(adapter: &Full, train: &TrainConfig) -> Result<Self, RunError> {
        let optimizer = optim::made(train).map_err(TrainError::Setup)?;
        let all = adapter.parameters();
        let trained = || all.iter().filter(|p| p.is_trainable());
        Ok(Self {
            weights: all.iter().map(|p| 4 * p.len() as u64).sum::<u64>() + adapter.other_bytes(),
            gradients: trained().map(|p| 4 * p.len() as u64).sum(),
            states: trained()
                .map(|p| optimizer.state_bytes(p.name(), p.shape()))
                .sum(),
        })
    }

    /// The sum.
    pub fn total(&self) -> u64 {
        self.weights + self.gradients + self.states
    }
}

/// Every weight as it is, or what stands in the place of those in the blocks.
///
/// # Errors
/// A name that is none, settings out of range, a rank that no layer is wider than.
pub fn trained_as(reparam: &Named, context: &BuildContext<'_>) -> Result<Full, RunError> {
    if reparam.name.is_empty() {
        return Ok(Full::new(FullConfig {}, context)?);
    }
    let found = pretraining::find(&reparam.name)?;
    Ok((found.make)(&reparam.settings, context)?)
}

/// Fills in what other settings decide: moments begin anew where the factors do, and Adam-mini knows
/// the width of a head.
pub(super) fn resolve(train: &mut TrainConfig, reparam: &Named, head_dim: usize) {
    if train.moment_reset_steps == 0 {
        train.moment_reset_steps = restart_steps(reparam).unwrap_or(0);
    }
    let is_mini = optim::find(&train.optim.name).is_ok_and(|entry| entry.name == "adam_mini");
    if is_mini && !train.optim.settings.contains_key("head_dim") {
        let settings = &mut train.optim.settings;
        settings.insert("head_dim".to_owned(), json!(head_dim));
    }
}

fn restart_steps(reparam: &Named) -> Option<u64> {
    let found = pretraining::find(&reparam.name).ok()?;
    (found.restart_steps)(&reparam.settings).ok()
}

/// What is wrong with a reparameterisation beside the optimizer: (dotted key, reason).
pub(super) fn problems(reparam: &Named, train: &TrainConfig) -> Vec<(String, String)> {
    let mut found = Vec::new();
    if reparam.is_unset() {
        return found;
    }
    let mut add = |key: &str, reason: String| found.push((key.to_owned(), reason));
    if reparam.name.is_empty() {
        add(
            "reparam",
            "settings without a name: give `--reparam NAME`".into(),
        );
        return found;
    }
    match pretraining::find(&reparam.name) {
        Err(error) => add("reparam.name", error.to_string()),
        Ok(entry) => match (entry.restart_steps)(&reparam.settings) {
            Err(error) => add("reparam", error.to_string()),
            Ok(steps) if steps > 0 && ![0, steps].contains(&train.moment_reset_steps) => add(
                "train.moment_reset_steps",
                format!(
                    "{} given, but the factors begin anew every {steps} steps (`reparam.restart_steps`), and what the optimizer remembers is of the old ones: leave it out",
                    train.moment_reset_steps
                ),
            ),
            Ok(_) => {}
        },
    }
    found
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::atomic::{AtomicBool, Ordering};

    use burn::prelude::Device;
    use frugal_models::load::{Lookup, ModelFiles};
    use frugal_models::save::StoredType;
    use frugal_train::{CausalLm, Event, Named, evaluate_observed};

    use crate::run::corpus::Corpus;
    use crate::run::pretrain::tests::{config, go};
    use crate::run::{PretrainConfig, Progress, pretrain};

    #[test]
    fn what_is_trained_in_factors_is_saved_dense_and_resumes_to_the_same_bits() {
        for name in ["low_rank", "sltrain", "relora"] {
            let folder = tempfile::tempdir().unwrap();
            let mut config = config(folder.path());
            config.reparam = Named {
                name: name.into(),
                settings: serde_json::from_str(r#"{"rank": 4, "restart_steps": 2}"#).unwrap(),
            };
            config.train.max_steps = 5;
            assert!(config.problems().is_empty(), "{:?}", config.problems());
            config.resolve();
            // What the optimizer remembers is of the factors before a restart.
            assert_eq!(config.train.moment_reset_steps, 2, "{name}");
            let whole = go(&config, false).unwrap();
            let saved = |out: &Path| std::fs::read(out.join("model.safetensors")).unwrap();
            let written = saved(&config.out);
            let header = String::from_utf8_lossy(&written[8..2000]).into_owned();
            assert!(
                header.contains("model.layers.0.mlp.up_proj.weight"),
                "{header}"
            );
            assert!(
                !header.contains("lora_") && !header.contains("sparse"),
                "{header}"
            );

            config.out = folder.path().join("stopped");
            config.train.logging_steps = 1;
            let stop = AtomicBool::new(false);
            let mut observe = |progress: &Progress| {
                if matches!(progress, Progress::Train(Event::Step { step: 3, .. })) {
                    stop.store(true, Ordering::Relaxed);
                }
            };
            let stopped = pretrain(&config, &[], false, &stop, &mut observe).unwrap();
            assert!(stopped.interrupted);
            let resumed = go(&config, true).unwrap();
            assert_eq!(resumed.metrics, whole.metrics, "{name}");
            assert!(saved(&config.out) == written, "{name}");

            // Another rank is another run.
            config.reparam.settings.insert("rank".into(), 3.into());
            let error = go(&config, true).unwrap_err().to_string();
            assert!(error.contains("`reparam`"), "{error}");
        }
    }

    #[test]
    fn what_is_trained_is_counted_in_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let mut config = config(folder.path());
        config.train.max_steps = 1;
        let plain = go(&config, false).unwrap();
        let bytes = 4 * plain.parameters as u64;
        assert_eq!(plain.trainable_parameters, plain.parameters);
        assert_eq!(plain.memory.weights, bytes);
        assert_eq!(
            (plain.memory.gradients, plain.memory.states),
            (bytes, 2 * bytes)
        );

        config.out = folder.path().join("sltrain");
        config.reparam = Named {
            name: "sltrain".into(),
            settings: serde_json::from_str(r#"{"rank": 4, "sparsity": 0.1}"#).unwrap(),
        };
        config.train.optim = "lion".into();
        let sparse = go(&config, false).unwrap();
        // Queries and outputs [16, 16], keys and values [8, 16], three of [32, 16]: their weights
        // are gone, factors and a tenth of the entries have come, with a place for each entry.
        let gone = 2 * 256 + 2 * 128 + 3 * 512;
        let entries = 2 * 25 + 2 * 12 + 3 * 51;
        let come = 4 * (2 * 32 + 2 * 24 + 3 * 48) + entries;
        let trained = plain.parameters - gone + come;
        assert_eq!(sparse.trainable_parameters, trained);
        assert_eq!(sparse.parameters, plain.parameters);
        assert_eq!(sparse.memory.weights, 4 * (trained + entries) as u64);
        assert_eq!(sparse.memory.gradients, 4 * trained as u64);
        assert_eq!(sparse.memory.states, 4 * trained as u64);
    }

    #[test]
    fn settings_of_memory_are_filled_in_or_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let mut config = config(folder.path());
        // The model knows the width of a head.
        config.train.optim = "adam-mini".into();
        assert!(config.problems().is_empty(), "{:?}", config.problems());
        config.resolve();
        assert_eq!(config.train.optim.settings["head_dim"], 8);
        config.train.optim = "adam".into();
        let problems = |config: &PretrainConfig| {
            let found = config.problems().into_iter();
            let found: Vec<String> = found
                .map(|(key, reason)| format!("{key}: {reason}"))
                .collect();
            found.join("\n")
        };
        assert!(
            problems(&config).contains("stable_spam"),
            "{}",
            problems(&config)
        );
        config.train.optim = "adamw".into();
        let mut reparam = |name: &str, settings: &str| {
            config.reparam = Named {
                name: name.into(),
                settings: serde_json::from_str(settings).unwrap(),
            };
            problems(&config)
        };
        assert!(reparam("lowrank", "{}").contains("low_rank, sltrain, relora"));
        assert!(reparam("relora", r#"{"rnak": 3}"#).contains("did you mean `rank`"));
        assert!(reparam("", r#"{"rank": 3}"#).contains("--reparam NAME"));
        assert_eq!(reparam("low-rank", r#"{"rank": 3}"#), "");
        config.train.moment_reset_steps = 7;
        config
            .reparam
            .settings
            .insert("restart_steps".into(), 5.into());
        let found = problems(&config);
        assert!(
            found.starts_with("train.moment_reset_steps: 7 given"),
            "{found}"
        );
    }

    /// A weight that a layer's hook does not reach would be another in the file than in training.
    #[test]
    fn layers_of_every_architecture_are_saved_as_they_were_measured() {
        let archs = crate::run::architectures();
        for (name, arch) in archs.flat_map(|(arch, _)| [("low_rank", arch), ("sltrain", arch)]) {
            let folder = tempfile::tempdir().unwrap();
            let mut config = config(folder.path());
            config.shape.arch = arch.into();
            config.shape.num_hidden_layers = 4;
            config.dtype = StoredType::F32;
            config.reparam = Named {
                name: name.into(),
                settings: serde_json::from_str(r#"{"rank": 4, "restart_steps": 2}"#).unwrap(),
            };
            config.resolve();
            let made = go(&config, false).unwrap();
            let (path, lookup) = (config.out.display().to_string(), Lookup::default());
            let files = ModelFiles::open(&path, &lookup).unwrap();
            let backbone = files.load(&Device::flex()).unwrap();
            let validation = Corpus::read(&config, &mut |_| {}).unwrap().validation;
            let (stop, loss) = (AtomicBool::new(false), CausalLm::default());
            let tokens = config.train.max_tokens;
            let found = evaluate_observed(
                backbone.as_ref(),
                None,
                &loss,
                &validation,
                tokens,
                &stop,
                &mut |_, _| {},
            );
            let found = found.unwrap().unwrap().metrics["loss"];
            let measured = made.metrics["loss"];
            assert!(
                (found - measured).abs() < 1e-4,
                "{arch} as {name}: {found} of the file, {measured} of training"
            );
        }
    }
}
