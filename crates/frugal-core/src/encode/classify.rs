//! Classification and regression: a text, or two, with the position of its label, the positions of
//! several, or numbers.

use tokenizers::{Encoding, TruncationParams, truncate_encodings};

use super::{EncodeOptions, Row, RowError, Target, Task, Tokenized};
use crate::caught::caught;
use crate::data::Example;
use crate::tokenizer::{TextTokenizer, TokenizerError};

pub(super) fn encode(
    example: &Example,
    tokenizer: &TextTokenizer,
    task: Task<'_>,
    options: &EncodeOptions,
) -> Result<Row, RowError> {
    caught(|| encode_pair(example, tokenizer, task, options))
        .map_err(TokenizerError::panicked("encode the text"))?
}

fn encode_pair(
    example: &Example,
    tokenizer: &TextTokenizer,
    task: Task<'_>,
    options: &EncodeOptions,
) -> Result<Row, RowError> {
    let (text, text_pair, target) = target(example, task)?;
    let inner = tokenizer.inner();
    let failed = |e: tokenizers::Error| TokenizerError::Failed {
        action: "encode the text",
        reason: e.to_string(),
    };
    let used = options.used(text, tokenizer);
    let used_pair = text_pair.map(|t| options.used(t, tokenizer));
    let all = |used: &str, text: &str| used.len() == text.len();
    let counted = all(used, text)
        && used_pair
            .zip(text_pair)
            .is_none_or(|(used, text)| all(used, text));
    let mut first = inner.encode(used, false).map_err(failed)?;
    let mut second = used_pair
        .map(|text| inner.encode(text, false))
        .transpose()
        .map_err(failed)?;
    if first.is_empty()
        && second.as_ref().is_none_or(|s| s.is_empty())
        && tokenizer.added_tokens(second.is_some()) == 0
    {
        return Err(RowError::NoTokens);
    }
    let added = tokenizer.added_tokens(second.is_some());
    let length = first.len() + second.as_ref().map_or(0, |s| s.len()) + added;
    // The texts are cut before special tokens are added, so that none of those is lost.
    let cut = TruncationParams {
        max_length: options.max_length.saturating_sub(added),
        ..TruncationParams::default()
    };
    (first, second) = truncate_encodings(first, second, &cut).map_err(failed)?;
    first.take_overflowing();
    second.as_mut().map(Encoding::take_overflowing);
    let pair = second.is_some();
    let encoding = inner.post_process(first, second, true).map_err(failed)?;
    let token_type_ids = if pair && tokenizer.settings().gives_token_types() {
        encoding.get_type_ids().to_vec()
    } else {
        Vec::new()
    };
    let tokenized = Tokenized {
        input_ids: encoding.get_ids().to_vec(),
        token_type_ids,
        labels: target,
    };
    Ok(Row {
        tokenized,
        length,
        counted,
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

fn position(labels: &[String], label: &String) -> Result<usize, RowError> {
    let found = labels.iter().position(|l| l == label);
    found.ok_or_else(|| RowError::UnknownLabel {
        label: label.clone(),
        known: labels.join(", "),
    })
}
