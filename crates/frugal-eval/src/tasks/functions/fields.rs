//! Records, texts, targets and choices.

use std::sync::LazyLock;

use regex::Regex;
use serde_json::{Map, Value, json};

use super::super::python;
use super::super::record::{Record, with};

type Field = Result<Value, String>;

fn get<'a>(record: &'a Record, key: &str) -> Result<&'a Value, String> {
    record
        .get(key)
        .ok_or_else(|| format!("the field `{key}` is missing"))
}

pub(super) fn text<'a>(record: &'a Record, key: &str) -> Result<&'a str, String> {
    get(record, key)?
        .as_str()
        .ok_or_else(|| format!("`{key}` is no text"))
}

pub(super) fn texts<'a>(record: &'a Record, key: &str) -> Result<Vec<&'a str>, String> {
    let items = get(record, key)?.as_array();
    let items = items.and_then(|items| items.iter().map(Value::as_str).collect());
    items.ok_or_else(|| format!("`{key}` is no list of texts"))
}

pub(super) fn integers(record: &Record, key: &str) -> Result<Vec<i64>, String> {
    let items = get(record, key)?.as_array();
    let items = items.and_then(|items| items.iter().map(Value::as_i64).collect());
    items.ok_or_else(|| format!("`{key}` is no list of whole numbers"))
}

/// A whole number, also one that is written as text.
fn integer(record: &Record, key: &str) -> Result<i64, String> {
    let value = get(record, key)?;
    let number = value
        .as_i64()
        .or_else(|| value.as_str().and_then(|text| text.trim().parse().ok()));
    number.ok_or_else(|| format!("`{key}` is no whole number"))
}

fn number(record: &Record, key: &str) -> Result<f64, String> {
    get(record, key)?
        .as_f64()
        .ok_or_else(|| format!("`{key}` is no number"))
}

fn fields(value: Value) -> Map<String, Value> {
    if let Value::Object(fields) = value {
        fields
    } else {
        Map::new()
    }
}

/// The text with what a pattern matches replaced; the patterns are constants.
fn sub(pattern: &LazyLock<Option<Regex>>, text: &str, replacement: &str) -> String {
    pattern.as_ref().map_or_else(
        || text.to_owned(),
        |p| p.replace_all(text, replacement).into_owned(),
    )
}

macro_rules! pattern {
    ($name:ident, $source:expr) => {
        static $name: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new($source).ok());
    };
}

pub(super) fn arithmetic(record: Record) -> Result<Option<Record>, String> {
    let context = text(&record, "context")?
        .trim()
        .replace("\n\n", "\n")
        .replace("Q:", "Question:")
        .replace("A:", "Answer:");
    Ok(Some(with(record, fields(json!({ "context": context })))))
}

/// As Python's `str.capitalize`.
fn capitalized(text: &str) -> String {
    let mut chars = text.chars();
    let first: String = chars
        .next()
        .into_iter()
        .flat_map(char::to_uppercase)
        .collect();
    first + &chars.as_str().to_lowercase()
}

pub(super) fn hellaswag(record: Record) -> Result<Option<Record>, String> {
    pattern!(BRACKETS, r"\[.*?\]");
    let plain = |text: &str| {
        let text = text.trim().replace(" [title]", ". ");
        sub(&BRACKETS, &text, "").replace("  ", " ")
    };
    let context = format!(
        "{}: {} {}",
        text(&record, "activity_label")?,
        text(&record, "ctx_a")?,
        capitalized(text(&record, "ctx_b")?)
    );
    let endings: Vec<String> = texts(&record, "endings")?.into_iter().map(plain).collect();
    let made =
        json!({ "query": plain(&context), "choices": endings, "gold": integer(&record, "label")? });
    Ok(Some(with(record, fields(made))))
}

fn blank(record: &Record) -> Result<(&str, &str), String> {
    text(record, "sentence")?
        .split_once('_')
        .ok_or_else(|| "`sentence` has no `_`".to_owned())
}

pub(super) fn winogrande_text(record: &Record) -> Field {
    match text(record, "answer")? {
        "1" => Ok(json!(0)),
        "2" => Ok(json!(1)),
        other => Err(format!("`answer` is {other:?}, not \"1\" or \"2\"")),
    }
}

