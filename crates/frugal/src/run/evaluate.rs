//! Measuring a model, with or without an adapter, on a data file.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use frugal_core::data::Format;
use frugal_core::metrics::ClassScores;
use frugal_models::load::Lookup;
use frugal_models::save::{Stored, StoredType, write_safetensors};
use frugal_models::{LoadOptions, Quantize};
use frugal_nn::{Adapter, Backbone, Fixed, Head, Input, Mode, Rows, to_vec};
use frugal_train::objective::{canonical, for_model};
use frugal_train::{
    ModelParts, Named, Tokenized, TrainConfig, evaluate_observed as evaluate_examples,
};
use serde::Serialize;

use super::compare::confusion;
use super::open::{OpenOptions, open};
use super::predictions::{Prediction, predictions};
use super::prepare::{Part, encode_part, is_data_file, labels_for, read};
use super::tune::CONFIG_FILE;
use super::{DataConfig, Metrics, Observe, ProblemType, Progress, RunError, TuneConfig, images};

/// What is measured.
#[derive(Clone, Debug)]
pub struct EvaluateRequest {
    /// Model.
    pub model: String,
    /// Adapter folder.
    pub adapter: Option<PathBuf>,
    /// Data file and how it is read; only `train` (the file), `format`, `columns`, `max_eval_rows`,
    /// `max_length`, `truncate` and `completion_only` matter.
    pub data: DataConfig,
    /// Device.
    pub device: String,
    /// Tokens of a batch.
    pub max_tokens: usize,
    /// How weights are held.
    pub quantize: Quantize,
    /// Also write the logits of the first examples there, for comparison with other programs.
    pub dump_logits: Option<PathBuf>,
}

/// What was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Evaluated {
    /// Metrics by name.
    pub metrics: Metrics,
    /// Examples.
    pub examples: usize,
    /// Tokens of all examples.
    pub tokens: usize,
    /// Names of the classes or outputs of a head.
    pub labels: Vec<String>,
    /// How often each class (row) was taken for each class (column); empty unless each example has
    /// one class.
    pub confusion: Vec<Vec<usize>>,
    /// Scores of each label, where an example may have several; of each kind of entity, where words
    /// are labelled.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub label_scores: Vec<ClassScores>,
    /// Words with a tag that were cut off and are not measured.
    #[serde(skip_serializing_if = "is_zero")]
    pub cut_words: usize,
    /// What was measured where that is another than what the model is made for, with its settings: `dpo`
    /// on preferences.
    #[serde(skip_serializing_if = "Named::is_unset")]
    pub objective: Named,
    /// SHA-256 of the data file.
    pub sha256: String,
    /// Whether the adapter was trained on other weights than the model's as they are now.
    pub base_changed: bool,
    /// What a head said of each example, in their order.
    #[serde(skip)]
    pub predictions: Vec<Prediction>,
}

/// How the run that made an adapter held the model's weights; single precision if the folder is not
/// that of a run.
pub fn quantize_of(adapter: &Path) -> Quantize {
    let run = frugal_core::config::load::<TuneConfig>(Some(&adapter.join(CONFIG_FILE)), &[]);
    run.map_or(Quantize::None, |run| run.quantize)
}

/// How the run that made an adapter read its data: column names, format and templates. The files
/// themselves, their limits and the chat template, which is saved with the adapter, are left out.
pub fn data_settings_of(adapter: &Path) -> DataConfig {
    let run = frugal_core::config::load::<TuneConfig>(Some(&adapter.join(CONFIG_FILE)), &[]);
    let data = run.map(|run| run.data).unwrap_or_default();
    DataConfig {
        format: data.format,
        columns: data.columns,
        header: data.header,
        documents: data.documents,
        label_separator: data.label_separator,
        label_names: data.label_names,
        label_all_tokens: data.label_all_tokens,
        prompt_template: data.prompt_template,
        template: data.template,
        completion_only: data.completion_only,
        ..DataConfig::default()
    }
}

fn is_zero(count: &usize) -> bool {
    *count == 0
}

