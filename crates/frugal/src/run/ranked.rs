//! Training of encoders and rerankers: records of several texts, and what is learnt from them.

use std::sync::Arc;

use frugal_core::data::{Dataset, LoadOptions, Ranked, load_ranked};
use frugal_core::encode::{Encoded, RankedOptions, Target, Tokenized, encode_ranked};
use frugal_models::load::{Lookup, ModelFiles};
use frugal_nn::{HeadConfig, Pooling, ProblemType};
use frugal_retrieve::Modules;
use frugal_train::objective::for_model;
use frugal_train::{ModelParts, Named, Objective, TrainConfig};

use super::{DataConfig, RunError, Task, TuneConfig, dataset, paths};

/// What transformers calls the one output of a cross-encoder.
const OUTPUT: &str = "LABEL_0";

/// What becomes of the texts of a record.
fn ranked_of(task: Task) -> Ranked {
    match task {
        Task::Reranking => Ranked::Lists,
        _ => Ranked::Vectors,
    }
}

/// Reads the files that stand for a part of the data.
pub(super) fn read(
    task: Task,
    files: &str,
    part: &str,
    config: &DataConfig,
    lookup: &Lookup,
) -> Result<Dataset, RunError> {
    let options = LoadOptions {
        columns: config.columns.clone(),
        header: config.header,
        ..LoadOptions::default()
    };
    let mut names = Vec::new();
    for name in paths::names(files) {
        names.extend(dataset::files(&name, part, lookup)?);
    }
    Ok(load_ranked(&names, ranked_of(task), &options)?)
}

/// The head of a cross-encoder.
pub(super) fn head(config: &TuneConfig, files: &ModelFiles) -> HeadConfig {
    HeadConfig {
        labels: vec![OUTPUT.into()],
        pooling: config.pooling.unwrap_or(Pooling::default_for(files.info())),
        problem_type: ProblemType::MultiLabel,
    }
}

/// The longest text, as the folder of the encoder or the settings say.
pub(super) fn max_length(config: &TuneConfig, files: &ModelFiles) -> Result<usize, RunError> {
    let limit = files.config().max_sequence();
    let own = match config.task {
        Task::Embedding => Modules::read(files.path())?.max_seq_length,
        _ => None,
    };
    let asked = Some(config.data.max_length).filter(|length| *length > 0);
    Ok(asked.or(own).unwrap_or(limit).min(limit))
}

/// Tokenizes a part; longer texts are cut.
pub(super) fn encode(
    dataset: &Dataset,
    files: &ModelFiles,
    config: &TuneConfig,
    max_length: usize,
) -> Result<Encoded, RunError> {
    let mut options = RankedOptions {
        ranked: ranked_of(config.task),
        max_length,
        prompt: String::new(),
        lower_case: false,
    };
    if config.task == Task::Embedding {
        let modules = Modules::read(files.path())?;
        let prompt = modules.default_prompt_name.as_ref();
        if let Some(prompt) = prompt.and_then(|name| modules.prompts.get(name)) {
            if !prompt.is_empty() && !modules.pooling.include_prompt {
                return Err(RunError::Invalid(format!(
                    "{}: its pooling leaves out the default prompt {prompt:?}, which training does not: take `default_prompt_name` out of its `config_sentence_transformers.json`",
                    files.name()
                )));
            }
            options.prompt.clone_from(prompt);
        }
        options.lower_case = modules.do_lower_case;
    }
    Ok(encode_ranked(dataset, files.tokenizer()?, &options)?)
}

/// What is minimised in a run: where nothing was said, what fits the first example of such data.
///
/// # Errors
/// Settings that the objective does not have.
pub(super) fn objective(
    config: &TuneConfig,
    train: &[Tokenized],
    files: &ModelFiles,
    model: ModelParts<'_>,
) -> Result<Box<dyn Objective>, RunError> {
    if !config.task.is_ranked() {
        return for_model(&config.train, model).map_err(RunError::Invalid);
    }
    let mut settings = TrainConfig::clone(&config.train);
    if settings.objective.is_unset() {
        settings.objective = Named::from(usual(config.task, train));
    }
    let mut objective = for_model(&settings, model).map_err(RunError::Invalid)?;
    if config.task == Task::Embedding {
        objective.set_readout(Arc::new(Modules::read(files.path())?));
    }
    Ok(objective)
}

fn usual(task: Task, train: &[Tokenized]) -> &'static str {
    if task == Task::Reranking {
        return "bce";
    }
    let first = train.first().map(|example| &example.labels);
    match first {
        Some(Target::Texts { lengths, scores }) => match (lengths.len(), scores.len()) {
            (_, 0) => "info_nce",
            (2, _) => "cosent",
            (texts, scores) if scores + 1 == texts => "kl_distill",
            _ => "margin_mse",
        },
        _ => "info_nce",
    }
}

#[cfg(test)]
mod tests;
