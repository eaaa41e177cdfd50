//! Conversations: the turns of a record, in the shapes that data sets hold them.

use serde_json::{Map, Value, json};

use super::error::DataError;
use super::example::{Conversation, Message};
use super::row::{Row, is_empty};

/// `messages`: a list of objects with `role` and `content`.
pub(super) fn messages(row: &Row<'_>) -> Result<Conversation, DataError> {
    conversation(row, message_list(row, "messages", &row.list("messages")?)?)
}

/// `conversations`: a list of objects with `from` and `value`.
pub(super) fn sharegpt(row: &Row<'_>) -> Result<Conversation, DataError> {
    let items = row.list("conversations")?;
    let turns = items.iter().enumerate();
    let turns = turns.map(|(i, item)| sharegpt_turn(row, &format!("conversations[{i}]"), item));
    conversation(row, turns.collect::<Result<_, _>>()?)
}

/// Prompt and completion that are lists of messages; `None` if they are texts. Only the completion
/// is trained.
pub(super) fn prompt_and_completion(row: &Row<'_>) -> Result<Option<Conversation>, DataError> {
    let (Value::Array(prompt), Value::Array(completion)) =
        (row.required("prompt")?, row.required("completion")?)
    else {
        return Ok(None);
    };
    if prompt.is_empty() || completion.is_empty() {
        return Err(row.problem("prompt and completion need at least one message each"));
    }
    let mut turns = message_list(row, "prompt", prompt)?;
    turns.iter_mut().for_each(|turn| turn.untrained = true);
    turns.extend(message_list(row, "completion", completion)?);
    conversation(row, turns).map(Some)
}

/// `history`: pairs of an earlier prompt and its answer, which are trained as well.
pub(super) fn history(row: &Row<'_>) -> Result<Vec<Message>, DataError> {
    if row.given("history").is_none() {
        return Ok(Vec::new());
    }
    let mut turns = Vec::new();
    for (i, pair) in row.list("history")?.iter().enumerate() {
        let Some([Value::String(asked), Value::String(answer)]) =
            pair.as_array().map(Vec::as_slice)
        else {
            return Err(row.problem(format!(
                "history[{i}] must be a pair of texts: a prompt and its answer"
            )));
        };
        turns.push(Message::new("user", asked));
        turns.push(Message::new("assistant", answer));
    }
    Ok(turns)
}

/// What the chat template is given beside the turns.
pub(super) fn variables(row: &Row<'_>) -> Result<Map<String, Value>, DataError> {
    let mut variables = Map::new();
    for key in ["tools", "documents"] {
        let used = row.format.optional().contains(&key);
        if let Some(value) = row.given(key).filter(|_| used) {
            let list = match value {
                // Files with one type per column hold the list as JSON in a text.
                Value::String(text) => serde_json::from_str(text).unwrap_or(Value::Null),
                value => value.clone(),
            };
            match list {
                Value::Array(_) => variables.insert(key.to_owned(), list),
                _ => return Err(row.problem(format!("{key:?} must be a list of objects"))),
            };
        }
    }
    match row.given("chat_template_kwargs") {
        Some(Value::Object(more)) => variables.extend(more.clone()),
        Some(_) => return Err(row.problem("\"chat_template_kwargs\" must be an object")),
        None => {}
    }
    Ok(variables)
}

/// Joins turns with the record's system message and the variables of the template.
fn conversation(row: &Row<'_>, mut messages: Vec<Message>) -> Result<Conversation, DataError> {
    if let Some(system) = row.optional_text("system")? {
        if messages.first().is_some_and(|m| m.role == "system") {
            return Err(row.problem(
                "a system message stands both under \"system\" and in the first turn; keep one",
            ));
        }
        messages.insert(0, Message::new("system", system));
    }
    Ok(Conversation {
        messages,
        variables: variables(row)?,
    })
}

fn message_list(row: &Row<'_>, key: &str, items: &[Value]) -> Result<Vec<Message>, DataError> {
    let turns = items.iter().enumerate();
    turns
        .map(|(i, item)| message(row, &format!("{key}[{i}]"), item))
        .collect()
}

fn message(row: &Row<'_>, place: &str, item: &Value) -> Result<Message, DataError> {
    let Some(Value::String(role)) = item.get("role") else {
        return Err(row.problem(format!("{place} needs a string \"role\"")));
    };
    let mut message = Message::new(role, "");
    (message.untrained, message.other) = other_keys(row, place, item, &["role", "content"])?;
    match item.get("content") {
        Some(Value::String(text)) => message.content.clone_from(text),
        Some(Value::Array(parts)) => message.content = text_parts(row, place, parts)?,
        // A turn that only calls tools says nothing.
        None | Some(Value::Null) if message.other.contains_key("tool_calls") => {
            message.content_is_null = true;
        }
        _ => return Err(row.problem(format!("{place} needs a string \"content\""))),
    }
    Ok(message)
}

