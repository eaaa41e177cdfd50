//! What the runs of one configuration measured, read from their folders.

use std::path::Path;

use serde::Serialize;
use serde_json::Value;

use super::{Efficiency, compression, normalised, throughput_per_parameter};
use crate::report::{RECORD_FILE, RunRecord, Status};
use crate::suite::Work;
use frugal_core::metrics::mean;

/// Name of the file in which a run folder keeps how its model generates, as
/// `frugal measure runtime --save` writes it.
pub const GENERATION_FILE: &str = "generation.json";

/// A compared system: means over the seeds of a run, as far as they are known.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct System {
    /// Name of the run.
    pub name: String,
    /// Runs that finished.
    pub runs: usize,
    /// Parameters of the model with what was added to it.
    pub parameters: Option<f64>,
    /// Perplexity of held-out text.
    pub perplexity: Option<f64>,
    /// Bytes on average.
    pub average_memory: Option<f64>,
    /// Bytes at most.
    pub peak_memory: Option<f64>,
    /// Share of the processors that was used.
    pub utilisation: Option<f64>,
    /// Operations that the model needs in a second, as a share of what the machine can do.
    pub flop_utilisation: Option<f64>,
    /// Seconds of an optimiser step in training, of a generated token in an evaluation.
    pub latency: Option<f64>,
    /// Tokens (pre-training) or samples (fine-tuning) for each parameter and second; generated
    /// tokens a second (evaluation).
    pub throughput: Option<f64>,
    /// Tokens of training a second.
    pub tokens_per_second: Option<f64>,
    /// Watts on average.
    pub power: Option<f64>,
    /// Whether power is modelled and not measured.
    pub power_is_modelled: bool,
    /// Joules for each token of training, or each generated token.
    pub energy_per_token: Option<f64>,
    /// Bytes of what is kept: the weights in memory of a model, the file of an adapter.
    pub size: Option<f64>,
    /// How much smaller than the baseline, scaled by what is left of the inverse of its perplexity.
    pub compression: Option<f64>,
    /// Bytes of keys and values for each token of a sequence.
    pub cache_bytes_per_token: Option<f64>,
    /// Seconds of a generated token.
    pub decode_latency: Option<f64>,
    /// Why runs failed.
    pub errors: Vec<String>,
}

/// What one folder says.
struct One {
    record: RunRecord,
    sampled: Option<Efficiency>,
    generation: Value,
}

impl System {
    /// Reads the run's folders, one of each seed; those that have not finished are passed over.
    pub fn read<'a>(name: &str, work: Work, folders: impl IntoIterator<Item = &'a Path>) -> Self {
        let mut runs = Vec::new();
        let mut errors = Vec::new();
        for folder in folders {
            let Ok(record) = RunRecord::read(&folder.join(RECORD_FILE)) else {
                continue;
            };
            if record.train_info.status == Status::Success {
                let generation = std::fs::read(folder.join(GENERATION_FILE))
                    .ok()
                    .and_then(|bytes| serde_json::from_slice(&bytes).ok());
                runs.push(One {
                    record,
                    sampled: Efficiency::read(folder),
                    generation: generation.unwrap_or_default(),
                });
            } else if !record.run_info.error_msg.is_empty() {
                errors.push(record.run_info.error_msg);
            }
        }
        let of = |value: &dyn Fn(&One) -> Option<f64>| {
            mean(
                &runs
                    .iter()
                    .filter_map(value)
                    .filter(|v| v.is_finite())
                    .collect::<Vec<_>>(),
            )
        };
        let sampled = |value: fn(&Efficiency) -> f64| of(&|r| r.sampled.as_ref().map(value));
        let file = |r: &One| Some(r.record.train_info.file_size as f64).filter(|size| *size > 0.0);
        Self {
            name: name.to_owned(),
            runs: runs.len(),
            parameters: of(&|r| {
                Some(r.record.train_info.num_total_params as f64).filter(|n| *n > 0.0)
            }),
            perplexity: of(&|r| {
                r.record
                    .evaluation
                    .last()?
                    .adapted
                    .get("perplexity")
                    .copied()
            }),
            average_memory: sampled(|e| e.average_memory),
            peak_memory: sampled(|e| e.peak_memory),
            utilisation: sampled(|e| e.utilisation),
            flop_utilisation: of(&|r| r.sampled.as_ref()?.flop_utilisation),
            latency: of(&|r| {
                if work == Work::Eval {
                    r.decode()
                } else {
                    r.step()
                }
            }),
            throughput: of(&|r| r.throughput(work)),
            tokens_per_second: of(&|r| r.record.train_info.tokens_per_second()),
            power: sampled(|e| e.average_power),
            power_is_modelled: runs
                .iter()
                .any(|r| r.sampled.as_ref().is_some_and(|e| e.power_is_modelled)),
            energy_per_token: of(&|r| r.energy_per_token(work)),
            size: of(&|r| {
                if work == Work::Tune {
                    file(r)
                } else {
                    r.generation["footprint"]["weight_bytes"]
                        .as_f64()
                        .or(file(r))
                }
            }),
            compression: None,
            cache_bytes_per_token: of(&|r| {
                r.generation["footprint"]["cache_bytes_per_token"].as_f64()
            }),
            decode_latency: of(&One::decode),
            errors,
        }
    }

    /// Fills in the compression of each against the one called `baseline`.
    pub fn compare(systems: &mut [Self], baseline: &str) {
        let base = systems
            .iter()
            .find(|s| s.name == baseline)
            .and_then(|s| s.size.zip(s.perplexity));
        for system in systems {
            let own = system.size.zip(system.perplexity);
            system.compression = base.zip(own).map(|((size, perplexity), (s, p))| {
                compression(size, s, 1.0 / perplexity, 1.0 / p)
            });
        }
    }
}

