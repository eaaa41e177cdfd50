//! Answers that are compared word by word: CoQA, DROP, ReCoRD.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::LazyLock;

use regex::Regex;
use serde_json::{Value, json};

use super::super::metric::Score;
use super::super::python;
use super::super::record::{Record, with};
use super::fields::{text, texts};
use super::outcome::{Found, Outcome};

static ARTICLES: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"\b(a|an|the)\b").ok());

fn without_articles(text: &str) -> String {
    ARTICLES.as_ref().map_or_else(
        || text.to_owned(),
        |p| p.replace_all(text, " ").into_owned(),
    )
}

fn joined(words: &str) -> String {
    words.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Words that SQuAD's evaluation compares.
fn normalized(answer: &str) -> String {
    let mut plain = answer.to_lowercase();
    plain.retain(|c| !c.is_ascii_punctuation());
    joined(&without_articles(&plain))
}

fn exact(gold: &str, answer: &str) -> f64 {
    f64::from(u8::from(normalized(gold) == normalized(answer)))
}

fn f1(gold: &str, answer: &str) -> f64 {
    let (gold, answer) = (normalized(gold), normalized(answer));
    let gold: Vec<&str> = gold.split_whitespace().collect();
    let answer: Vec<&str> = answer.split_whitespace().collect();
    if gold.is_empty() || answer.is_empty() {
        return f64::from(u8::from(gold == answer));
    }
    let mut left: HashMap<&str, usize> = HashMap::new();
    for word in &gold {
        *left.entry(word).or_default() += 1;
    }
    let mut same = 0.0;
    for word in &answer {
        if let Some(count) = left.get_mut(word).filter(|count| **count > 0) {
            *count -= 1;
            same += 1.0;
        }
    }
    if same == 0.0 {
        return 0.0;
    }
    let (precision, recall) = (same / answer.len() as f64, same / gold.len() as f64);
    2.0 * precision * recall / (precision + recall)
}

fn best(golds: &[&str], answer: &str, score: fn(&str, &str) -> f64) -> f64 {
    golds
        .iter()
        .map(|gold| score(gold, answer))
        .fold(0.0, f64::max)
}

fn turns<'a>(record: &'a Record, key: &str) -> Result<Vec<&'a str>, String> {
    let inner = record.get(key).and_then(Value::as_object);
    texts(
        inner.ok_or_else(|| format!("`{key}` is no record"))?,
        "input_text",
    )
}

pub(super) fn coqa_text(record: &Record) -> Result<Value, String> {
    let (questions, answers) = (turns(record, "questions")?, turns(record, "answers")?);
    let mut out = format!("{}\n\n", text(record, "story")?);
    let given = answers.len().saturating_sub(1);
    for i in 0..questions.len().max(given) {
        out += &format!("Q: {}\n\n", questions.get(i).copied().unwrap_or("None"));
        out += &answers
            .get(i)
            .filter(|_| i < given)
            .map_or("A:".to_owned(), |answer| format!("A: {answer}\n\n"));
    }
    Ok(json!(out))
}

fn coqa_golds(record: &Record) -> Result<Vec<&str>, String> {
    let answers = turns(record, "answers")?;
    let last = turns(record, "questions")?.len().checked_sub(1);
    let at = last
        .filter(|i| *i < answers.len())
        .ok_or("`answers` has fewer turns than `questions`")?;
    let mut golds = vec![answers[at]];
    if let Some(more) = record.get("additional_answers").and_then(Value::as_object) {
        for key in more.keys() {
            let answers = turns(more, key)?;
            let other = answers
                .get(at)
                .ok_or("`additional_answers` has fewer turns than `questions`")?;
            let lower = other.to_lowercase();
            if golds.iter().all(|gold| gold.to_lowercase() != lower) {
                golds.push(other);
            }
        }
    }
    Ok(golds)
}

pub(super) fn coqa_target(record: &Record) -> Result<Value, String> {
    Ok(json!(coqa_golds(record)?))
}

/// People are scored against each other, so an answer is scored against all but one of them.
pub(super) fn coqa(record: &Record, outcome: Outcome<'_>) -> Result<Found, String> {
    let golds = coqa_golds(record)?;
    let answer = outcome.texts.first().map_or("", String::as_str).trim();
    let answer = answer.split('\n').next().unwrap_or_default();
    let mean = |score: fn(&str, &str) -> f64| {
        if golds.len() == 1 {
            return best(&golds, answer, score);
        }
        let others = (0..golds.len()).map(|i| {
            let rest: Vec<&str> = golds
                .iter()
                .enumerate()
                .filter(|(n, _)| *n != i)
                .map(|(_, g)| *g)
                .collect();
            best(&rest, answer, score)
        });
        others.sum::<f64>() / golds.len() as f64
    };
    Ok(vec![
        ("em", Score::Value(mean(exact))),
        ("f1", Score::Value(mean(f1))),
    ])
}