/// The objective that an adapter is measured by on preferences: its run's, if that learnt from such.
///
/// # Errors
/// No adapter to compare with the model, and logits that were asked for.
fn preferences(request: &EvaluateRequest, has_adapter: bool) -> Result<Named, RunError> {
    let data = &request.data.train;
    if !has_adapter {
        return Err(RunError::Invalid(format!(
            "{data}: preferences are measured of an adapter, beside the model that it belongs to: give `--adapter`"
        )));
    }
    if request.dump_logits.is_some() {
        return Err(RunError::Invalid(format!(
            "`--dump-logits`: {data} has two texts in each record: logits are written of records of one"
        )));
    }
    let folder = request.adapter.as_deref();
    let run = folder.and_then(|folder| {
        frugal_core::config::load::<TuneConfig>(Some(&folder.join(CONFIG_FILE)), &[]).ok()
    });
    let own = run.map(|run| run.train.objective);
    let own = own.filter(|named| canonical(&named.name) == PREFERENCES);
    Ok(own.unwrap_or_else(|| PREFERENCES.into()))
}

/// The objective of preferences.
const PREFERENCES: &str = "dpo";

/// Examples whose logits are written on request.
const DUMPED: usize = 8;

/// Evaluates; an adapter or a model with a head makes it classification, anything else language
/// modelling. Preferences are measured of an adapter as its training does (`dpo`), with the settings of
/// its run, beside the model without it.
///
/// Returns `None` if `stop` was set before the end.
///
/// # Errors
/// Anything wrong with model, adapter or data.
pub fn evaluate(
    request: &EvaluateRequest,
    lookup: &Lookup,
    stop: &AtomicBool,
    observe: Observe<'_>,
) -> Result<Option<Evaluated>, RunError> {
    let device = crate::device::device(&request.device)?;
    let options = OpenOptions {
        load: LoadOptions {
            quantize: request.quantize,
            ..LoadOptions::default()
        },
        chat_template: request.data.chat_template.as_deref(),
        ..OpenOptions::new(lookup, device.clone())
    };
    let opened = open(
        &request.model,
        request.adapter.as_slice(),
        &options,
        observe,
    )?;
    let (files, backbone, entry) = (&opened.files, &opened.backbone, opened.entry());
    // An adapter without a head of its own leaves that of the model in place.
    let own_head = if entry.is_none_or(|e| e.head.is_none()) {
        files.head(&device)?
    } else {
        None
    };
    let head = entry.and_then(|e| e.head.as_ref()).or(own_head.as_ref());
    // Nothing that a model without either head could be measured by.
    if head.is_none() && backbone.lm_head().is_none() {
        return Err(RunError::Invalid(format!(
            "`{}`: the model has no head, neither over classes nor over tokens: {}",
            files.name(),
            super::predict::without_head(files)
        )));
    }
    let problem = head.map_or_else(ProblemType::default, |head| head.config().problem_type);
    let labels = labels_for(head.map(Head::config));
    let of_images = match backbone.info().image {
        Some(_) => {
            images::check_settings(&request.data, files.name())?;
            if request.dump_logits.is_some() {
                return Err(RunError::Invalid(
                    "`--dump-logits`: logits are written of texts alone".into(),
                ));
            }
            Some(images::to_measure(&request.data)?)
        }
        None => None,
    };
    let dataset = match (&of_images, frugal_core::data::builtin(&request.data.train)) {
        (Some(found), _) => found.dataset.clone(),
        (None, Ok(builtin)) if !is_data_file(&request.data.train) => builtin.test,
        _ => read(&request.data.train, "test", &request.data, labels, lookup)?,
    };
    let dataset = if request.data.max_eval_rows == 0 {
        dataset
    } else {
        dataset.take(request.data.max_eval_rows)
    };
    let limit = files.config().max_sequence();
    let max_length = if request.data.max_length == 0 {
        limit
    } else {
        request.data.max_length.min(limit)
    };
    let part = match (&of_images, head) {
        (Some(found), Some(head)) => Part::of_images("test", found.read(files, head.config())?),
        _ => encode_part(
            "test",
            &dataset,
            files,
            head.map(|h| h.config()),
            &request.data,
            max_length,
        )?,
    };
    if let Some(text) = part.cut_words() {
        observe(&Progress::Warning { text });
    }
    observe(&Progress::Begin {
        what: format!("evaluating {} examples", part.examples().len()),
    });
    let adapter = entry.map(|e| e.adapter.as_ref());
    let model = ModelParts::new(backbone.as_ref(), head);
    let measured_by = match dataset.format {
        Format::Preference => preferences(request, entry.is_some())?,
        _ => Named::default(),
    };
    let train = TrainConfig {
        objective: measured_by.clone(),
        ..TrainConfig::default()
    };
    let objective = for_model(&train, model).map_err(RunError::Invalid)?;
    if let Some(path) = &request.dump_logits {
        let examples = &part.examples()[..DUMPED.min(part.examples().len())];
        dump(path, examples, backbone.as_ref(), adapter, head)?;
    }
    let Some(found) = evaluate_examples(
        model,
        adapter,
        objective.as_ref(),
        part.examples(),
        request.max_tokens,
        stop,
        &mut |done, of| observe(&Progress::Counted { done, of }),
    )?
    else {
        return Ok(None);
    };
    let loss = found.metrics.get("loss").copied().unwrap_or_default();
    backbone.info().check_finite("outputs", &[loss as f32])?;
    let labels = head.map(|h| h.config().labels.clone()).unwrap_or_default();
    let confusion = match problem {
        _ if found.gold.is_empty() => Vec::new(),
        ProblemType::SingleLabel => confusion(&labels, &found.gold, &found.predicted).counts,
        ProblemType::MultiLabel | ProblemType::Regression => Vec::new(),
    };
    let rows = (part.encoded.rows.as_slice(), part.examples());
    let predictions = predictions(&dataset, rows, &labels, problem, &found.logits);
    Ok(Some(Evaluated {
        predictions,
        objective: measured_by,
        metrics: found.metrics,
        label_scores: found.labels.map_or(found.entities, |report| report.labels),
        examples: part.examples().len(),
        tokens: part.encoded.total_tokens,
        cut_words: part.encoded.cut_words,
        labels,
        confusion,
        sha256: part.sha256,
        base_changed: opened.base_changed,
    }))
}

