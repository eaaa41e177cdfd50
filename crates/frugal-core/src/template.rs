//! Chat templates: Jinja as `transformers` configures it.

use std::fmt;
use std::sync::LazyLock;
use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Value};
use minijinja::{Environment, Error, ErrorKind, State, context};
use regex::Regex;
use sha2::{Digest, Sha256};
use thiserror::Error as ThisError;

use crate::data::Message;
use crate::tokenizer::TokenizerSettings;

const NAME: &str = "chat_template";
/// Variable of the template that holds the fixed clock.
const CLOCK: &str = "__clock";

/// A chat template that does not compile or refuses a conversation.
#[derive(Debug, ThisError)]
pub enum TemplateError {
    /// There is no template to render with.
    #[error(
        "the tokenizer has no chat template; give one (chat_template.jinja), or use prompt and completion instead of messages"
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
    environment: Environment<'static>,
}

impl fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChatTemplate")
            .field("source", &self.source)
            .finish_non_exhaustive()
    }
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
        environment.set_unknown_method_callback(python_method);
        environment.add_filter("tojson", tojson);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        let tokens = [
            ("bos_token", &settings.bos_token),
            ("eos_token", &settings.eos_token),
            ("pad_token", &settings.pad_token),
            ("unk_token", &settings.unk_token),
        ];
        for (name, token) in tokens {
            if let Some(token) = token {
                environment.add_global(name, token.as_str());
            }
        }
        let compiled = environment.add_template_owned(NAME, without_generation_tags(source));
        compiled.map_err(|e| TemplateError::Compile(describe(&e)))?;
        Ok(Self {
            source: source.to_owned(),
            environment,
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
        let message =
            |m: &Message| context! { role => m.role.as_str(), content => m.content.as_str() };
        let context = context! {
            messages => messages.iter().map(message).collect::<Vec<_>>(),
            tools => (),
            documents => (),
            add_generation_prompt => add_generation_prompt,
        };
        let render = self
            .environment
            .get_template(NAME)
            .and_then(|t| t.render(context));
        render.map_err(|e| match raised(&e) {
            Some(message) => TemplateError::Refused(message),
            None => TemplateError::Failed(describe(&e)),
        })
    }

    /// Fixes what `strftime_now` answers, in seconds since 1970 (UTC).
    pub fn set_clock(&mut self, unix_seconds: i64) {
        self.environment.add_global(CLOCK, unix_seconds);
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
fn tojson(value: &Value, indent: Option<Value>, options: Kwargs) -> Result<Value, Error> {
    let indent = match indent {
        Some(indent) => Some(indent),
        None => options.get("indent")?,
    };
    let escaped = minijinja::filters::tojson(
        value,
        indent.filter(|i| !i.is_none()),
        Kwargs::from_iter([] as [(&str, Value); 0]),
    )?;
    Ok(Value::from(without_html_escapes(
        escaped.as_str().unwrap_or_default(),
    )))
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
mod tests {
    use std::path::PathBuf;

    use serde_json::Value as Json;

    use super::*;

    fn settings() -> TokenizerSettings {
        TokenizerSettings {
            bos_token: Some("<s>".into()),
            eos_token: Some("</s>".into()),
            ..TokenizerSettings::default()
        }
    }

    /// Every conversation through every template, against `transformers` with jinja2.
    #[test]
    fn templates_render_as_jinja2_does() {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/templates");
        let mut checked = 0;
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let golden: Json = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
            let mut template =
                ChatTemplate::new(golden["template"].as_str().unwrap(), &settings()).unwrap();
            template.set_clock(golden["clock"].as_i64().unwrap());
            for case in golden["cases"].as_array().unwrap() {
                let messages: Vec<Message> =
                    serde_json::from_value(case["messages"].clone()).unwrap();
                let result =
                    template.render(&messages, case["add_generation_prompt"].as_bool().unwrap());
                match (result, case["rendered"].as_str(), case["error"].as_str()) {
                    (Ok(text), Some(expected), _) => {
                        assert_eq!(text, expected, "{}: {messages:?}", path.display())
                    }
                    (Err(TemplateError::Refused(why)), _, Some(expected)) => {
                        assert_eq!(why, expected, "{}", path.display())
                    }
                    (result, ..) => panic!("{}: {case}: {result:?}", path.display()),
                }
                checked += 1;
            }
        }
        assert_eq!(checked, 7 * 22);
    }

    #[test]
    fn errors_name_the_line() {
        let error = ChatTemplate::new("a\n{% if %}", &settings())
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("line 2") && error.lines().count() == 1,
            "{error}"
        );
        let template =
            ChatTemplate::new("a\n\n{{ messages[0].role.nope() }}", &settings()).unwrap();
        let error = template
            .render(&[Message::new("user", "x")], false)
            .unwrap_err()
            .to_string();
        assert!(error.contains("line 3"), "{error}");
    }

    #[test]
    fn a_bad_date_format_is_an_error() {
        let template = ChatTemplate::new("{{ strftime_now('%!') }}", &settings()).unwrap();
        assert!(matches!(
            template.render(&[], false),
            Err(TemplateError::Failed(_))
        ));
    }
}
