//! Chat templates: Jinja as `transformers` configures it.

use std::fmt;
use std::sync::{Arc, LazyLock};
use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Rest, Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State};
use regex::Regex;
use serde_json::{Map, Value as Json};
use sha2::{Digest, Sha256};
use thiserror::Error as ThisError;

use crate::data::{Conversation, Message};
use crate::tokenizer_settings::TokenizerSettings;

mod bounds;
mod named;
mod nesting;

pub use bounds::{bound, guarded, watched};
pub use named::{named, names};

const NAME: &str = "chat_template";
/// Steps that one rendering may take, as the engine counts them: instructions, and the bytes that
/// are made, 64 to a step. Long conversations with tools take some ten thousand.
const FUEL: u64 = 2_000_000;
/// Keys of a turn that say nothing about its text.
const IDLE: [&str; 12] = [
    "id",
    "uuid",
    "index",
    "timestamp",
    "created_at",
    "date",
    "source",
    "lang",
    "language",
    "model",
    "metadata",
    "tool_call_id",
];
/// Further such keys of a tool's answer: which call it is for.
const OF_TOOLS: [&str; 2] = ["name", "tool_call_id"];
/// Variable of the template that holds the fixed clock.
const CLOCK: &str = "__clock";

/// A chat template that does not compile or refuses a conversation.
#[derive(Debug, ThisError)]
pub enum TemplateError {
    /// What was given as a template is neither a name nor a file.
    #[error("`{given}` is neither a file nor a chat template by name; the names are {known}")]
    Unknown {
        /// What was given.
        given: String,
        /// The names.
        known: String,
    },
    /// The file of a template cannot be read.
    #[error(transparent)]
    File(#[from] crate::fs::FileError),
    /// The file of a template is not text.
    #[error("{}: not UTF-8 text", .0.display())]
    NotText(std::path::PathBuf),
    /// There is no template to render with.
    #[error(
        "the tokenizer has no chat template; name one with `--chat-template` (`chatml`, or a file), or use prompt and completion without a system message, history or tools instead of a conversation"
    )]
    Missing,
    /// The template is not valid Jinja.
    #[error("the chat template does not compile: {0}")]
    Compile(String),
    /// The template called `raise_exception`.
    #[error("the chat template refuses the conversation: {0}")]
    Refused(String),
    /// The template failed while it ran.
    #[error("the chat template failed: {0}")]
    Failed(String),
    /// The template is nested too deep to be compiled.
    #[error(
        "the chat template does not compile: line {line} has more than {limit} operators, brackets or branches in one another ({found})"
    )]
    Nested {
        /// Line of the tag.
        line: usize,
        /// What was counted.
        found: usize,
        /// The most that is compiled.
        limit: usize,
    },
    /// The template does not come to an end, or writes without end.
    #[error(
        "the chat template takes more than {fuel} steps for this conversation: it loops, or its text grows without end"
    )]
    Endless {
        /// Steps that it may take.
        fuel: u64,
    },
    /// The template takes too long or too much memory, in a place that does not count steps.
    #[error(
        "the chat template takes more than {} for this conversation: it loops, or its values grow without end",
        .0
    )]
    Unbounded(&'static str),
    /// A key of the conversation that the template has no place for.
    #[error(
        "{place} has `{key}`, which the chat template does not use: leaving it out would change what is learned; \
         give a chat template that writes it, or take it out of the data"
    )]
    Unused {
        /// `messages[3]` or `the record`.
        place: String,
        /// The key.
        key: String,
    },
}

/// What `raise_exception` was called with, carried through the template engine.
#[derive(Debug)]
struct Raised(String);

impl fmt::Display for Raised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Raised {}

/// A compiled chat template with the special tokens it may write.
#[derive(Clone)]
pub struct ChatTemplate {
    source: String,
    environment: Arc<Environment<'static>>,
}

impl fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChatTemplate")
            .field("source", &self.source)
            .finish_non_exhaustive()
    }
}

