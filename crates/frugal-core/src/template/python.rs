//! What templates that were written for jinja2 call of Python, charged before it is made.

use minijinja::value::{Rest, Value};
use minijinja::{Error, ErrorKind, State};

/// Methods of Python's strings, lists and dicts, for templates that were written for jinja2.
///
/// # Errors
/// An unknown method, and what the method itself refuses.
pub fn python_method(
    state: &mut State,
    value: &Value,
    method: &str,
    args: &[Value],
) -> Result<Value, Error> {
    if let Some(text) = value.as_str() {
        charge_method(state, text, method, args)?;
    }
    match (method, value.as_str()) {
        // The crate's own starts words at white space only.
        ("title", Some(text)) if args.is_empty() => Ok(Value::from(title(text))),
        ("index", None) if let ([wanted], Ok(mut items)) = (args, value.try_iter()) => {
            match items.position(|item| item == *wanted) {
                Some(place) => Ok(Value::from(place)),
                None => Err(Error::new(
                    ErrorKind::InvalidOperation,
                    format!("{wanted} is not in the list"),
                )),
            }
        }
        _ => minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args),
    }
}

/// Charges what a method of a text will make, before it is made.
fn charge_method(state: &State, text: &str, method: &str, args: &[Value]) -> Result<(), Error> {
    let length = |value: &Value| value.as_str().map_or(32, str::len);
    let made = match method {
        "replace" => match args {
            [old, new, ..] => {
                let places = match old.as_str().unwrap_or_default() {
                    "" => text.len() + 1,
                    old => text.matches(old).count(),
                };
                places.saturating_mul(length(new))
            }
            _ => 0,
        },
        "join" => {
            let items = args.first().and_then(|items| items.try_iter().ok());
            for item in items.into_iter().flatten() {
                state.consume_fuel(1 + (length(&item) + text.len()) as u64 / 64)?;
            }
            0
        }
        // Each place may write the longest argument, and a width says how often a space.
        "format" => {
            let longest = args.iter().map(length).max().unwrap_or(0);
            let places = text.matches('{').count().saturating_mul(longest);
            places.saturating_add(largest_number(text))
        }
        "center" | "ljust" | "rjust" | "zfill" => args.first().map_or(0, width),
        "expandtabs" => {
            let tabs = text.matches('\t').count();
            args.first().map_or(8, width).saturating_mul(tabs)
        }
        _ => 0,
    };
    state.consume_fuel(made as u64 / 64)
}

fn width(value: &Value) -> usize {
    value
        .as_i64()
        .map_or(0, |n| usize::try_from(n).unwrap_or(0))
}

/// The largest whole number that a text spells.
fn largest_number(text: &str) -> usize {
    let digits = text.split(|c: char| !c.is_ascii_digit());
    let numbers = digits.filter(|d| !d.is_empty());
    let value = |d: &str| d.parse().unwrap_or(usize::MAX);
    numbers.map(value).max().unwrap_or(0)
}

/// As Python's `str.title`: a capital after whatever is no letter.
fn title(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut inside = false;
    for c in text.chars() {
        if inside {
            out.extend(c.to_lowercase());
        } else {
            out.extend(c.to_uppercase());
        }
        inside = c.is_alphabetic();
    }
    out
}

/// Jinja's `join`, which charges for the texts of the list as well as for those between them: a
/// list repeats its items for nothing.
pub(super) fn join(state: &mut State, items: &Value, rest: Rest<Value>) -> Result<Value, Error> {
    for item in items.try_iter().into_iter().flatten() {
        let length = item.as_str().map_or(32, str::len);
        state.consume_fuel(1 + length as u64 / 64)?;
    }
    let args: Vec<Value> = std::iter::once(items.clone()).chain(rest.0).collect();
    Value::from_function(minijinja::filters::join).call(state, &args)
}