pub(super) fn winogrande_target(record: &Record) -> Field {
    Ok(json!(blank(record)?.1.trim()))
}

pub(super) fn winogrande_choice(record: &Record) -> Field {
    let before = blank(record)?.0;
    let with = |key| Ok::<_, String>(format!("{before}{}", text(record, key)?));
    Ok(json!([with("option1")?, with("option2")?]))
}

fn copa_option(record: &Record, key: &str) -> Result<String, String> {
    let option = text(record, key)?;
    let mut chars = option.chars();
    let first: String = chars
        .next()
        .into_iter()
        .flat_map(char::to_lowercase)
        .collect();
    Ok(format!(" {first}{}", chars.as_str()))
}

pub(super) fn copa_text(record: &Record) -> Field {
    let connector = match text(record, "question")? {
        "cause" => "because",
        "effect" => "therefore",
        other => {
            return Err(format!(
                "`question` is {other:?}, not \"cause\" or \"effect\""
            ));
        }
    };
    let mut premise = text(record, "premise")?.trim().to_owned();
    premise.pop();
    Ok(json!(format!("{premise} {connector}")))
}

pub(super) fn copa_target(record: &Record) -> Field {
    let first = integer(record, "label")? == 0;
    copa_option(record, if first { "choice1" } else { "choice2" }).map(Value::from)
}

pub(super) fn copa_choice(record: &Record) -> Field {
    Ok(json!([
        copa_option(record, "choice1")?,
        copa_option(record, "choice2")?
    ]))
}

pub(super) fn crows_pairs(record: &Record) -> Field {
    Ok(json!([
        text(record, "sent_more")?,
        text(record, "sent_less")?
    ]))
}

/// The problems of a passage, which the data keep as Python.
fn race(record: &Record) -> Result<Vec<Record>, String> {
    let problems = match get(record, "problems")? {
        Value::String(text) => python::literal(text),
        other => Some(other.clone()),
    };
    let problems: Option<Vec<Record>> = problems
        .as_ref()
        .and_then(Value::as_array)
        .and_then(|items| items.iter().map(|item| item.as_object().cloned()).collect());
    problems
        .filter(|problems| !problems.is_empty())
        .ok_or_else(|| "`problems` is no list of problems".into())
}

fn letter(record: &Record, key: &str, letters: &str) -> Result<usize, String> {
    let given = text(record, key)?.trim();
    let mut chars = given.chars();
    let place = chars.next().and_then(|c| letters.find(c));
    place
        .filter(|_| chars.next().is_none())
        .ok_or_else(|| format!("`{key}` is {given:?}, none of the letters {letters}"))
}

fn race_option(problem: &Record) -> Result<&str, String> {
    let options = texts(problem, "options")?;
    let place = letter(problem, "answer", "ABCD")?;
    options
        .get(place)
        .copied()
        .ok_or_else(|| "`options` has fewer than four".into())
}

pub(super) fn race_text(record: &Record) -> Field {
    let problems = race(record)?;
    let mut out = format!("Article: {}\n\n", text(record, "article")?);
    if let Some((last, before)) = problems.split_last() {
        for problem in before {
            let (question, answer) = (text(problem, "question")?, race_option(problem)?);
            out += &match question.strip_suffix("  _  .") {
                Some(stem) => format!("{stem} {answer}\n"),
                None => format!("Question: {question}\nAnswer: {answer}\n"),
            };
        }
        out += text(last, "question")?;
    }
    Ok(json!(out))
}

pub(super) fn race_target(record: &Record) -> Field {
    let problems = race(record)?;
    let last = problems.last().ok_or("`problems` is empty")?;
    Ok(json!(letter(last, "answer", "ABCD")?))
}

pub(super) fn race_choice(record: &Record) -> Field {
    let problems = race(record)?;
    let last = problems.last().ok_or("`problems` is empty")?;
    let options = texts(last, "options")?;
    options
        .get(..4)
        .map(|four| json!(four))
        .ok_or_else(|| "`options` has fewer than four".into())
}

fn lettered(letters: &str, options: &[&str]) -> String {
    let lines = letters.chars().zip(options);
    lines
        .map(|(letter, option)| format!("{letter}. {option}\n"))
        .collect()
}

