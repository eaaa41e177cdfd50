//! Fine-tuning: the main job.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use burn::prelude::*;
use frugal_adapt::{peft, registry};
use frugal_eval::baselines::MAJORITY;
use frugal_eval::report::{RECORD_FILE, RunRecord};
use frugal_models::LoadOptions;
use frugal_models::load::{Lookup, MODEL_FOLDER, ModelFiles};
use frugal_models::save::StoredType;
use frugal_nn::{Backbone, BuildContext, Head, LoadedAdapter, SiteTable};
use frugal_train::{Best, ModelParts, Unreached};
use serde::Serialize;

use super::compare::baselines;
use super::estimate::{Sizes, Work, predicted, process_bytes};
use super::export::merge_to_folder;
use super::fit::{Fitted, MemoryCheck, available, fitting, hindered, refusal};
use super::folder::{check_same_run, claim, claim_free};
use super::job::{Job, Learn, in_folder};
use super::page::{count_parameters, evaluation, meta, scores, weights_size, write_report};
use super::plan::unreached;
use super::prepare::{Part, Prepared, prepare};
use super::scores::PartScores;
use super::scoring::Run;
use super::start::Start;
use super::{Observe, Progress, RunError, Task, TuneConfig, base, ranked};

/// The resolved configuration in a run folder.
pub const CONFIG_FILE: &str = "config.toml";

/// What a run came to.
#[derive(Clone, Debug, Serialize)]
pub struct Tuned {
    /// Whether it was stopped before its end; `--resume` continues it.
    pub interrupted: bool,
    /// The step whose weights were kept.
    pub kept_step: u64,
    /// The best evaluation, if there was one.
    pub best: Option<Best>,
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

/// What is trained, and how.
#[derive(Clone, Copy)]
pub struct TuneRequest<'a> {
    /// The run. Without an output folder it gets one of its own: `runs/DATA-METHOD`, with a number
    /// if that is taken.
    pub config: &'a TuneConfig,
    /// The command line, for the record.
    pub command: &'a [String],
    /// How models are looked up.
    pub lookup: &'a Lookup,
    /// Continue the run in the output folder.
    pub resume: bool,
    /// What to do if the run needs more memory than there is.
    pub memory: MemoryCheck,
    /// When set, the run ends with a checkpoint.
    pub stop: &'a AtomicBool,
}

/// Fine-tunes a model and writes everything into the run folder.
///
/// # Errors
/// Anything wrong with model, data, settings or files; what was finished before is kept.
pub fn tune(request: &TuneRequest<'_>, observe: Observe<'_>) -> Result<Tuned, RunError> {
    let (mut config, start) = Start::resolve(request.config)?;
    let claim = if config.out.as_os_str().is_empty() && !request.resume {
        claim_free(&default_out(&config), CONFIG_FILE)?
    } else {
        claim(&config.out, CONFIG_FILE, request.resume)?
    };
    config.out = claim.out().to_owned();
    in_folder(claim, || {
        if request.resume {
            check_settings(&config.out.join(CONFIG_FILE), &config)?;
        }
        let prepared = read_data(&config, request.lookup, observe)?;
        let folder = start.as_ref().map(|start| start.folder());
        base::tell_unused(folder, &prepared.files, observe);
        if let Some(start) = &start {
            start.check_targets(&prepared.files.sites())?;
            base::warn(start.folder(), &prepared.files, observe);
        }
        match prepared.files.info().image {
            // As many at once as are learnt from; the estimate knows text alone.
            Some(image) => {
                let batch = config.train.batch_size * image.pixels();
                config.train.max_tokens = config.train.max_tokens.max(batch);
            }
            None => check_memory(&mut config, &prepared, request, observe)?,
        }
        tune_in_folder(&config, request, &prepared, start.as_ref(), observe)
    })
}