/// The Jinja source of a template: that of a file, else the one of that name.
///
/// # Errors
/// A file that cannot be read, and what is neither.
pub fn source_of(name_or_file: &str) -> Result<String, TemplateError> {
    let path = std::path::Path::new(name_or_file);
    if let Some(source) = named(name_or_file).filter(|_| !path.is_file()) {
        return Ok(source.to_owned());
    }
    if !path.exists() && !name_or_file.contains(['/', '.']) {
        return Err(TemplateError::Unknown {
            given: name_or_file.to_owned(),
            known: names().collect::<Vec<_>>().join(", "),
        });
    }
    String::from_utf8(crate::fs::read(path)?).map_err(|_| TemplateError::NotText(path.to_owned()))
}

impl ChatTemplate {
    /// Compiles a template; the special tokens come from `settings`, whose own template is not
    /// looked at.
    ///
    /// # Errors
    /// [`TemplateError::Compile`] with the line at fault.
    pub fn new(source: &str, settings: &TokenizerSettings) -> Result<Self, TemplateError> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build();
        environment.set_syntax(syntax.map_err(|e| TemplateError::Compile(describe(&e)))?);
        bounds::bound(&mut environment);
        environment.set_formatter(|out, state, value| {
            // What is written without a filter is charged as `string` charges it.
            if matches!(value.kind(), ValueKind::Seq | ValueKind::Map) {
                weigh(state, value)?;
            }
            minijinja::escape_formatter(out, state, value)
        });
        environment.add_filter("tojson", tojson);
        environment.add_filter("string", string);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        for (name, token) in settings.named_tokens() {
            environment.add_global(name.to_owned(), token);
        }
        let text = without_generation_tags(&with_unix_lines(source));
        let text = bounds::guarded(&text)?.into_owned();
        // The compiler computes what is constant.
        let environment = bounds::watched(move || {
            let compiled = environment.add_template_owned(NAME, text);
            compiled.map(|()| environment)
        })?;
        Ok(Self {
            source: source.to_owned(),
            environment: Arc::new(environment.map_err(|e| TemplateError::Compile(describe(&e)))?),
        })
    }

    /// Writes a conversation as the model reads it, ending with the start of an answer if
    /// `add_generation_prompt`.
    ///
    /// # Errors
    /// [`TemplateError::Refused`] when the template rejects the conversation,
    /// [`TemplateError::Failed`] when it breaks.
    pub fn render(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<String, TemplateError> {
        self.render_with(messages, &Map::new(), add_generation_prompt)
    }

    /// As [`Self::render`], with further variables such as `tools`.
    ///
    /// # Errors
    /// As [`Self::render`].
    pub fn render_with(
        &self,
        messages: &[Message],
        variables: &Map<String, Json>,
        add_generation_prompt: bool,
    ) -> Result<String, TemplateError> {
        let mut values: Vec<(&str, Value)> = vec![
            ("messages", messages.iter().map(message).collect()),
            ("tools", Value::from(())),
            ("documents", Value::from(())),
            ("add_generation_prompt", Value::from(add_generation_prompt)),
        ];
        let given = variables.iter();
        values.extend(given.map(|(key, value)| (key.as_str(), json_value(value))));
        // Later values of a key win.
        let context = Value::from_pairs(values);
        let environment = Arc::clone(&self.environment);
        let render = bounds::watched(move || {
            let template = environment.get_template(NAME)?;
            template.render(context)
        })?;
        render.map_err(|e| match raised(&e) {
            Some(message) => TemplateError::Refused(message),
            None if e.kind() == ErrorKind::OutOfFuel => TemplateError::Endless { fuel: FUEL },
            None => TemplateError::Failed(describe(&e)),
        })
    }

    /// Refuses a conversation with a key that the template never names, so that it would be dropped
    /// without a word.
    ///
    /// # Errors
    /// [`TemplateError::Unused`] with the key.
    pub fn check_used(&self, conversation: &Conversation) -> Result<(), TemplateError> {
        for (i, message) in conversation.messages.iter().enumerate() {
            let of_tool = message.role == "tool";
            let idle = |key: &str| IDLE.contains(&key) || (of_tool && OF_TOOLS.contains(&key));
            let unused = message.other.keys().find(|k| !idle(k) && !self.names(k));
            if let Some(key) = unused {
                return Err(TemplateError::Unused {
                    place: format!("messages[{i}]"),
                    key: key.clone(),
                });
            }
        }
        match conversation.variables.keys().find(|key| !self.names(key)) {
            None => Ok(()),
            Some(key) => Err(TemplateError::Unused {
                place: "the record".into(),
                key: key.clone(),
            }),
        }
    }

    /// Whether the source holds a name as a word of its own.
    fn names(&self, name: &str) -> bool {
        let part = |c: char| c.is_alphanumeric() || c == '_';
        self.source.match_indices(name).any(|(at, _)| {
            !self.source[..at].ends_with(part) && !self.source[at + name.len()..].starts_with(part)
        })
    }

    /// Fixes what `strftime_now` answers, in seconds since 1970 (UTC).
    pub fn set_clock(&mut self, unix_seconds: i64) {
        Arc::make_mut(&mut self.environment).add_global(CLOCK, unix_seconds);
    }

    /// The Jinja source.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// SHA-256 of the source, in hexadecimal.
    pub fn sha256(&self) -> String {
        Sha256::digest(self.source.as_bytes())
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect()
    }
}

