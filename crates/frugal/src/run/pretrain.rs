//! Pre-training a small decoder from text, tokenizer included.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use burn::prelude::Device;
use frugal_adapt::methods::full::Full;
use frugal_core::encode::Tokenized;
use frugal_core::pretext::Special;
use frugal_eval::report::{
    Evaluation, MetaInfo, ModelInfo, RECORD_FILE, RunRecord, SystemInfo, TrainInfo,
};
use frugal_models::load::{Lookup, ModelFiles};
use frugal_models::save::write_model;
use frugal_models::{ModelConfig, build, hollow_weights, merge, random_weights};
use frugal_nn::{Adapter, Backbone, BuildContext, Frozen, ModelError, Weight};
use frugal_train::mixture::Mixture;
use frugal_train::parallel::{Group, Layout, ParallelReport};
use frugal_train::{CausalLm, Event, ExampleSource, TrainRun, evaluate_observed, train_parallel};
use serde::Serialize;

use super::corpus::Corpus;
use super::folder::{check_same_run, claim};
use super::job::{Job, Learn, Trained};
use super::pretrain_config::PretrainConfig;
use super::pretrain_memory::{self, TrainedMemory, trained_as};
use super::pretrain_mixture::Chosen;
use super::pretrain_objective::named_mixture;
use super::{Metrics, Observe, Progress, RunError, base, decay_data, fork, width};

/// The resolved configuration in a run folder.
pub const CONFIG_FILE: &str = "pretrain.toml";

/// What a pre-training run came to.
#[derive(Clone, Debug, Serialize)]
pub struct Pretrained {
    /// Whether it was stopped before its end; `--resume` continues it.
    pub interrupted: bool,
    /// Model folder.
    pub out: PathBuf,
    /// Metrics of the written weights on the held-out documents; none if it was stopped.
    pub metrics: Metrics,
    /// Parameters.
    pub parameters: usize,
    /// Parameters that were trained, which are others under a reparameterisation.
    pub trainable_parameters: usize,
    /// Bytes of what is trained.
    pub memory: TrainedMemory,
    /// What several processes did, where there were several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parallel: Option<ParallelReport>,
    /// Tokens trained on.
    pub tokens: u64,
    /// Seconds of training.
    pub seconds: f64,
}

/// Trains a tokenizer and a decoder from scratch and writes a Hugging Face folder, with the record
/// of the run beside it.
///
/// # Errors
/// Unreadable text, settings that do not fit together, files that cannot be written.
pub fn pretrain(
    config: &PretrainConfig,
    command: &[String],
    resume: bool,
    stop: &AtomicBool,
    observe: Observe<'_>,
) -> Result<Pretrained, RunError> {
    pretrain_with(config, command, resume, stop, observe, |work| work(None))
}

/// That several processes can share the run.
///
/// # Errors
/// Naming the setting that they cannot share.
pub fn check_parallel(config: &PretrainConfig, layout: Layout) -> Result<(), RunError> {
    let given = [
        ("fork", config.fork.is_some()),
        ("decay_data", !config.decay_data.is_empty()),
        (
            "objective",
            named_mixture(&config.objective).is_ok_and(|mixture| mixture.is_some()),
        ),
        (
            "shape.arch",
            config.from.is_none() && super::reads_images(&config.shape.arch),
        ),
    ];
    match given.into_iter().find(|(_, is_given)| *is_given) {
        Some((key, _)) => Err(RunError::Invalid(format!(
            "`{key}`: such a run is one of one process: leave it out, or `--parallel`"
        ))),
        None => check_layout(config, layout),
    }
}

/// What is known of a layout before there is a model.
fn check_layout(config: &PretrainConfig, layout: Layout) -> Result<(), RunError> {
    let layers = config.shape.num_hidden_layers;
    if config.from.is_none() && layout.pipeline > layers {
        return Err(RunError::Invalid(format!(
            "`pipeline={}`: P ≤ layers: `shape.num_hidden_layers` is {layers}",
            layout.pipeline
        )));
    }
    Ok(())
}