impl One {
    /// Seconds of a generated token.
    fn decode(&self) -> Option<f64> {
        self.generation["fit"]["beta"].as_f64().filter(|b| *b > 0.0)
    }

    fn step(&self) -> Option<f64> {
        let info = &self.record.train_info;
        let steps = info
            .metrics
            .iter()
            .map(|m| m.step)
            .max()
            .filter(|s| *s > 0)?;
        Some(info.train_time / steps as f64)
    }

    fn throughput(&self, work: Work) -> Option<f64> {
        let info = &self.record.train_info;
        let for_each = |units: f64| {
            (info.train_time > 0.0).then(|| {
                throughput_per_parameter(
                    units,
                    info.num_total_params.max(1) as f64,
                    info.train_time,
                )
            })
        };
        match work {
            Work::Pretrain => for_each(info.train_tokens as f64),
            Work::Tune => {
                let epochs = info
                    .metrics
                    .last()?
                    .get(frugal_core::events::names::EPOCH)?;
                let examples = self
                    .record
                    .meta_info
                    .dataset_info
                    .iter()
                    .find(|d| d.split == "train")?
                    .examples;
                for_each(examples as f64 * epochs)
            }
            Work::Eval => self.decode().map(|seconds| 1.0 / seconds),
        }
    }

    fn energy_per_token(&self, work: Work) -> Option<f64> {
        let sampled = self.sampled.as_ref()?;
        if work == Work::Eval {
            // The sampled program reads the model first, so its energy is no multiple of what a
            // token takes.
            return self.decode().map(|seconds| sampled.average_power * seconds);
        }
        let tokens = self.record.train_info.train_tokens;
        (tokens > 0).then(|| sampled.energy / tokens as f64)
    }
}

/// A measure on a scale from 0 (worst of the compared) to 1 (best).
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Scaled {
    /// Its name.
    pub name: &'static str,
    /// For each system.
    pub values: Vec<Option<f64>>,
}

