//! Fine-tuning: the main job.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use burn::prelude::*;
use frugal_adapt::{peft, registry};
use frugal_core::events::{Scalars, names, read_jsonl};
use frugal_eval::report::{
    self, DatasetInfo, MetaInfo, ModelInfo, RECORD_FILE, RunInfo, RunRecord, RunReport, Status,
    SystemInfo, TrainInfo,
};
use frugal_models::LoadOptions;
use frugal_models::load::{Lookup, MODEL_FOLDER, ModelFiles};
use frugal_models::save::StoredType;
use frugal_nn::{Backbone, BuildContext, Entry, Head, Parameter, Pooling, SiteTable};
use frugal_train::{Cost, Ending, Event, Objective, TrainRun, evaluate, train};
use serde::Serialize;

use super::export::merge_to_folder;
use super::folder::{ConfigFile, check_same_run, claim};
use super::log::Logger;
use super::prepare::{Part, Prepared, prepare};
use super::{Metrics, Observe, Progress, RunError, TuneConfig};

/// The resolved configuration in a run folder.
pub const CONFIG_FILE: &str = "config.toml";
/// The report in a run folder.
pub const REPORT_FILE: &str = "report.html";

/// What a run came to.
#[derive(Clone, Debug, Serialize)]
pub struct Tuned {
    /// Whether it was stopped before its end; `--resume` continues it.
    pub interrupted: bool,
    /// What it cost and gained.
    pub record: RunRecord,
    /// Metrics of every part before and after training.
    pub parts: Vec<PartScores>,
    /// Run folder.
    pub out: PathBuf,
    /// Adapter folder, or the model folder when the whole model was trained.
    pub adapter: Option<PathBuf>,
    /// HTML report.
    pub report: Option<PathBuf>,
}

/// Metrics of a part of the data.
#[derive(Clone, Debug, Serialize)]
pub struct PartScores {
    /// `validation` or `test`.
    pub part: String,
    /// Examples.
    pub examples: usize,
    /// Before training.
    pub base: Metrics,
    /// After training.
    pub adapted: Metrics,
}

/// Fine-tunes a model as `config` says and writes everything into its run folder.
///
/// # Errors
/// Anything wrong with model, data, settings or files; what was finished before is kept.
pub fn tune(
    config: &TuneConfig,
    command: &[String],
    lookup: &Lookup,
    resume: bool,
    stop: &AtomicBool,
    observe: Observe<'_>,
) -> Result<Tuned, RunError> {
    let claimed = claim(&config.out, CONFIG_FILE, resume)?;
    tune_in_folder(config, command, lookup, resume, stop, observe)
        .inspect_err(|_| claimed.give_back())
}

