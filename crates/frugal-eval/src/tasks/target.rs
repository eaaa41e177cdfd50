//! What is right: from a record to a choice, a text or a list of them, by the rules of
//! lm-evaluation-harness.

use serde_json::Value;

use super::kind::Kind;
use super::record::Record;
use super::task::Prompt;
use super::template::{FUNCTION, Renderer};
use super::{EvalError, python};

/// What is right.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Target {
    /// One of the choices.
    Index(usize),
    Text(String),
    /// Any of these.
    List(Vec<Value>),
}

/// What a record gives.
pub(super) struct Rendered {
    pub text: String,
    /// The right choice, where the choices are what is given.
    pub given: Option<usize>,
    pub target: Target,
    /// The target as it is kept.
    pub shown: Value,
    /// What the answer begins with.
    pub prefix: String,
    pub choices: Vec<String>,
}

/// A record through the templates of a prompt.
pub(super) fn rendered(
    prompt: &Prompt,
    kind: Kind,
    renderer: &Renderer,
    record: &Record,
    row: usize,
) -> Result<Rendered, EvalError> {
    let choices = choices(prompt, renderer, record, row)?;
    let has_choices = !choices.is_empty();
    let prefix = renderer.text(&prompt.gen_prefix, record, row)?;
    let shown = renderer.value(&prompt.target, record, row)?;
    let target = target(prompt, &shown, record, has_choices)
        .map_err(|reason| renderer.refused(row, reason))?;
    let (mut text, mut given) = (String::new(), None);
    if kind != Kind::LoglikelihoodRolling && !prompt.text.is_empty() {
        let value = renderer.value(&prompt.text, record, row)?;
        text = python::text(&value);
        let is_field = record.contains_key(&prompt.text) || prompt.text.starts_with(FUNCTION);
        given = match value.as_u64() {
            Some(number) if has_choices => usize::try_from(number).ok(),
            // The digits of a field are text, those of a template a number.
            _ if has_choices && !is_field => python::digits(&text),
            _ => None,
        };
    }
    if given.is_some_and(|given| given >= choices.len()) {
        let reason = format!(
            "the right choice is number {text}, but there are {}",
            choices.len()
        );
        return Err(renderer.refused(row, reason));
    }
    Ok(Rendered {
        text,
        given,
        target,
        shown,
        prefix,
        choices,
    })
}

fn choices(
    prompt: &Prompt,
    renderer: &Renderer,
    record: &Record,
    row: usize,
) -> Result<Vec<String>, EvalError> {
    let fail = |reason: String| renderer.refused(row, reason);
    let field = &prompt.choices_field;
    let choices: Vec<String> = if field.is_empty() {
        let of = |c: &String| renderer.render(c, record, row);
        prompt.choices.iter().map(of).collect::<Result<_, _>>()?
    } else {
        let list = match renderer.value(field, record, row)? {
            Value::String(text) => python::literal(&text),
            other => Some(other),
        };
        let list = list
            .as_ref()
            .and_then(Value::as_array)
            .ok_or_else(|| fail(format!("`{field}` is not a list of choices")))?;
        let text = |c: &Value| {
            c.as_str()
                .map(str::to_owned)
                .ok_or_else(|| fail(format!("`{field}` holds something that is not text")))
        };
        list.iter().map(text).collect::<Result<_, _>>()?
    };
    let wanted = !field.is_empty() || !prompt.choices.is_empty();
    if wanted && (choices.is_empty() || choices.iter().any(String::is_empty)) {
        return Err(fail("there must be choices, none of them empty".into()));
    }
    if prompt.letters && choices.len() == 1 {
        return Err(fail("there must be at least two choices".into()));
    }
    Ok(choices)
}

