//! From a configuration to tokenized examples; reads no weights.

use std::path::Path;

use frugal_adapt::{Settings, for_tokens, registry};
use frugal_core::data::{self, Dataset, Labels, LoadOptions};
use frugal_core::encode::{self, EncodeOptions, Encoded, Tokenized};
use frugal_models::load::{Lookup, ModelFiles};
use frugal_nn::{HeadConfig, Pooling, ProblemType, SiteTable};

use super::held_out::{hold_out, hold_out_for};
use super::{DataConfig, RunError, Task, Template, TuneConfig, dataset, images, paths, ranked};

/// A part of the data, ready for batches.
pub struct Part {
    /// `train`, `validation` or `test`.
    pub name: &'static str,
    /// Where it came from.
    pub source: String,
    /// SHA-256 of the file.
    pub sha256: String,
    /// Examples.
    pub encoded: Encoded,
}

impl Part {
    fn of(name: &'static str, dataset: &Dataset, encoded: Encoded) -> Self {
        Self {
            name,
            source: dataset.source.display().to_string(),
            sha256: dataset.sha256.clone(),
            encoded,
        }
    }

    /// Images that were read.
    pub(super) fn of_images(name: &'static str, read: images::ReadImages) -> Self {
        Self {
            name,
            source: read.source,
            sha256: read.sha256,
            encoded: read.encoded,
        }
    }

    /// Tokenized examples.
    pub fn examples(&self) -> &[Tokenized] {
        &self.encoded.examples
    }

    /// That words with a tag were cut off, if some were.
    pub(super) fn cut_words(&self) -> Option<String> {
        let count = self.encoded.cut_words;
        (count > 0).then(|| {
            format!(
                "{}: {count} words with a tag lie behind the cut (`--truncate`): they are neither trained nor measured",
                self.source
            )
        })
    }
}

/// Everything that is known before weights are read.
pub struct Prepared {
    /// The model's files.
    pub files: ModelFiles,
    /// What is trained on.
    pub train: Part,
    /// What decides between checkpoints.
    pub validation: Option<Part>,
    /// What is measured at the end.
    pub test: Option<Part>,
    /// The head to train, for classification.
    pub head: Option<HeadConfig>,
    /// The longest example allowed, in tokens.
    pub max_length: usize,
}

impl Prepared {
    /// The parts that there are.
    pub fn parts(&self) -> impl Iterator<Item = &Part> {
        [
            Some(&self.train),
            self.validation.as_ref(),
            self.test.as_ref(),
        ]
        .into_iter()
        .flatten()
    }

    /// The settings of the run's method, as its head has them.
    ///
    /// # Errors
    /// A method that is none.
    pub(super) fn method_settings(
        &self,
        config: &TuneConfig,
        sites: &SiteTable,
    ) -> Result<Settings, RunError> {
        let method = registry::find(&config.method.name)?;
        let settings = config.method.settings.clone();
        Ok(match &self.head {
            Some(head) if head.labels_tokens() => for_tokens(method, settings, sites),
            _ => settings,
        })
    }

    /// What of the data is hardly meant, as it says nothing or counts twice.
    pub(super) fn doubts(&self, config: &DataConfig) -> Vec<String> {
        let mut found = Vec::new();
        let given = [
            ("validation", &config.validation, &self.validation),
            ("test", &config.test, &self.test),
        ];
        for (name, file, part) in given {
            let same = |part: &Part| part.sha256 == self.train.sha256;
            if let (Some(file), true) = (file, part.as_ref().is_some_and(same)) {
                found.push(format!(
                    "{file}: the {name} data are the training data: what is measured on them says nothing of other texts"
                ));
            }
        }
        found.extend(self.parts().filter_map(Part::cut_words));
        let names = paths::names(&config.train);
        let twice = |(i, name): &(usize, &String)| names[..*i].contains(*name);
        if let Some((_, name)) = names.iter().enumerate().find(twice) {
            found.push(format!(
                "{name}: given twice, so each of its records counts twice"
            ));
        }
        found
    }

    /// One training example with what is trained marked.
    ///
    /// # Errors
    /// When the model has no tokenizer.
    pub fn shown_example(&self) -> Result<String, RunError> {
        let example = self.train.examples().first();
        let mut text = match self.files.info().image {
            Some(image) => format!("an image of {} x {}", image.height, image.width),
            None => {
                let tokenizer = self.files.tokenizer()?;
                example
                    .map(|e| encode::show(e, tokenizer, false))
                    .transpose()?
                    .unwrap_or_default()
            }
        };
        if let (Some(head), Some(example)) = (&self.head, example)
            && let Some(label) = said(&head.labels, &example.labels)
        {
            text.truncate(text.trim_end().len());
            let label: String = label.chars().flat_map(shown).collect();
            text.push_str(&format!(" = {label}"));
        }
        Ok(text)
    }
}

