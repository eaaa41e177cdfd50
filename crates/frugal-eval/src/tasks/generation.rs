//! How a model writes, from the `generation_kwargs` of a task file or of the command line.

use serde_json::{Map, Value};

use super::EvalError;
use super::kind::Kind;
use super::task::{Generation, Task};

/// Tokens that `transformers` draws among where a task does not say.
const TOP_K: usize = 50;
/// Names of the longest answer, the first that is given counts.
const LONGEST: [&str; 4] = [
    "max_gen_toks",
    "max_new_tokens",
    "max_tokens",
    "max_completion_tokens",
];

/// The settings of a task file; without stop texts an answer ends where the next example would
/// begin.
pub(super) fn of_task_file(
    kwargs: Option<Map<String, Value>>,
    fewshot_delimiter: &str,
) -> Result<Generation, String> {
    let mut generation = Generation {
        until: vec![fewshot_delimiter.to_owned()],
        ..Generation::default()
    };
    if let Some(kwargs) = kwargs {
        apply(&mut generation, kwargs)?;
    }
    Ok(generation)
}

/// Changes how the model writes by `KEY=VALUE,...` or a JSON object, as `--gen_kwargs` of
/// lm-evaluation-harness does.
///
/// # Errors
/// Keys and values that are unknown or contradict the task.
pub fn override_generation(task: &mut Task, kwargs: &str) -> Result<(), EvalError> {
    if task.kind != Kind::GenerateUntil {
        return Ok(());
    }
    let fail = |reason: String| EvalError::Task {
        task: task.name.clone(),
        reason: format!("`--gen-kwargs`: {reason}"),
    };
    let kwargs = parsed(kwargs).map_err(fail)?;
    // What is refused leaves the task as it was.
    let mut changed = task.clone();
    apply(&mut changed.generation, kwargs)
        .and_then(|()| changed.check())
        .map_err(fail)?;
    *task = changed;
    Ok(())
}

fn parsed(text: &str) -> Result<Map<String, Value>, String> {
    if text.trim_start().starts_with('{') {
        return serde_json::from_str(text).map_err(|e| e.to_string());
    }
    let pair = |part: &str| -> Result<(String, Value), String> {
        let (key, value) = part
            .split_once('=')
            .ok_or_else(|| format!("`{part}` is not KEY=VALUE"))?;
        let value = match value.trim() {
            "True" => Value::Bool(true),
            "False" => Value::Bool(false),
            "None" => Value::Null,
            plain => serde_json::from_str(plain)
                .ok()
                .filter(|value: &Value| !value.is_object())
                .unwrap_or_else(|| plain.into()),
        };
        Ok((key.trim().to_owned(), value))
    };
    let parts = text.split(',').filter(|part| !part.trim().is_empty());
    parts.map(pair).collect()
}

fn apply(generation: &mut Generation, mut kwargs: Map<String, Value>) -> Result<(), String> {
    kwargs.retain(|_, value| !value.is_null());
    if let Some(until) = kwargs.remove("until") {
        generation.until = texts(until)?;
    }
    let longest: Vec<Value> = LONGEST
        .iter()
        .filter_map(|key| kwargs.remove(*key))
        .collect();
    if let Some(value) = longest.first() {
        generation.max_tokens = whole("max_gen_toks", value)?;
    }
    let before = generation.temperature;
    let sampled = |value: &Value| match value {
        Value::Bool(truth) => Ok(*truth),
        other => Err(format!("`do_sample` must be true or false, not {other}")),
    };
    let sample = kwargs
        .remove("do_sample")
        .as_ref()
        .map(sampled)
        .transpose()?;
    let temperature = kwargs
        .remove("temperature")
        .map(|value| number("temperature", &value))
        .transpose()?;
    match (sample, temperature) {
        (Some(false), _) => {
            generation.temperature = 0.0;
            generation.greedy = true;
        }
        (Some(true), Some(t)) if t <= 0.0 => {
            return Err("`do_sample` needs a `temperature` above 0".into());
        }
        (Some(true), given) => {
            generation.temperature = given.unwrap_or(if before > 0.0 { before } else { 1.0 });
            generation.greedy = false;
        }
        (None, Some(t)) if t > 0.0 && generation.greedy => {
            return Err(format!(
                "`temperature` {t} has no effect, because the task says `do_sample: false`; add `do_sample=true`"
            ));
        }
        (None, Some(t)) => generation.temperature = t,
        (None, None) => {}
    }
    let draws = generation.temperature > 0.0;
    if draws && before <= 0.0 && generation.top_k == 0 {
        generation.top_k = TOP_K;
    }
    for (key, value) in kwargs {
        match key.as_str() {
            "top_p" => generation.top_p = number(&key, &value)?,
            "top_k" => generation.top_k = whole(&key, &value)?,
            "min_p" => generation.min_p = number(&key, &value)?,
            "repetition_penalty" => generation.repetition_penalty = number(&key, &value)?,
            // What these say is done anyway.
            "num_beams" | "num_return_sequences" if value == 1 => {}
            _ => {
                return Err(format!(
                    "`{key}: {value}` is not supported; known are until, max_gen_toks, do_sample, temperature, top_p, top_k, min_p, repetition_penalty"
                ));
            }
        }
    }
    Ok(())
}

