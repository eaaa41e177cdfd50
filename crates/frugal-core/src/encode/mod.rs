//! Examples to token ids with their targets.

mod causal;
mod classify;
mod options;
mod ranked;
mod row;
mod show;
mod tags;
mod task;
mod tokenized;

use std::collections::BTreeSet;
use std::path::PathBuf;

use thiserror::Error;

use crate::data::{Dataset, Example, Format};
use crate::tokenizer::TextTokenizer;

pub use options::EncodeOptions;
pub use ranked::{RankedOptions, encode_ranked};
pub use row::RowError;
use row::{Row, or_more};
pub use show::show;
pub use task::Task;
pub use tokenized::{IGNORE_INDEX, Target, Tokenized};

/// A data set, ready for batches.
#[derive(Clone, Debug, PartialEq)]
pub struct Encoded {
    /// The examples.
    pub examples: Vec<Tokenized>,
    /// For each example its position in the data set.
    pub rows: Vec<usize>,
    /// How many examples were cut.
    pub truncated: usize,
    /// How many words with a tag were cut off, those of rows that were left out too.
    pub cut_words: usize,
    /// How many rows were left out because nothing in them would be trained.
    pub dropped: usize,
    /// Tokens of all examples.
    pub total_tokens: usize,
    /// Tokens that are trained, of all examples.
    pub trained_tokens: usize,
    /// Tokens of the longest example.
    pub longest: usize,
}

/// A data set that cannot be encoded.
#[derive(Debug, Error)]
pub enum EncodeError {
    /// The format does not serve the task.
    #[error("{}: {format} data cannot be used for {task}, which needs {needed}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// Its format.
        format: Format,
        /// The task.
        task: &'static str,
        /// Formats that serve it.
        needed: &'static str,
    },
    /// Rows with more tokens than allowed.
    #[error(
        "{}:{line}: {length} tokens{}, but at most {max_length} are allowed ({count} of {rows} rows are too long); raise max_length or set truncate = true",
        path.display(),
        or_more(*counted)
    )]
    TooLong {
        /// The file.
        path: PathBuf,
        /// Line of the first such row.
        line: usize,
        /// Its tokens.
        length: usize,
        /// Whether all of it was counted.
        counted: bool,
        /// The limit.
        max_length: usize,
        /// How many rows are too long.
        count: usize,
        /// Rows of the data set.
        rows: usize,
    },
    /// A row that cannot be encoded.
    #[error("{}:{line}: {problem}", path.display())]
    Row {
        /// The file.
        path: PathBuf,
        /// Line of the row.
        line: usize,
        /// What is wrong with it.
        problem: RowError,
    },
    /// Every row was dropped.
    #[error("{}: nothing in the {rows} rows would be trained: {causes}", path.display())]
    NothingToTrain {
        /// The file.
        path: PathBuf,
        /// Rows of the data set.
        rows: usize,
        /// Why, of all of them, and what to do.
        causes: String,
    },
    /// A prompt template without place for the prompt.
    #[error("prompt_template {template:?} has no {{prompt}}")]
    PromptTemplate {
        /// The template.
        template: String,
    },
    /// A limit that leaves no room.
    #[error(
        "max_length {max_length} leaves no room for a text beside the {special} special tokens"
    )]
    NoRoom {
        /// The limit.
        max_length: usize,
        /// Special tokens of an example.
        special: usize,
    },
}

/// Encodes every row.
///
/// # Errors
/// Names the file and the line at fault.
pub fn encode_all(
    dataset: &Dataset,
    tokenizer: &TextTokenizer,
    task: Task<'_>,
    options: &EncodeOptions,
) -> Result<Encoded, EncodeError> {
    check(dataset, tokenizer, task, options)?;
    let mut encoded = Encoded {
        examples: vec![],
        rows: vec![],
        truncated: 0,
        cut_words: 0,
        dropped: 0,
        total_tokens: 0,
        trained_tokens: 0,
        longest: 0,
    };
    let mut too_long: Option<(usize, usize, usize, bool)> = None;
    let mut too_long_count = 0;
    let mut causes = BTreeSet::new();
    for (i, (example, line)) in dataset.examples.iter().zip(&dataset.lines).enumerate() {
        let row = match task {
            Task::CausalLm => causal::encode(example, tokenizer, options),
            Task::TokenClassification {
                labels,
                label_all_tokens,
            } => tags::encode(example, tokenizer, (labels, label_all_tokens), options),
            _ => classify::encode(example, tokenizer, task, options),
        };
        let Row {
            tokenized,
            length,
            counted,
            cut_words,
        } = row.map_err(|problem| EncodeError::Row {
            path: dataset.file_of(i).to_owned(),
            line: *line,
            problem,
        })?;
        if length > options.max_length {
            too_long.get_or_insert((i, *line, length, counted));
            too_long_count += 1;
        }
        encoded.cut_words += cut_words;
        if tokenized.trained() == 0 {
            encoded.dropped += 1;
            causes.insert(cause(example, tokenized.len(), length > options.max_length));
            continue;
        }
        encoded.truncated += usize::from(length > options.max_length);
        encoded.total_tokens += tokenized.len();
        encoded.trained_tokens += tokenized.trained();
        encoded.longest = encoded.longest.max(tokenized.len());
        encoded.rows.push(i);
        encoded.examples.push(tokenized);
    }
    if let Some((row, line, length, counted)) = too_long.filter(|_| !options.truncate) {
        let (max_length, count, rows) = (options.max_length, too_long_count, dataset.len());
        return Err(EncodeError::TooLong {
            path: dataset.file_of(row).to_owned(),
            line,
            length,
            counted,
            max_length,
            count,
            rows,
        });
    }
    if encoded.examples.is_empty() {
        return Err(EncodeError::NothingToTrain {
            path: dataset.source.clone(),
            rows: dataset.len(),
            causes: causes.into_iter().collect::<Vec<_>>().join("; "),
        });
    }
    Ok(encoded)
}

