//! Tasks of lm-evaluation-harness: what its YAML says with Jinja and plain values, without Python
//! of its own.
//!
//! Format: <https://github.com/EleutherAI/lm-evaluation-harness/blob/main/docs/task_guide.md>. A
//! data set of the hub has to be given as a file.

use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_yaml_ng::{Mapping, Value};

use super::EvalError;
use super::filter::{Filter, Step};
use super::metric::Metric;
use super::task::{Generation, Kind, Prompt, Source, Task};

/// Files that include one another, at most.
const MOST_FILES: usize = 8;

/// Keys that say nothing about prompts, answers or scores here.
const IGNORED: [&str; 12] = [
    "dataset_name",
    "doc_to_decontamination_query",
    "fewshot_config",
    "group",
    "num_proc",
    "should_decontaminate",
    "tag",
    "task_alias",
    "test_split",
    "training_split",
    "unsafe_code",
    "validation_split",
];

/// Reads a task.
///
/// # Errors
/// Files that cannot be read or are no tasks, and tasks that need Python or keys unknown here.
pub(super) fn read(path: &Path) -> Result<Task, EvalError> {
    let fail = |reason: String| EvalError::Task {
        task: path.display().to_string(),
        reason,
    };
    let task = task(keys(path, MOST_FILES)?).map_err(fail)?;
    task.check().map_err(fail)?;
    Ok(task)
}

/// The keys of a file, over those of the file that it includes.
fn keys(path: &Path, files: usize) -> Result<Mapping, EvalError> {
    let fail = |reason: String| EvalError::Task {
        task: path.display().to_string(),
        reason,
    };
    if files == 0 {
        return Err(fail(format!(
            "`include`: more than {MOST_FILES} files include one another"
        )));
    }
    let bytes = frugal_core::fs::read(path)?;
    super::yaml_depth::check(&bytes).map_err(fail)?;
    let mut own: Mapping = serde_yaml_ng::from_slice(&bytes).map_err(|e| fail(e.to_string()))?;
    let Some(include) = own.remove("include") else {
        return Ok(own);
    };
    let Some(include) = include.as_str() else {
        return Err(fail("`include` must name one file".into()));
    };
    let mut all = keys(&path.with_file_name(include), files - 1)?;
    all.extend(own);
    Ok(all)
}

/// The keys of a task, each taken once.
struct Keys(Mapping);

impl Keys {
    fn take<T: DeserializeOwned>(&mut self, key: &str) -> Result<Option<T>, String> {
        match self.0.remove(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => {
                without_python(key, &value)?;
                serde_yaml_ng::from_value(value)
                    .map(Some)
                    .map_err(|e| format!("`{key}`: {e}"))
            }
        }
    }

    /// A template: Jinja, the name of a field, or a number.
    fn template(&mut self, key: &str) -> Result<String, String> {
        Ok(match self.take::<Value>(key)? {
            None => String::new(),
            Some(Value::String(text)) if is_name(&text) => format!("{{{{ {text} }}}}"),
            Some(Value::String(text)) => text,
            Some(Value::Number(number)) => number.to_string(),
            Some(other) => {
                return Err(format!(
                    "`{key}` must be a template, a field or a number, not {other:?}"
                ));
            }
        })
    }
}