/// A number that the record itself holds is a choice, and so are digits that a template gives;
/// texts that look like a list are one.
fn target(
    prompt: &Prompt,
    value: &Value,
    record: &Record,
    has_choices: bool,
) -> Result<Target, String> {
    let source = &prompt.target;
    let as_it_is = record.contains_key(source) || source.starts_with(FUNCTION);
    let text = match value {
        Value::Array(items) => return Ok(Target::List(items.clone())),
        Value::String(text) if as_it_is => return Ok(Target::Text(text.clone())),
        Value::Bool(truth) if as_it_is && has_choices => {
            return Ok(Target::Index(usize::from(*truth)));
        }
        Value::Number(n) if as_it_is && has_choices => {
            let whole = n.as_f64().filter(|n| *n >= 0.0 && n.fract() == 0.0);
            return whole
                .map(|n| Target::Index(n as usize))
                .ok_or_else(|| format!("the target {n} is the number of no choice"));
        }
        other => python::text(other),
    };
    if let Some(number) = python::digits(&text).filter(|_| has_choices) {
        return Ok(Target::Index(number));
    }
    if !as_it_is
        && text.starts_with('[')
        && text.ends_with(']')
        && let Some(Value::Array(items)) = python::literal(&text)
    {
        return Ok(Target::List(items));
    }
    Ok(Target::Text(text))
}

/// Numbers of the right choices.
pub(super) fn golds(prompt: &Prompt, rendered: &Rendered) -> Result<Vec<usize>, String> {
    if let Some(given) = rendered.given {
        return Ok(vec![given]);
    }
    let choices = &rendered.choices;
    let inside = |number: usize| {
        (number < choices.len()).then_some(number).ok_or_else(|| {
            format!(
                "the target is choice {number} from 0, but there are {}",
                choices.len()
            )
        })
    };
    match &rendered.target {
        Target::Index(number) => inside(*number).map(|gold| vec![gold]),
        Target::Text(text) => {
            let plain = if prompt.letters { text.trim() } else { text };
            let place = choices.iter().position(|choice| choice == plain);
            let place =
                place.or_else(|| letter(plain).filter(|i| prompt.letters && *i < choices.len()));
            place.map(|gold| vec![gold]).ok_or_else(|| {
                let or_letter = if prompt.letters {
                    ", its number or letter"
                } else {
                    " nor its number"
                };
                format!("the target {text:?} is neither one of the choices{or_letter}")
            })
        }
        Target::List(items) => items
            .iter()
            .map(|item| {
                let number = item.as_u64().and_then(|n| usize::try_from(n).ok());
                number
                    .ok_or_else(|| {
                        format!("the targets hold {item}, which is the number of no choice")
                    })
                    .and_then(inside)
            })
            .collect(),
    }
}

fn letter(text: &str) -> Option<usize> {
    let mut letters = text.chars();
    match (letters.next(), letters.next()) {
        (Some(letter @ 'A'..='Z'), None) => Some(letter as usize - 'A' as usize),
        _ => None,
    }
}

/// Texts that count as right.
pub(super) fn accepted(rendered: &Rendered) -> Result<Vec<String>, String> {
    match &rendered.target {
        Target::Index(number) => rendered
            .choices
            .get(*number)
            .map(|choice| vec![choice.clone()])
            .ok_or_else(|| format!("there is no choice {number}")),
        Target::Text(text) => Ok(vec![text.clone()]),
        Target::List(items) => Ok(items.iter().map(python::text).collect()),
    }
}

/// What an example answers.
pub(super) fn answer(rendered: &Rendered) -> Result<String, String> {
    let choice = |number: usize| {
        rendered
            .choices
            .get(number)
            .cloned()
            .ok_or_else(|| format!("there is no choice {number}"))
    };
    match &rendered.target {
        Target::Index(number) => choice(*number),
        Target::Text(text) => Ok(text.clone()),
        Target::List(items) => match items.first() {
            Some(Value::Number(n)) if !rendered.choices.is_empty() => {
                let number = n.as_u64().and_then(|n| usize::try_from(n).ok());
                choice(number.ok_or_else(|| format!("there is no choice {n}"))?)
            }
            Some(first) => Ok(python::text(first)),
            None => Err("an example has an empty list of targets".into()),
        },
    }
}

/// A target as a value.
pub(super) fn shown(target: &Target) -> Value {
    match target {
        Target::Index(number) => (*number).into(),
        Target::Text(text) => text.as_str().into(),
        Target::List(items) => items.clone().into(),
    }
}
