//! Texts that belong together, each by itself or with its query.

use super::{EncodeError, Encoded, RowError, Target, Tokenized};
use crate::data::{Dataset, Example, Ranked};
use crate::tokenizer::{CutText, TextTokenizer, TokenizerError};

/// How texts become tokens before they are compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RankedOptions {
    /// What becomes of the texts.
    pub ranked: Ranked,
    /// Most tokens of a text, or of a query with a text, special ones included; longer ones are cut.
    pub max_length: usize,
    /// What goes before each text that becomes a vector.
    pub prompt: String,
    /// Whether texts are written in small letters first.
    pub lower_case: bool,
}

/// Encodes every record; `truncated` counts those of which a text was cut.
///
/// # Errors
/// Names the file and the line at fault.
pub fn encode_ranked(
    dataset: &Dataset,
    tokenizer: &TextTokenizer,
    options: &RankedOptions,
) -> Result<Encoded, EncodeError> {
    let special = tokenizer.added_tokens(options.ranked == Ranked::Lists);
    if options.max_length <= special {
        return Err(EncodeError::NoRoom {
            max_length: options.max_length,
            special,
        });
    }
    let mut encoded = Encoded {
        examples: Vec::with_capacity(dataset.len()),
        rows: (0..dataset.len()).collect(),
        truncated: 0,
        cut_words: 0,
        dropped: 0,
        total_tokens: 0,
        trained_tokens: dataset.len(),
        longest: 0,
    };
    for (i, (example, line)) in dataset.examples.iter().zip(&dataset.lines).enumerate() {
        let row = one(example, tokenizer, options).map_err(|problem| EncodeError::Row {
            path: dataset.file_of(i).to_owned(),
            line: *line,
            problem,
        })?;
        let (tokenized, longest, cut) = row;
        encoded.truncated += usize::from(cut);
        encoded.total_tokens += tokenized.len();
        encoded.longest = encoded.longest.max(longest);
        encoded.examples.push(tokenized);
    }
    Ok(encoded)
}

/// A record with the tokens of its longest text, and whether one was cut.
fn one(
    example: &Example,
    tokenizer: &TextTokenizer,
    options: &RankedOptions,
) -> Result<(Tokenized, usize, bool), RowError> {
    let Example::Ranked {
        anchor,
        texts,
        scores,
    } = example
    else {
        return Err(RowError::OtherFormat);
    };
    let cut = |text: &str, pair: Option<&str>| -> Result<CutText, TokenizerError> {
        tokenizer.encode_cut(text, pair, options.max_length)
    };
    let alone = |text: &String| {
        let text = format!("{}{text}", options.prompt);
        match options.lower_case {
            true => cut(&text.to_lowercase(), None),
            false => cut(&text, None),
        }
    };
    let found: Vec<CutText> = match options.ranked {
        Ranked::Vectors => std::iter::once(anchor)
            .chain(texts)
            .map(alone)
            .collect::<Result<_, _>>()?,
        Ranked::Lists => texts
            .iter()
            .map(|text| cut(anchor, Some(text)))
            .collect::<Result<_, _>>()?,
    };
    let lengths: Vec<usize> = found.iter().map(|text| text.ids.len()).collect();
    if lengths.contains(&0) {
        return Err(RowError::NoTokens);
    }
    let longest = lengths.iter().copied().max().unwrap_or_default();
    let was_cut = found.iter().any(|text| text.length > options.max_length);
    let types: Vec<u32> = found.iter().flat_map(|t| &t.type_ids).copied().collect();
    let tokenized = Tokenized {
        input_ids: found.iter().flat_map(|t| &t.ids).copied().collect(),
        // A model of one segment takes none.
        token_type_ids: if types.iter().all(|t| *t == 0) {
            Vec::new()
        } else {
            types
        },
        labels: Target::Texts {
            lengths,
            scores: scores.clone(),
        },
    };
    Ok((tokenized, longest, was_cut))
}
