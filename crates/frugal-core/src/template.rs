//! Chat templates: Jinja as `transformers` configures it.

use std::fmt;
use std::sync::{Arc, LazyLock};
use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State};
use regex::Regex;
use serde_json::{Map, Value as Json};
use sha2::{Digest, Sha256};

use crate::data::{Conversation, Message};
use crate::tokenizer_settings::TokenizerSettings;

mod bounds;
mod error;
mod named;
mod nesting;
mod python;
mod tojson;
mod weight;

use bounds::FUEL;
pub use bounds::{bound, guarded, watched};
pub use error::TemplateError;
pub use named::{named, names};
pub use python::python_method;
use weight::weigh;

const NAME: &str = "chat_template";
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
    String::from_utf8(crate::fs::read_data(path)?)
        .map_err(|_| TemplateError::NotText(path.to_owned()))
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
        environment.add_filter("tojson", tojson::tojson);
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

/// `string` of jinja2, for values that can be written out.
fn string(state: &State, value: &Value) -> Result<Value, Error> {
    weigh(state, value)?;
    minijinja::filters::string(state, value)
}

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
