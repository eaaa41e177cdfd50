//! Conditions on the metadata of documents.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use serde_json::{Map, Value};

use crate::error::IndexError;

/// How a value is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    /// `=`, or `in` with several values.
    Equal,
    /// `!=`; documents without the field fulfil it.
    NotEqual,
    /// `<`
    Less,
    /// `<=`
    LessOrEqual,
    /// `>`
    Greater,
    /// `>=`
    GreaterOrEqual,
}

/// One condition, as `year>1960`, `lang=en`, `venue in SIGIR,ECIR`.
///
/// Numbers are compared as numbers, also where the file has them as text; everything else as text,
/// by `<` and `>` in the order of its characters, which suits dates as `2024-05-01`. A field of
/// several values fulfils a condition if one of them does, and `!=` if none is equal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// Name of the metadata field; parts of nested ones are joined by dots.
    pub field: String,
    /// How it is compared.
    pub operator: Operator,
    /// What it is compared with: one value, for [`Operator::Equal`] and [`Operator::NotEqual`]
    /// perhaps several.
    pub values: Vec<String>,
}

/// Conditions that all have to be fulfilled.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// The conditions.
    pub conditions: Vec<Condition>,
}

impl Filter {
    /// Reads conditions, one in each text.
    ///
    /// # Errors
    /// A text that is not a condition.
    pub fn parse<S: AsRef<str>>(conditions: &[S]) -> Result<Self, IndexError> {
        let conditions = conditions.iter().map(|text| text.as_ref().parse());
        Ok(Self {
            conditions: conditions.collect::<Result<_, _>>()?,
        })
    }
}

impl Filter {
    /// Whether the metadata of a document fulfil all conditions, as in a search of an index.
    pub fn fits(&self, metadata: &Map<String, Value>) -> bool {
        self.conditions.iter().all(|condition| {
            let mut found = false;
            flattened(metadata, &mut |name, value| {
                found |= name == condition.field && condition.fits_value(value);
            });
            found != (condition.operator == Operator::NotEqual)
        })
    }
}

/// Values that conditions are about, with their names: parts of nested ones are joined by dots, and
/// the values of lists come one by one.
pub(crate) fn flattened<'a>(
    metadata: &'a Map<String, Value>,
    each: &mut dyn FnMut(&str, &'a Value),
) {
    fn walk<'a>(name: &str, value: &'a Value, each: &mut dyn FnMut(&str, &'a Value)) {
        match value {
            Value::Null => {}
            Value::Array(values) => values.iter().for_each(|value| walk(name, value, each)),
            Value::Object(inner) => {
                let dotted = |inner: &str| format!("{name}.{inner}");
                inner
                    .iter()
                    .for_each(|(n, value)| walk(&dotted(n), value, each));
            }
            _ => each(name, value),
        }
    }
    metadata
        .iter()
        .for_each(|(name, value)| walk(name, value, each));
}

const SYMBOLS: [(&str, Operator); 7] = [
    ("!=", Operator::NotEqual),
    (">=", Operator::GreaterOrEqual),
    ("<=", Operator::LessOrEqual),
    ("==", Operator::Equal),
    ("=", Operator::Equal),
    (">", Operator::Greater),
    ("<", Operator::Less),
];

impl FromStr for Condition {
    type Err = IndexError;

    fn from_str(text: &str) -> Result<Self, IndexError> {
        let wrong = |problem: &str| IndexError::Filter {
            filter: text.into(),
            problem: problem.into(),
        };
        let (field, operator, value, list) = split(text).ok_or_else(|| {
            wrong("expected a field, `=`, `!=`, `<`, `<=`, `>`, `>=` or `in`, and a value, as in `year>1960`")
        })?;
        let field = field.trim();
        if field.is_empty() {
            return Err(wrong("the name of a field is missing before the operator"));
        }
        let values: Vec<String> = match list {
            true => {
                let inner = value.trim();
                let inner = inner
                    .strip_prefix('(')
                    .and_then(|inner| inner.strip_suffix(')'))
                    .unwrap_or(inner);
                inner.split(',').map(unquoted).collect()
            }
            false => vec![unquoted(value)],
        };
        if values.iter().any(String::is_empty) && !value.contains('"') {
            return Err(wrong("a value is missing behind the operator"));
        }
        Ok(Self {
            field: field.into(),
            operator,
            values,
        })
    }
}

/// Field, operator, value, and whether it is a list; the operator that comes first counts.
fn split(text: &str) -> Option<(&str, Operator, &str, bool)> {
    let symbol = text.char_indices().find_map(|(at, _)| {
        let found = SYMBOLS.iter().find(|(s, _)| text[at..].starts_with(s));
        found.map(|(symbol, operator)| (at, symbol.len(), *operator))
    });
    let word = text.find(" in ");
    match (symbol, word) {
        (Some((at, ..)), Some(word)) if word < at => {
            Some((&text[..word], Operator::Equal, &text[word + 4..], true))
        }
        (None, Some(word)) => Some((&text[..word], Operator::Equal, &text[word + 4..], true)),
        (Some((at, length, operator)), _) => {
            Some((&text[..at], operator, &text[at + length..], false))
        }
        (None, None) => None,
    }
}

fn unquoted(value: &str) -> String {
    let value = value.trim();
    let inner = value.strip_prefix('"').and_then(|v| v.strip_suffix('"'));
    inner.unwrap_or(value).to_owned()
}

