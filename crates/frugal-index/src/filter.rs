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

/// One condition, as `year>1960`, `lang=en`, `venue in SIGIR,ECIR`, `city not in (Rome, "Paris, Texas")`.
///
/// Quotes, single or double, make a value text as it stands. Outside of them a comma, an operator or the
/// words `and` and `or` are refused: they are meant as more than one condition or value.
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

const SYMBOLS: [(&str, Operator); 8] = [
    ("<>", Operator::NotEqual),
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
        let (field, operator) = match field.rsplit_once(char::is_whitespace) {
            Some((name, word)) if list && word.eq_ignore_ascii_case("not") => {
                (name.trim_end(), Operator::NotEqual)
            }
            _ => (field, operator),
        };
        let values = match list {
            true => listed(value).map_err(|problem| wrong(&problem))?,
            false => vec![value],
        };
        let single = if list { "" } else { IN_QUOTES_OR_IN };
        let values = values.into_iter().map(|value| plain(value, single));
        Ok(Self {
            field: field.into(),
            operator,
            values: values
                .collect::<Result<_, _>>()
                .map_err(|problem| wrong(&problem))?,
        })
    }
}

/// What a comma in a single value may have meant.
const IN_QUOTES_OR_IN: &str =
    "for one of several values write `FIELD in A,B`, and put a value with a comma in quotes";
/// What an operator or a joining word in a value may have meant.
const ONE_AT_A_TIME: &str =
    "repeat `--filter` for another condition, and put a value that contains this in quotes";

/// The values of a list, in parentheses or brackets or in none; commas within quotes divide nothing.
fn listed(text: &str) -> Result<Vec<&str>, String> {
    let text = text.trim();
    let inner = [('(', ')'), ('[', ']')].iter().find_map(|&(open, close)| {
        let opened = text.strip_prefix(open)?;
        Some(opened.strip_suffix(close).ok_or_else(|| {
            format!("the list begins with `{open}` and does not end with `{close}`")
        }))
    });
    let text = inner.unwrap_or(Ok(text))?;
    let (mut values, mut start, mut quote) = (Vec::new(), 0, None);
    for (at, c) in text.char_indices() {
        match (quote, c) {
            (None, ',') => {
                values.push(&text[start..at]);
                start = at + 1;
            }
            (None, '"' | '\'') if text[start..at].trim().is_empty() => quote = Some(c),
            (Some(open), c) if c == open => quote = None,
            _ => {}
        }
    }
    values.push(&text[start..]);
    Ok(values)
}

/// A value without its quotes; outside of them nothing that other languages of filters would read as more
/// than a value. `comma` says what to do about a comma.
fn plain(value: &str, comma: &str) -> Result<String, String> {
    let value = value.trim();
    if let Some(quote) = value.chars().next().filter(|c| "\"'".contains(*c)) {
        let inner = &value[1..];
        let Some(end) = inner.find(quote) else {
            return Err(format!("the quote `{quote}` is not closed"));
        };
        return match inner[end + 1..].trim() {
            "" => Ok(inner[..end].to_owned()),
            behind => Err(format!(
                "there is `{behind}` behind the quotes; {ONE_AT_A_TIME}"
            )),
        };
    }
    if value.is_empty() {
        return Err("a value is missing behind the operator".into());
    }
    let words = ["and", "or", "&&", "||"];
    let joining = value
        .split_whitespace()
        .skip(1)
        .find(|word| words.iter().any(|known| word.eq_ignore_ascii_case(known)));
    if let Some(word) = joining {
        return Err(format!("the value contains `{word}`; {ONE_AT_A_TIME}"));
    }
    if let Some(sign) = value.chars().find(|c| "<>=".contains(*c)) {
        return Err(format!("the value contains `{sign}`; {ONE_AT_A_TIME}"));
    }
    match value.contains(',') && !comma.is_empty() {
        true => Err(format!("the value contains a comma; {comma}")),
        false => Ok(value.to_owned()),
    }
}

