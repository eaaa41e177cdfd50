//! Language modelling: the next token as target, with prompts left out.

use std::ops::Range;

use super::{EncodeOptions, IGNORE_INDEX, Row, RowError, Target, Tokenized};
use crate::data::{Conversation, Example, Message};
use crate::template::TemplateError;
use crate::tokenizer::{Spans, TextTokenizer};

pub(super) fn encode(
    example: &Example,
    tokenizer: &TextTokenizer,
    options: &EncodeOptions,
) -> Result<Row, RowError> {
    if let Example::Preference {
        prompt,
        chosen,
        rejected,
    } = example
    {
        let answers = [chosen, rejected];
        return preference(prompt, answers.map(String::as_str), tokenizer, options);
    }
    let (ids, trained, counted) = match example {
        Example::Text { text } => {
            let used = options.used(text, tokenizer);
            let ids = with_eos(tokenizer.encode(used, true)?, tokenizer);
            let trained = vec![true; ids.len()];
            (ids, trained, used.len() == text.len())
        }
        Example::Messages(turns) => conversation(turns, tokenizer, options)?,
        Example::PromptCompletion { .. } | Example::Instruction { .. }
            if options.renders(tokenizer) =>
        {
            let turns = example.turns().unwrap_or_default();
            conversation(&turns.into(), tokenizer, options)?
        }
        Example::PromptCompletion { prompt, completion } => {
            let prompt = around(prompt, options);
            prompt_completion(&prompt, completion, tokenizer, options)?
        }
        Example::Instruction {
            instruction,
            input,
            output,
        } => {
            let prompt = instruction_prompt(instruction, input.as_deref(), options);
            prompt_completion(&prompt, output, tokenizer, options)?
        }
        _ => return Err(RowError::OtherFormat),
    };
    let length = ids.len();
    let kept = length.min(options.max_length);
    Ok(Row {
        tokenized: shift(&ids[..kept], &trained[..kept]),
        length,
        counted,
        cut_words: 0,
    })
}