impl Condition {
    /// Whether one value of a field fulfils the condition; for [`Operator::NotEqual`], whether it is
    /// equal to one of the values.
    pub(crate) fn fits_number(&self, number: Number) -> bool {
        self.values.iter().any(|value| {
            let known = Number::parse(value);
            known.is_some_and(|known| self.fits(number.compare(known)))
        })
    }

    /// As [`Condition::fits_number`] of a text.
    pub(crate) fn fits_text(&self, text: &str) -> bool {
        let number = Number::parse(text);
        self.values.iter().any(|value| {
            let order = match (number, Number::parse(value)) {
                (Some(number), Some(known)) => number.compare(known),
                // A text that is no number is neither below nor above one.
                (None, Some(_)) if !self.is_equality() => return false,
                _ => Some(text.cmp(value)),
            };
            self.fits(order)
        })
    }

    /// As [`Condition::fits_number`] of a truth value.
    pub(crate) fn fits_bool(&self, truth: bool) -> bool {
        let name = if truth { "true" } else { "false" };
        self.is_equality() && self.values.iter().any(|v| v.eq_ignore_ascii_case(name))
    }

    fn fits_value(&self, value: &Value) -> bool {
        match value {
            Value::Bool(truth) => self.fits_bool(*truth),
            Value::String(text) => self.fits_text(text),
            Value::Number(number) => {
                let whole = (number.as_i64().map(i128::from)).or(number.as_u64().map(i128::from));
                let real = || number.as_f64().map(Number::Real);
                let number = whole.map(Number::Whole).or_else(real);
                number.is_some_and(|number| self.fits_number(number))
            }
            _ => false,
        }
    }

    fn is_equality(&self) -> bool {
        matches!(self.operator, Operator::Equal | Operator::NotEqual)
    }

    fn fits(&self, order: Option<Ordering>) -> bool {
        let Some(order) = order else { return false };
        match self.operator {
            Operator::Equal | Operator::NotEqual => order.is_eq(),
            Operator::Less => order.is_lt(),
            Operator::LessOrEqual => order.is_le(),
            Operator::Greater => order.is_gt(),
            Operator::GreaterOrEqual => order.is_ge(),
        }
    }
}

/// A number without rounding where it is whole.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Number {
    Whole(i128),
    Real(f64),
}

impl Number {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        // `inf`, `nan` and `infinity` are words in a field, not numbers.
        if !text.starts_with(|c: char| c.is_ascii_digit() || "+-.".contains(c)) {
            return None;
        }
        match text.parse::<i64>() {
            Ok(whole) => Some(Self::Whole(whole.into())),
            Err(_) => match text.parse::<f64>() {
                Ok(real) if real.is_finite() => Some(Self::Real(real)),
                _ => None,
            },
        }
    }

    fn real(self) -> f64 {
        match self {
            Self::Whole(whole) => whole as f64,
            Self::Real(real) => real,
        }
    }

    fn compare(self, other: Self) -> Option<Ordering> {
        match (self, other) {
            (Self::Whole(a), Self::Whole(b)) => Some(a.cmp(&b)),
            _ => self.real().partial_cmp(&other.real()),
        }
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let symbol = match self.operator {
            Operator::Equal if self.values.len() > 1 => " in ",
            operator => SYMBOLS
                .iter()
                .rfind(|(_, known)| *known == operator)
                .map_or("=", |(symbol, _)| symbol),
        };
        write!(f, "{}{symbol}{}", self.field, self.values.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn condition(text: &str) -> Condition {
        text.parse().unwrap()
    }

    #[test]
    fn conditions_are_read_and_shown() {
        for (text, field, operator, values) in [
            ("year>1960", "year", Operator::Greater, vec!["1960"]),
            (
                "year >= 1960",
                "year",
                Operator::GreaterOrEqual,
                vec!["1960"],
            ),
            ("a.b!=\"x = y\"", "a.b", Operator::NotEqual, vec!["x = y"]),
            ("lang in en, de", "lang", Operator::Equal, vec!["en", "de"]),
            ("lang in (en,de)", "lang", Operator::Equal, vec!["en", "de"]),
            (
                "title=born in May",
                "title",
                Operator::Equal,
                vec!["born in May"],
            ),
            ("note=\"\"", "note", Operator::Equal, vec![""]),
        ] {
            let found = condition(text);
            assert_eq!(
                (found.field.as_str(), found.operator),
                (field, operator),
                "{text}"
            );
            assert_eq!(found.values, values, "{text}");
        }
        assert_eq!(condition("lang in en, de").to_string(), "lang in en,de");
        assert_eq!(condition("year>=1960").to_string(), "year>=1960");
        for text in ["year", "=3", "year>", "lang in ", "year > "] {
            assert!(text.parse::<Condition>().is_err(), "{text}");
        }
    }

    #[test]
    fn numbers_in_texts_are_numbers_and_words_are_not() {
        assert!(condition("year>1960").fits_text("1961"));
        assert!(!condition("year>1960").fits_text("unknown"));
        assert!(condition("zip=7").fits_text("007"));
        assert!(!condition("zip=\"x\"").fits_text("007"));
        assert!(condition("date>2024-05-01").fits_text("2024-11-01"));
        let large = condition("n=9007199254740993");
        assert!(!large.fits_number(Number::Whole(9_007_199_254_740_992)));
        assert!(condition("x<0.5").fits_number(Number::Real(0.25)));
        assert!(condition("ok=TRUE").fits_bool(true) && !condition("ok>true").fits_bool(true));
    }
}