/// A turn as templates see it.
fn message(message: &Message) -> Value {
    let content = if message.content_is_null {
        Value::from(())
    } else {
        Value::from(message.content.as_str())
    };
    let own = [
        ("role", Value::from(message.role.as_str())),
        ("content", content),
    ];
    let other = message.other.iter();
    let other = other.map(|(key, value)| (key.as_str(), json_value(value)));
    Value::from_pairs(own.into_iter().chain(other))
}

/// JSON as templates see it, keys in their order.
fn json_value(value: &Json) -> Value {
    match value {
        Json::Null => Value::from(()),
        Json::Bool(value) => Value::from(*value),
        Json::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(number), _) => Value::from(number),
            (None, Some(number)) => Value::from(number),
            (None, None) => Value::from(number.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(text) => Value::from(text.as_str()),
        Json::Array(items) => items.iter().map(json_value).collect(),
        Json::Object(fields) => Value::from_pairs(
            fields
                .iter()
                .map(|(key, value)| (key.as_str(), json_value(value))),
        ),
    }
}

/// jinja2 reads every kind of line end as `\n`.
fn with_unix_lines(source: &str) -> String {
    source.replace("\r\n", "\n").replace('\r', "\n")
}

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

/// `{% generation %}` marks the assistant's text for `transformers` and renders nothing itself. It
/// becomes a condition that always holds, which keeps the whitespace rules of a tag.
fn without_generation_tags(source: &str) -> String {
    static TAG: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}").expect("valid pattern")
    });
    let tag = |found: &regex::Captures<'_>| {
        let body = if found.get(2).is_some() {
            "endif"
        } else {
            "if true"
        };
        format!("{{%{} {body} {}%}}", &found[1], &found[3])
    };
    TAG.replace_all(source, tag).into_owned()
}

/// Jinja's `join`, which charges for the texts of the list as well as for those between them: a
/// list repeats its items for nothing.
fn join(state: &mut State, items: &Value, rest: Rest<Value>) -> Result<Value, Error> {
    for item in items.try_iter().into_iter().flatten() {
        let length = item.as_str().map_or(32, str::len);
        state.consume_fuel(1 + length as u64 / 64)?;
    }
    let args: Vec<Value> = std::iter::once(items.clone()).chain(rest.0).collect();
    Value::from_function(minijinja::filters::join).call(state, &args)
}

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, "raise_exception").with_source(Raised(message)))
}

fn raised(error: &Error) -> Option<String> {
    let mut cause = std::error::Error::source(error);
    while let Some(e) = cause {
        if let Some(raised) = e.downcast_ref::<Raised>() {
            return Some(raised.0.clone());
        }
        cause = e.source();
    }
    None
}