fn texts(value: Value) -> Result<Vec<String>, String> {
    let items = match value {
        Value::Array(items) => items,
        one => vec![one],
    };
    let text = |item: Value| match item {
        Value::String(text) => Ok(text),
        other => Err(format!("`until` must hold texts, not {other}")),
    };
    let texts = items.into_iter().map(text).collect::<Result<Vec<_>, _>>()?;
    Ok(texts.into_iter().filter(|text| !text.is_empty()).collect())
}

fn number(key: &str, value: &Value) -> Result<f32, String> {
    let number = value.as_f64().filter(|n| *n >= 0.0 && n.is_finite());
    number
        .map(|n| n as f32)
        .ok_or_else(|| format!("`{key}` must be a number of at least 0, not {value}"))
}

fn whole(key: &str, value: &Value) -> Result<usize, String> {
    let number = value.as_u64().and_then(|n| usize::try_from(n).ok());
    number.ok_or_else(|| format!("`{key}` must be a whole number, not {value}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(kwargs: Value) -> Result<Generation, String> {
        of_task_file(kwargs.as_object().cloned(), "\n\n")
    }

    /// As `lm_eval.models.utils.normalize_gen_kwargs` reads them.
    #[test]
    fn a_temperature_without_do_sample_draws() {
        let found = of(json!({"temperature": 0.7, "max_new_tokens": 9, "until": "x"})).unwrap();
        assert_eq!(
            (found.temperature, found.max_tokens, found.top_k),
            (0.7, 9, 50)
        );
        assert_eq!(found.until, ["x"]);
        let found =
            of(json!({"temperature": 0.7, "do_sample": false, "until": ["a", ""]})).unwrap();
        assert_eq!(
            (found.temperature, found.top_k, found.until.len()),
            (0.0, 0, 1)
        );
        let found = of(json!({"do_sample": true, "top_k": 5, "top_p": 0.9})).unwrap();
        assert_eq!((found.temperature, found.top_k, found.top_p), (1.0, 5, 0.9));
        assert_eq!(of_task_file(None, "\n").unwrap().until, ["\n"]);
        for (bad, word) in [
            (json!({"num_beams": 3}), "num_beams"),
            (json!({"max_length": 3}), "max_length"),
            (
                json!({"do_sample": true, "temperature": 0.0}),
                "temperature",
            ),
            (json!({"until": [1]}), "until"),
            (json!({"temperature": -1}), "temperature"),
        ] {
            assert!(of(bad).unwrap_err().contains(word));
        }
    }

    #[test]
    fn the_command_line_changes_what_the_task_says() {
        let mut task = Task::builtin("gsm8k").unwrap().unwrap();
        override_generation(&mut task, "max_gen_toks=7, until=Q:").unwrap();
        assert_eq!(
            (task.generation.max_tokens, task.generation.until.join("|")),
            (7, "Q:".into())
        );
        override_generation(&mut task, "{\"until\": [\"a,b\"], \"temperature\": 0.5}").unwrap();
        assert_eq!(
            (task.generation.temperature, task.generation.until.join("|")),
            (0.5, "a,b".into())
        );
        task.generation.temperature = 0.0;
        task.generation.greedy = true;
        let refused =
            |task: &mut Task, text| override_generation(task, text).unwrap_err().to_string();
        assert!(refused(&mut task, "temperature=0.5").contains("do_sample=true"));
        assert!(refused(&mut task, "colour=1").contains("colour"));
        assert!(refused(&mut task, "max_gen_toks=0").contains("max_tokens"));
        override_generation(&mut task, "temperature=0.5,do_sample=True").unwrap();
        assert_eq!(task.generation.temperature, 0.5);
    }
}