pub(super) fn logiqa_text(record: &Record) -> Field {
    Ok(json!(format!(
        "Passage: {}\nQuestion: {}\nChoices:\n{}Answer:",
        text(record, "context")?,
        text(record, "question")?,
        lettered("ABCD", &texts(record, "options")?)
    )))
}

pub(super) fn logiqa_target(record: &Record) -> Field {
    letter(record, "label", "abcd").map(Value::from)
}

pub(super) fn logiqa2_text(record: &Record) -> Field {
    Ok(json!(format!(
        "Passage: {}\nQuestion: {}\n{}Answer:",
        text(record, "text")?,
        text(record, "question")?,
        lettered("ABCD", &texts(record, "options")?)
    )))
}

fn several<'a>(record: &'a Record, keys: [&str; 4]) -> Result<Vec<&'a str>, String> {
    keys.into_iter().map(|key| text(record, key)).collect()
}

pub(super) fn medmcqa_text(record: &Record) -> Field {
    let options = several(record, ["opa", "opb", "opc", "opd"])?;
    let question = text(record, "question")?;
    Ok(json!(format!(
        "Question: {question}\nChoices:\n{}Answer:",
        lettered("ABCD", &options)
    )))
}

pub(super) fn medqa_text(record: &Record) -> Field {
    let options = several(record, ["ending0", "ending1", "ending2", "ending3"])?;
    let question = text(record, "sent1")?;
    Ok(json!(format!(
        "Question: {question}\n{}Answer:",
        lettered("ABCD", &options)
    )))
}

pub(super) fn medqa_target(record: &Record) -> Field {
    get(record, "label").cloned()
}

pub(super) fn pubmedqa_text(record: &Record) -> Field {
    Ok(json!(format!(
        "Abstract: {}\nQuestion: {}\nAnswer:",
        texts(record, "CONTEXTS")?.join("\n"),
        text(record, "QUESTION")?
    )))
}

pub(super) fn mathqa_choice(record: &Record) -> Field {
    pattern!(OPTION, r"[abcd] \) .*?, |e \) .*?$");
    let options = text(record, "options")?;
    let found = OPTION.iter().flat_map(|p| p.find_iter(options));
    let choices: Vec<String> = found
        .map(|m| m.as_str().chars().skip(4).collect::<String>())
        .map(|choice| choice.trim_end_matches([' ', ',']).to_owned())
        .collect();
    Ok(json!(choices))
}

pub(super) fn mnli_text(record: &Record) -> Field {
    let hypothesis = text(record, "hypothesis")?.trim();
    let period = if hypothesis.ends_with('.') { "" } else { "." };
    let premise = text(record, "premise")?;
    Ok(json!(format!(
        "{premise}\nQuestion: {hypothesis}{period} True, False or Neither?\nAnswer:"
    )))
}

pub(super) fn toxigen_target(record: &Record) -> Field {
    let toxic = number(record, "toxicity_ai")? + number(record, "toxicity_human")? > 5.5;
    Ok(json!(u8::from(toxic)))
}

/// Answers in order, without those that begin with the one before.
fn webqs(record: &Record) -> Result<Vec<&str>, String> {
    let mut answers = texts(record, "answers")?;
    answers.sort_unstable();
    let mut kept: Vec<&str> = Vec::new();
    for answer in answers {
        if kept.last().is_none_or(|last| !answer.starts_with(last)) {
            kept.push(answer);
        }
    }
    Ok(kept)
}

pub(super) fn webqs_choice(record: &Record) -> Field {
    Ok(json!(webqs(record)?))
}

pub(super) fn webqs_target(record: &Record) -> Field {
    Ok(json!((0..webqs(record)?.len()).collect::<Vec<_>>()))
}

const TEN: &str = "ABCDEFGHIJ";

pub(super) fn mmlu_pro_text(record: &Record) -> Field {
    let options: Vec<&str> = texts(record, "options")?
        .into_iter()
        .map(str::trim)
        .collect();
    Ok(json!(format!(
        "Question:\n{}\nOptions:\n{}Answer: Let's think step by step.",
        text(record, "question")?,
        lettered(TEN, &options)
    )))
}

pub(super) fn mmlu_pro_target(record: &Record) -> Field {
    let worked = text(record, "cot_content")?;
    Ok(json!(worked.replace("A: Let's think step by step. ", "")))
}