/// Detail and line, without the many-line report that the engine gives with debug information.
pub fn describe(error: &Error) -> String {
    let what = error.detail().map_or_else(
        || error.kind().to_string(),
        |d| format!("{}: {d}", error.kind()),
    );
    error
        .line()
        .map_or(what.clone(), |line| format!("{what} (line {line})"))
}

/// JSON as Python's `json.dumps(value, ensure_ascii=False)` writes it; the engine's own filter also
/// escapes HTML.
fn tojson(
    state: &State,
    value: &Value,
    indent: Option<Value>,
    options: Kwargs,
) -> Result<Value, Error> {
    weigh(state, value)?;
    let indent = match indent {
        Some(indent) => Some(indent),
        None => options.get("indent")?,
    };
    if indent
        .as_ref()
        .and_then(Value::as_i64)
        .is_some_and(|i| i > MAX_INDENT)
    {
        return Err(Error::new(
            ErrorKind::InvalidOperation,
            format!("tojson: an indent of more than {MAX_INDENT}"),
        ));
    }
    let escaped = minijinja::filters::tojson(
        value,
        indent.filter(|i| !i.is_none()),
        Kwargs::from_iter([] as [(&str, Value); 0]),
    )?;
    Ok(Value::from(without_html_escapes(
        escaped.as_str().unwrap_or_default(),
    )))
}

/// `string` of jinja2, for values that can be written out.
fn string(state: &State, value: &Value) -> Result<Value, Error> {
    weigh(state, value)?;
    minijinja::filters::string(state, value)
}

/// Charges a value for every place that it will be written to, before it is: one that is held twice
/// by one that is held twice, and so on, is small in memory and endless on paper.
fn weigh(state: &State, value: &Value) -> Result<(), Error> {
    fn walk(state: &State, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > DEEPEST {
            let why = format!("a value nests more than {DEEPEST} deep");
            return Err(Error::new(ErrorKind::InvalidOperation, why));
        }
        let size = value.as_str().map_or(0, str::len) as u64;
        state.consume_fuel(1 + size / 64)?;
        if matches!(
            value.kind(),
            ValueKind::Seq | ValueKind::Map | ValueKind::Iterable
        ) {
            for item in value.try_iter()? {
                if value.kind() == ValueKind::Map {
                    walk(state, &value.get_item(&item)?, depth + 1)?;
                }
                walk(state, &item, depth + 1)?;
            }
        }
        Ok(())
    }
    walk(state, value, 0)
}

fn without_html_escapes(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    let mut rest = json;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        let escape = &rest[at..];
        let plain = [
            ("\\u003c", '<'),
            ("\\u003e", '>'),
            ("\\u0026", '&'),
            ("\\u0027", '\''),
        ];
        if let Some((code, c)) = plain.into_iter().find(|(code, _)| escape.starts_with(code)) {
            out.push(c);
            rest = &escape[code.len()..];
        } else {
            // A backslash in JSON always escapes the ASCII character after it.
            let end = escape.len().min(2);
            out.push_str(&escape[..end]);
            rest = &escape[end..];
        }
    }
    out.push_str(rest);
    out
}

/// Deepest value that is written out.
const DEEPEST: usize = 500;
/// Widest indentation of JSON: it is written once per line and level.
const MAX_INDENT: i64 = 64;

fn strftime_now(state: &State, format: String) -> Result<String, Error> {
    use std::fmt::Write;
    let now = || {
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |d| d.as_secs() as i64)
    };
    let seconds = state
        .lookup(CLOCK)
        .and_then(|v| i64::try_from(v).ok())
        .unwrap_or_else(now);
    let invalid = || {
        Error::new(
            ErrorKind::InvalidOperation,
            format!("strftime_now cannot format {format:?}"),
        )
    };
    let time = chrono::DateTime::from_timestamp(seconds, 0).ok_or_else(invalid)?;
    let mut out = String::new();
    write!(out, "{}", time.format(&format)).map_err(|_| invalid())?;
    Ok(out)
}

#[cfg(test)]
mod tests;