/// The run, in a folder that is its own.
fn tune_in_folder(
    config: &TuneConfig,
    command: &[String],
    lookup: &Lookup,
    resume: bool,
    stop: &AtomicBool,
    observe: Observe<'_>,
) -> Result<Tuned, RunError> {
    let start = Instant::now();
    let created_at = frugal_core::human::utc(
        std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |d| d.as_secs()),
    );
    let device = crate::device::device(&config.device)?;
    let method = registry::find(&config.method.name)?;
    let out = config.out.clone();
    if resume {
        check_settings(&out.join(CONFIG_FILE), config)?;
    }
    observe(&Progress::Begin {
        what: format!("tokenizing {}", config.data.train),
    });
    let prepared = prepare(config, lookup)?;
    observe(&Progress::Data {
        parts: prepared
            .parts()
            .map(|p| {
                (
                    p.name.to_owned(),
                    p.examples().len(),
                    p.encoded.total_tokens,
                    p.encoded.longest,
                )
            })
            .collect(),
        truncated: prepared.parts().map(|p| p.encoded.truncated).sum(),
        example: prepared.shown_example()?,
    });
    observe(&Progress::Begin {
        what: format!("reading {}", config.model),
    });
    let sites = prepared.files.sites();
    let options = LoadOptions {
        activations: config.activations,
        ..LoadOptions::default()
    };
    let options = method.load_options(
        &config.method.settings,
        &sites,
        Some(config.quantize),
        options,
    )?;
    let backbone = prepared.files.load_with(&device, options)?;
    let mut entry = build_entry(config, &prepared, backbone.as_ref(), &sites, &device)?;
    let file = ConfigFile::new(out.join(CONFIG_FILE), config, resume)?;
    let run = Run {
        config,
        prepared: &prepared,
        backbone: backbone.as_ref(),
        stop,
    };

    let base = if config.evaluate_base {
        run.score("base", &entry, true, observe)?
    } else {
        None
    };
    let trained = Instant::now();
    let outcome = run.train(&mut entry, &out, resume, file, observe)?;
    let Cost {
        seconds: train_time,
        peak_memory_bytes,
    } = outcome.cost;
    // Of the processes that this one resumes.
    let earlier = (train_time - trained.elapsed().as_secs_f64()).max(0.0);
    let cut_short = outcome.ending == Ending::Interrupted;
    let adapted = if cut_short {
        None
    } else {
        run.score("adapted", &entry, false, observe)?
    };
    let adapter = if cut_short {
        None
    } else {
        Some(save(&out, &entry, &run, method.name)?)
    };

    // Read before what is measured for the comparison only.
    let peak_memory = frugal_core::events::peak_rss_bytes().map(|peak| peak.max(peak_memory_bytes));
    let forgetting = if adapted.is_none() || !config.measure_forgetting {
        None
    } else {
        observe(&Progress::Begin {
            what: "measuring what was forgotten".into(),
        });
        super::forgetting(
            &prepared.files,
            backbone.as_ref(),
            entry.adapter.as_ref(),
            config.train.max_tokens,
            stop,
        )?
    };

    // A run is not done before everything was measured; a resume measures again.
    let interrupted = adapted.is_none() || (config.measure_forgetting && forgetting.is_none());
    let parts = scores(
        &prepared,
        &base.unwrap_or_default(),
        &adapted.unwrap_or_default(),
    );
    let head_parameters: usize = entry
        .head
        .iter()
        .flat_map(Head::parameters)
        .map(Parameter::len)
        .sum();
    let num_trainable = entry.adapter.num_trainable() + head_parameters;
    let extra = if method.name == "full" {
        head_parameters
    } else {
        num_trainable
    };
    let log: Vec<Scalars> = read_jsonl(&out.join(frugal_core::events::LOG_FILE))?;
    let record = RunRecord {
        run_info: RunInfo {
            created_at,
            total_time: earlier + start.elapsed().as_secs_f64(),
            experiment_name: out
                .file_name()
                .map_or_else(String::new, |n| n.to_string_lossy().into_owned()),
            command: command.to_vec(),
            train_config: serde_json::to_value(config).unwrap_or_default(),
            peft_config: serde_json::Value::Object(entry.adapter.peft_config()),
            error_msg: String::new(),
        },
        train_info: TrainInfo {
            peak_memory,
            train_time,
            train_tokens: outcome.tokens,
            file_size: adapter.as_deref().map_or(0, weights_size),
            num_trainable_params: num_trainable as u64,
            num_total_params: (sites.num_parameters() + extra) as u64,
            status: if interrupted {
                Status::Cancelled
            } else {
                Status::Success
            },
            metrics: log
                .iter()
                .filter(|s| s.get(names::EVAL_LOSS).is_some())
                .cloned()
                .collect(),
        },
        evaluation: parts
            .iter()
            .map(|p| report::Evaluation {
                split: p.part.clone(),
                examples: p.examples,
                base: p.base.clone(),
                adapted: p.adapted.clone(),
            })
            .collect(),
        forgetting,
        meta_info: meta(config, &prepared),
    };
    record.write(&out.join(RECORD_FILE))?;
    let report_path = write_report(&out, &record, log, &prepared)?;
    Ok(Tuned {
        interrupted,
        record,
        parts,
        adapter,
        report: Some(report_path),
        out,
    })
}