/// Writes `input_ids.N` (`[tokens]`) and `logits.N` (`[tokens, vocab]`, or `[labels]` with a head,
/// `[tokens, labels]` with one that labels tokens) of each sequence.
fn dump(
    path: &std::path::Path,
    examples: &[Tokenized],
    backbone: &dyn Backbone,
    adapter: Option<&dyn Adapter>,
    head: Option<&Head>,
) -> Result<(), RunError> {
    let fixed = Fixed::new(adapter);
    let mut tensors = Vec::new();
    for (
        n,
        Tokenized {
            input_ids: ids,
            token_type_ids,
            ..
        },
    ) in examples.iter().enumerate()
    {
        let mut pass = fixed.pass();
        let input = Input {
            token_type_ids,
            ..Input::new(ids, &[ids.len()])
        };
        let (shape, logits) = match head {
            Some(head) => {
                let logits = head.classify(&input, backbone, pass.as_mut(), Mode::Eval)?;
                let [rows, labels] = logits.dims();
                let shape = match head.config().labels_tokens() {
                    true => vec![rows, labels],
                    false => vec![labels],
                };
                (shape, to_vec::<2>(logits))
            }
            None => {
                let hidden = backbone.forward(&input, pass.as_mut(), None)?;
                let logits = backbone
                    .logits(hidden, Rows::Tokens, pass.as_mut())
                    .ok_or_else(|| RunError::Invalid("this model has no logits".into()))?;
                (logits.dims().to_vec(), to_vec::<2>(logits))
            }
        };
        tensors.push((format!("input_ids.{n}"), Stored::ids(ids)));
        tensors.push((
            format!("logits.{n}"),
            Stored::new(&shape, StoredType::F32, move || logits.clone()),
        ));
    }
    Ok(write_safetensors(path, tensors)?)
}
