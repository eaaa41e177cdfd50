//! Tasks of lm-evaluation-harness: what its YAML says with Jinja, plain values, and those Python
//! functions that are built in.
//!
//! Format: <https://github.com/EleutherAI/lm-evaluation-harness/blob/main/docs/task_guide.md>. Every
//! key is honoured or refused by name; those without any effect on prompts, answers and scores are
//! in [`IGNORED`].

mod keys;
mod scores;

use std::path::Path;

use serde_json::Value as Json;
use serde_yaml_ng::{Mapping, Value};

use super::EvalError;
use super::functions;
use super::generation;
use super::kind::Kind;
use super::task::{Fewshot, Hub, Prompt, Sampler, Source, Task};
use keys::{Keys, function_of};
use scores::{Measures, filters, metric_list};

/// Files that include one another, at most.
const MAX_FILES: usize = 8;

/// Keys that say nothing about prompts, answers or scores.
const IGNORED: [&str; 7] = [
    "doc_to_decontamination_query",
    "group",
    "metadata",
    "should_decontaminate",
    "tag",
    "task_alias",
    "unsafe_code",
];

/// Reads a task.
///
/// # Errors
/// Files that cannot be read or are no tasks, and tasks that need Python or keys unknown here.
pub(super) fn read(path: &Path) -> Result<Task, EvalError> {
    task_of(keys(path)?, path)
}

/// The task that the keys of a file give.
pub(super) fn task_of(keys: Mapping, path: &Path) -> Result<Task, EvalError> {
    let fail = |reason: String| EvalError::Task {
        task: path.display().to_string(),
        reason,
    };
    let task = task(keys, path).map_err(fail)?;
    task.check().map_err(fail)?;
    Ok(task)
}

/// The keys of a file, over those of the files that it includes.
pub(super) fn keys(path: &Path) -> Result<Mapping, EvalError> {
    included(path, MAX_FILES)
}

fn included(path: &Path, files: usize) -> Result<Mapping, EvalError> {
    let fail = |reason: String| EvalError::Task {
        task: path.display().to_string(),
        reason,
    };
    if files == 0 {
        return Err(fail(format!(
            "`include`: more than {MAX_FILES} files include one another"
        )));
    }
    let bytes = frugal_core::fs::read_data(path)?;
    super::yaml_depth::check(&bytes).map_err(fail)?;
    let mut own: Mapping = super::yaml_value::mapping(&bytes).map_err(fail)?;
    let names = match own.remove("include") {
        None => return Ok(own),
        Some(Value::Sequence(names)) => names,
        Some(name) => vec![name],
    };
    let mut all = Mapping::new();
    for name in names {
        let Some(name) = name.as_str() else {
            return Err(fail("`include` must name files".into()));
        };
        all.extend(included(&path.with_file_name(name), files - 1)?);
    }
    all.extend(own);
    Ok(all)
}

fn kind(name: Option<&str>) -> Result<Kind, String> {
    match name {
        Some("multiple_choice") => Ok(Kind::MultipleChoice),
        None | Some("generate_until") => Ok(Kind::GenerateUntil),
        Some("loglikelihood") => Ok(Kind::Loglikelihood),
        Some("loglikelihood_rolling") => Ok(Kind::LoglikelihoodRolling),
        Some(other) => Err(format!(
            "`output_type`: `{other}` is none of multiple_choice, generate_until, loglikelihood, loglikelihood_rolling"
        )),
    }
}

fn task(map: Mapping, path: &Path) -> Result<Task, String> {
    let dataset = map.get("dataset_path").and_then(Value::as_str);
    let mut keys = Keys {
        dataset: dataset.unwrap_or_default().to_owned(),
        map,
        path,
    };
    if keys.map.contains_key("class") {
        return Err("`class`: the task is a Python class; write the task as TOML instead".into());
    }
    let kind = kind(keys.take::<String>("output_type")?.as_deref())?;
    let (choices, choices_field) = keys.choices("doc_to_choice")?.unwrap_or_default();
    let default = Prompt::default();
    let prompt = Prompt {
        description: keys.take("description")?.unwrap_or_default(),
        text: keys.template("doc_to_text")?.unwrap_or_default(),
        target: keys.template("doc_to_target")?.unwrap_or_default(),
        choices,
        choices_field,
        letters: false,
        gen_prefix: keys.take("gen_prefix")?.unwrap_or_default(),
        target_delimiter: keys
            .take("target_delimiter")?
            .unwrap_or(default.target_delimiter),
        fewshot_delimiter: keys
            .take("fewshot_delimiter")?
            .unwrap_or(default.fewshot_delimiter),
    };
    let process_docs = keys.named("process_docs")?;
    let process_results = keys.named("process_results")?;
    let mut split = keys.take::<String>("fewshot_split")?;
    let fewshot = fewshot(&mut keys, &prompt, &mut split)?;
    let num_fewshot = keys.take::<usize>("num_fewshot")?;
    let generation =
        generation::of_task_file(keys.take("generation_kwargs")?, &prompt.fewshot_delimiter)
            .map_err(|e| format!("`generation_kwargs`: {e}"))?;
    let mut measures = Measures::default();
    let by_function = !process_results.is_empty();
    for entry in metric_list(&mut keys, kind)? {
        measures.add(entry, kind, by_function, &keys)?;
    }
    let repeats = keys.take("repeats")?.unwrap_or(1);
    let filters = filters(&mut keys, kind, repeats)?;
    let version = version(keys.map.get("metadata"));
    let task = Task {
        name: keys.take("task")?.ok_or("`task` is missing")?,
        version,
        description: String::new(),
        kind,
        num_fewshot: num_fewshot.unwrap_or(0),
        zero_shot: num_fewshot == Some(0),
        fewshot,
        process_docs,
        process_results,
        source: source(&mut keys, split)?,
        prompt,
        generation,
        repeats,
        filters,
        metrics: measures.metrics,
        aggregations: measures.aggregations,
        directions: measures.directions,
    };
    keys.finish("", &IGNORED)?;
    Ok(task)
}