/// What is said of an example, as people read it; `None` for target tokens.
pub(super) fn said(labels: &[String], target: &encode::Target) -> Option<String> {
    match target {
        encode::Target::Class(class) => labels.get(*class).cloned(),
        encode::Target::Classes(classes) if classes.is_empty() => Some("no label".into()),
        encode::Target::Classes(classes) => {
            let names = classes.iter().filter_map(|c| labels.get(*c));
            Some(names.map(String::as_str).collect::<Vec<_>>().join(", "))
        }
        encode::Target::Values(values) => {
            let values: Vec<String> = values.iter().map(f32::to_string).collect();
            Some(values.join(", "))
        }
        encode::Target::Tags { classes, .. } => {
            let classes = classes
                .iter()
                .filter_map(|class| usize::try_from(*class).ok());
            let names = classes.filter_map(|class| labels.get(class));
            Some(names.map(String::as_str).collect::<Vec<_>>().join(" "))
        }
        encode::Target::Tokens(_)
        | encode::Target::Texts { .. }
        | encode::Target::Preference { .. } => None,
    }
}

/// How the labels that a head tells are read; those of one label of several for a model without a
/// head.
pub(super) fn labels_for(head: Option<&HeadConfig>) -> Labels {
    match head {
        Some(head) if head.labels_tokens() => Labels::Tags,
        head => labels_of(head.map_or_else(ProblemType::default, |head| head.problem_type)),
    }
}

/// How the labels of a problem are read.
fn labels_of(problem: ProblemType) -> Labels {
    match problem {
        ProblemType::SingleLabel => Labels::One,
        ProblemType::MultiLabel => Labels::Several,
        ProblemType::Regression => Labels::Numbers,
    }
}

/// Control characters of a label cannot reach the terminal.
fn shown(c: char) -> Vec<char> {
    if c.is_control() {
        c.escape_default().collect()
    } else {
        vec![c]
    }
}

/// Finds the model, reads and tokenizes the data.
///
/// # Errors
/// Anything wrong with the model's files or the data.
pub fn prepare(config: &TuneConfig, lookup: &Lookup) -> Result<Prepared, RunError> {
    let mut files = ModelFiles::open(&config.model, lookup)?;
    if let Some(given) = &config.data.chat_template {
        files.set_chat_template(&frugal_core::template::source_of(given)?)?;
    }
    let start = match &config.adapter {
        Some(folder) => super::start::describe(folder)?.head,
        None => None,
    };
    if config.task == Task::ImageClassification {
        return of_images(config, files, start);
    }
    if files.info().image.is_some() {
        return Err(RunError::Invalid(format!(
            "`{}`: `{}` models read images: give `--task image-classification`",
            config.model,
            files.config().model_type()
        )));
    }
    let problem = start
        .as_ref()
        .map_or_else(|| config.problem(), |head: &HeadConfig| head.problem_type);
    let (train, validation, test) =
        datasets_of(&config.data, config.task, problem, config.seed, lookup)?;
    let head = match config.task {
        Task::CausalLm | Task::Embedding | Task::ImageClassification => None,
        Task::Reranking => Some(start.unwrap_or_else(|| ranked::head(config, &files))),
        Task::Classification | Task::TokenClassification => {
            let labels = train.labels();
            if let Some(head) = start {
                known_labels(config, &head, &labels)?;
                Some(head)
            } else if labels.len() < fewest(problem) {
                return Err(RunError::Labels {
                    path: train.source,
                    found: labels,
                });
            } else {
                Some(HeadConfig {
                    labels,
                    pooling: match config.task {
                        Task::TokenClassification => Pooling::Tokens,
                        _ => config.pooling.unwrap_or(Pooling::default_for(files.info())),
                    },
                    problem_type: problem,
                })
            }
        }
    };
    let limit = files.config().max_sequence();
    let max_length = if config.data.max_length == 0 {
        limit
    } else {
        config.data.max_length.min(limit)
    };
    let max_length = match config.task.is_ranked() {
        true => ranked::max_length(config, &files)?,
        false => max_length,
    };
    let part = |name: &'static str, dataset: &Dataset| {
        if config.task.is_ranked() {
            return ranked::encode(dataset, &files, config, max_length)
                .map(|encoded| Part::of(name, dataset, encoded));
        }
        encode_part(
            name,
            dataset,
            &files,
            head.as_ref(),
            &config.data,
            max_length,
        )
    };
    let (train, validation, test) = (
        part("train", &train)?,
        validation.map(|d| part("validation", &d)).transpose()?,
        test.map(|d| part("test", &d)).transpose()?,
    );
    Ok(Prepared {
        files,
        train,
        validation,
        test,
        head,
        max_length,
    })
}

