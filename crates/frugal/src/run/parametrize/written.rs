//! Questions about documents, written by the model itself (stage A).

use frugal_decode::{CacheType, SamplerConfig};
use frugal_nn::named_rng;
use frugal_retrieve::parametric::Item;
use rand::Rng;
use serde_json::Value;

use super::items::DocumentItems;
use crate::run::{GenerateRequest, Opened, Prompt, RunError, generate};

/// Questions of a document.
const QUESTIONS: usize = 3;
/// Times that the model is asked for questions that can be read.
const ATTEMPTS: usize = 3;
/// Most tokens of what it writes, and how they are chosen: as the official code has it.
const TOKENS: usize = 512;
const TEMPERATURE: f32 = 0.7;
const TOP_K: usize = 50;

/// What the model writes about a text; `None` where nothing of it can be read.
pub(super) fn write_items(
    opened: &Opened,
    text: &str,
    seed: u64,
) -> Result<Option<DocumentItems>, RunError> {
    let ask = format!(
        "Write {QUESTIONS} questions about the passage, each with an answer of a few words that the passage contains. \
         Write a JSON list and nothing else: [{{\"question\": \"...\", \"answer\": \"...\"}}]\n\nPassage: {text}"
    );
    let mut items = Vec::new();
    for attempt in 0..ATTEMPTS {
        items = read(&say(opened, &ask, seed, &format!("questions {attempt}"))?);
        if items.len() >= QUESTIONS {
            break;
        }
    }
    if items.is_empty() {
        return Ok(None);
    }
    items.truncate(QUESTIONS);
    let ask =
        format!("Write the passage in other words. Keep all names and numbers.\n\nPassage: {text}");
    let rewrite = say(opened, &ask, seed, "rewrite")?.trim().to_owned();
    Ok(Some(DocumentItems {
        rewrite: (!rewrite.is_empty()).then_some(rewrite),
        items,
    }))
}

fn say(opened: &Opened, text: &str, seed: u64, name: &str) -> Result<String, RunError> {
    let chat = opened.files.tokenizer()?.has_chat_template();
    let request = GenerateRequest {
        prompts: vec![Prompt {
            text: match chat {
                true => text.to_owned(),
                false => format!("{text}\n\n"),
            },
            adapter: None,
        }],
        chat,
        system: None,
        stop: Vec::new(),
        max_tokens: TOKENS,
        sampler: SamplerConfig {
            temperature: TEMPERATURE,
            top_k: TOP_K,
            ..SamplerConfig::default()
        },
        seed: named_rng(seed, &format!("{name} {text}")).random(),
        cache_type: CacheType::F32,
    };
    let found = generate(opened, &request, &mut |_| true)?;
    Ok(found
        .into_iter()
        .next()
        .map_or_else(String::new, |c| c.text))
}

/// The objects with a question and an answer in a text, whatever stands around them; what is no JSON
/// is passed over.
fn read(text: &str) -> Vec<Item> {
    let mut items: Vec<Item> = Vec::new();
    for (start, _) in text.match_indices('{') {
        let mut values = serde_json::Deserializer::from_str(&text[start..]).into_iter::<Value>();
        let Some(Ok(value)) = values.next() else {
            continue;
        };
        let said = |name: &str| match value.get(name) {
            Some(Value::String(text)) if !text.trim().is_empty() => Some(text.trim().to_owned()),
            Some(Value::Number(number)) => Some(number.to_string()),
            _ => None,
        };
        if let (Some(question), Some(answer)) = (said("question"), said("answer")) {
            let item = Item { question, answer };
            if !items.contains(&item) {
                items.push(item);
            }
        }
    }
    items
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_are_read_out_of_what_stands_around_them() {
        let text = "Here you are:\n```json\n[{\"question\": \"Who?\", \"answer\": \"Orla {V}\"},\n{\"question\": \"When?\", \
                    \"answer\": 1902}, {\"question\": \"\", \"answer\": \"x\"}, {\"question\": \"Who?\", \"answer\": \"Orla {V}\"}, {\"question\": \"cut";
        let found = read(text);
        let pairs: Vec<(&str, &str)> = found
            .iter()
            .map(|i| (i.question.as_str(), i.answer.as_str()))
            .collect();
        assert_eq!(pairs, [("Who?", "Orla {V}"), ("When?", "1902")]);
        assert!(read("no list").is_empty());
    }
}
