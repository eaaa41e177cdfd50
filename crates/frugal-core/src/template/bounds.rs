//! What the fuel of the engine does not see. A list that holds another twice is small and quick to
//! make, but comparing it, writing it or joining it takes as long as all that it stands for, and a
//! namespace that holds itself has no end at all.
//!
//! Values that outlive a turn of a loop are measured when they are assigned. All else that a
//! template can think of ends with the time and the memory that a rendering may take.

use std::borrow::Cow;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use minijinja::value::{Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State};

use super::error::TemplateError;
use super::nesting::{self, after_text, tag, word_end};
use crate::events::current_rss_bytes;

/// Steps that one rendering may take, as the engine counts them: instructions, and the bytes that
/// are made, 64 to a step. Long conversations with tools take some ten thousand.
pub(super) const FUEL: u64 = 2_000_000;
/// Name of [`bounded`] in templates.
const FUNCTION: &str = "__bounded";
/// Most parts of a value, counted wherever they are held, with a part for every 64 bytes of text.
const MOST_PARTS: u64 = 1 << 21;
/// Deepest value that is assigned.
const DEEPEST: usize = 500;
/// Parts that are measured for a step.
const PARTS_OF_STEP: u64 = 16;

/// Time after which a rendering is looked at: all but hostile ones are over.
const PATIENCE: Duration = Duration::from_millis(50);
/// Between two looks.
const INTERVAL: Duration = Duration::from_millis(5);
const LONGEST: Duration = Duration::from_secs(5);
const MOST_MEMORY: u64 = 1 << 30;
/// Stack for the deepest value that the steps of a rendering can build, used only as far as it is
/// needed.
const STACK: usize = 512 << 20;

/// Sends every value that is assigned to an attribute through [`bounded`].
fn with_bounds(source: &str) -> Cow<'_, str> {
    let mut out = String::new();
    let mut copied = 0;
    let mut at = 0;
    while let Some(found) = source[at..].find('{') {
        let start = at + found;
        at = match source.as_bytes().get(start + 1) {
            Some(b'#') => past(source, start, "#}"),
            Some(b'{') => start + 2 + tag(&source[start + 2..]).1,
            Some(b'%') => {
                let end = start + 2 + tag(&source[start + 2..]).1;
                let inside = &source[start + 2..end];
                if first_word(inside) == "raw" {
                    past(source, end, "endraw")
                } else {
                    if let Some((from, to)) = assigned(inside) {
                        let (from, to) = (start + 2 + from, start + 2 + to);
                        out.push_str(&source[copied..from]);
                        out.push_str(&format!(" {FUNCTION}(({}))", &source[from..to]));
                        copied = to;
                    }
                    end
                }
            }
            _ => start + 1,
        };
    }
    if copied == 0 {
        return Cow::Borrowed(source);
    }
    out.push_str(&source[copied..]);
    Cow::Owned(out)
}

fn past(source: &str, start: usize, mark: &str) -> usize {
    let found = source[start..].find(mark);
    found.map_or(source.len(), |length| start + length + mark.len())
}

fn first_word(tag: &str) -> &str {
    let tag = tag.trim_start_matches(['-', '+']).trim_start();
    &tag[..word_end(tag.as_bytes(), 0)]
}

/// Where in `set a.b = value %}` the value is; nowhere in other tags.
fn assigned(tag: &str) -> Option<(usize, usize)> {
    if first_word(tag) != "set" {
        return None;
    }
    let bytes = tag.as_bytes();
    let mut at = 0;
    while *bytes.get(at)? != b'=' {
        at = match bytes[at] {
            quote @ (b'"' | b'\'') => after_text(bytes, at, quote),
            _ => at + 1,
        };
    }
    let end = tag.strip_suffix("%}")?.trim_end_matches(['-', '+']).len();
    let value = tag.get(at + 1..end)?;
    (tag[..at].contains('.') && !value.trim().is_empty()).then_some((at + 1, end))
}

/// The value, if it is not larger on paper than a rendering could write. Namespaces change after
/// they were measured, so that none may be held by another.
fn bounded(state: &State, value: Value) -> Result<Value, Error> {
    let mut left = MOST_PARTS;
    let found = measure(&value, 0, &mut left);
    state.consume_fuel((MOST_PARTS - left) / PARTS_OF_STEP)?;
    found.map(|()| value)
}