/// As [`pretrain`], as rank 0 of several processes. `meet` is called once the folder is this
/// process's, and calls what it is given with the others when they have come.
///
/// # Errors
/// As [`pretrain`], and what `meet` answers.
pub fn pretrain_with<E: From<RunError>>(
    config: &PretrainConfig,
    command: &[String],
    resume: bool,
    stop: &AtomicBool,
    observe: Observe<'_>,
    meet: impl FnOnce(Work<'_>) -> Result<Pretrained, E>,
) -> Result<Pretrained, E> {
    if config.from.is_none() && super::reads_images(&config.shape.arch) {
        let reason = format!(
            "`{}` models read images: they are trained by `pretrain_images`",
            config.shape.arch
        );
        return Err(RunError::Invalid(reason).into());
    }
    let claim = claim(&config.out, CONFIG_FILE, resume)?;
    let done = meet(&mut |group: Option<&mut Group>| {
        pretrain_in_folder(config, command, resume, stop, observe, group)
    });
    match done {
        Err(_) => claim.give_back(),
        Ok(_) => drop(claim),
    }
    done
}

/// A run in its folder, with the other processes where there are any.
pub type Work<'a> = &'a mut dyn FnMut(Option<&mut Group>) -> Result<Pretrained, RunError>;

/// Any other rank than 0 of a run of several processes: needs the same files and settings, and
/// writes nothing.
///
/// # Errors
/// As [`pretrain`].
pub fn pretrain_worker(
    config: &PretrainConfig,
    stop: &AtomicBool,
    group: &mut Group,
) -> Result<(), RunError> {
    let quiet: Observe<'_> = &mut |_| {};
    let made: Result<Made, RunError> = (|| {
        check_parallel(config, group.layout())?;
        let device = crate::device::device(&config.device)?;
        let start = config.from.as_deref();
        let start = start.map(|from| Start::open(from, config)).transpose()?;
        let mut made = Made::new(config, start.as_ref(), None, device, quiet)?;
        made.share_out(group.layout())?;
        Ok(made)
    })();
    let mut made = match made {
        Ok(made) => made,
        Err(error) => {
            group.abort(&error.to_string());
            return Err(error);
        }
    };
    let run = TrainRun {
        backbone: made.backbone.as_ref(),
        adapter: &mut made.adapter,
        head: None,
        train: &made.corpus.training,
        validation: Some(&made.corpus.validation),
        config: &made.config.train,
        folder: None,
        resume: false,
        stop,
        observer: &mut |_: &Event| {},
    };
    train_parallel(run, group)?;
    Ok(())
}

/// What is trained on what.
struct Made {
    /// With what follows from the model.
    config: PretrainConfig,
    corpus: Corpus,
    /// What is learnt of the text, where that is more than the next token.
    mixture: Option<(Chosen, Special, Mixture)>,
    model: ModelConfig,
    backbone: Arc<dyn Backbone>,
    adapter: Full,
}

impl Made {
    /// Reads the text, and makes the model or takes the one that the run begins with.
    fn new(
        config: &PretrainConfig,
        start: Option<&Start>,
        stored: Option<&PretrainConfig>,
        device: Device,
        observe: Observe<'_>,
    ) -> Result<Self, RunError> {
        let mut resolved = config.clone();
        if let Some(Start { files }) = start {
            let head_dim = files.config().head_dim;
            pretrain_memory::resolve(&mut resolved.train, &resolved.reparam, head_dim);
        }
        for text in resolved.idle() {
            observe(&Progress::Warning { text });
        }
        let given = start.map(|start| start.files.tokenizer());
        let given = given.transpose().map_err(ModelError::from)?;
        let mixture = Chosen::of(config)
            .map_err(|(key, reason)| RunError::Invalid(format!("`objective.{key}`: {reason}")))?;
        let tokens = mixture.as_ref().map_or_else(Vec::new, Chosen::tokens);
        let mut corpus = Corpus::read_with(&resolved, given, &tokens, observe)?;
        let (text, more) = corpus.parts();
        resolved.train.decay_mixture = decay_data::mixture(&resolved.decay_data, text, &more);
        if let Some(run) = &resolved.fork {
            check_same_model(run, &resolved)?;
        }
        fork::begin(&mut resolved, stored, &corpus.training, &corpus.validation)?;
        let config = resolved;
        let mixture = match mixture {
            Some(chosen) => {
                let special = chosen.special(&corpus.tokenizer)?;
                let source = chosen.source(&corpus, &special, &config.train)?;
                corpus.validation = chosen.held_out(&corpus.validation, &special);
                Some((chosen, special, source))
            }
            None => None,
        };
        let (model, backbone) = match start {
            Some(Start { files }) => (files.config().clone(), files.load(&device)?),
            None => {
                let model = config.model(&corpus.tokenizer)?;
                let model = match &mixture {
                    Some((chosen, special, _)) => chosen.model(model, special)?,
                    None => model,
                };
                let weights = random_weights(&model, config.seed, &device);
                (model.clone(), build(model, &weights, &device)?)
            }
        };
        let mut mixture = mixture;
        if let Some((chosen, _, _)) = &mut mixture
            && let Some(text) = chosen.adopt(&model)?
        {
            observe(&Progress::Warning { text });
        }
        let sites = model.sites();
        let context = BuildContext {
            info: &model.info(),
            sites: &sites,
            backbone: Some(backbone.as_ref()),
            device,
            seed: config.seed,
            tokenize: None,
        };
        let mut adapter = trained_as(&config.reparam, &context)?;
        width::scale_rates(&mut adapter, &model);
        Ok(Self {
            config,
            corpus,
            mixture,
            model,
            backbone,
            adapter,
        })
    }

    /// Where each process is to have a part of the weights, lets go of those that the run begins with:
    /// what is trained has copies.
    fn share_out(&mut self, layout: Layout) -> Result<(), RunError> {
        let mut is_whole = true;
        self.backbone.visit_weights(&mut |part| {
            if let Frozen::Linear(linear) = part {
                is_whole &= matches!(linear.weight, Weight::Dense(_));
            }
        });
        let is_divided = layout.zero == 3 || layout.pipeline > 1;
        if is_divided && is_whole && self.adapter.replaces_weights() {
            let device = self.backbone.device().clone();
            let hollow = hollow_weights(&self.model, &device);
            self.backbone = build(self.model.clone(), &hollow, &device)?;
        }
        Ok(())
    }
}

/// The run, in a folder that is its own.
fn pretrain_in_folder(
    config: &PretrainConfig,
    command: &[String],
    resume: bool,
    stop: &AtomicBool,
    observe: Observe<'_>,
    group: Option<&mut Group>,
) -> Result<Pretrained, RunError> {
    let job = Job::new(&config.out, CONFIG_FILE, resume, stop, command);
    let device = crate::device::device(&config.device)?;
    if resume {
        check_settings(&config.out.join(CONFIG_FILE), config)?;
    }
    let start = config.from.as_deref();
    let start = start.map(|from| Start::open(from, config)).transpose()?;
    if let Some(Start { files }) = &start {
        let name = config.from.as_deref().unwrap_or_default();
        base::check(&config.out, name, &files.fingerprint(), resume)?;
    }
    let stored = stored_config(&config.out.join(CONFIG_FILE)).filter(|_| resume);
    let layout = group.as_ref().map(|group| group.layout());
    if let Some(layout) = layout {
        check_parallel(config, layout)?;
    }
    let mut made = Made::new(config, start.as_ref(), stored.as_ref(), device, observe)?;
    if let Some(layout) = layout {
        made.share_out(layout)?;
    }
    let Made {
        config,
        corpus,
        mixture,
        model,
        backbone,
        mut adapter,
    } = made;
    let config = &config;
    let job = match &config.fork {
        Some(_) => job.with_checkpoint(),
        None => job,
    };
    let memory = TrainedMemory::of(&adapter, &config.train)?;
    let (objective, mut source) = match mixture {
        Some((chosen, special, source)) => {
            let objective = chosen.objective(&special, config.train.label_smoothing);
            (Some(objective), Some(source))
        }
        None => (None, None),
    };
    let learn = Learn {
        objective,
        source: source
            .as_mut()
            .map(|source| source as &mut dyn ExampleSource),
        backbone: backbone.as_ref(),
        adapter: &mut adapter,
        head: None,
        train: &corpus.training,
        validation: Some(&corpus.validation),
        config: &config.train,
    };
    let file = job.config_file(config)?;
    let (training, parallel) = job.train_with_others(file, learn, group, observe)?;
    let peak_memory = training.peak_memory();
    let metrics = measure(
        &training,
        backbone.as_ref(),
        &adapter,
        &corpus.validation,
        config,
        stop,
        observe,
    )?;
    // A run is not done before it was measured; a resume measures again.
    let interrupted = metrics.is_none();
    if !interrupted {
        let weights = merge::weights(backbone.as_ref(), Some(&adapter as &dyn Adapter))?;
        corpus.tokenizer.save(&config.out)?;
        write_model(&config.out, &weights.config, &weights.tensors, config.dtype)?;
    }
    let trained = Pretrained {
        interrupted,
        out: config.out.clone(),
        metrics: metrics.unwrap_or_default(),
        parameters: model.sites().num_parameters(),
        trainable_parameters: adapter.num_trainable(),
        memory,
        parallel,
        tokens: training.outcome.tokens,
        seconds: training.seconds,
    };
    let mut record = record(&job, config, &training, &trained, &corpus)?;
    record.train_info.peak_memory = peak_memory;
    record.meta_info.model_info.model_type = model.model_type().into();
    record.meta_info.model_info.vocabulary =
        Some(crate::measure::vocabulary_sha256(&corpus.tokenizer));
    record.write(&config.out.join(RECORD_FILE))?;
    Ok(trained)
}

/// The model that a run begins with.
struct Start {
    files: ModelFiles,
}

impl Start {
    /// Its files, which must be those of a decoder that reads pieces as long as the run's.
    fn open(from: &str, config: &PretrainConfig) -> Result<Self, RunError> {
        let files = ModelFiles::open(from, &Lookup::default())?;
        let model = files.config();
        let refused = |key: &str, reason: String| {
            Err(RunError::from(ModelError::Config {
                source_name: model.source.clone(),
                key: key.into(),
                reason,
            }))
        };
        if model.family.is_encoder || model.is_headless() || model.is_classifier() {
            let reason = "`from` needs a decoder with an output over the vocabulary";
            return refused("architectures", reason.into());
        }
        let longest = model.max_sequence();
        if config.max_length > longest {
            let reason = format!(
                "{longest} tokens are the model's longest, and `max_length` is {}",
                config.max_length
            );
            return refused("max_position_embeddings", reason);
        }
        Ok(Self { files })
    }
}

/// Metrics of the weights that are kept; `None` if the run was stopped.
fn measure(
    training: &Trained,
    backbone: &dyn Backbone,
    adapter: &Full,
    validation: &[Tokenized],
    config: &PretrainConfig,
    stop: &AtomicBool,
    observe: Observe<'_>,
) -> Result<Option<Metrics>, RunError> {
    if training.cut_short() {
        return Ok(None);
    }
    match &training.outcome.evaluation {
        // At its end a run was evaluated with its last weights.
        Some(last) if !training.outcome.restored_best => return Ok(Some(last.metrics.clone())),
        _ => {}
    }
    observe(&Progress::Begin {
        what: "evaluating the held-out text".into(),
    });
    let found = evaluate_observed(
        backbone,
        Some(adapter as &dyn Adapter),
        &CausalLm::default(),
        validation,
        config.train.max_tokens,
        stop,
        &mut |done, of| observe(&Progress::Counted { done, of }),
    )?;
    Ok(found.map(|e| e.metrics))
}

/// The configuration in a run folder, where there is one that can be read.
fn stored_config(path: &Path) -> Option<PretrainConfig> {
    let mut stored = frugal_core::config::load::<PretrainConfig>(Some(path), &[]).ok()?;
    stored.resolve();
    Some(stored)
}

/// A fork has the model of its run.
fn check_same_model(run: &Path, config: &PretrainConfig) -> Result<(), RunError> {
    let Some(theirs) = stored_config(&run.join(CONFIG_FILE)) else {
        return Ok(());
    };
    let keys = |shape| match serde_json::to_value(shape) {
        Ok(serde_json::Value::Object(keys)) => keys,
        _ => serde_json::Map::new(),
    };
    let (before, now) = (keys(&theirs.shape), keys(&config.shape));
    let mut all = before.keys().chain(now.keys());
    match all.find(|key| before.get(*key) != now.get(*key)) {
        Some(key) => Err(RunError::Invalid(format!(
            "`shape.{key}` is not that of {}: a fork has the model of its run",
            run.display()
        ))),
        None => Ok(()),
    }
}

/// A resumed run must be the one that began.
fn check_settings(path: &Path, config: &PretrainConfig) -> Result<(), RunError> {
    let Some(before) = stored_config(path) else {
        return Ok(());
    };
    // A key that only one of the two has is a difference as well.
    let both = [&before.shape, &config.shape].map(|s| serde_json::to_value(s).unwrap_or_default());
    let shape: BTreeSet<String> = both
        .iter()
        .filter_map(serde_json::Value::as_object)
        .flat_map(|keys| keys.keys().map(|key| format!("shape.{key}")))
        .collect();
    let others = ["seed", "from", "reparam", "objective", "fork", "decay_data"];
    // A fork of the newest checkpoint does not say which one that was.
    let others = others
        .into_iter()
        .chain((config.fork_step > 0).then_some("fork_step"));
    let keys: Vec<&str> = shape.iter().map(String::as_str).chain(others).collect();
    check_same_run(path, &before, config, &keys)
}

/// What the run cost and gained, as fine-tuning records it; there is no model before training to
/// compare with.
fn record(
    job: &Job<'_>,
    config: &PretrainConfig,
    training: &Trained,
    trained: &Pretrained,
    corpus: &Corpus,
) -> Result<RunRecord, RunError> {
    let file_size = std::fs::metadata(config.out.join("model.safetensors")).map_or(0, |m| m.len());
    Ok(RunRecord {
        run_info: job.run_info(training, config),
        train_info: TrainInfo {
            file_size,
            num_trainable_params: trained.trainable_parameters as u64,
            num_total_params: trained.parameters as u64,
            ..job.train_info(training, trained.interrupted, &job.log()?)
        },
        evaluation: vec![Evaluation {
            split: "validation".into(),
            examples: corpus.validation.len(),
            adapted: trained.metrics.clone(),
            ..Evaluation::default()
        }],
        forgetting: None,
        meta_info: MetaInfo {
            model_info: ModelInfo {
                name: job.name(),
                file_size,
                ..ModelInfo::default()
            },
            dataset_info: corpus.describe(config),
            package_info: [("frugal".to_owned(), env!("CARGO_PKG_VERSION").to_owned())].into(),
            system_info: SystemInfo::detect(&config.device),
        },
    })
}

#[cfg(test)]
pub(super) mod tests;