/// A folder in `runs` that is named after data and method.
fn default_out(config: &TuneConfig) -> PathBuf {
    let first = config.data.train.lines().next().unwrap_or_default();
    let data = Path::new(if first == "-" { "stdin" } else { first })
        .file_stem()
        .unwrap_or_default()
        .to_string_lossy();
    // A pattern is no name for a folder.
    let plain = |c: char| {
        if c.is_alphanumeric() || "-_. ".contains(c) {
            c
        } else {
            '_'
        }
    };
    let data: String = data.chars().map(plain).collect();
    PathBuf::from(format!("runs/{data}-{}", config.method.name))
}

/// Reads and tokenizes the data, and tells of it.
fn read_data(
    config: &TuneConfig,
    lookup: &Lookup,
    observe: Observe<'_>,
) -> Result<Prepared, RunError> {
    observe(&Progress::Begin {
        what: format!("tokenizing {}", config.data.train_names()),
    });
    let prepared = prepare(config, lookup)?;
    let told = |p: &Part| {
        (
            p.name.to_owned(),
            p.examples().len(),
            p.encoded.total_tokens,
            p.encoded.longest,
        )
    };
    for text in prepared.doubts(&config.data) {
        observe(&Progress::Warning { text });
    }
    observe(&Progress::Data {
        parts: prepared.parts().map(told).collect(),
        truncated: prepared.parts().map(|p| p.encoded.truncated).sum(),
        example: prepared.shown_example()?,
    });
    Ok(prepared)
}

/// Finds out before any weight is read whether the run fits the machine, and makes it fit if that
/// was asked for.
fn check_memory(
    config: &mut TuneConfig,
    prepared: &Prepared,
    request: &TuneRequest<'_>,
    observe: Observe<'_>,
) -> Result<(), RunError> {
    let process = process_bytes();
    let Some(available) = available(process).filter(|_| request.memory != MemoryCheck::Ignore)
    else {
        return Ok(());
    };
    let device = crate::device::device(&config.device)?;
    let sites = prepared.files.sites();
    let sizes = Sizes::new(config, prepared, &sites, &device)?;
    let tokens = Work::new(config, prepared).micro_batch_tokens;
    let needed = predicted(prepared, &sites, &sizes, config, tokens, process).peak();
    if needed <= available {
        if let Some(text) = hindered(needed, process) {
            observe(&Progress::Warning { text });
        }
        return Ok(());
    }
    let resume = request.resume;
    let fitted = fitting(config, prepared, &sites, &sizes, process, available, resume);
    match fitted {
        Some(Fitted { config: new, flags }) if request.memory == MemoryCheck::Fit => {
            *config = new;
            observe(&Progress::Fitted {
                needed,
                available,
                flags,
            });
            Ok(())
        }
        fitted => Err(refusal(needed, available, fitted.as_ref())),
    }
}

