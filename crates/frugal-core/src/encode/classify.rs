//! Classification and regression: a text, or two, with the position of its label, the positions of
//! several, or numbers.

use super::{EncodeOptions, Row, RowError, Target, Task, Tokenized};
use crate::data::Example;
use crate::tokenizer::TextTokenizer;

pub(super) fn encode(
    example: &Example,
    tokenizer: &TextTokenizer,
    task: Task<'_>,
    options: &EncodeOptions,
) -> Result<Row, RowError> {
    let (text, text_pair, labels) = target(example, task)?;
    let used = options.used(text, tokenizer);
    let used_pair = text_pair.map(|t| options.used(t, tokenizer));
    let all = |used: &str, text: &str| used.len() == text.len();
    let counted = all(used, text)
        && used_pair
            .zip(text_pair)
            .is_none_or(|(used, text)| all(used, text));
    let cut = tokenizer.cut(used, used_pair, options.max_length)?;
    if cut.length == 0 {
        return Err(RowError::NoTokens);
    }
    Ok(Row {
        tokenized: Tokenized {
            input_ids: cut.ids,
            token_type_ids: cut.type_ids,
            labels,
        },
        length: cut.length,
        counted,
        cut_words: 0,
    })
}

/// The texts of an example, and what is learnt of them.
fn target<'e>(
    example: &'e Example,
    task: Task<'_>,
) -> Result<(&'e str, Option<&'e str>, Target), RowError> {
    Ok(match (example, task) {
        (
            Example::Classification {
                text,
                text_pair,
                label,
            },
            Task::SequenceClassification { labels },
        ) => {
            let class = position(labels, label)?;
            (text.as_str(), text_pair.as_deref(), Target::Class(class))
        }
        (
            Example::Labeled {
                text,
                text_pair,
                labels: names,
            },
            Task::MultiLabelClassification { labels },
        ) => {
            let places = names.iter().map(|label| position(labels, label));
            let mut classes = places.collect::<Result<Vec<usize>, _>>()?;
            classes.sort_unstable();
            (
                text.as_str(),
                text_pair.as_deref(),
                Target::Classes(classes),
            )
        }
        (
            Example::Valued {
                text,
                text_pair,
                values,
            },
            Task::Regression { outputs },
        ) => {
            if values.len() != outputs {
                return Err(RowError::Outputs {
                    found: values.len(),
                    expected: outputs,
                });
            }
            (
                text.as_str(),
                text_pair.as_deref(),
                Target::Values(values.clone()),
            )
        }
        _ => return Err(RowError::OtherFormat),
    })
}

pub(super) fn position(labels: &[String], label: &String) -> Result<usize, RowError> {
    let found = labels.iter().position(|l| l == label);
    found.ok_or_else(|| RowError::UnknownLabel {
        label: label.clone(),
        known: labels.join(", "),
    })
}