/// Where examples come from and how they are written.
fn fewshot(
    keys: &mut Keys<'_>,
    prompt: &Prompt,
    split: &mut Option<String>,
) -> Result<Fewshot, String> {
    let Some(config) = keys.value("fewshot_config") else {
        return Ok(Fewshot::default());
    };
    let Value::Mapping(map) = config else {
        return Err("`fewshot_config` must hold keys".into());
    };
    let changes_docs = map.contains_key("process_docs");
    let mut own = Keys {
        map,
        path: keys.path,
        dataset: keys.dataset.clone(),
    };
    let inside = |e: String| format!("`fewshot_config`: {e}");
    let sampler = match own.take::<String>("sampler").map_err(inside)?.as_deref() {
        None | Some("default") => Sampler::Default,
        Some("first_n") => Sampler::FirstN,
        Some(other) => {
            return Err(inside(format!(
                "the sampler `{other}` is none of default, first_n"
            )));
        }
    };
    if let Some(given) = own.take("split").map_err(inside)? {
        *split = Some(given);
    }
    let samples = match own.value("samples") {
        None => Vec::new(),
        // A split is taken first.
        Some(_) if split.is_some() => Vec::new(),
        Some(value) => match function_of(&value) {
            Some(name) => functions::samples(keys.path, name).map_err(inside)?,
            None => {
                serde_yaml_ng::from_value(value).map_err(|e| inside(format!("`samples`: {e}")))?
            }
        },
    };
    let process_docs = if changes_docs {
        Some(own.named("process_docs").map_err(inside)?)
    } else {
        None
    };
    let mut shown = prompt.clone();
    if let Some(text) = own.template("doc_to_text").map_err(inside)? {
        shown.text = text;
    }
    if let Some(target) = own.template("doc_to_target").map_err(inside)? {
        shown.target = target;
    }
    if let Some((choices, field)) = own.choices("doc_to_choice").map_err(inside)? {
        (shown.choices, shown.choices_field) = (choices, field);
    }
    for (key, place) in [
        ("gen_prefix", &mut shown.gen_prefix),
        ("fewshot_delimiter", &mut shown.fewshot_delimiter),
        ("target_delimiter", &mut shown.target_delimiter),
    ] {
        if let Some(text) = own.take(key).map_err(inside)? {
            *place = text;
        }
    }
    own.finish("fewshot_config.", &[])?;
    Ok(Fewshot {
        sampler,
        samples,
        process_docs,
        prompt: (shown != *prompt).then_some(shown),
    })
}

/// Where the records are: local files, or splits of a data set of the hub.
fn source(keys: &mut Keys<'_>, fewshot_split: Option<String>) -> Result<Source, String> {
    let path = keys.take::<String>("dataset_path")?.unwrap_or_default();
    let name = keys.take::<String>("dataset_name")?.unwrap_or_default();
    let [train, validation, test] = [
        keys.take::<String>("training_split")?,
        keys.take::<String>("validation_split")?,
        keys.take::<String>("test_split")?,
    ];
    // Without a split there is only the file that the run names.
    let measured = test
        .clone()
        .or_else(|| validation.clone())
        .unwrap_or_default();
    let fewshot = fewshot_split
        .or(train)
        .or(validation)
        .or(test)
        .unwrap_or_default();
    for split in [&measured, &fewshot] {
        if split.contains(['[', '+']) {
            return Err(format!(
                "the split `{split}` is a part of one, which is not supported"
            ));
        }
    }
    let hub = Hub {
        path: path.clone(),
        name,
        test: measured.clone(),
        fewshot: fewshot.clone(),
        settings: String::new(),
    };
    let kwargs = keys
        .take::<serde_json::Map<String, Json>>("dataset_kwargs")?
        .unwrap_or_default();
    let local = matches!(path.as_str(), "json" | "csv" | "text" | "parquet");
    let mut source = Source {
        lines: path == "text",
        hub,
        ..Source::default()
    };
    for (key, value) in kwargs {
        match key.as_str() {
            "trust_remote_code" => {}
            "data_files" if local => {
                source.test = data_file(&value, &measured)?;
                source.fewshot = if fewshot == measured {
                    String::new()
                } else {
                    data_file(&value, &fewshot)?
                };
            }
            "data_files" | "data_dir" | "revision" if !local => {
                source.hub.settings += &format!("{key}: {value}; ");
            }
            _ => return Err(format!("`dataset_kwargs.{key}` is not supported")),
        }
    }
    if local && source.test.is_empty() {
        source.hub = Hub::default();
    }
    Ok(source)
}

/// The file of a split; the only file is the one of every split.
fn data_file(files: &Json, split: &str) -> Result<String, String> {
    let one = match files {
        Json::Object(splits) => match splits.get(split) {
            Some(one) => one,
            None => return Ok(String::new()),
        },
        other => other,
    };
    let one = match one {
        Json::Array(files) if files.len() == 1 => &files[0],
        other => other,
    };
    one.as_str().map(str::to_owned).ok_or_else(|| {
        format!("`dataset_kwargs.data_files`: `{split}` must be one file, not {one}")
    })
}

fn version(metadata: Option<&Value>) -> String {
    let version = metadata.and_then(|m| m.get("version"));
    match version.and_then(|v| serde_yaml_ng::from_value::<Json>(v.clone()).ok()) {
        Some(Json::String(text)) => text,
        Some(number) => number.to_string(),
        None => "0".into(),
    }
}

#[cfg(test)]
mod tests;