/// Content given as a list of parts, of which only text can be used.
fn text_parts(row: &Row<'_>, place: &str, parts: &[Value]) -> Result<String, DataError> {
    let text = |part: &Value| {
        part.get("text")
            .and_then(Value::as_str)
            .filter(|_| part.get("type").is_some_and(|t| t == "text"))
            .map(str::to_owned)
    };
    let texts: Option<Vec<String>> = parts.iter().map(text).collect();
    let texts = texts.ok_or_else(|| {
        row.problem(format!(
            "{place}: only content parts of type \"text\" can be used"
        ))
    })?;
    Ok(texts.concat())
}

fn sharegpt_turn(row: &Row<'_>, place: &str, item: &Value) -> Result<Message, DataError> {
    // Some data sets hold turns of the other kind under this key.
    if item.get("role").is_some() && item.get("from").is_none() {
        return message(row, place, item);
    }
    let (Some(Value::String(from)), Some(Value::String(value))) =
        (item.get("from"), item.get("value"))
    else {
        return Err(row.problem(format!("{place} needs the strings \"from\" and \"value\"")));
    };
    let role = match from.as_str() {
        "system" => "system",
        "human" | "user" => "user",
        "gpt" | "assistant" | "chatgpt" | "bot" | "model" | "function_call" => "assistant",
        "observation" | "tool" | "function_response" => "tool",
        other => {
            return Err(row.problem(format!(
                "{place}: \"from\" must be system, human, gpt, function_call or observation, not {other:?}"
            )));
        }
    };
    let mut message = Message::new(role, value);
    (message.untrained, message.other) = other_keys(row, place, item, &["from", "value"])?;
    if from == "function_call" {
        message
            .other
            .insert("tool_calls".into(), called(row, place, value)?);
        message.content.clear();
        message.content_is_null = true;
    }
    Ok(message)
}

/// The calls that a `function_call` turn writes as JSON: one object with `name` and `arguments`, or
/// a list of them.
fn called(row: &Row<'_>, place: &str, value: &str) -> Result<Value, DataError> {
    let calls = match serde_json::from_str(value) {
        Ok(Value::Array(calls)) => calls,
        Ok(call @ Value::Object(_)) => vec![call],
        _ => Vec::new(),
    };
    let named = |call: &Value| call.get("name").is_some_and(Value::is_string);
    if calls.is_empty() || !calls.iter().all(named) {
        return Err(row.problem(format!(
            "{place}: a function_call must be JSON with \"name\" and \"arguments\""
        )));
    }
    Ok(calls
        .into_iter()
        .map(|call| json!({ "type": "function", "function": call }))
        .collect())
}

/// What a turn says besides, and whether it is left out of training.
fn other_keys(
    row: &Row<'_>,
    place: &str,
    item: &Value,
    own: &[&str],
) -> Result<(bool, Map<String, Value>), DataError> {
    let mut untrained = false;
    let mut other = Map::new();
    for (key, value) in item.as_object().into_iter().flatten() {
        match key.as_str() {
            key if own.contains(&key) => {}
            _ if is_empty(value) => {}
            "weight" | "train" | "trainable" | "training" | "loss" => {
                untrained |= is_zero(value).ok_or_else(|| {
                    row.problem(format!(
                        "{place}: `{key}` must be 0 or 1, not {value}: turns are trained or not"
                    ))
                })?;
            }
            "loss_mask" | "loss_weight" | "mask" | "label" | "train_on_input"
            | "train_on_inputs" => {
                return Err(row.problem(format!(
                    "{place}: `{key}` is not used in a turn and leaving it out would change what is \
                     learned; say `weight` 0 or 1, or take it out of the file"
                )));
            }
            key => {
                other.insert(key.to_owned(), value.clone());
            }
        }
    }
    Ok((untrained, other))
}

/// Whether a weight is 0; `None` if it is neither 0 nor 1.
fn is_zero(value: &Value) -> Option<bool> {
    match value {
        Value::Bool(trained) => Some(!trained),
        value => match value.as_f64()? {
            0.0 => Some(true),
            1.0 => Some(false),
            _ => None,
        },
    }
}
