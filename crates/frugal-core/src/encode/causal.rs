//! Language modelling: the next token as target, with prompts left out.

use std::ops::Range;

use super::{EncodeOptions, IGNORE_INDEX, Row, RowError, Target, Tokenized};
use crate::data::{Example, Message};
use crate::tokenizer::{Spans, TextTokenizer};

pub(super) fn encode(
    example: &Example,
    tokenizer: &TextTokenizer,
    options: &EncodeOptions,
) -> Result<Row, RowError> {
    let (ids, trained) = match example {
        Example::Text { text } => {
            let ids = with_eos(tokenizer.encode(text, true)?, tokenizer);
            let trained = vec![true; ids.len()];
            (ids, trained)
        }
        Example::PromptCompletion { prompt, completion } => {
            prompt_completion(prompt, completion, tokenizer, options)?
        }
        Example::Messages(messages) => conversation(messages, tokenizer, options)?,
        _ => return Err(RowError::OtherFormat),
    };
    let length = ids.len();
    let kept = length.min(options.max_length);
    Ok(Row {
        tokenized: shift(&ids[..kept], &trained[..kept]),
        length,
    })
}

/// Targets are by position and not by id, so that an end of sequence is learnt even where it also
/// serves as padding.
fn shift(ids: &[u32], trained: &[bool]) -> Tokenized {
    let next = ids
        .iter()
        .zip(trained)
        .skip(1)
        .map(|(id, trained)| if *trained { *id as i32 } else { IGNORE_INDEX });
    let targets = next.chain(ids.first().map(|_| IGNORE_INDEX)).collect();
    Tokenized {
        input_ids: ids.to_vec(),
        token_type_ids: Vec::new(),
        labels: Target::Tokens(targets),
    }
}

fn with_eos(mut ids: Vec<u32>, tokenizer: &TextTokenizer) -> Vec<u32> {
    if let Some(eos) = tokenizer
        .eos_ids()
        .first()
        .filter(|eos| ids.last() != Some(eos))
    {
        ids.push(*eos);
    }
    ids
}

/// The joined text is tokenized, so that the ids are those of the text as a whole. A token that
/// holds the first characters of the completion is trained even if it starts inside the prompt.
fn prompt_completion(
    prompt: &str,
    completion: &str,
    tokenizer: &TextTokenizer,
    options: &EncodeOptions,
) -> Result<(Vec<u32>, Vec<bool>), RowError> {
    let mut text = match &options.prompt_template {
        Some(template) => template.replacen("{prompt}", prompt, 1),
        None => prompt.to_owned(),
    };
    let boundary = text.len();
    text.push_str(completion);
    let Spans { ids, offsets, .. } = tokenizer.encode_spans(&text, true)?;
    let ids = with_eos(ids, tokenizer);
    let mut trained: Vec<bool> = offsets
        .iter()
        .map(|(_, end)| !options.completion_only || *end > boundary)
        .collect();
    trained.resize(ids.len(), true);
    // Where the tokenizer itself adds the end of sequence, it comes without a place in the text.
    if let Some(last) = trained.last_mut() {
        *last |= ids.last() == tokenizer.eos_ids().first();
    }
    Ok((ids, trained))
}

fn conversation(
    messages: &[Message],
    tokenizer: &TextTokenizer,
    options: &EncodeOptions,
) -> Result<(Vec<u32>, Vec<bool>), RowError> {
    let text = tokenizer.render_chat(messages, false)?;
    let spans = tokenizer.encode_spans(&text, false)?;
    if !options.completion_only {
        let all = vec![true; spans.ids.len()];
        return Ok((spans.ids, all));
    }
    let mut trained = vec![false; spans.ids.len()];
    for turn in assistant_turns(messages, &text, tokenizer)? {
        let inside = |(start, end): (usize, usize)| end > turn.start && start < turn.end;
        let Some(first) = spans.offsets.iter().position(|o| inside(*o)) else {
            continue;
        };
        let past = spans
            .offsets
            .iter()
            .rposition(|o| inside(*o))
            .map_or(first, |last| last + 1);
        let past = end_of_turn(&text, &spans, first..past, turn.end, tokenizer);
        trained[first..past].fill(true);
    }
    Ok((spans.ids, trained))
}

/// Bytes of the text that the assistant writes: from the end of the generation prompt to the end of
/// the turn, both found by rendering the conversation up to there.
fn assistant_turns(
    messages: &[Message],
    text: &str,
    tokenizer: &TextTokenizer,
) -> Result<Vec<Range<usize>>, RowError> {
    let mut turns = Vec::new();
    for (i, _) in messages
        .iter()
        .enumerate()
        .filter(|(_, m)| m.role == "assistant")
    {
        let not_a_prefix = || RowError::NotAPrefix { turn: i + 1 };
        let before = tokenizer.render_chat(&messages[..i], true)?;
        let after = if i + 1 == messages.len() {
            text.to_owned()
        } else {
            tokenizer.render_chat(&messages[..=i], false)?
        };
        if !text.starts_with(&before) || !text.starts_with(&after) || after.len() < before.len() {
            return Err(not_a_prefix());
        }
        turns.push(before.len()..after.len());
    }
    if turns.is_empty() {
        Err(RowError::NoAssistant)
    } else {
        Ok(turns)
    }
}

/// Templates write a line break after the token that ends a turn; generation stops before it, so it
/// is not trained.
fn end_of_turn(
    text: &str,
    spans: &Spans,
    tokens: Range<usize>,
    turn_end: usize,
    tokenizer: &TextTokenizer,
) -> usize {
    let special = tokens
        .clone()
        .rev()
        .find(|&i| tokenizer.is_special(spans.ids[i]));
    match special {
        Some(i)
            if text
                .get(spans.offsets[i].1..turn_end)
                .is_some_and(|rest| rest.trim().is_empty()) =>
        {
            i + 1
        }
        _ => tokens.end,
    }
}
