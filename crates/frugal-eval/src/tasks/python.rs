//! Values and expressions as Python has them: task files of lm-evaluation-harness were written for
//! jinja2, `ast.literal_eval` and `re`.

use fancy_regex::Regex;
use serde_json::{Map, Number, Value};

/// Nested lists and dictionaries that are read at most.
const DEEPEST: usize = 64;

/// `str(value)`.
pub(super) fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => repr(other),
    }
}

/// `repr(value)`.
pub(super) fn repr(value: &Value) -> String {
    match value {
        Value::Null => "None".into(),
        Value::Bool(true) => "True".into(),
        Value::Bool(false) => "False".into(),
        Value::Number(n) => number(n),
        Value::String(text) => quoted(text),
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(repr).collect();
            format!("[{}]", items.join(", "))
        }
        Value::Object(fields) => {
            let fields: Vec<String> = fields
                .iter()
                .map(|(key, value)| format!("{}: {}", quoted(key), repr(value)))
                .collect();
            format!("{{{}}}", fields.join(", "))
        }
    }
}

fn number(n: &Number) -> String {
    let Some(value) = n.as_f64().filter(|_| n.is_f64()) else {
        return n.to_string();
    };
    let size = value.abs();
    if size != 0.0 && !(1e-4..1e16).contains(&size) {
        let text = format!("{value:e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, exponent) = exponent
            .strip_prefix('-')
            .map_or(('+', exponent), |e| ('-', e));
        return format!("{digits}e{sign}{exponent:0>2}");
    }
    format!("{value:?}")
}

fn quoted(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') {
        '"'
    } else {
        '\''
    };
    let mut out = String::from(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => {
                out.push('\\');
                out.push(c);
            }
            c if c.is_control() => out.push_str(&format!("\\x{:02x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push(quote);
    out
}

/// `text.isdigit()` for what `ast.literal_eval` then reads as a number.
pub(super) fn digits(text: &str) -> Option<usize> {
    let plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let leading_zero = text.len() > 1 && text.starts_with('0');
    if plain && !leading_zero {
        text.parse().ok()
    } else {
        None
    }
}

/// `ast.literal_eval(text)` of lists, tuples, dictionaries, texts and numbers; tuples become lists.
pub(super) fn literal(text: &str) -> Option<Value> {
    let mut reader = Reader {
        rest: text.trim(),
        depth: 0,
    };
    let value = reader.value()?;
    reader.rest.trim_start().is_empty().then_some(value)
}

struct Reader<'a> {
    rest: &'a str,
    depth: usize,
}

impl Reader<'_> {
    fn skip(&mut self, token: &str) -> bool {
        let rest = self.rest.trim_start();
        let found = rest.strip_prefix(token);
        self.rest = found.unwrap_or(rest);
        found.is_some()
    }

    fn value(&mut self) -> Option<Value> {
        if self.depth >= DEEPEST {
            return None;
        }
        self.depth += 1;
        let value = if self.skip("[") {
            self.items("]").map(Value::Array)
        } else if self.skip("(") {
            self.items(")").map(Value::Array)
        } else if self.skip("{") {
            self.fields()
        } else if self.rest.starts_with(['\'', '"']) {
            self.strings()
        } else {
            self.word()
        };
        self.depth -= 1;
        value
    }

    fn items(&mut self, end: &str) -> Option<Vec<Value>> {
        let mut items = Vec::new();
        loop {
            if self.skip(end) {
                return Some(items);
            }
            items.push(self.value()?);
            if !self.skip(",") {
                return self.skip(end).then_some(items);
            }
        }
    }

    fn fields(&mut self) -> Option<Value> {
        let mut fields = Map::new();
        loop {
            if self.skip("}") {
                return Some(Value::Object(fields));
            }
            let key = text(&self.value()?);
            if !self.skip(":") {
                return None;
            }
            fields.insert(key, self.value()?);
            if !self.skip(",") {
                return self.skip("}").then_some(Value::Object(fields));
            }
        }
    }

    /// One text, or several that stand beside each other.
    fn strings(&mut self) -> Option<Value> {
        let mut all = String::new();
        while let Some(quote) = self.rest.chars().next().filter(|c| matches!(c, '\'' | '"')) {
            self.string(quote, &mut all)?;
            self.rest = self.rest.trim_start();
        }
        Some(Value::String(all))
    }

    fn string(&mut self, quote: char, out: &mut String) -> Option<()> {
        let three: String = [quote; 3].iter().collect();
        let long = self.rest.starts_with(&three);
        let end = if long { three } else { quote.to_string() };
        let body = &self.rest[end.len()..];
        let mut chars = body.char_indices();
        while let Some((at, c)) = chars.next() {
            match c {
                _ if body[at..].starts_with(&end) => {
                    self.rest = &body[at + end.len()..];
                    return Some(());
                }
                '\n' if !long => return None,
                '\\' => {
                    let escaped = chars.next()?.1;
                    let long = match escaped {
                        'x' => 2,
                        'u' => 4,
                        'U' => 8,
                        _ => 0,
                    };
                    if long > 0 {
                        let code: String = chars.by_ref().take(long).map(|(_, c)| c).collect();
                        out.push(char::from_u32(u32::from_str_radix(&code, 16).ok()?)?);
                        continue;
                    }
                    match escaped {
                        'n' => out.push('\n'),
                        'r' => out.push('\r'),
                        't' => out.push('\t'),
                        '0' => out.push('\0'),
                        '\n' => {}
                        '\\' | '\'' | '"' => out.push(escaped),
                        other => out.extend(['\\', other]),
                    }
                }
                c => out.push(c),
            }
        }
        None
    }

    fn word(&mut self) -> Option<Value> {
        let end = self
            .rest
            .find(|c: char| c.is_whitespace() || ",:]})".contains(c))
            .unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        match word {
            "None" => Some(Value::Null),
            "True" => Some(Value::Bool(true)),
            "False" => Some(Value::Bool(false)),
            _ if word
                .trim_start_matches(['-', '+'])
                .starts_with(|c: char| c.is_ascii_digit() || c == '.') =>
            {
                let plain = word.replace('_', "");
                plain.parse::<i64>().map(Value::from).ok().or_else(|| {
                    plain
                        .parse::<f64>()
                        .ok()
                        .and_then(Number::from_f64)
                        .map(Value::Number)
                })
            }
            _ => None,
        }
    }
}

/// A pattern of Python's `re`.
///
/// # Errors
/// What is wrong with it.
pub(super) fn regex(pattern: &str) -> Result<Regex, String> {
    Regex::new(&translated(pattern)).map_err(|e| format!("`{pattern}`: {e}"))
}

/// What the two engines read differently: `$` also matches before a newline at the end, `\Z` is the
/// very end, and `[`, `&&`, `--` and `~~` have no meaning of their own inside brackets.
fn translated(pattern: &str) -> String {
    let by_lines = pattern
        .strip_prefix("(?")
        .and_then(|rest| rest.split([')', ':']).next())
        .is_some_and(|flags| flags.chars().all(char::is_alphabetic) && flags.contains('m'));
    let mut out = String::with_capacity(pattern.len());
    let mut chars = pattern.chars().peekable();
    let mut class: Option<usize> = None;
    while let Some(c) = chars.next() {
        match (c, class) {
            ('\\', _) => match chars.next() {
                Some('Z') if class.is_none() => out.push_str("\\z"),
                Some(' ') => out.push_str("\\x20"),
                Some(escaped) => out.extend(['\\', escaped]),
                None => out.push('\\'),
            },
            ('[', None) => {
                class = Some(0);
                out.push('[');
                if chars.peek() == Some(&'^') {
                    chars.next();
                    out.push('^');
                }
                // A bracket that comes first is one of the characters.
                if chars.peek() == Some(&']') {
                    chars.next();
                    out.push_str("\\]");
                    class = Some(1);
                }
            }
            (']', Some(_)) => {
                class = None;
                out.push(']');
            }
            ('[', Some(n)) => {
                class = Some(n + 1);
                out.push_str("\\[");
            }
            ('&' | '~', Some(n)) => {
                class = Some(n + 1);
                out.extend(['\\', c]);
            }
            (c, Some(n)) => {
                class = Some(n + 1);
                out.push(c);
            }
            ('$', None) if !by_lines => out.push_str("(?=\\n?\\z)"),
            (c, None) => out.push(c),
        }
    }
    out
}

/// `re.sub(pattern, replacement, text)` with `\1` for groups.
pub(super) fn replace_all(regex: &Regex, text: &str, replacement: &str) -> String {
    let mut template = String::new();
    let mut chars = replacement.chars();
    while let Some(c) = chars.next() {
        match c {
            '$' => template.push_str("$$"),
            '\\' => match chars.next() {
                Some(d) if d.is_ascii_digit() => template.push_str(&format!("${{{d}}}")),
                Some('n') => template.push('\n'),
                Some(other) => template.push(other),
                None => template.push('\\'),
            },
            c => template.push(c),
        }
    }
    // A pattern that takes too long on this text leaves it as it is.
    regex
        .try_replacen(text, 0, template.as_str())
        .map_or_else(|_| text.to_owned(), std::borrow::Cow::into_owned)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Of Python 3.11's `str`, `repr` and `ast.literal_eval`.
    #[test]
    fn values_are_written_and_read_as_python_does() {
        for (value, expected) in [
            (
                json!(["a", "b's", "c\"d'e\n"]),
                r#"['a', "b's", 'c"d\'e\n']"#,
            ),
            (
                json!([1, 1.0, 1e16, 1e-5, -2.5e-7, true, null]),
                "[1, 1.0, 1e+16, 1e-05, -2.5e-07, True, None]",
            ),
            (json!({"a": [1], "b": "x"}), "{'a': [1], 'b': 'x'}"),
        ] {
            assert_eq!(text(&value), expected);
            assert_eq!(literal(expected), Some(value));
        }
        assert_eq!(text(&json!("plain 'text'")), "plain 'text'");
        assert_eq!(literal("('a', )"), Some(json!(["a"])));
        assert_eq!(
            literal("['a' 'b', \"\\u00e9\\x41\"]"),
            Some(json!(["ab", "éA"]))
        );
        let long = r#"['''it's so''', """b\n"""]"#;
        assert_eq!(literal(long), Some(json!(["it's so", "b\n"])));
        for bad in ["[a]", "['a'", "['a' b]", "", "[1, 2]]", "f('x')"] {
            assert_eq!(literal(bad), None, "{bad}");
        }
        assert_eq!(literal(&"[".repeat(100_000)), None);
        assert_eq!(
            (
                digits("12"),
                digits("012"),
                digits("-1"),
                digits(" 1"),
                digits("")
            ),
            (Some(12), None, None, None, None)
        );
    }

    /// Of Python 3.11's `re.findall`.
    #[test]
    fn patterns_match_what_they_match_in_python() {
        let first = |pattern: &str, text: &str| {
            regex(pattern)
                .unwrap()
                .find(text)
                .unwrap()
                .map(|m| m.as_str().to_owned())
        };
        assert_eq!(first(r"\.$", "5.\n").as_deref(), Some("."));
        assert_eq!(first(r"5$", "5\n\n"), None);
        assert_eq!(first(r"(?m)^b$", "a\nb\nc").as_deref(), Some("b"));
        assert_eq!(first("[[a]+", "x[a[").as_deref(), Some("[a["));
        assert_eq!(first("[]a]+", "x]a").as_deref(), Some("]a"));
        assert_eq!(first("[a&&b]+", "x&b&").as_deref(), Some("&b&"));
        assert_eq!(
            first(r"(?<=the answer is )(.*)(?=.)", "So the answer is 12.").as_deref(),
            Some("12")
        );
        assert_eq!(first(r"a\Z", "ba").as_deref(), Some("a"));
        assert!(regex("(").unwrap_err().contains('('));
        let swap = regex(r"(\w) (\w)").unwrap();
        assert_eq!(replace_all(&swap, "a b$", r"\2$\1"), "b$a$");
    }
}