fn measure(value: &Value, depth: usize, left: &mut u64) -> Result<(), Error> {
    let refused = |what: String| Err(Error::new(ErrorKind::InvalidOperation, what));
    if depth > DEEPEST {
        return refused(format!("a value nests more than {DEEPEST} deep"));
    }
    let size = 1 + value.as_str().map_or(0, str::len) as u64 / 64;
    let Some(rest) = left.checked_sub(size) else {
        *left = 0;
        return Err(ErrorKind::OutOfFuel.into());
    };
    *left = rest;
    let kind = value.kind();
    if !matches!(kind, ValueKind::Seq | ValueKind::Map | ValueKind::Iterable) {
        return Ok(());
    }
    if kind == ValueKind::Map && is_namespace(value) {
        return refused("a namespace is assigned to an attribute of a namespace".into());
    }
    for item in value.try_iter()? {
        if kind == ValueKind::Map {
            measure(&value.get_item(&item)?, depth + 1, left)?;
        }
        measure(&item, depth + 1, left)?;
    }
    Ok(())
}

fn is_namespace(value: &Value) -> bool {
    let object = value.as_object();
    object.is_some_and(|object| object.type_name().ends_with("::Namespace"))
}

/// Bounds what templates of an environment can do: steps, what the methods and filters that can make
/// much of little charge for, and what [`guarded`] sources call.
pub fn bound(environment: &mut Environment<'static>) {
    environment.set_fuel(Some(FUEL));
    environment.set_unknown_method_callback(super::python::python_method);
    environment.add_filter("join", super::python::join);
    environment.add_function(FUNCTION, bounded);
}

/// A source as an environment that is bounded takes it.
///
/// # Errors
/// [`TemplateError::Nested`] where it would overflow the stack of the compiler.
pub fn guarded(source: &str) -> Result<Cow<'_, str>, TemplateError> {
    nesting::check(source)?;
    Ok(with_bounds(source))
}

/// Does something on a thread of its own, and gives up when it takes too long or too much memory.
/// What was given up goes on until the program ends, which is what the error is for.
///
/// # Errors
/// [`TemplateError::Unbounded`], and what else keeps it from a result.
pub fn watched<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, TemplateError> {
    let (done, result) = channel();
    let run = move || {
        // Nobody waits any more for what was given up.
        let _ = done.send(work());
    };
    std::thread::Builder::new()
        .stack_size(STACK)
        .spawn(run)
        .map_err(|why| TemplateError::Failed(format!("no thread to run it on: {why}")))?;
    let start = Instant::now();
    let mut wait = PATIENCE;
    let mut before = None;
    loop {
        match result.recv_timeout(wait) {
            Ok(result) => return Ok(result),
            Err(RecvTimeoutError::Disconnected) => {
                return Err(TemplateError::Failed("it panicked".into()));
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
        wait = INTERVAL;
        let now = current_rss_bytes().unwrap_or(0);
        let grown = now.saturating_sub(*before.get_or_insert(now));
        if start.elapsed() > LONGEST {
            return Err(TemplateError::Unbounded("5 seconds"));
        }
        if grown > MOST_MEMORY {
            return Err(TemplateError::Unbounded("1 GiB of memory"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_assignments_to_attributes_are_changed() {
        for (source, expected) in [
            ("{% set x = [1] %}", "{% set x = [1] %}"),
            ("{%- set ns.x = a -%}", "{%- set ns.x = __bounded(( a ))-%}"),
            (
                "{% set ns.x = '%}' ~ {'a': {}}['a'] %}b",
                "{% set ns.x = __bounded(( '%}' ~ {'a': {}}['a'] ))%}b",
            ),
            ("{% set ns.x = %}", "{% set ns.x = %}"),
            ("{% set ns.x %}a{% endset %}", "{% set ns.x %}a{% endset %}"),
            (
                "{% raw %}{% set ns.x = 1 %}{% endraw %}",
                "{% raw %}{% set ns.x = 1 %}{% endraw %}",
            ),
            ("{# {% set ns.x = 1 %} #}", "{# {% set ns.x = 1 %} #}"),
            ("{{ '{% set ns.x = 1 %}' }}", "{{ '{% set ns.x = 1 %}' }}"),
        ] {
            assert_eq!(with_bounds(source), expected, "{source}");
        }
    }
}