pub(super) fn wsc_text(record: &Record) -> Field {
    pattern!(MARK, r" (['.,])");
    let passage = text(record, "text")?;
    let (noun, pronoun) = (text(record, "span1_text")?, text(record, "span2_text")?);
    let place = usize::try_from(integer(record, "span2_index")?).map_err(|e| e.to_string())?;
    // Places are counted in words, and lengths in characters.
    let before = passage
        .split_whitespace()
        .take(place)
        .collect::<Vec<_>>()
        .join(" ");
    let skipped = before.chars().count() + pronoun.chars().count() + 1;
    let after: String = passage.chars().skip(skipped).collect();
    let mut marked = format!("{before} *{pronoun}*{after}");
    for (from, to) in [
        (" n't", "n't"),
        (" )", ")"),
        ("( ", "("),
        ("\" ", "\""),
        (" \"", "\""),
    ] {
        marked = marked.replace(from, to);
    }
    let marked = sub(&MARK, &marked, "$1");
    Ok(json!(format!(
        "Passage: {marked}\nQuestion: In the passage above, does the pronoun \"*{pronoun}*\" refer to \"*{noun}*\"?\nAnswer:"
    )))
}

const PRONOUNS: [&str; 11] = [
    "A", "An", "The", "She", "He", "It", "They", "My", "His", "Her", "Their",
];

pub(super) fn wsc273(record: Record) -> Result<Option<Record>, String> {
    let passage = text(&record, "text")?.replace("  ", " ");
    let possessive = ["my", "his", "her", "our", "their"]
        .contains(&text(&record, "pronoun")?.to_lowercase().as_str());
    // Python counts from the end where the place is below 2.
    let (place, length) = (
        integer(&record, "pronoun_loc")? - 2,
        passage.chars().count() as i64,
    );
    let place = if place < 0 { place + length } else { place };
    let before = usize::try_from(place)
        .ok()
        .and_then(|at| passage.chars().nth(at));
    let begins = before.ok_or("`pronoun_loc` is outside of `text`")? == '.';
    let mut options = Vec::new();
    for option in texts(&record, "options")? {
        let option = format!("{option}{}", if possessive { "'s" } else { "" });
        let first = option.split_whitespace().next().unwrap_or_default();
        options.push(if !begins && PRONOUNS.contains(&first) {
            option.replace(first, &first.to_lowercase())
        } else {
            option
        });
    }
    Ok(Some(with(
        record,
        fields(json!({ "text": passage, "options": options })),
    )))
}

pub(super) fn wikitext_target(record: &Record) -> Field {
    pattern!(YEAR, "/' [0-9]/");
    pattern!(ROUND, r"\(\s*([^\)]*?)\s*\)");
    pattern!(SQUARE, r"\[\s*([^\]]*?)\s*\]");
    pattern!(CURLY, r"\{\s*([^}]*?)\s*\}");
    pattern!(DOUBLE, "\"\\s*([^\"]*?)\\s*\"");
    pattern!(SINGLE, r"'\s*([^']*?)\s*'");
    let mut page = text(record, "page")?.replace("s '", "s'");
    page = sub(&YEAR, &page, "/'[0-9]/");
    for (from, to) in [
        (" @-@ ", "-"),
        (" @,@ ", ","),
        (" @.@ ", "."),
        (" : ", ": "),
        (" ; ", "; "),
        (" . ", ". "),
        (" ! ", "! "),
        (" ? ", "? "),
        (" , ", ", "),
    ] {
        page = page.replace(from, to);
    }
    page = sub(&ROUND, &page, "($1)");
    page = sub(&SQUARE, &page, "[$1]");
    page = sub(&CURLY, &page, "{$1}");
    page = sub(&DOUBLE, &page, "\"$1\"");
    page = sub(&SINGLE, &page, "'$1'");
    for (from, to) in [
        ("= = = =", "===="),
        ("= = =", "==="),
        ("= =", "=="),
        (" \u{b0} ", "\u{b0}"),
        (" \n", "\n"),
        ("\n ", "\n"),
        (" N ", " 1 "),
        (" 's", "'s"),
    ] {
        page = page.replace(from, to);
    }
    Ok(json!(page))
}
