//! The keys of a task file and the kinds of value that they have.

use std::path::Path;

use serde::de::DeserializeOwned;
use serde_json::Value as Json;
use serde_yaml_ng::{Mapping, Value};

use super::super::functions;
use super::super::template::FUNCTION;

/// The keys of a mapping, each taken once.
pub(super) struct Keys<'a> {
    pub(super) map: Mapping,
    pub(super) path: &'a Path,
    pub(super) dataset: String,
}

impl Keys<'_> {
    pub(super) fn value(&mut self, key: &str) -> Option<Value> {
        self.map.remove(key).filter(|value| !value.is_null())
    }

    pub(super) fn take<T: DeserializeOwned>(&mut self, key: &str) -> Result<Option<T>, String> {
        let Some(value) = self.value(key) else {
            return Ok(None);
        };
        without_python(key, &value)?;
        serde_yaml_ng::from_value(value)
            .map(Some)
            .map_err(|e| format!("`{key}`: {e}"))
    }

    /// The built-in function that stands for one of the task's own.
    pub(super) fn function(
        &self,
        key: &str,
        value: &Value,
    ) -> Result<Option<&'static str>, String> {
        let Some(name) = function_of(value) else {
            return Ok(None);
        };
        functions::resolve(self.path, name, &self.dataset)
            .map(Some)
            .map_err(|e| format!("`{key}`: {e}"))
    }

    /// A template: Jinja, the name of a field, a number, a list, or a function.
    pub(super) fn template(&mut self, key: &str) -> Result<Option<String>, String> {
        let Some(value) = self.value(key) else {
            return Ok(None);
        };
        if let Some(name) = self.function(key, &value)? {
            return Ok(Some(format!("{FUNCTION}{name}")));
        }
        without_python(key, &value)?;
        Ok(Some(match value {
            Value::String(text) => text,
            Value::Number(number) => number.to_string(),
            Value::Sequence(_) => expression(key, value)?,
            other => {
                return Err(format!(
                    "`{key}` must be a template, a field, a number or a list, not {other:?}"
                ));
            }
        }))
    }

    /// A function that does something else than give a field.
    pub(super) fn named(&mut self, key: &str) -> Result<String, String> {
        let Some(value) = self.value(key) else {
            return Ok(String::new());
        };
        self.function(key, &value)?
            .map(str::to_owned)
            .ok_or_else(|| format!("`{key}` must be a `!function`"))
    }

    pub(super) fn choices(&mut self, key: &str) -> Result<Option<(Vec<String>, String)>, String> {
        let Some(value) = self.value(key) else {
            return Ok(None);
        };
        if let Some(name) = self.function(key, &value)? {
            return Ok(Some((Vec::new(), format!("{FUNCTION}{name}"))));
        }
        without_python(key, &value)?;
        let literal = |item: Value| match item {
            Value::String(text) if text.contains('{') => {
                Ok(format!("{{% raw %}}{text}{{% endraw %}}"))
            }
            Value::String(text) => Ok(text),
            other => Err(format!(
                "`{key}` holds {other:?}, which is not text; quote it"
            )),
        };
        let listed = |items: Vec<Value>| -> Result<Option<(Vec<String>, String)>, String> {
            let items = items
                .into_iter()
                .map(literal)
                .collect::<Result<Vec<_>, _>>()?;
            Ok(Some((items, String::new())))
        };
        match value {
            Value::Sequence(items) => listed(items),
            Value::Mapping(map) => listed(map.into_iter().map(|(_, item)| item).collect()),
            Value::String(text) => Ok(Some((Vec::new(), text))),
            other => Err(format!(
                "`{key}` must be a list, a field or an expression, not {other:?}"
            )),
        }
    }

    /// Refuses what is left.
    pub(super) fn finish(mut self, inside: &str, ignored: &[&str]) -> Result<(), String> {
        self.map.retain(|_, value| !value.is_null());
        let mut left = self
            .map
            .keys()
            .map(|key| key.as_str().unwrap_or("a key that is no text"));
        match left.find(|key| !ignored.contains(key)) {
            Some(key) => Err(format!(
                "`{inside}{key}` is not supported; write the task as TOML instead"
            )),
            None => Ok(()),
        }
    }
}

/// The function that a value names.
pub(super) fn function_of(value: &Value) -> Option<&str> {
    match value {
        Value::Tagged(tagged) if tagged.tag == "!function" => tagged.value.as_str(),
        _ => None,
    }
}

/// A list as a Jinja expression.
fn expression(key: &str, value: Value) -> Result<String, String> {
    let json: Json = serde_yaml_ng::from_value(value).map_err(|e| format!("`{key}`: {e}"))?;
    Ok(format!("{{{{ {json} }}}}"))
}

fn without_python(key: &str, value: &Value) -> Result<(), String> {
    match value {
        Value::Tagged(tagged) => Err(format!(
            "`{key}`: `{}` is Python of the task's own; write the task as TOML instead",
            tagged.tag
        )),
        Value::Sequence(items) => items.iter().try_for_each(|item| without_python(key, item)),
        Value::Mapping(map) => map.iter().try_for_each(|(inner, item)| {
            let inner = inner.as_str().unwrap_or_default();
            without_python(&format!("{key}.{inner}"), item)
        }),
        _ => Ok(()),
    }
}
