//! Templates of a task over a record, rendered as jinja2 renders them.

use std::sync::Arc;

use fancy_regex::Regex;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::ValueKind;
use minijinja::{Environment, Error, ErrorKind, UndefinedBehavior};
use serde_json::Value;

use super::record::Record;
use super::{EvalError, functions, python};
use frugal_core::template::{self, TemplateError};

/// What a template in place of one of the task's own functions begins with.
pub(super) const FUNCTION: &str = "!function ";

/// Templates of a task over a record.
pub(super) struct Renderer {
    environment: Arc<Environment<'static>>,
    task: String,
}

impl Renderer {
    pub(super) fn new(task: &str) -> Self {
        let mut environment = Environment::new();
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        // A constant that is known to be well formed.
        if let Ok(syntax) = SyntaxConfig::builder().keep_trailing_newline(true).build() {
            environment.set_syntax(syntax);
        }
        template::bound(&mut environment);
        environment.set_formatter(|out, _, value| {
            let text = written(value);
            out.write_str(&text).map_err(|_| {
                Error::new(ErrorKind::WriteFailure, "cannot write the template's text")
            })
        });
        environment.add_filter("string", |value: minijinja::Value| written(&value));
        environment.add_filter(
            "regex_replace",
            |text: String, pattern: String, replacement: String| -> Result<String, Error> {
                let regex: Regex = python::regex(&pattern)
                    .map_err(|e| Error::new(ErrorKind::InvalidOperation, e))?;
                Ok(python::replace_all(&regex, &text, &replacement))
            },
        );
        Self {
            environment: Arc::new(environment),
            task: task.into(),
        }
    }

    /// A template's text.
    pub(super) fn render(
        &self,
        source: &str,
        record: &Record,
        row: usize,
    ) -> Result<String, EvalError> {
        let (environment, object) = (Arc::clone(&self.environment), template_object(record));
        let guarded = template::guarded(source).map_err(|e| self.unbounded(&e, row))?;
        let source = guarded.into_owned();
        template::watched(move || environment.render_str(&source, object))
            .map_err(|e| self.unbounded(&e, row))?
            .map_err(|e| self.failed(&e, record, row))
    }

    /// A template that is too deep or takes too much.
    fn unbounded(&self, error: &TemplateError, row: usize) -> EvalError {
        self.refused(
            row,
            error.to_string().replacen("chat template", "template", 1),
        )
    }

    /// What a field, a function, a single expression or a template comes to. Whatever is not a
    /// value of its own is a text.
    pub(super) fn value(
        &self,
        source: &str,
        record: &Record,
        row: usize,
    ) -> Result<Value, EvalError> {
        if let Some(name) = source.strip_prefix(FUNCTION) {
            return functions::field(name, record).map_err(|reason| self.refused(row, reason));
        }
        if let Some(value) = record.get(source) {
            return Ok(value.clone());
        }
        if let Some(expression) = single_expression(source) {
            template::guarded(source).map_err(|e| self.unbounded(&e, row))?;
            let (environment, object) = (Arc::clone(&self.environment), template_object(record));
            let expression = expression.to_owned();
            let evaluate = move || {
                let value = environment.compile_expression(&expression)?.eval(object)?;
                if value.is_undefined() {
                    let what = format!("`{expression}`");
                    return Err(Error::new(ErrorKind::UndefinedError, what));
                }
                Ok(plain(&value))
            };
            return template::watched(evaluate)
                .map_err(|e| self.unbounded(&e, row))?
                .map_err(|e| self.failed(&e, record, row));
        }
        if is_name(source) {
            return Err(self.refused(
                row,
                format!(
                    "`{source}` is no field of the record, which has: {}; a text that is meant as it stands needs a Jinja expression, as {{{{ '{source}' }}}}",
                    fields(record)
                ),
            ));
        }
        self.render(source, record, row).map(Value::String)
    }

    /// The same as a text.
    pub(super) fn text(
        &self,
        source: &str,
        record: &Record,
        row: usize,
    ) -> Result<String, EvalError> {
        if source.is_empty() {
            return Ok(String::new());
        }
        self.value(source, record, row).map(|v| python::text(&v))
    }

    fn failed(&self, error: &Error, record: &Record, row: usize) -> EvalError {
        EvalError::Template {
            task: self.task.clone(),
            row,
            reason: match error.kind() {
                ErrorKind::OutOfFuel => {
                    "it takes too many steps: it loops, or its text grows without end".into()
                }
                _ => template::describe(error),
            },
            fields: fields(record),
        }
    }

    /// A record that the task cannot use.
    pub(super) fn refused(&self, row: usize, reason: String) -> EvalError {
        EvalError::Record {
            task: self.task.clone(),
            row,
            reason,
        }
    }
}

fn fields(record: &Record) -> String {
    let names: Vec<&str> = record.keys().map(String::as_str).collect();
    names.join(", ")
}