/// The same of a model that reads images.
fn of_images(
    config: &TuneConfig,
    files: ModelFiles,
    start: Option<HeadConfig>,
) -> Result<Prepared, RunError> {
    let [train, validation, test] = images::parts(config)?;
    let labels = train
        .as_ref()
        .map(images::Found::labels)
        .unwrap_or_default();
    let head = match start {
        Some(head) => head,
        None if labels.len() < 2 => {
            return Err(RunError::Labels {
                path: config.data.train.clone().into(),
                found: labels,
            });
        }
        None => HeadConfig {
            labels,
            pooling: config.pooling.unwrap_or(Pooling::default_for(files.info())),
            problem_type: config.problem(),
        },
    };
    let part = |name: &'static str, found: Option<images::Found>| {
        let read = found.map(|found| found.read(&files, &head)).transpose()?;
        Ok::<_, RunError>(read.map(|read| Part::of_images(name, read)))
    };
    let (validation, test) = (part("validation", validation)?, part("test", test)?);
    let train = part("train", train)?.ok_or_else(|| {
        let path = &config.data.train;
        RunError::Invalid(format!("{path}: the set has no part to learn from"))
    })?;
    Ok(Prepared {
        max_length: files.config().max_sequence(),
        files,
        train,
        validation,
        test,
        head: Some(head),
    })
}

/// The fewest labels of which something can be learnt.
fn fewest(problem: ProblemType) -> usize {
    match problem {
        ProblemType::SingleLabel => 2,
        ProblemType::MultiLabel | ProblemType::Regression => 1,
    }
}

/// A classifier that is trained on keeps its classes: the data may lack some, but not have others.
fn known_labels(config: &TuneConfig, head: &HeadConfig, found: &[String]) -> Result<(), RunError> {
    if head.problem_type == ProblemType::Regression {
        // Outputs have a place, not a name; each row is checked to have as many numbers.
        return Ok(());
    }
    let unknown: Vec<&str> = found
        .iter()
        .filter(|label| !head.labels.contains(label))
        .map(String::as_str)
        .collect();
    if unknown.is_empty() {
        return Ok(());
    }
    Err(RunError::StartAdapter {
        folder: config.adapter.clone().unwrap_or_default(),
        reason: format!(
            "the data have the labels {}, which its head does not know (it has {}): use data with its labels, or train a new adapter without `--adapter`",
            unknown.join(", "),
            head.labels.join(", ")
        ),
    })
}

/// Tokenizes a data set for a task.
///
/// # Errors
/// Rows that do not fit the task, the labels or the length.
pub(super) fn encode_part(
    name: &'static str,
    dataset: &Dataset,
    files: &ModelFiles,
    head: Option<&HeadConfig>,
    config: &DataConfig,
    max_length: usize,
) -> Result<Part, RunError> {
    let options = EncodeOptions {
        max_length,
        truncate: config.truncate,
        completion_only: config.completion_only,
        prompt_template: config.prompt_template.clone(),
        chat_template: config.template == Template::Auto,
    };
    let task = match head {
        Some(head) if head.labels_tokens() => encode::Task::TokenClassification {
            labels: &head.labels,
            label_all_tokens: config.label_all_tokens,
        },
        Some(head) => {
            let labels = &head.labels;
            match head.problem_type {
                ProblemType::SingleLabel => encode::Task::SequenceClassification { labels },
                ProblemType::MultiLabel => encode::Task::MultiLabelClassification { labels },
                ProblemType::Regression => encode::Task::Regression {
                    outputs: labels.len(),
                },
            }
        }
        None => encode::Task::CausalLm,
    };
    let encoded = encode::encode_all(dataset, files.tokenizer()?, task, &options)?;
    Ok(Part::of(name, dataset, encoded))
}

/// Whether this is a file (or a pipe); a folder that happens to bear the name of a built-in set is
/// none.
pub(super) fn is_data_file(path: &str) -> bool {
    let path = Path::new(path);
    path.exists() && !path.is_dir()
}