/// Metrics of each part that was evaluated.
type Scores = Vec<(&'static str, Metrics)>;

struct Run<'a> {
    config: &'a TuneConfig,
    prepared: &'a Prepared,
    backbone: &'a dyn Backbone,
    stop: &'a AtomicBool,
}

impl Run<'_> {
    /// Metrics of the validation and test part; `None` if the run was stopped before the end.
    fn score(
        &self,
        who: &str,
        entry: &Entry,
        base: bool,
        observe: Observe<'_>,
    ) -> Result<Option<Scores>, RunError> {
        let mut found = Vec::new();
        for part in [
            self.prepared.validation.as_ref(),
            self.prepared.test.as_ref(),
        ]
        .into_iter()
        .flatten()
        {
            observe(&Progress::Begin {
                what: format!("evaluating the {who} model on the {} part", part.name),
            });
            let adapter = if base {
                None
            } else {
                Some(entry.adapter.as_ref())
            };
            let objective = entry
                .head
                .as_ref()
                .map_or(Objective::CausalLm, Objective::Classification);
            let result = evaluate(
                self.backbone,
                adapter,
                objective,
                part.examples(),
                self.config.train.max_tokens,
                self.stop,
            )?;
            let Some(result) = result else {
                return Ok(None);
            };
            if let Some(&loss) = result
                .metrics
                .get("loss")
                .filter(|loss| base && !loss.is_finite())
            {
                let (model, data) = (self.config.model.clone(), part.source.clone());
                return Err(RunError::BaseLoss {
                    model,
                    part: part.name,
                    data,
                    loss,
                });
            }
            observe(&Progress::Scores {
                who: who.into(),
                part: part.name.into(),
                metrics: result.metrics.clone(),
            });
            found.push((part.name, result.metrics));
        }
        Ok(Some(found))
    }

    fn train(
        &self,
        entry: &mut Entry,
        out: &Path,
        resume: bool,
        mut file: ConfigFile,
        observe: Observe<'_>,
    ) -> Result<frugal_train::Outcome, RunError> {
        let mut logger = Logger::new(out, resume);
        let mut observer = |event: &Event| {
            file.on(event);
            logger.on(event);
            observe(&Progress::Train(event.clone()));
        };
        let outcome = train(TrainRun {
            backbone: self.backbone,
            adapter: entry.adapter.as_mut(),
            head: entry.head.as_mut(),
            train: self.prepared.train.examples(),
            validation: self.prepared.validation.as_ref().map(Part::examples),
            config: &self.config.train,
            folder: Some(out),
            resume,
            stop: self.stop,
            observer: &mut observer,
        })?;
        file.finish()?;
        logger.finish()?;
        Ok(outcome)
    }
}

/// A resumed run must be the one that began.
fn check_settings(path: &Path, config: &TuneConfig) -> Result<(), RunError> {
    let Ok(mut before) = frugal_core::config::load::<TuneConfig>(Some(path), &[]) else {
        return Ok(());
    };
    before.resolve();
    check_same_run(
        path,
        &before,
        config,
        &[
            "model",
            "task",
            "quantize",
            "activations",
            "seed",
            "method",
            "pooling",
        ],
    )
}

fn build_entry(
    config: &TuneConfig,
    prepared: &Prepared,
    backbone: &dyn Backbone,
    sites: &SiteTable,
    device: &Device,
) -> Result<Entry, RunError> {
    let method = registry::find(&config.method.name)?;
    let tokenizer = prepared.files.tokenizer()?;
    let tokenize = |text: &str| tokenizer.encode(text, false).unwrap_or_default();
    let context = BuildContext {
        info: prepared.files.info(),
        sites,
        backbone: Some(backbone),
        device: device.clone(),
        seed: config.seed,
        tokenize: Some(&tokenize),
    };
    let adapter = (method.build)(&config.method.settings, &context)?;
    let head = prepared
        .head
        .clone()
        .map(|head| Head::new(head, prepared.files.info(), device, config.seed));
    Ok(Entry { adapter, head })
}