/// Whether a text is the name of a field and nothing else.
pub(super) fn is_name(text: &str) -> bool {
    text.chars().all(|c| c.is_alphanumeric() || c == '_')
        && text.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

/// The expression of a template that is one and no more.
fn single_expression(source: &str) -> Option<&str> {
    let inner = source.strip_prefix("{{")?.strip_suffix("}}")?;
    let more = ["{{", "}}", "{%", "{#"]
        .iter()
        .any(|mark| inner.contains(mark));
    let inner = inner.strip_prefix('-').unwrap_or(inner);
    let inner = inner.strip_suffix('-').unwrap_or(inner).trim();
    (!more && !inner.is_empty()).then_some(inner)
}

/// A value of the template engine as Python's `str` has it.
fn written(value: &minijinja::Value) -> String {
    if value.is_undefined() {
        return String::new();
    }
    value
        .as_str()
        .map_or_else(|| python::text(&plain(value)), str::to_owned)
}

fn plain(value: &minijinja::Value) -> Value {
    match value.kind() {
        ValueKind::Undefined | ValueKind::None => Value::Null,
        ValueKind::Bool => Value::Bool(value.is_true()),
        ValueKind::Number => number(value),
        ValueKind::Seq | ValueKind::Iterable => value
            .try_iter()
            .map(|items| items.map(|item| plain(&item)).collect())
            .unwrap_or_default(),
        ValueKind::Map => {
            let field = |key: minijinja::Value| {
                let inner = value.get_item(&key).unwrap_or_default();
                (written(&key), plain(&inner))
            };
            let fields = value.try_iter().map(|keys| keys.map(field).collect());
            Value::Object(fields.unwrap_or_default())
        }
        _ => Value::String(value.to_string()),
    }
}

fn number(value: &minijinja::Value) -> Value {
    if value.is_integer() {
        let signed = i64::try_from(value.clone()).map(Value::from);
        return signed
            .or_else(|_| u64::try_from(value.clone()).map(Value::from))
            .unwrap_or_else(|_| Value::String(value.to_string()));
    }
    let float = f64::try_from(value.clone()).ok();
    float
        .and_then(serde_json::Number::from_f64)
        .map_or_else(|| Value::String(value.to_string()), Value::Number)
}

fn template_object(record: &Record) -> minijinja::Value {
    minijinja::Value::from_pairs(
        record
            .iter()
            .map(|(key, value)| (key.as_str(), template_value(value))),
    )
}

fn template_value(value: &Value) -> minijinja::Value {
    match value {
        Value::Null => minijinja::Value::from(()),
        Value::Bool(b) => (*b).into(),
        Value::Number(n) => match (n.as_i64(), n.as_u64()) {
            (Some(n), _) => n.into(),
            (None, Some(n)) => n.into(),
            (None, None) => n.as_f64().unwrap_or(f64::NAN).into(),
        },
        Value::String(text) => text.as_str().into(),
        Value::Array(items) => items.iter().map(template_value).collect::<Vec<_>>().into(),
        Value::Object(fields) => template_object(fields),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Task files come from anywhere, as chat templates do.
    #[test]
    fn templates_without_end_are_errors() {
        let record = json!({"q": "a"});
        let record = record.as_object().unwrap();
        let renderer = Renderer::new("t");
        let deep = format!("{{{{ {}q }}}}", "-".repeat(100_000));
        for source in [
            "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}",
            "{{ 'x' * 9999999999 }}",
            "{% set ns = namespace(s=[1]) %}{% for i in range(60) %}{% set ns.s = [ns.s, ns.s] %}{% endfor %}{{ ns.s }}",
            "{% set ns = namespace() %}{% set ns.a = ns %}{{ ns ~ '' }} ",
            "{{ (['b' * 1000000] * 1000000) | join | length }}",
            deep.as_str(),
            format!("{deep} ").as_str(),
        ] {
            let error = renderer.value(source, record, 3).unwrap_err().to_string();
            assert!(error.contains('t') && !error.contains("chat"), "{error}");
        }
    }

    /// Of jinja2 3.1.6 with `StrictUndefined` and `keep_trailing_newline`.
    #[test]
    fn templates_give_the_text_of_jinja2() {
        let record = json!({"a": [1, "b's"], "t": true, "n": null, "f": 2.0, "s": "x-y"});
        let record = record.as_object().unwrap();
        let renderer = Renderer::new("t");
        for (source, expected) in [
            ("{{a}}", "[1, \"b's\"]"),
            ("is {{t}} {{n}} {{f}}\n", "is True None 2.0\n"),
            ("{{ t|string }}{{ s.split('-')|join('+') }}", "Truex+y"),
            ("{{ s|regex_replace('(x)-', '\\\\1_') }}", "x_y"),
            ("{{ q if q is defined else s }}", "x-y"),
        ] {
            assert_eq!(renderer.render(source, record, 0).unwrap(), expected);
        }
        assert_eq!(
            renderer.value("{{ a }}", record, 0).unwrap(),
            json!([1, "b's"])
        );
        assert_eq!(renderer.value("f", record, 0).unwrap(), json!(2.0));
        for (bad, word) in [
            ("{{ q }}", "undefined"),
            ("q", "`q` is no field"),
            ("{{ q }} ", "undefined"),
        ] {
            let error = renderer.value(bad, record, 3).unwrap_err().to_string();
            assert!(
                error.contains(word) && error.contains("record 3"),
                "{error}"
            );
        }
    }
}