/// The run, in a folder that is its own.
fn tune_in_folder(
    config: &TuneConfig,
    request: &TuneRequest<'_>,
    prepared: &Prepared,
    start: Option<&Start>,
    observe: Observe<'_>,
) -> Result<Tuned, RunError> {
    let (out, resume) = (&config.out, request.resume);
    let job = Job::new(out, CONFIG_FILE, resume, request.stop, request.command);
    let device = crate::device::device(&config.device)?;
    let method = registry::find(&config.method.name)?;
    let file = job.config_file(config)?;
    observe(&Progress::Begin {
        what: format!("reading {}", config.model),
    });
    let fingerprint = prepared.files.fingerprint();
    base::check(out, &config.model, &fingerprint, resume)?;
    let sites = prepared.files.sites();
    let backbone = load(config, prepared, &sites, &device)?;
    let mut entry = build_entry(config, prepared, backbone.as_ref(), &sites, start, &device)?;
    if let Some(found) = Unreached::among(entry.adapter.as_ref(), prepared.train.examples()) {
        let text = unreached(&found)?;
        observe(&Progress::Warning { text });
    }
    let run = Run {
        config,
        prepared,
        backbone: backbone.as_ref(),
        stop: request.stop,
    };
    tell_baselines(prepared, observe);
    let before = match (config.evaluate_base, start) {
        (false, _) => None,
        (true, None) => run.score("base", &entry, true, observe)?,
        (true, Some(_)) => run.score("starting", &entry, false, observe)?,
    };
    let model = ModelParts::new(backbone.as_ref(), entry.head.as_ref());
    let objective = ranked::objective(config, prepared.train.examples(), &prepared.files, model)?;
    let learn = Learn {
        objective: config.task.is_ranked().then_some(objective),
        backbone: backbone.as_ref(),
        adapter: entry.adapter.as_mut(),
        head: entry.head.as_mut(),
        train: prepared.train.examples(),
        validation: prepared.validation.as_ref().map(Part::examples),
        config: &config.train,
        source: None,
    };
    let trained = job.train(file, learn, observe)?;
    let (mut adapted, mut adapter) = (None, None);
    if !trained.cut_short() {
        adapted = run.score("adapted", &entry, false, observe)?;
        adapter = Some(save(out, &entry, &run, method.name, &fingerprint)?);
    }
    // Read before what is measured for the comparison only.
    let peak_memory = trained.peak_memory();
    let forgetting = match &adapted {
        Some(_) if config.measure_forgetting => run.forgetting(&entry, observe)?,
        _ => None,
    };

    // A run is not done before everything was measured; a resume measures again.
    let interrupted = adapted.is_none() || (config.measure_forgetting && forgetting.is_none());
    let adapted = adapted.unwrap_or_default();
    let parts = scores(prepared, &before.unwrap_or_default(), &adapted);
    let log = job.log()?;
    let mut record = RunRecord {
        run_info: job.run_info(&trained, config),
        train_info: job.train_info(&trained, interrupted, &log),
        evaluation: parts
            .iter()
            .map(|part| evaluation(part, &adapted))
            .collect(),
        forgetting,
        meta_info: meta(config, prepared, fingerprint),
    };
    record.run_info.peft_config = serde_json::Value::Object(entry.adapter.peft_config());
    record.train_info.peak_memory = peak_memory;
    record.train_info.file_size = adapter.as_deref().map_or(0, weights_size);
    count_parameters(&mut record.train_info, &entry, &sites, method.name);
    record.write(&out.join(RECORD_FILE))?;
    let report_path = write_report(out, &record, log, prepared)?;
    Ok(Tuned {
        interrupted,
        kept_step: trained.kept_step(),
        best: trained.outcome.best,
        record,
        parts,
        adapter,
        report: Some(report_path),
        out: out.clone(),
    })
}

/// Tells what the commonest class scores on each part.
fn tell_baselines(prepared: &Prepared, observe: Observe<'_>) {
    for part in [prepared.validation.as_ref(), prepared.test.as_ref()]
        .into_iter()
        .flatten()
    {
        if let Some(metrics) = baselines(prepared, part).remove(MAJORITY) {
            observe(&Progress::Scores {
                who: MAJORITY.into(),
                part: part.name.into(),
                metrics,
            });
        }
    }
}

/// Reads the weights as the method needs them.
fn load(
    config: &TuneConfig,
    prepared: &Prepared,
    sites: &SiteTable,
    device: &Device,
) -> Result<Arc<dyn Backbone>, RunError> {
    let method = registry::find(&config.method.name)?;
    let options = LoadOptions {
        activations: config.activations,
        ..LoadOptions::default()
    };
    let settings = &config.method.settings;
    let options = method.load_options(settings, sites, Some(config.quantize), options)?;
    Ok(prepared.files.load_with(device, options)?)
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
            "problem_type",
            "quantize",
            "activations",
            "seed",
            "method",
            "pooling",
            "adapter",
        ],
    )
}