/// The prompt with each of two answers, encoded and cut as a prompt with its completion is.
fn preference(
    prompt: &str,
    answers: [&str; 2],
    tokenizer: &TextTokenizer,
    options: &EncodeOptions,
) -> Result<Row, RowError> {
    let options = EncodeOptions {
        completion_only: true,
        ..options.clone()
    };
    let [better, worse] = answers.map(|answer| {
        let example = Example::PromptCompletion {
            prompt: prompt.to_owned(),
            completion: answer.to_owned(),
        };
        encode(&example, tokenizer, &options)
    });
    let (better, worse) = (better?, worse?);
    let chosen = better.tokenized.len();
    let (mut input_ids, mut targets) = (Vec::new(), Vec::new());
    for row in [&better, &worse] {
        input_ids.extend(&row.tokenized.input_ids);
        if let Target::Tokens(own) = &row.tokenized.labels {
            targets.extend(own);
        }
    }
    Ok(Row {
        tokenized: Tokenized {
            input_ids,
            token_type_ids: Vec::new(),
            labels: Target::Preference { targets, chosen },
        },
        length: better.length.max(worse.length),
        counted: better.counted && worse.counted,
        cut_words: 0,
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

/// The prompt as `prompt_template` surrounds it.
fn around(prompt: &str, options: &EncodeOptions) -> String {
    match &options.prompt_template {
        Some(template) => template.replacen("{prompt}", prompt, 1),
        None => prompt.to_owned(),
    }
}

/// The prompt of an instruction for a model without chat template: the wording of Stanford Alpaca,
/// which data in this format is written for.
fn instruction_prompt(instruction: &str, input: Option<&str>, options: &EncodeOptions) -> String {
    if options.prompt_template.is_some() {
        let input = input.map_or(String::new(), |input| format!("\n\n{input}"));
        return around(&format!("{instruction}{input}"), options);
    }
    match input {
        Some(input) => format!(
            "Below is an instruction that describes a task, paired with an input that provides further context. \
             Write a response that appropriately completes the request.\n\n\
             ### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
        ),
        None => format!(
            "Below is an instruction that describes a task. \
             Write a response that appropriately completes the request.\n\n\
             ### Instruction:\n{instruction}\n\n### Response:\n"
        ),
    }
}

/// The joined text is tokenized, so that the ids are those of the text as a whole. A token that
/// holds the first characters of the completion is trained even if it starts inside the prompt.
fn prompt_completion(
    prompt: &str,
    completion: &str,
    tokenizer: &TextTokenizer,
    options: &EncodeOptions,
) -> Result<(Vec<u32>, Vec<bool>, bool), RowError> {
    let mut text = prompt.to_owned();
    let boundary = text.len();
    text.push_str(completion);
    let used = options.used(&text, tokenizer);
    let Spans { ids, offsets, .. } = tokenizer.encode_spans(used, true)?;
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
    Ok((ids, trained, used.len() == text.len()))
}

fn conversation(
    conversation: &Conversation,
    tokenizer: &TextTokenizer,
    options: &EncodeOptions,
) -> Result<(Vec<u32>, Vec<bool>, bool), RowError> {
    let text = tokenizer.render_conversation(conversation)?;
    let used = options.used(&text, tokenizer);
    let counted = used.len() == text.len();
    let spans = tokenizer.encode_spans(used, false)?;
    let messages = &conversation.messages;
    let mut trained = vec![!options.completion_only; spans.ids.len()];
    if !options.completion_only && messages.iter().all(|m| !m.untrained) {
        return Ok((spans.ids, trained, counted));
    }
    for (i, turn) in assistant_turns(conversation, &text, tokenizer)? {
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
        trained[first..past].fill(!messages[i].untrained);
    }
    let left_out = |(_, m): &(usize, &Message)| {
        let said = m.content.trim();
        m.role == "assistant" && !m.untrained && !said.is_empty() && !text.contains(said)
    };
    if counted
        && !trained.contains(&true)
        && let Some((turn, _)) = messages.iter().enumerate().find(left_out)
    {
        return Err(RowError::NotWritten { turn: turn + 1 });
    }
    Ok((spans.ids, trained, counted))
}

/// Bytes of the text that the assistant writes, with the number of the turn: from the end of the
/// generation prompt to the end of the turn, both found by rendering the conversation up to there.
fn assistant_turns(
    conversation: &Conversation,
    text: &str,
    tokenizer: &TextTokenizer,
) -> Result<Vec<(usize, Range<usize>)>, RowError> {
    let messages = &conversation.messages;
    let render = |turns: &[Message], prompt: bool| {
        let template = tokenizer.chat_template().ok_or(TemplateError::Missing)?;
        template.render_with(turns, &conversation.variables, prompt)
    };
    let mut turns: Vec<(usize, Range<usize>)> = Vec::new();
    let assistant = |(_, m): &(usize, &Message)| m.role == "assistant";
    for (i, message) in messages.iter().enumerate().filter(assistant) {
        let not_a_prefix = || RowError::NotAPrefix { turn: i + 1 };
        // A template may put a system message of its own in front of the first turn, or refuse a
        // conversation that ends before a question.
        let before = if i == 0 {
            None
        } else {
            render(&messages[..i], true).ok()
        };
        let start = match before {
            Some(before) if text.starts_with(&before) => before.len(),
            Some(_) => return Err(not_a_prefix()),
            None => {
                let from = turns.last().map_or(0, |(_, turn)| turn.end);
                let mark = generation_prompt(&render);
                answer_start(text, from, &mark, message).ok_or_else(not_a_prefix)?
            }
        };
        let end = if i + 1 == messages.len() {
            text.len()
        } else {
            let after = render(&messages[..=i], false)?;
            if !text.starts_with(&after) || after.len() < start {
                return Err(not_a_prefix());
            }
            after.len()
        };
        turns.push((i, start..end));
    }
    if turns.is_empty() {
        Err(RowError::NoAssistant)
    } else {
        Ok(turns)
    }
}

/// What the template writes in front of an answer.
fn generation_prompt(
    render: &impl Fn(&[Message], bool) -> Result<String, TemplateError>,
) -> String {
    let question = [Message::new("user", "x")];
    let (Ok(with), Ok(without)) = (render(&question, true), render(&question, false)) else {
        return String::new();
    };
    with.strip_prefix(&without).unwrap_or_default().to_owned()
}

/// Where an answer begins that no prefix of the conversation leads up to: behind the generation
/// prompt, else where its text stands.
fn answer_start(text: &str, from: usize, mark: &str, message: &Message) -> Option<usize> {
    let rest = text.get(from..)?;
    let content = message.content.trim();
    let marked = rest.find(mark).filter(|_| !mark.is_empty());
    let marked = marked.map(|at| at + mark.len());
    let held = |at: &usize| rest[*at..].contains(content);
    let found = marked
        .filter(held)
        .or_else(|| (!content.is_empty()).then(|| rest.find(content)).flatten());
    found.map(|at| from + at)
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