fn is_name(text: &str) -> bool {
    text.chars().all(|c| c.is_alphanumeric() || c == '_')
        && text.starts_with(|c: char| c.is_alphabetic() || c == '_')
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

#[derive(Deserialize)]
struct MetricEntry {
    metric: String,
    #[serde(flatten)]
    options: serde_json::Map<String, serde_json::Value>,
}

#[derive(Deserialize)]
struct FilterEntry {
    name: String,
    filter: Vec<FilterStep>,
}

#[derive(Deserialize)]
struct FilterStep {
    function: String,
    #[serde(default)]
    regex_pattern: Option<String>,
    #[serde(default)]
    group_select: i64,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(String),
    More(Vec<String>),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GenerationKwargs {
    #[serde(default)]
    until: Option<OneOrMore>,
    #[serde(default)]
    max_gen_toks: Option<usize>,
    #[serde(default)]
    do_sample: bool,
    #[serde(default)]
    temperature: Option<f32>,
    #[serde(default)]
    top_p: Option<f32>,
}

fn task(keys: Mapping) -> Result<Task, String> {
    let mut keys = Keys(keys);
    let kind = match keys.take::<String>("output_type")?.as_deref() {
        Some("multiple_choice") => Kind::MultipleChoice,
        None | Some("generate_until") => Kind::GenerateUntil,
        Some("loglikelihood_rolling") => Kind::LoglikelihoodRolling,
        Some(other) => {
            return Err(format!(
                "`output_type`: `{other}` is none of multiple_choice, generate_until, loglikelihood_rolling"
            ));
        }
    };
    let (choices, choices_field) = match keys.take::<Value>("doc_to_choice")? {
        None => (Vec::new(), String::new()),
        Some(Value::Sequence(items)) => (
            items
                .into_iter()
                .map(serde_yaml_ng::from_value)
                .collect::<Result<_, _>>()
                .map_err(|e| e.to_string())?,
            String::new(),
        ),
        Some(Value::String(text)) => {
            let expression = text
                .trim()
                .strip_prefix("{{")
                .and_then(|t| t.strip_suffix("}}"))
                .unwrap_or(&text);
            (Vec::new(), expression.trim().to_owned())
        }
        Some(other) => {
            return Err(format!(
                "`doc_to_choice` must be a list, a field or an expression, not {other:?}"
            ));
        }
    };
    let default = Prompt::default();
    let prompt = Prompt {
        description: keys.take("description")?.unwrap_or_default(),
        text: keys.template("doc_to_text")?,
        target: keys.template("doc_to_target")?,
        choices,
        choices_field,
        gen_prefix: keys.take("gen_prefix")?.unwrap_or_default(),
        target_delimiter: keys
            .take("target_delimiter")?
            .unwrap_or(default.target_delimiter),
        fewshot_delimiter: keys
            .take("fewshot_delimiter")?
            .unwrap_or(default.fewshot_delimiter),
    };
    let generation = generation(keys.take("generation_kwargs")?, &prompt.fewshot_delimiter);
    let metrics = keys
        .take::<Vec<MetricEntry>>("metric_list")?
        .unwrap_or_default();
    let filters = keys
        .take::<Vec<FilterEntry>>("filter_list")?
        .unwrap_or_default();
    let task = Task {
        name: keys.take("task")?.ok_or("`task` is missing")?,
        version: version(keys.take("metadata")?),
        description: String::new(),
        kind,
        num_fewshot: keys.take("num_fewshot")?.unwrap_or(0),
        source: source(&mut keys)?,
        generation,
        repeats: keys.take("repeats")?.unwrap_or(1),
        filters: filters.into_iter().map(filter).collect::<Result<_, _>>()?,
        metrics: metrics
            .into_iter()
            .map(metric)
            .collect::<Result<Vec<_>, _>>()?
            .concat(),
        prompt,
    };
    match keys
        .0
        .keys()
        .find(|key| !key.as_str().is_some_and(|key| IGNORED.contains(&key)))
    {
        Some(key) => Err(format!(
            "`{}` is not supported; write the task as TOML instead",
            key.as_str().unwrap_or("a key that is no text")
        )),
        None => Ok(task),
    }
}

/// Where the records are, if that is a local file.
fn source(keys: &mut Keys) -> Result<Source, String> {
    let split = |keys: &Keys, key: &str| keys.0.get(key).and_then(Value::as_str).map(str::to_owned);
    let test = split(keys, "test_split").or_else(|| split(keys, "validation_split"));
    let fewshot = keys
        .take::<String>("fewshot_split")?
        .or_else(|| split(keys, "training_split"));
    let local = matches!(
        keys.take::<String>("dataset_path")?.as_deref(),
        Some("json" | "csv" | "text")
    );
    let files = keys.take::<serde_json::Value>("dataset_kwargs")?;
    let file = |split: Option<String>| {
        let files = files.as_ref().filter(|_| local)?.get("data_files")?;
        files
            .as_str()
            .or_else(|| files.get(split?)?.as_str())
            .map(str::to_owned)
    };
    Ok(Source {
        test: file(test).unwrap_or_default(),
        fewshot: file(fewshot).unwrap_or_default(),
    })
}

fn version(metadata: Option<serde_json::Value>) -> String {
    match metadata.as_ref().and_then(|m| m.get("version")) {
        Some(serde_json::Value::String(text)) => text.clone(),
        Some(number) => number.to_string(),
        None => "0".into(),
    }
}

/// Without stop texts an answer ends where the next example would begin.
fn generation(kwargs: Option<GenerationKwargs>, fewshot_delimiter: &str) -> Generation {
    let default = Generation {
        until: vec![fewshot_delimiter.to_owned()],
        ..Generation::default()
    };
    let Some(kwargs) = kwargs else { return default };
    Generation {
        until: match kwargs.until {
            None => default.until,
            Some(OneOrMore::One(text)) => vec![text],
            Some(OneOrMore::More(texts)) => texts,
        },
        max_tokens: kwargs.max_gen_toks.unwrap_or(default.max_tokens),
        temperature: if kwargs.do_sample {
            kwargs.temperature.unwrap_or(1.0)
        } else {
            0.0
        },
        top_p: kwargs.top_p.unwrap_or(default.top_p),
    }
}

fn filter(entry: FilterEntry) -> Result<Filter, String> {
    let step = |step: FilterStep| match (step.function.as_str(), step.regex_pattern) {
        ("regex", Some(regex)) => Ok(Some(Step::Regex {
            regex,
            select: step.group_select,
        })),
        ("regex", None) => Err(format!(
            "filter `{}`: `regex` needs a `regex_pattern`",
            entry.name
        )),
        ("remove_whitespace", _) => Ok(Some(Step::Regex {
            regex: r"(?s)\s*(.*)".into(),
            select: 0,
        })),
        // There is one answer, or all count.
        ("take_first", _) => Ok(None),
        (other, _) => Err(format!(
            "filter `{}`: `{other}` is none of regex, remove_whitespace, take_first",
            entry.name
        )),
    };
    let steps = entry
        .filter
        .into_iter()
        .map(step)
        .collect::<Result<Vec<_>, _>>()?;
    Ok(Filter {
        name: entry.name,
        steps: steps.into_iter().flatten().collect(),
    })
}

/// A metric; pass@k is one for each `k`.
fn metric(entry: MetricEntry) -> Result<Vec<Metric>, String> {
    let MetricEntry {
        metric,
        mut options,
    } = entry;
    // Each metric knows these itself.
    options.retain(|key, _| key != "aggregation" && key != "higher_is_better");
    options.insert("name".into(), metric.clone().into());
    let metric = |options| {
        serde_json::from_value::<Metric>(serde_json::Value::Object(options))
            .map_err(|e| format!("metric `{metric}`: {e}"))
    };
    match options.remove("k") {
        None => Ok(vec![metric(options)?]),
        Some(serde_json::Value::Array(all)) => all
            .into_iter()
            .map(|k| {
                metric(
                    options
                        .clone()
                        .into_iter()
                        .chain([("k".to_owned(), k)])
                        .collect(),
                )
            })
            .collect(),
        Some(k) => Ok(vec![metric(
            options.into_iter().chain([("k".to_owned(), k)]).collect(),
        )?]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        folder
    }

    const MATHS: &str = r#####"
tag: [math_word_problems]
task: maths
dataset_path: json
dataset_kwargs: { data_files: { test: test.jsonl, train: train.jsonl } }
output_type: generate_until
training_split: train
test_split: test
doc_to_text: "Question: {{question}}\nAnswer:"
doc_to_target: answer
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
    ignore_case: true
    ignore_punctuation: false
    regexes_to_ignore: [",", "\\$", "(?s).*#### ", "\\.$"]
generation_kwargs:
  until: ["Question:", "</s>", "<|im_end|>"]
  do_sample: false
  temperature: 0.0
repeats: 1
num_fewshot: 5
filter_list:
  - name: "strict-match"
    filter:
      - function: "regex"
        regex_pattern: "#### (\\-?[0-9\\.\\,]+)"
      - function: "take_first"
  - name: "flexible-extract"
    filter:
      - { function: "regex", group_select: -1, regex_pattern: "(-?[$0-9.,]{2,})|(-?[0-9]+)" }
      - function: "take_first"
metadata: { version: 3.0 }
"#####;

    #[test]
    fn a_task_in_yaml_is_the_task_in_toml() {
        let folder = folder(&[("maths.yaml", MATHS)]);
        let found = read(&folder.path().join("maths.yaml")).unwrap();
        let mut expected = Task::builtin("gsm8k").unwrap().unwrap();
        expected.name = "maths".into();
        expected.description.clear();
        expected.source = Source {
            test: "test.jsonl".into(),
            fewshot: "train.jsonl".into(),
        };
        expected.prompt.target = "{{ answer }}".into();
        assert_eq!(found, expected);
    }

    #[test]
    fn choices_may_be_a_list_a_field_or_an_expression() {
        let base = "task: t\ndataset_path: hub/name\noutput_type: multiple_choice\nvalidation_split: validation\ndoc_to_text: stem\nmetric_list: [{metric: acc}, {metric: acc_norm}]\n";
        let with = |lines: &str| {
            let folder = folder(&[("t.yaml", &format!("{base}{lines}"))]);
            read(&folder.path().join("t.yaml")).unwrap()
        };
        assert_eq!(
            with("doc_to_choice: [no, 'yes']\ndoc_to_target: label\n")
                .prompt
                .choices,
            ["no", "yes"]
        );
        let own = folder(&[
            ("base.yaml", base),
            (
                "arc.yaml",
                "include: base.yaml\ntask: arc\ndoc_to_choice: '{{choices.text}}'\ndoc_to_target: '{{choices.label.index(answerKey)}}'\n",
            ),
            (
                "sciq.yaml",
                "include: base.yaml\ntask: sciq\ndoc_to_choice: '{{[wrong, right]}}'\ndoc_to_target: 1\n",
            ),
            (
                "data.jsonl",
                "{\"stem\": \"s\", \"choices\": {\"text\": [\"bb\", \"a\"], \"label\": [\"A\", \"B\"]}, \"answerKey\": \"B\", \"wrong\": \"x\", \"right\": \"y\"}\n",
            ),
        ]);
        for (name, choices, gold) in [("arc", ["bb", "a"], 1), ("sciq", ["x", "y"], 1)] {
            let path = own.path().join(format!("{name}.yaml"));
            let (task, place) = Task::find(&format!("{}:data.jsonl", path.display())).unwrap();
            assert_eq!(task.name, name);
            let context = super::super::Context {
                task_folder: place,
                ..Default::default()
            };
            let prepared = super::super::prompt::prepare(
                &task,
                &context,
                &super::super::tests::Parrot::new(""),
            )
            .unwrap();
            let sample = &prepared.samples[0];
            assert_eq!(
                (sample.choices.as_slice(), sample.gold),
                (&choices.map(str::to_owned)[..], gold)
            );
        }
    }

    #[test]
    fn what_cannot_be_done_here_is_named() {
        let base = "task: t\ndataset_path: json\ndoc_to_text: a\ndoc_to_target: b\nmetric_list: [{metric: exact_match}]\n";
        for (lines, word) in [
            ("process_docs: !function utils.f\n", "process_docs"),
            ("doc_to_choice: !function utils.f\n", "!function"),
            ("output_type: loglikelihood\n", "loglikelihood"),
            (
                "filter_list: [{name: f, filter: [{function: majority_vote}]}]\n",
                "majority_vote",
            ),
            ("generation_kwargs: {num_beams: 3}\n", "num_beams"),
            ("include: t.yaml\n", "include"),
            ("repeats: 3\n", "repeats"),
            ("num_fewshot: [1\n", "line"),
        ] {
            let folder = folder(&[("t.yaml", &format!("{base}{lines}"))]);
            let error = read(&folder.path().join("t.yaml")).unwrap_err().to_string();
            assert!(
                error.contains(word) && error.contains("t.yaml"),
                "{lines}: {error}"
            );
        }
        let folder = folder(&[("t.yaml", &base.replace("exact_match", "bleu"))]);
        assert!(
            read(&folder.path().join("t.yaml"))
                .unwrap_err()
                .to_string()
                .contains("bleu")
        );
    }
}