fn build_entry(
    config: &TuneConfig,
    prepared: &Prepared,
    backbone: &dyn Backbone,
    sites: &SiteTable,
    start: Option<&Start>,
    device: &Device,
) -> Result<LoadedAdapter, RunError> {
    let method = registry::find(&config.method.name)?;
    // A model of images has none.
    let tokenizer = match prepared.files.info().image {
        Some(_) => None,
        None => Some(prepared.files.tokenizer()?),
    };
    let tokenize = |text: &str| {
        let ids = tokenizer.map(|tokenizer| tokenizer.encode(text, false));
        ids.and_then(Result::ok).unwrap_or_default()
    };
    let context = BuildContext {
        info: prepared.files.info(),
        sites,
        backbone: Some(backbone),
        device: device.clone(),
        seed: config.seed,
        tokenize: tokenizer.map(|_| &tokenize as &dyn Fn(&str) -> Vec<u32>),
    };
    if let Some(start) = start {
        return start.load(prepared.files.name(), &context);
    }
    let settings = prepared.method_settings(config, sites)?;
    let adapter = method.make(&settings, &context)?;
    let new = |head| Head::new(head, prepared.files.info(), device, config.seed);
    let mut head = prepared.head.clone().map(new);
    // A cross-encoder is trained on with the head that it has.
    if config.task == Task::Reranking
        && let Some(own) = prepared.files.head(device)?
        && own.config().labels.len() == 1
        && Some(own.config().pooling) == prepared.head.as_ref().map(|head| head.pooling)
    {
        head = Some(own);
    }
    Ok(LoadedAdapter { adapter, head })
}

/// Whether a whole model comes out: when all of it was trained, and its class has a place for the
/// head.
fn ends_in_model(method: &str, head: Option<&Head>, files: &ModelFiles) -> bool {
    method == "full" && head.is_none_or(|h| h.config().class(files.info()).is_some())
}

/// Writes the adapter into the run folder itself, or a whole model with its head into a folder in
/// it.
fn save(
    out: &Path,
    entry: &LoadedAdapter,
    run: &Run<'_>,
    method: &str,
    fingerprint: &str,
) -> Result<PathBuf, RunError> {
    let files = &run.prepared.files;
    if ends_in_model(method, entry.head.as_ref(), files) {
        let folder = out.join(MODEL_FOLDER);
        merge_to_folder(files, run.backbone, Some(entry), &folder, StoredType::F32)?;
        return Ok(folder);
    }
    peft::save(out, entry, files.info(), files.name())?;
    base::keep_with_adapter(out, fingerprint)?;
    if run.config.data.chat_template.is_some() {
        files.tokenizer()?.save_chat_template(out)?;
    }
    Ok(out.into())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use frugal_eval::report::Status;

    use super::*;
    use crate::run::DataConfig;

    fn request<'a>(
        config: &'a TuneConfig,
        lookup: &'a Lookup,
        resume: bool,
        stop: &'a AtomicBool,
    ) -> TuneRequest<'a> {
        TuneRequest {
            config,
            command: &[],
            lookup,
            resume,
            memory: MemoryCheck::default(),
            stop,
        }
    }

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
        let stop = AtomicBool::new(false);
        let error = tune(&request(&config, &lookup, false, &stop), &mut |_| {}).unwrap_err();
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
        let stopped = tune(&request(&config, &lookup, false, &stop), &mut observe).unwrap();
        assert!(stopped.interrupted);
        assert_eq!(stopped.record.train_info.status, Status::Cancelled);
        assert!(stopped.parts.iter().all(|p| p.adapted.is_empty()));

        stop.store(false, Ordering::Relaxed);
        let done = tune(&request(&config, &lookup, true, &stop), &mut |_| {}).unwrap();
        assert!(!done.interrupted);
        assert_eq!(done.record.train_info.status, Status::Success);
        assert!(done.parts.len() == 2 && done.parts.iter().all(|p| p.adapted.contains_key("loss")));
    }
}