/// Whether a whole model comes out: when all of it was trained, and its class has a place for the
/// head.
fn ends_in_model(method: &str, head: Option<&Head>, files: &ModelFiles) -> bool {
    method == "full"
        && head.is_none_or(|h| h.config().pooling == Pooling::default_for(files.info()))
}

/// Writes the adapter into the run folder itself, or a whole model with its head into a folder in
/// it.
fn save(out: &Path, entry: &Entry, run: &Run<'_>, method: &str) -> Result<PathBuf, RunError> {
    let files = &run.prepared.files;
    if ends_in_model(method, entry.head.as_ref(), files) {
        let folder = out.join(MODEL_FOLDER);
        merge_to_folder(files, run.backbone, Some(entry), &folder, StoredType::F32)?;
        return Ok(folder);
    }
    peft::save(out, entry, files.info(), files.name())?;
    Ok(out.into())
}

fn weights_size(folder: &Path) -> u64 {
    let size = |name: &str| std::fs::metadata(folder.join(name)).map_or(0, |m| m.len());
    size(peft::WEIGHTS_FILE) + size("model.safetensors")
}

fn scores(
    prepared: &Prepared,
    base: &[(&'static str, Metrics)],
    adapted: &[(&'static str, Metrics)],
) -> Vec<PartScores> {
    let of = |scores: &[(&'static str, Metrics)], part: &str| {
        scores
            .iter()
            .find(|(p, _)| *p == part)
            .map(|(_, m)| m.clone())
            .unwrap_or_default()
    };
    let parts = [prepared.validation.as_ref(), prepared.test.as_ref()]
        .into_iter()
        .flatten();
    parts
        .map(|p| PartScores {
            part: p.name.into(),
            examples: p.examples().len(),
            base: of(base, p.name),
            adapted: of(adapted, p.name),
        })
        .collect()
}

fn meta(config: &TuneConfig, prepared: &Prepared) -> MetaInfo {
    let dataset = |p: &Part| DatasetInfo {
        split: p.name.into(),
        source: p.source.clone(),
        examples: p.examples().len(),
        sha256: p.sha256.clone(),
    };
    MetaInfo {
        model_info: ModelInfo {
            name: config.model.clone(),
            model_type: prepared.files.config().model_type().into(),
            file_size: prepared.files.stored_bytes(),
            sha256: None,
        },
        dataset_info: prepared.parts().map(dataset).collect(),
        package_info: [("frugal".to_owned(), env!("CARGO_PKG_VERSION").to_owned())].into(),
        system_info: SystemInfo::detect(&config.device),
    }
}

fn write_report(
    out: &Path,
    record: &RunRecord,
    log: Vec<Scalars>,
    prepared: &Prepared,
) -> Result<PathBuf, RunError> {
    let info = &record.run_info.train_config;
    let subtitle = format!(
        "{} on {}, {}",
        info["method"]["name"].as_str().unwrap_or_default(),
        info["model"].as_str().unwrap_or_default(),
        prepared.train.source
    );
    let page = RunReport {
        title: record.run_info.experiment_name.clone(),
        subtitle,
        record: record.clone(),
        log,
        example: example(prepared)?,
    };
    let html = page
        .to_html()
        .map_err(|e| RunError::Invalid(format!("the report cannot be drawn: {e}")))?;
    let path = out.join(REPORT_FILE);
    frugal_core::fs::write_atomic(&path, html.as_bytes())?;
    Ok(path)
}

/// The first training example in pieces of trained and untrained text.
fn example(prepared: &Prepared) -> Result<Option<report::Example>, RunError> {
    use frugal_core::encode::{IGNORE, Target};
    let tokenizer = prepared.files.tokenizer()?;
    let Some(first) = prepared.train.examples().first() else {
        return Ok(None);
    };
    let decode = |ids: &[u32]| tokenizer.decode(ids, false);
    let (segments, label) = match &first.labels {
        Target::Class(class) => {
            let label = prepared
                .head
                .as_ref()
                .and_then(|h| h.labels.get(*class))
                .cloned();
            (
                vec![report::Segment {
                    text: decode(&first.input_ids)?,
                    trained: false,
                }],
                label,
            )
        }
        Target::Tokens(targets) => {
            // A token is trained where the position before it has a target.
            let trained: Vec<bool> = std::iter::once(false)
                .chain(targets.iter().map(|t| *t != IGNORE))
                .take(first.input_ids.len())
                .collect();
            let mut segments = Vec::new();
            let mut begin = 0;
            for end in 1..=trained.len() {
                if end == trained.len() || trained[end] != trained[begin] {
                    segments.push(report::Segment {
                        text: decode(&first.input_ids[begin..end])?,
                        trained: trained[begin],
                    });
                    begin = end;
                }
            }
            (segments, None)
        }
    };
    Ok(Some(report::Example {
        segments,
        tokens: first.len(),
        trained_tokens: first.trained(),
        label,
    }))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;
    use crate::run::DataConfig;

    /// One step on a few messages, and how models are looked up.
    fn one_step(folder: &Path) -> (TuneConfig, Lookup) {
        let mut config = TuneConfig {
            out: folder.join("run"),
            evaluate_base: false,
            ..TuneConfig::default()
        };
        config.data = DataConfig {
            train: "sms-spam".into(),
            max_train_rows: 64,
            max_eval_rows: 8,
            ..DataConfig::default()
        };
        config.train.max_steps = 1;
        config.resolve();
        (
            config,
            Lookup {
                cache: folder.join("cache"),
                offline: true,
            },
        )
    }

    #[test]
    fn a_model_that_is_broken_before_training_is_what_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let (mut config, lookup) = one_step(folder.path());
        let broken = folder.path().join("broken");
        let files = ModelFiles::open("builtin", &lookup).unwrap();
        merge_to_folder(
            &files,
            files.load(&Device::flex()).unwrap().as_ref(),
            None,
            &broken,
            StoredType::F32,
        )
        .unwrap();
        let weights = broken.join("model.safetensors");
        let mut bytes = std::fs::read(&weights).unwrap();
        let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        bytes[8 + header..]
            .chunks_exact_mut(4)
            .for_each(|value| value.copy_from_slice(&f32::NAN.to_le_bytes()));
        std::fs::write(&weights, bytes).unwrap();
        (config.model, config.evaluate_base) = (broken.display().to_string(), true);
        let error = tune(
            &config,
            &[],
            &lookup,
            false,
            &AtomicBool::new(false),
            &mut |_| {},
        )
        .unwrap_err();
        let text = error.to_string();
        assert!(
            matches!(
                error,
                RunError::BaseLoss {
                    part: "validation",
                    ..
                }
            ),
            "{text}"
        );
        assert!(
            text.contains(&config.model)
                && text.contains("its own loss")
                && text.contains("is NaN"),
            "{text}"
        );
        assert!(!config.out.exists());
    }

    #[test]
    fn a_run_that_is_stopped_while_it_is_scored_is_not_done() {
        let folder = tempfile::tempdir().unwrap();
        let (config, lookup) = one_step(folder.path());
        let stop = AtomicBool::new(false);
        let mut observe = |progress: &Progress| {
            if matches!(progress, Progress::Begin { what } if what.starts_with("evaluating the adapted"))
            {
                stop.store(true, Ordering::Relaxed);
            }
        };
        let stopped = tune(&config, &[], &lookup, false, &stop, &mut observe).unwrap();
        assert!(stopped.interrupted);
        assert_eq!(stopped.record.train_info.status, Status::Cancelled);
        assert!(stopped.parts.iter().all(|p| p.adapted.is_empty()));

        stop.store(false, Ordering::Relaxed);
        let done = tune(&config, &[], &lookup, true, &stop, &mut |_| {}).unwrap();
        assert!(!done.interrupted);
        assert_eq!(done.record.train_info.status, Status::Success);
        assert!(done.parts.len() == 2 && done.parts.iter().all(|p| p.adapted.contains_key("loss")));
    }
}
