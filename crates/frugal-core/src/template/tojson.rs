//! The filter `tojson`: JSON as Python's `json.dumps` writes it, with the options that transformers
//! gives it (`chat_template_utils`); the engine's own filter also escapes HTML.

use std::cmp::Ordering;
use std::fmt::Write;

use minijinja::value::{Kwargs, Rest, Value, ValueKind};
use minijinja::{Error, ErrorKind, State};

use super::weight::weigh;

/// Widest indentation of JSON: it is written once per line and level.
const MAX_INDENT: i64 = 64;
/// Options in the order in which they are taken without their names.
const OPTIONS: [&str; 4] = ["ensure_ascii", "indent", "separators", "sort_keys"];

fn refused(why: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("tojson: {why}"))
}

/// `json.dumps(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False)`.
///
/// # Errors
/// Options that Python does not take, values that JSON has no form for, and what is too much.
pub(super) fn tojson(
    state: &State,
    value: &Value,
    positional: Rest<Value>,
    named: Kwargs,
) -> Result<Value, Error> {
    weigh(state, value)?;
    if positional.len() > OPTIONS.len() {
        return Err(refused(format!("more than {} options", OPTIONS.len())));
    }
    let mut options: [Option<Value>; 4] = Default::default();
    for (i, (option, name)) in options.iter_mut().zip(OPTIONS).enumerate() {
        let (first, second) = (positional.get(i).cloned(), named.get(name)?);
        if first.is_some() && named.has(name) {
            return Err(refused(format!("`{name}` is given twice")));
        }
        *option = first.or(second).filter(|v: &Value| !v.is_none());
    }
    named.assert_all_used()?;
    let [ascii, indent, separators, sorted] = options;
    let indent = indent.map(|indent| indentation(&indent)).transpose()?;
    let [between, colon] = match separators {
        Some(pair) => pair_of(&pair)?,
        None if indent.is_some() => [",", ": "].map(str::to_owned),
        None => [", ", ": "].map(str::to_owned),
    };
    let mut writer = Writer {
        state,
        ascii: ascii.is_some_and(|v| v.is_true()),
        sorted: sorted.is_some_and(|v| v.is_true()),
        indent,
        between,
        colon,
        out: String::new(),
    };
    writer.value(value, 0)?;
    Ok(Value::from(writer.out))
}

/// What a level of nesting is written by: so many spaces, or this text.
fn indentation(indent: &Value) -> Result<String, Error> {
    if let Some(text) = indent.as_str() {
        return match text.len() as i64 > MAX_INDENT {
            true => Err(refused(format!("an indent of more than {MAX_INDENT}"))),
            false => Ok(text.to_owned()),
        };
    }
    let count = match indent.kind() {
        ValueKind::Bool => i128::from(indent.is_true()),
        ValueKind::Number if indent.is_integer() => {
            i128::try_from(indent.clone()).unwrap_or(i128::MAX)
        }
        _ => return Err(refused(format!("an indent of {indent}"))),
    };
    if count > i128::from(MAX_INDENT) {
        return Err(refused(format!("an indent of more than {MAX_INDENT}")));
    }
    Ok(" ".repeat(usize::try_from(count).unwrap_or(0)))
}

fn pair_of(pair: &Value) -> Result<[String; 2], Error> {
    let wrong = || refused("`separators` are two texts: between items, and behind a key");
    if pair.kind() != ValueKind::Seq {
        return Err(wrong());
    }
    let texts = pair.try_iter()?.take(3);
    let texts: Option<Vec<String>> = texts.map(|v| v.as_str().map(str::to_owned)).collect();
    texts
        .and_then(|texts| <[String; 2]>::try_from(texts).ok())
        .ok_or_else(wrong)
}

struct Writer<'a, 'b> {
    state: &'a State<'a, 'b>,
    ascii: bool,
    sorted: bool,
    indent: Option<String>,
    between: String,
    colon: String,
    out: String,
}