/// Reads the files that stand for a part of the data as the settings say.
pub(super) fn read(
    files: &str,
    part: &str,
    config: &DataConfig,
    labels: Labels,
    lookup: &Lookup,
) -> Result<Dataset, RunError> {
    let options = LoadOptions {
        labels,
        label_separator: config.label_separator.clone(),
        label_names: config.label_names.clone(),
        format: config.format,
        columns: config.columns.clone(),
        header: config.header,
        documents: config.documents,
    };
    let mut names = Vec::new();
    for name in paths::names(files) {
        names.extend(dataset::files(&name, part, lookup)?);
    }
    Ok(data::load_all(&names, &options)?)
}

#[cfg(test)]
fn datasets(
    config: &DataConfig,
    problem: ProblemType,
    seed: u64,
    lookup: &Lookup,
) -> Result<(Dataset, Option<Dataset>, Option<Dataset>), RunError> {
    datasets_of(config, Task::Classification, problem, seed, lookup)
}

fn datasets_of(
    config: &DataConfig,
    task: Task,
    problem: ProblemType,
    seed: u64,
    lookup: &Lookup,
) -> Result<(Dataset, Option<Dataset>, Option<Dataset>), RunError> {
    let read = |file: &str, part: &str, config: &DataConfig, problem, lookup: &Lookup| match task {
        Task::Embedding | Task::Reranking => ranked::read(task, file, part, config, lookup),
        Task::TokenClassification => read(file, part, config, Labels::Tags, lookup),
        Task::Classification | Task::CausalLm | Task::ImageClassification => {
            read(file, part, config, labels_of(problem), lookup)
        }
    };
    let seed = config.split_seed.unwrap_or(seed);
    let cut = |d: Dataset, rows: usize| if rows == 0 { d } else { d.take(rows) };
    let eval = |file: &Option<String>, part: &str| {
        file.as_ref()
            .map(|f| {
                Ok::<_, RunError>(cut(
                    read(f, part, config, problem, lookup)?,
                    config.max_eval_rows,
                ))
            })
            .transpose()
    };
    if let Ok(builtin) = data::builtin(&config.train)
        && !is_data_file(&config.train)
    {
        if task.is_ranked() {
            return Err(RunError::Invalid(format!(
                "`{}` has one text and a label in each record, not texts that belong together: give a file of your own with `--data`",
                config.train
            )));
        }
        if task == Task::TokenClassification {
            return Err(RunError::Invalid(format!(
                "`{}` has a label for each text, not for each of its words: give a file of your own with `--data`",
                config.train
            )));
        }
        if problem != ProblemType::SingleLabel {
            return Err(RunError::Invalid(format!(
                "`{}` has one label for each text: leave out `--problem-type {}`, or give a file of your own with `--data`",
                config.train,
                problem.name()
            )));
        }
        if config.test_share > 0.0 {
            return Err(RunError::Invalid(format!(
                "`data.test_share`: the data set `{}` has a test part of its own: leave the share out",
                config.train
            )));
        }
        // Files that are given stand in for the set's own parts.
        let part = |file, own| {
            let given = eval(file, "test")?;
            Ok::<_, RunError>(given.unwrap_or_else(|| cut(own, config.max_eval_rows)))
        };
        let (validation, test) = (
            part(&config.validation, builtin.validation)?,
            part(&config.test, builtin.test)?,
        );
        return Ok((
            cut(builtin.train, config.max_train_rows),
            Some(validation),
            Some(test),
        ));
    }
    let mut train = read(&config.train, "train", config, problem, lookup)?;
    let mut test = eval(&config.test, "test")?;
    if test.is_none() && config.test_share > 0.0 {
        let help = "a test file as `data.test`, or another `data.test_share`";
        let [rest, held_out] = hold_out_for("the test", &train, config.test_share, seed, help)?;
        (train, test) = (rest, Some(cut(held_out, config.max_eval_rows)));
    }
    train = cut(train, config.max_train_rows);
    let mut validation = eval(&config.validation, "validation")?;
    if validation.is_none() && config.validation_share > 0.0 {
        let help = "a validation file with `--eval-data`, or another `data.validation_share` (0 for no validation)";
        let [rest, held_out] = hold_out(&train, config.validation_share, seed, help)?;
        (train, validation) = (rest, Some(cut(held_out, config.max_eval_rows)));
    }
    Ok((train, validation, test))
}

#[cfg(test)]
mod tests;