/// All measures that at least one system has, each scaled over the systems.
///
/// Power that was modelled is called so: it is no measurement.
pub fn scaled(systems: &[System]) -> Vec<Scaled> {
    let (power, energy) = if systems.iter().any(|s| s.power_is_modelled) {
        ("power, modelled", "energy, modelled")
    } else {
        ("power", "energy")
    };
    let measures: [(&'static str, bool, fn(&System) -> Option<f64>); 10] = [
        ("quality", true, |s| s.perplexity),
        ("memory", true, |s| s.average_memory),
        ("utilisation", false, |s| s.utilisation),
        ("FLOP utilisation", false, |s| s.flop_utilisation),
        ("latency", true, |s| s.latency),
        ("throughput", false, |s| s.throughput),
        (power, true, |s| s.power),
        (energy, true, |s| s.energy_per_token),
        ("compression", false, |s| s.compression),
        ("cache", true, |s| s.cache_bytes_per_token),
    ];
    let one = |(name, lower, value): (&'static str, bool, fn(&System) -> Option<f64>)| {
        let values: Vec<Option<f64>> = systems.iter().map(value).collect();
        values.iter().any(Option::is_some).then(|| Scaled {
            name,
            values: normalised(&values, lower),
        })
    };
    measures.into_iter().filter_map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::efficiency::EFFICIENCY_FILE;
    use crate::report::{DatasetInfo, Evaluation};
    use frugal_core::events::Scalars;

    fn folder(dir: &Path, name: &str, perplexity: f64, size: u64) -> std::path::PathBuf {
        let folder = dir.join(name);
        std::fs::create_dir(&folder).unwrap();
        let mut record = RunRecord::default();
        record.train_info.status = Status::Success;
        record.train_info.train_time = 10.0;
        record.train_info.train_tokens = 4000;
        record.train_info.num_total_params = 100;
        record.train_info.file_size = size;
        record.train_info.metrics = vec![
            Scalars::new(20).with("epoch", 1.0),
            Scalars::new(40).with("epoch", 2.0),
        ];
        record.meta_info.dataset_info = vec![DatasetInfo {
            split: "train".into(),
            examples: 50,
            ..DatasetInfo::default()
        }];
        record.evaluation = vec![Evaluation {
            adapted: [("perplexity".to_owned(), perplexity)].into(),
            ..Evaluation::default()
        }];
        record.write(&folder.join(RECORD_FILE)).unwrap();
        let sampled = Efficiency {
            seconds: 16.0,
            average_memory: 7e7,
            peak_memory: 9e7,
            utilisation: 0.75,
            average_power: 32.5,
            power_is_modelled: true,
            energy: 520.0,
            flop_utilisation: None,
            peak_gflops: None,
        };
        std::fs::write(
            folder.join(EFFICIENCY_FILE),
            serde_json::to_string(&sampled).unwrap(),
        )
        .unwrap();
        folder
    }

    #[test]
    fn the_six_measures_follow_from_the_files() {
        let dir = tempfile::tempdir().unwrap();
        let first = folder(dir.path(), "a", 20.0, 400);
        let second = folder(dir.path(), "b", 30.0, 400);
        let generation = r#"{ "fit": { "beta": 0.02 }, "footprint": { "weight_bytes": 1600, "cache_bytes_per_token": 64 } }"#;
        std::fs::write(first.join(GENERATION_FILE), generation).unwrap();
        let paths = [first.as_path(), second.as_path(), Path::new("nowhere")];
        let read = |work| System::read("x", work, paths);

        let trained = read(Work::Pretrain);
        assert_eq!(
            (
                trained.runs,
                trained.perplexity,
                trained.average_memory,
                trained.utilisation
            ),
            (2, Some(25.0), Some(7e7), Some(0.75))
        );
        // 10 s for 40 steps; 4,000 tokens by 100 parameters in 10 s; 520 J for 4,000 tokens.
        assert_eq!(
            (
                trained.latency,
                trained.throughput,
                trained.energy_per_token
            ),
            (Some(0.25), Some(4.0), Some(0.13))
        );
        assert_eq!(
            (
                trained.tokens_per_second,
                trained.power,
                trained.power_is_modelled
            ),
            (Some(400.0), Some(32.5), true)
        );
        // The second run has no file about generation: its weights are what it saved.
        assert_eq!(
            (
                trained.size,
                trained.cache_bytes_per_token,
                trained.decode_latency
            ),
            (Some(1000.0), Some(64.0), Some(0.02))
        );

        // Two epochs of 50 samples.
        let tuned = read(Work::Tune);
        assert_eq!((tuned.throughput, tuned.size), (Some(0.1), Some(400.0)));
        // 50 tokens a second at 32.5 W.
        let scored = read(Work::Eval);
        assert_eq!(
            (scored.latency, scored.throughput, scored.energy_per_token),
            (Some(0.02), Some(50.0), Some(0.65))
        );
    }

    #[test]
    fn compression_is_against_the_baseline() {
        let system = |name: &str, size, perplexity| System {
            name: name.into(),
            size: Some(size),
            perplexity: Some(perplexity),
            ..System::default()
        };
        let mut all = vec![
            system("f32", 16.0, 24.0),
            system("int4", 4.5, 25.0),
            System::default(),
        ];
        System::compare(&mut all, "f32");
        // 96 % of the score at 4.5 of 16 bits.
        assert!(
            (all[1].compression.unwrap() - 3.41333).abs() < 5e-6
                && all[0].compression == Some(1.0)
                && all[2].compression.is_none()
        );
        let found = scaled(&all[..2]);
        let names: Vec<&str> = found.iter().map(|s| s.name).collect();
        assert_eq!(names, ["quality", "compression"]);
        assert_eq!(
            (found[0].values[0], found[1].values[1]),
            (Some(1.0), Some(1.0))
        );
    }
}