pub(super) fn record_docs(record: Record) -> Result<Option<Record>, String> {
    let sorted = |key| -> Result<Value, String> {
        let unique: BTreeSet<&str> = texts(&record, key)?.into_iter().collect();
        Ok(json!(unique))
    };
    let made = [
        ("entities", sorted("entities")?),
        ("answers", sorted("answers")?),
    ];
    let made = made
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value))
        .collect();
    Ok(Some(with(record, made)))
}

pub(super) fn record_text(record: &Record) -> Result<Value, String> {
    let mut parts = text(record, "passage")?.trim().split("\n@highlight\n");
    let mut out = format!("{}\n\n", parts.next().unwrap_or_default());
    for highlight in parts {
        out += &format!("  - {highlight}.\n");
    }
    Ok(json!(out))
}

fn with_entity(record: &Record, entity: &str) -> Result<String, String> {
    Ok(format!("  - {}", text(record, "query")?).replace("@placeholder", entity))
}

pub(super) fn record_target(record: &Record) -> Result<Value, String> {
    let answers = texts(record, "answers")?;
    let first = answers.first().ok_or("`answers` is empty")?;
    with_entity(record, first).map(Value::from)
}

pub(super) fn record_choice(record: &Record) -> Result<Value, String> {
    let entities = texts(record, "entities")?;
    let choices = entities.iter().map(|entity| with_entity(record, entity));
    Ok(json!(choices.collect::<Result<Vec<_>, _>>()?))
}

pub(super) fn record(record: &Record, outcome: Outcome<'_>) -> Result<Found, String> {
    let chosen = super::super::metric::likeliest(outcome.likelihoods);
    let entities = texts(record, "entities")?;
    let answer = entities
        .get(chosen)
        .ok_or("there are fewer entities than choices")?;
    let golds = texts(record, "answers")?;
    Ok(vec![
        ("f1", Score::Value(best(&golds, answer, f1))),
        ("em", Score::Value(best(&golds, answer, exact))),
    ])
}

pub(super) fn drop_docs(record: Record) -> Result<Option<Record>, String> {
    let validated = record.get("validated_answers").and_then(Value::as_object);
    let mut candidates = vec![record.get("answer").cloned().ok_or("`answer` is missing")?];
    if let Some(all) = validated {
        let column = |key: &str| {
            all.get(key)
                .and_then(Value::as_array)
                .ok_or_else(|| format!("`validated_answers.{key}` is no list"))
        };
        let (numbers, dates, spans) = (column("number")?, column("date")?, column("spans")?);
        for ((number, date), spans) in numbers.iter().zip(dates).zip(spans) {
            candidates.push(json!({ "number": number, "date": date, "spans": spans }));
        }
    }
    let mut answers: Vec<Vec<String>> = Vec::new();
    for candidate in &candidates {
        let answer = drop_answer(candidate)?;
        if !answers.contains(&answer) {
            answers.push(answer);
        }
    }
    let id = record.get("query_id").cloned().unwrap_or_default();
    let made = [
        ("id".to_owned(), id),
        ("answers".to_owned(), json!(answers)),
    ];
    Ok(Some(with(record, made.into_iter().collect())))
}

fn drop_answer(answer: &Value) -> Result<Vec<String>, String> {
    match &answer["number"] {
        Value::Null => return Err("an answer has no `number`".into()),
        Value::String(text) if text.is_empty() => {}
        number => return Ok(vec![python::text(number)]),
    }
    if let Some(spans) = answer["spans"].as_array().filter(|spans| !spans.is_empty()) {
        return Ok(spans.iter().map(python::text).collect());
    }
    let date =
        ["day", "month", "year"].map(|part| answer["date"][part].as_str().unwrap_or_default());
    Ok(vec![date.join(" ").trim().to_owned()])
}

fn is_number(text: &str) -> bool {
    text.trim().parse::<f64>().is_ok()
}

/// Words that DROP's evaluation compares.
fn drop_normalized(answer: &str) -> String {
    let token = |token: &str| {
        let mut token = token.to_lowercase();
        if !is_number(&token) {
            token.retain(|c| !c.is_ascii_punctuation());
        }
        let number = token
            .trim()
            .parse()
            .ok()
            .and_then(serde_json::Number::from_f64);
        let token = number.map_or(token, |n| python::text(&Value::Number(n)));
        joined(&without_articles(&token))
    };
    let tokens: Vec<String> = answer
        .split([' ', '-'])
        .map(token)
        .filter(|t| !t.is_empty())
        .collect();
    tokens.join(" ")
}