/// Field, operator, value, and whether it is a list; the operator that comes first counts.
fn split(text: &str) -> Option<(&str, Operator, &str, bool)> {
    let symbol = text.char_indices().find_map(|(at, _)| {
        let found = SYMBOLS.iter().find(|(s, _)| text[at..].starts_with(s));
        found.map(|(symbol, operator)| (at, symbol.len(), *operator))
    });
    let is_in = |at: &usize| text.as_bytes()[*at..*at + 4].eq_ignore_ascii_case(b" in ");
    let ends = text.len().saturating_sub(3);
    let word = (0..ends)
        .filter(|&at| text.is_char_boundary(at))
        .find(is_in);
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

    pub(crate) fn is_equality(&self) -> bool {
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
            Operator::NotEqual if self.values.len() > 1 => " not in ",
            operator => SYMBOLS
                .iter()
                .rfind(|(_, known)| *known == operator)
                .map_or("=", |(symbol, _)| symbol),
        };
        write!(f, "{}{symbol}", self.field)?;
        for (i, value) in self.values.iter().enumerate() {
            let comma = if i > 0 { "," } else { "" };
            match plain(value, IN_QUOTES_OR_IN) {
                Ok(same) if same == *value => write!(f, "{comma}{value}")?,
                _ if value.contains('"') => write!(f, "{comma}'{value}'")?,
                _ => write!(f, "{comma}\"{value}\"")?,
            }
        }
        Ok(())
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
            ("year<>1961", "year", Operator::NotEqual, vec!["1961"]),
            ("year>'1960'", "year", Operator::Greater, vec!["1960"]),
            ("lang='en'", "lang", Operator::Equal, vec!["en"]),
            ("name=O'Brien", "name", Operator::Equal, vec!["O'Brien"]),
            ("a='say \"x\"'", "a", Operator::Equal, vec!["say \"x\""]),
            (
                "lang IN [en, de]",
                "lang",
                Operator::Equal,
                vec!["en", "de"],
            ),
            (
                "city in 'Paris, Texas',\"a, b\", c",
                "city",
                Operator::Equal,
                vec!["Paris, Texas", "a, b", "c"],
            ),
            (
                "lang not in (en,de)",
                "lang",
                Operator::NotEqual,
                vec!["en", "de"],
            ),
            (
                "title='war and peace'",
                "title",
                Operator::Equal,
                vec!["war and peace"],
            ),
        ] {
            let found = condition(text);
            assert_eq!(
                (found.field.as_str(), found.operator),
                (field, operator),
                "{text}"
            );
            assert_eq!(found.values, values, "{text}");
            assert_eq!(condition(&found.to_string()), found, "{text}");
        }
        assert_eq!(condition("lang in en, de").to_string(), "lang in en,de");
        assert_eq!(condition("year>=1960").to_string(), "year>=1960");
        for text in ["year", "=3", "year>", "lang in ", "year > "] {
            assert!(text.parse::<Condition>().is_err(), "{text}");
        }
    }

    #[test]
    fn syntax_of_other_filters_was_taken_for_the_text_of_a_value() {
        for (text, hint) in [
            ("year>1960 and lang=en", "repeat `--filter`"),
            ("year>1960 AND lang=en", "repeat `--filter`"),
            ("year>1960 && recent", "repeat `--filter`"),
            ("year>1960 or lang=en", "repeat `--filter`"),
            ("year>1960||lang=en", "repeat `--filter`"),
            ("title=\"a\" and year>3", "repeat `--filter`"),
            ("year>=1960,year<1965", "repeat `--filter`"),
            ("year=>1960", "contains `>`"),
            ("year=1960,1961", "`FIELD in A,B`"),
            ("lang in (en,de", "does not end with `)`"),
            ("lang in ('en,de", "does not end with `)`"),
            ("lang='en", "not closed"),
            ("lang in en,\"de", "not closed"),
            ("lang in en,,de", "missing"),
            ("lang=\"en\"x", "behind the quotes"),
            ("é in ü and ö", "repeat `--filter`"),
        ] {
            let error = text.parse::<Condition>().unwrap_err().to_string();
            assert!(error.contains(hint), "{text}: {error}");
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