impl Writer<'_, '_> {
    fn value(&mut self, value: &Value, level: usize) -> Result<(), Error> {
        match value.kind() {
            ValueKind::String => self.text(value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                let items = value.try_iter()?;
                self.list(['[', ']'], items, level, |own, item| {
                    own.value(&item, level + 1)
                })?;
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sorted {
                    sort(&mut keys)?;
                }
                self.list(['{', '}'], keys.into_iter(), level, |own, key| {
                    match key.as_str() {
                        Some(key) => own.text(key),
                        None => {
                            let key = scalar(&key)?;
                            own.text(&key);
                        }
                    }
                    own.charge(own.colon.len())?;
                    own.out.push_str(&own.colon);
                    own.value(&value.get_item(&key)?, level + 1)
                })?;
            }
            _ => {
                let text = scalar(value)?;
                self.out.push_str(&text);
            }
        }
        Ok(())
    }

    fn list(
        &mut self,
        [open, close]: [char; 2],
        items: impl Iterator<Item = Value>,
        level: usize,
        mut write: impl FnMut(&mut Self, Value) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.out.push(open);
        let mut is_empty = true;
        for item in items {
            if !is_empty {
                self.charge(self.between.len())?;
                self.out.push_str(&self.between);
            }
            is_empty = false;
            self.line(level + 1)?;
            write(self, item)?;
        }
        if !is_empty {
            self.line(level)?;
        }
        self.out.push(close);
        Ok(())
    }

    /// A new line of this level, where lines are begun at all.
    fn line(&mut self, level: usize) -> Result<(), Error> {
        let Some(indent) = &self.indent else {
            return Ok(());
        };
        self.charge(indent.len() * level)?;
        self.out.push('\n');
        (0..level).for_each(|_| self.out.push_str(indent));
        Ok(())
    }

    /// Charges what is written between values, as the values themselves were.
    fn charge(&self, bytes: usize) -> Result<(), Error> {
        self.state.consume_fuel(bytes as u64 / 64)
    }

    fn text(&mut self, text: &str) {
        self.out.push('"');
        for c in text.chars() {
            match c {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                c if c < ' ' || (self.ascii && !(' '..='~').contains(&c)) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        let _ = write!(self.out, "\\u{unit:04x}");
                    }
                }
                c => self.out.push(c),
            }
        }
        self.out.push('"');
    }
}

/// What is neither text nor list nor map, as a value and as a key.
fn scalar(value: &Value) -> Result<String, Error> {
    match value.kind() {
        ValueKind::None => Ok("null".into()),
        ValueKind::Bool => Ok(value.is_true().to_string()),
        ValueKind::Number if value.is_integer() => Ok(value.to_string()),
        ValueKind::Number => f64::try_from(value.clone()).map(repr),
        kind => Err(refused(format!("a value of type {kind} is not JSON"))),
    }
}

/// Keys in Python's order, which knows none between texts and numbers.
fn sort(keys: &mut [Value]) -> Result<(), Error> {
    let is_number = |v: &Value| matches!(v.kind(), ValueKind::Number | ValueKind::Bool);
    if keys.iter().all(|key| key.as_str().is_some()) {
        keys.sort_by(|a, b| a.as_str().cmp(&b.as_str()));
    } else if keys.iter().all(is_number) {
        keys.sort_by(|a, b| a.partial_cmp(b).unwrap_or(Ordering::Equal));
    } else if keys.len() > 1 {
        return Err(refused("`sort_keys` with keys that have no order"));
    }
    Ok(())
}

/// `float.__repr__`, and the names that `json` has for what is not finite.
fn repr(x: f64) -> String {
    if x.is_nan() {
        return "NaN".into();
    }
    if x.is_infinite() {
        return if x > 0.0 { "Infinity" } else { "-Infinity" }.into();
    }
    let short = format!("{x:e}");
    let Some((digits, exponent)) = short.split_once('e') else {
        return short;
    };
    match exponent.parse::<i32>() {
        Ok(exponent) if !(-4..16).contains(&exponent) => {
            let sign = if exponent < 0 { '-' } else { '+' };
            format!("{digits}e{sign}{:02}", exponent.unsigned_abs())
        }
        _ => format!("{x:?}"),
    }
}
