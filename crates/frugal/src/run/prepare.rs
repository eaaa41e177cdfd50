//! From a configuration to tokenized examples; reads no weights.

use std::path::Path;

use frugal_core::data::{self, Dataset, Labels, LoadOptions};
use frugal_core::encode::{self, EncodeOptions, Encoded, Tokenized};
use frugal_models::load::{Lookup, ModelFiles};
use frugal_nn::{HeadConfig, Pooling, ProblemType};

use super::{DataConfig, RunError, Task, Template, TuneConfig, dataset, paths, ranked};

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

    /// Tokenized examples.
    pub fn examples(&self) -> &[Tokenized] {
        &self.encoded.examples
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

    /// One training example with what is trained marked.
    ///
    /// # Errors
    /// When the model has no tokenizer.
    pub fn shown_example(&self) -> Result<String, RunError> {
        let tokenizer = self.files.tokenizer()?;
        let example = self.train.examples().first();
        let mut text = example
            .map(|e| encode::show(e, tokenizer, false))
            .transpose()?
            .unwrap_or_default();
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
        encode::Target::Tokens(_) | encode::Target::Texts { .. } => None,
    }
}

/// How the labels of a problem are read.
pub(super) fn labels_of(problem: ProblemType) -> Labels {
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
    let problem = start
        .as_ref()
        .map_or_else(|| config.problem(), |head: &HeadConfig| head.problem_type);
    let (train, validation, test) =
        datasets_of(&config.data, config.task, problem, config.seed, lookup)?;
    let head = match config.task {
        Task::CausalLm | Task::Embedding => None,
        Task::Reranking => Some(start.unwrap_or_else(|| ranked::head(config, &files))),
        Task::Classification => {
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
                    pooling: config.pooling.unwrap_or(Pooling::default_for(files.info())),
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
    problem: ProblemType,
    lookup: &Lookup,
) -> Result<Dataset, RunError> {
    let options = LoadOptions {
        labels: labels_of(problem),
        label_separator: config.label_separator.clone(),
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

/// Divides the records at random into what is left and what is held out for validation; `help` says
/// what to give where there are too few of them.
pub(super) fn hold_out(
    dataset: &Dataset,
    share: f64,
    seed: u64,
    help: &'static str,
) -> Result<[Dataset; 2], RunError> {
    hold_out_for("validation", dataset, share, seed, help)
}

/// The same for a part of this name.
fn hold_out_for(
    part: &'static str,
    dataset: &Dataset,
    share: f64,
    seed: u64,
    help: &'static str,
) -> Result<[Dataset; 2], RunError> {
    let parts = dataset
        .split(&[1.0 - share, share], seed)
        .ok()
        .and_then(|parts| parts.try_into().ok());
    parts.ok_or_else(|| RunError::TooFewRows {
        path: dataset.source.clone(),
        rows: dataset.len(),
        share,
        part,
        help,
    })
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
        Task::Classification | Task::CausalLm => read(file, part, config, problem, lookup),
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
mod tests {
    use super::*;

    #[test]
    fn given_files_replace_the_parts_of_the_built_in_set() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("dev.tsv");
        std::fs::write(
            &file,
            "label\ttext\nham\tsee you soon\nspam\twin a prize now\n",
        )
        .unwrap();
        let own = DataConfig {
            train: "sms-spam".into(),
            max_eval_rows: 50,
            ..DataConfig::default()
        };
        let given = DataConfig {
            validation: Some(file.display().to_string()),
            ..own.clone()
        };
        let rows = |config: &DataConfig| {
            let (_, validation, test) =
                datasets(config, ProblemType::SingleLabel, 0, &Lookup::default()).unwrap();
            (validation.unwrap().len(), test.unwrap().len())
        };
        assert_eq!((rows(&own), rows(&given)), ((50, 50), (2, 50)));
        let missing = DataConfig {
            test: Some("nowhere.tsv".into()),
            ..own
        };
        assert!(
            datasets(&missing, ProblemType::SingleLabel, 0, &Lookup::default())
                .unwrap_err()
                .to_string()
                .contains("nowhere.tsv")
        );
    }

    #[test]
    fn a_test_part_is_held_out_by_the_seed_of_the_split_and_not_of_the_run() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("all.tsv");
        let row = |i: usize| format!("{}\tmessage number {i}\n", ["ham", "spam"][i % 2]);
        let rows: String = (0..100).map(row).collect();
        std::fs::write(&file, format!("label\ttext\n{rows}")).unwrap();
        let config = DataConfig {
            train: file.display().to_string(),
            test_share: 0.2,
            max_train_rows: 50,
            split_seed: Some(7),
            ..DataConfig::default()
        };
        let texts = |d: &Dataset| -> std::collections::BTreeSet<String> {
            d.examples.iter().map(|e| format!("{e:?}")).collect()
        };
        let parts = |config: &DataConfig, seed: u64| {
            let (train, validation, test) =
                datasets(config, ProblemType::SingleLabel, seed, &Lookup::default()).unwrap();
            (train, validation.unwrap(), test.unwrap())
        };
        let (train, validation, test) = parts(&config, 0);
        // The test comes from the whole file, validation from the rows that are trained on.
        // Of each class 25 rows, a tenth of which, rounded down, is held out.
        assert_eq!((train.len(), validation.len(), test.len()), (46, 4, 20));
        for other in [&train, &validation] {
            assert!(texts(other).is_disjoint(&texts(&test)));
        }
        let again = parts(&config, 1);
        assert_eq!(texts(&again.2), texts(&test));
        assert_eq!(texts(&again.1), texts(&validation));
        let free = DataConfig {
            split_seed: None,
            ..config.clone()
        };
        assert_ne!(texts(&parts(&free, 0).2), texts(&parts(&free, 1).2));
        let builtin = DataConfig {
            train: "sms-spam".into(),
            ..config
        };
        let error =
            datasets(&builtin, ProblemType::SingleLabel, 0, &Lookup::default()).unwrap_err();
        assert!(error.to_string().contains("`data.test_share`"), "{error}");
    }

    #[test]
    fn too_few_rows_to_hold_any_out_are_told_with_the_file_and_a_way_out() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("one.tsv").display().to_string();
        std::fs::write(&file, "label\ttext\nham\tsee you soon\n").unwrap();
        let config = DataConfig {
            train: file.clone(),
            ..DataConfig::default()
        };
        let error = datasets(&config, ProblemType::SingleLabel, 0, &Lookup::default())
            .unwrap_err()
            .to_string();
        let said = format!(
            "{file}: too few rows (1) to hold out a share of 0.1 for validation: give a validation file with `--eval-data`"
        );
        assert!(error.starts_with(&said), "{error}");
        // What it advises helps.
        assert!(
            datasets(
                &DataConfig {
                    validation: Some(file),
                    ..config.clone()
                },
                ProblemType::SingleLabel,
                0,
                &Lookup::default()
            )
            .is_ok()
        );
        assert!(
            datasets(
                &DataConfig {
                    validation_share: 0.0,
                    ..config
                },
                ProblemType::SingleLabel,
                0,
                &Lookup::default()
            )
            .is_ok()
        );
    }

    #[test]
    fn data_without_labels_are_pointed_to_the_other_task() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("chat.jsonl");
        let turns = r#"{"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "good day"}]}"#;
        std::fs::write(&file, format!("{turns}\n").repeat(20)).unwrap();
        let data = DataConfig {
            train: file.display().to_string(),
            ..DataConfig::default()
        };
        let error = prepare(
            &TuneConfig {
                data,
                ..TuneConfig::default()
            },
            &Lookup::default(),
        )
        .err()
        .unwrap()
        .to_string();
        assert!(
            error.contains("chat.jsonl")
                && error.contains("found: none")
                && error.contains("`--task causal-lm`"),
            "{error}"
        );
    }
}