/// Why nothing of an example would be trained.
fn cause(example: &Example, tokens: usize, too_long: bool) -> &'static str {
    let answers: Option<Vec<bool>> = match example {
        Example::Messages(conversation) => {
            let answers = conversation.messages.iter();
            let answers = answers.filter(|m| m.role == "assistant");
            Some(answers.map(|m| m.untrained).collect())
        }
        _ => None,
    };
    match answers.as_deref() {
        Some([]) => {
            "there is no turn of the assistant; train on prompts too (completion_only = false)"
        }
        Some(untrained) if untrained.iter().all(|untrained| *untrained) => {
            "every turn of the assistant is left out of training (`weight`, `train` or `trainable` is 0 or false)"
        }
        _ if too_long => {
            "max_length cuts off what is trained; raise max_length, or train on prompts too (completion_only = false)"
        }
        _ if tokens < 2 => "the text has no token that follows another",
        _ => "what is trained has no tokens; train on prompts too (completion_only = false)",
    }
}

/// Encodes one text, or two, for a classifier, or the words of a text.
///
/// # Errors
/// A text that is too long, or that the tokenizer cannot spell.
pub fn encode_text(
    example: &Example,
    tokenizer: &TextTokenizer,
    labels: &[String],
    options: &EncodeOptions,
) -> Result<Tokenized, EncodeError> {
    let failed = |problem| EncodeError::Row {
        path: "text".into(),
        line: 1,
        problem,
    };
    let row = match example {
        Example::Tagged { .. } => tags::encode(example, tokenizer, (labels, false), options),
        _ => {
            let task = Task::SequenceClassification { labels };
            classify::encode(example, tokenizer, task, options)
        }
    };
    let Row {
        tokenized,
        length,
        counted,
        ..
    } = row.map_err(failed)?;
    if length > options.max_length && !options.truncate {
        return Err(failed(RowError::TooLong {
            length,
            counted,
            max_length: options.max_length,
        }));
    }
    Ok(tokenized)
}

fn check(
    dataset: &Dataset,
    tokenizer: &TextTokenizer,
    task: Task<'_>,
    options: &EncodeOptions,
) -> Result<(), EncodeError> {
    let (serves, task, needed) = match (task, dataset.format) {
        (Task::CausalLm, format) => (
            matches!(
                format,
                Format::Text
                    | Format::PromptCompletion
                    | Format::Alpaca
                    | Format::Messages
                    | Format::Sharegpt
                    | Format::Preference
            ),
            "language modelling",
            "text, prompt and completion, messages, or prompt, chosen and rejected",
        ),
        (Task::Regression { .. }, format) => (
            format == Format::Classification,
            "regression",
            "text and label, which is a number",
        ),
        (Task::TokenClassification { .. }, format) => (
            format == Format::TokenClassification,
            "token classification",
            "tokens and ner_tags",
        ),
        (_, Format::TokenClassification) => (
            false,
            "classification",
            "text and label (`--task token-classification` learns a label for each token)",
        ),
        (_, format) => (
            format == Format::Classification,
            "classification",
            "text and label",
        ),
    };
    if !serves {
        return Err(EncodeError::Format {
            path: dataset.source.clone(),
            format: dataset.format,
            task,
            needed,
        });
    }
    if let Some(template) = options
        .prompt_template
        .as_ref()
        .filter(|t| !t.contains("{prompt}"))
    {
        return Err(EncodeError::PromptTemplate {
            template: template.clone(),
        });
    }
    let pair = dataset.examples.iter().any(|example| {
        matches!(
            example,
            Example::Classification {
                text_pair: Some(_),
                ..
            } | Example::Labeled {
                text_pair: Some(_),
                ..
            } | Example::Valued {
                text_pair: Some(_),
                ..
            }
        )
    });
    let special = tokenizer.added_tokens(pair);
    if options.max_length <= special {
        return Err(EncodeError::NoRoom {
            max_length: options.max_length,
            special,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
