//! Classification: a text, or two, with the position of its label.

use tokenizers::{Encoding, TruncationParams, truncate_encodings};

use super::{EncodeOptions, Row, RowError, Target, Tokenized};
use crate::caught::caught;
use crate::data::Example;
use crate::tokenizer::{TextTokenizer, TokenizerError};

pub(super) fn encode(
    example: &Example,
    tokenizer: &TextTokenizer,
    labels: &[String],
    options: &EncodeOptions,
) -> Result<Row, RowError> {
    caught(|| encode_pair(example, tokenizer, labels, options))
        .map_err(TokenizerError::panicked("encode the text"))?
}

fn encode_pair(
    example: &Example,
    tokenizer: &TextTokenizer,
    labels: &[String],
    options: &EncodeOptions,
) -> Result<Row, RowError> {
    let Example::Classification {
        text,
        text_pair,
        label,
    } = example
    else {
        return Err(RowError::OtherFormat);
    };
    let Some(class) = labels.iter().position(|l| l == label) else {
        return Err(RowError::UnknownLabel {
            label: label.clone(),
            known: labels.join(", "),
        });
    };
    let inner = tokenizer.inner();
    let failed = |e: tokenizers::Error| TokenizerError::Failed {
        action: "encode the text",
        reason: e.to_string(),
    };
    let used = options.used(text, tokenizer);
    let used_pair = text_pair.as_deref().map(|t| options.used(t, tokenizer));
    let all = |used: &str, text: &str| used.len() == text.len();
    let counted = all(used, text)
        && used_pair
            .zip(text_pair.as_deref())
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
    let token_type_ids = if pair {
        encoding.get_type_ids().to_vec()
    } else {
        Vec::new()
    };
    let tokenized = Tokenized {
        input_ids: encoding.get_ids().to_vec(),
        token_type_ids,
        labels: Target::Class(class),
    };
    Ok(Row {
        tokenized,
        length,
        counted,
    })
}