pub(super) fn drop(record: &Record, outcome: Outcome<'_>) -> Result<Found, String> {
    let golds = record
        .get("answers")
        .and_then(Value::as_array)
        .ok_or("`answers` is no list")?;
    let answer = drop_normalized(outcome.texts.first().map_or("", String::as_str));
    let bag: HashSet<&str> = answer.split_whitespace().collect();
    let (mut em, mut f1): (f64, f64) = (0.0, 0.0);
    for gold in golds {
        let spans: Vec<&str> = gold
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        if spans.first().is_none_or(|first| first.trim().is_empty()) {
            continue;
        }
        let spans: Vec<String> = spans.into_iter().map(drop_normalized).collect();
        em = em.max(f64::from(u8::from(spans.len() == 1 && spans[0] == answer)));
        // One answer is matched with one span, the best; the others count as missed.
        let found = spans
            .iter()
            .map(|span| overlap(span, &bag))
            .fold(0.0, f64::max);
        f1 = f1.max((found / spans.len() as f64 * 100.0).round_ties_even() / 100.0);
    }
    Ok(vec![("em", Score::Value(em)), ("f1", Score::Value(f1))])
}

fn overlap(span: &str, answer: &HashSet<&str>) -> f64 {
    let span: HashSet<&str> = span.split_whitespace().collect();
    let numbers: Vec<&&str> = span.iter().filter(|word| is_number(word)).collect();
    if !numbers.is_empty() && !numbers.iter().any(|n| answer.contains(**n)) {
        return 0.0;
    }
    let same = span.intersection(answer).count() as f64;
    let part = |of: usize| if of == 0 { 1.0 } else { same / of as f64 };
    let (precision, recall) = (part(answer.len()), part(span.len()));
    if precision + recall == 0.0 {
        return 0.0;
    }
    2.0 * precision * recall / (precision + recall)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(value: Value) -> Record {
        value.as_object().cloned().unwrap()
    }

    fn scores(found: Found) -> Vec<(&'static str, f64)> {
        let value = |(name, score)| match score {
            Score::Value(value) => (name, value),
            other => panic!("{other:?}"),
        };
        found.into_iter().map(value).collect()
    }

    /// `compute_exact` and `compute_f1` of the SQuAD 2.0 evaluation script.
    #[test]
    fn answers_are_compared_as_squad_does() {
        assert_eq!(exact("The Keeper!", "keeper"), 1.0);
        assert!((f1("two lamps", "two of the lamps") - 0.8).abs() < 1e-12);
        assert_eq!((f1("", "the"), f1("", "x")), (1.0, 0.0));
        // A word counts as often as it occurs on both sides.
        assert_eq!(f1("no no yes", "no"), 0.5);
    }

    #[test]
    fn an_answer_to_coqa_is_scored_against_all_people_but_one() {
        let story = record(json!({
            "story": "S", "questions": {"input_text": ["a?", "b?"]}, "answers": {"input_text": ["x", "two lamps"]},
            "additional_answers": {"0": {"input_text": ["y", "TWO lamps"]}, "1": {"input_text": ["z", "lamps"]}},
        }));
        assert_eq!(
            coqa_text(&story).unwrap(),
            json!("S\n\nQ: a?\n\nA: x\n\nQ: b?\n\nA:")
        );
        assert_eq!(coqa_target(&story).unwrap(), json!(["two lamps", "lamps"]));
        let texts = ["two lamps\nQ:".to_owned()];
        let outcome = Outcome {
            likelihoods: &[],
            texts: &texts,
        };
        // Against "lamps": 0 and 2/3; against "two lamps": 1 and 1.
        let found = scores(coqa(&story, outcome).unwrap());
        assert_eq!(found[0], ("em", 0.5));
        assert!((found[1].1 - (2.0 / 3.0 + 1.0) / 2.0).abs() < 1e-12);
    }

    #[test]
    fn the_likeliest_entity_is_the_answer_to_record() {
        let made = record_docs(record(json!({
            "passage": "Ann.\n@highlight\nEve is", "query": "@placeholder left", "entities": ["Eve", "Ann", "Eve"], "answers": ["Eve Adams"],
        })));
        let made = made.unwrap().unwrap();
        assert_eq!(made["entities"], json!(["Ann", "Eve"]));
        assert_eq!(record_text(&made).unwrap(), json!("Ann.\n\n  - Eve is.\n"));
        assert_eq!(
            record_choice(&made).unwrap(),
            json!(["  - Ann left", "  - Eve left"])
        );
        assert_eq!(record_target(&made).unwrap(), json!("  - Eve Adams left"));
        let outcome = Outcome {
            likelihoods: &[-2.0, -1.0],
            texts: &[],
        };
        let found = scores(super::record(&made, outcome).unwrap());
        assert_eq!(found[1], ("em", 0.0));
        assert!((found[0].1 - 2.0 / 3.0).abs() < 1e-12);
    }
}
