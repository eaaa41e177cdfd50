//! What popular tasks of lm-evaluation-harness do in Python of their own, built in under a name.
//!
//! A task file that names a function of its own is read if that function is one of these: by the
//! text of its definition where the Python file lies beside the task, else by the data set. The
//! digests of the definitions are in `known.txt`, which `scripts/golden/harness_functions.py`
//! writes.

mod fields;
mod math;
mod outcome;
mod results;
mod squad;

use std::path::Path;
use std::sync::LazyLock;

use serde_json::Value;

use super::python;
use super::record::Record;
use crate::measurement::sha256;
use outcome::Found;
pub(super) use outcome::Outcome;

#[derive(Clone, Copy)]
enum Body {
    /// Changes or drops records.
    Docs(fn(Record) -> Result<Option<Record>, String>),
    /// Drops records whose field has another value.
    Only(&'static str, fn(&str) -> bool),
    /// Text, target or choices of a record.
    Field(fn(&Record) -> Result<Value, String>),
    /// Scores of an answer.
    Results(fn(&Record, Outcome<'_>) -> Result<Found, String>),
    /// An answer from what was written.
    Filter(fn(&str, &Record) -> Result<String, String>),
    /// Runs answers as programs.
    Programs,
    /// Mean F1 of so many classes.
    ClassF1(usize),
}

macro_rules! only {
    ($field:literal, $value:literal) => {
        Body::Only($field, |value| value == $value)
    };
    (prefix $field:literal, $value:literal) => {
        Body::Only($field, |value| value.starts_with($value))
    };
}

const FUNCTIONS: &[(&str, Body)] = &[
    ("arithmetic.process_docs", Body::Docs(fields::arithmetic)),
    ("cb.cb_multi_fi", Body::ClassF1(3)),
    ("copa.doc_to_choice", Body::Field(fields::copa_choice)),
    ("copa.doc_to_target", Body::Field(fields::copa_target)),
    ("copa.doc_to_text", Body::Field(fields::copa_text)),
    ("coqa.doc_to_target", Body::Field(squad::coqa_target)),
    ("coqa.doc_to_text", Body::Field(squad::coqa_text)),
    ("coqa.process_results", Body::Results(squad::coqa)),
    (
        "crows_pairs.doc_to_choice",
        Body::Field(fields::crows_pairs),
    ),
    ("crows_pairs.filter_age", only!(prefix "bias_type", "age")),
    (
        "crows_pairs.filter_appearance",
        only!(prefix "bias_type", "physical-appearance"),
    ),
    (
        "crows_pairs.filter_autre",
        only!(prefix "bias_type", "autre"),
    ),
    (
        "crows_pairs.filter_disability",
        only!(prefix "bias_type", "disability"),
    ),
    (
        "crows_pairs.filter_gender",
        only!(prefix "bias_type", "gender"),
    ),
    (
        "crows_pairs.filter_nationality",
        only!(prefix "bias_type", "nationality"),
    ),
    (
        "crows_pairs.filter_orientation",
        only!(prefix "bias_type", "sexual-orientation"),
    ),
    (
        "crows_pairs.filter_race_color",
        only!(prefix "bias_type", "race-color"),
    ),
    (
        "crows_pairs.filter_religion",
        only!(prefix "bias_type", "religion"),
    ),
    (
        "crows_pairs.filter_socio",
        only!(prefix "bias_type", "socioeconomic"),
    ),
    (
        "crows_pairs.process_results",
        Body::Results(results::crows_pairs),
    ),
    ("drop.process_docs", Body::Docs(squad::drop_docs)),
    ("drop.process_results", Body::Results(squad::drop)),
    ("hellaswag.process_docs", Body::Docs(fields::hellaswag)),
    ("hendrycks_math.process_docs", Body::Docs(math::docs)),
    (
        "hendrycks_math.process_results",
        Body::Results(math::results),
    ),
    (
        "humaneval.build_predictions",
        Body::Filter(results::after_prompt),
    ),
    (
        "humaneval.build_predictions_instruct",
        Body::Filter(results::after_prompt_in_fence),
    ),
    ("humaneval.pass_at_k", Body::Programs),
    ("logiqa.doc_to_target", Body::Field(fields::logiqa_target)),
    ("logiqa.doc_to_text", Body::Field(fields::logiqa_text)),
    ("logiqa2.doc_to_text", Body::Field(fields::logiqa2_text)),
    ("mathqa.doc_to_choice", Body::Field(fields::mathqa_choice)),
    ("mbpp.build_predictions", Body::Filter(results::first_fence)),
    ("mbpp.pass_at_1", Body::Programs),
    ("medmcqa.doc_to_text", Body::Field(fields::medmcqa_text)),
    ("medqa.doc_to_target", Body::Field(fields::medqa_target)),
    ("medqa.doc_to_text", Body::Field(fields::medqa_text)),
    ("mmlu_pro.doc_to_text", Body::Field(fields::mmlu_pro_text)),
    (
        "mmlu_pro.fewshot_to_target",
        Body::Field(fields::mmlu_pro_target),
    ),
    (
        "mmlu_pro.fewshot_to_text",
        Body::Field(fields::mmlu_pro_text),
    ),
    ("mmlu_pro.process_biology", only!("category", "biology")),
    ("mmlu_pro.process_business", only!("category", "business")),
    ("mmlu_pro.process_chemistry", only!("category", "chemistry")),
    (
        "mmlu_pro.process_computer_science",
        only!("category", "computer science"),
    ),
    ("mmlu_pro.process_economics", only!("category", "economics")),
    (
        "mmlu_pro.process_engineering",
        only!("category", "engineering"),
    ),
    ("mmlu_pro.process_health", only!("category", "health")),
    ("mmlu_pro.process_history", only!("category", "history")),
    ("mmlu_pro.process_law", only!("category", "law")),
    ("mmlu_pro.process_math", only!("category", "math")),
    ("mmlu_pro.process_other", only!("category", "other")),
    (
        "mmlu_pro.process_philosophy",
        only!("category", "philosophy"),
    ),
    ("mmlu_pro.process_physics", only!("category", "physics")),
    (
        "mmlu_pro.process_psychology",
        only!("category", "psychology"),
    ),
    ("mnli.doc_to_text", Body::Field(fields::mnli_text)),
    ("pubmedqa.doc_to_text", Body::Field(fields::pubmedqa_text)),
    ("race.doc_to_choice", Body::Field(fields::race_choice)),
    ("race.doc_to_target", Body::Field(fields::race_target)),
    ("race.doc_to_text", Body::Field(fields::race_text)),
    ("record.doc_to_choice", Body::Field(squad::record_choice)),
    ("record.doc_to_target", Body::Field(squad::record_target)),
    ("record.doc_to_text", Body::Field(squad::record_text)),
    ("record.process_docs", Body::Docs(squad::record_docs)),
    ("record.process_results", Body::Results(squad::record)),
    ("toxigen.doc_to_target", Body::Field(fields::toxigen_target)),
    (
        "truthfulqa.process_results_mc2",
        Body::Results(results::truthfulqa_mc2),
    ),
    ("webqs.doc_to_choice", Body::Field(fields::webqs_choice)),
    ("webqs.doc_to_target", Body::Field(fields::webqs_target)),
    ("wikitext.process_results", Body::Results(results::wikitext)),
    (
        "wikitext.wikitext_detokenizer",
        Body::Field(fields::wikitext_target),
    ),
    (
        "winogrande.doc_to_choice",
        Body::Field(fields::winogrande_choice),
    ),
    (
        "winogrande.doc_to_target",
        Body::Field(fields::winogrande_target),
    ),
    (
        "winogrande.doc_to_text",
        Body::Field(fields::winogrande_text),
    ),
    ("wsc.default_doc_to_text", Body::Field(fields::wsc_text)),
    ("wsc273.process_doc", Body::Docs(fields::wsc273)),
];

/// What `known.txt` says of a function.
struct Known {
    name: &'static str,
    /// Python file without its ending, and the definitions that it rests on, itself first.
    module: &'static str,
    definitions: Vec<&'static str>,
    datasets: Vec<&'static str>,
    digest: &'static str,
}

static KNOWN: LazyLock<Vec<Known>> = LazyLock::new(|| {
    let lines = include_str!("known.txt").lines();
    lines
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| {
            let mut columns = line.split_whitespace();
            let (name, file) = (columns.next()?, columns.next()?);
            Some(Known {
                name,
                module: file.rsplit('/').next()?.strip_suffix(".py")?,
                definitions: columns.next()?.split(',').collect(),
                datasets: columns.next()?.split(',').collect(),
                digest: columns.next()?,
            })
        })
        .collect()
});

fn body(name: &str) -> Result<Body, String> {
    FUNCTIONS
        .iter()
        .find(|(known, _)| *known == name)
        .map(|(_, body)| *body)
        .ok_or_else(|| format!("`{name}` is no built-in function"))
}

/// The built-in function that stands for `MODULE.NAME` of the task file at `path`.
///
/// # Errors
/// Functions that are not built in, or are built in under that name but written differently there.
pub(super) fn resolve(path: &Path, function: &str, dataset: &str) -> Result<&'static str, String> {
    let function = function.trim().trim_matches(['"', '\'']);
    let (module, name) = function.rsplit_once('.').unwrap_or(("", function));
    let candidates: Vec<&Known> = KNOWN
        .iter()
        .filter(|k| k.module == module && k.definitions.first() == Some(&name))
        .collect();
    let file = path.with_file_name(format!("{}.py", module.replace('.', "/")));
    let no_way_out = "write the task as TOML, or leave it to lm-evaluation-harness";
    let known = if file.is_file() {
        let source = read(&file)?;
        let found = candidates
            .iter()
            .find(|k| digest(&source, &k.definitions).as_deref() == Some(k.digest));
        found.ok_or_else(|| match candidates.as_slice() {
            [] => format!("the function `{function}` is not built in; {no_way_out}"),
            some => {
                let names: Vec<&str> = some.iter().map(|k| k.name).collect();
                format!(
                    "{} defines `{name}` in another way than what is built in as {}; {no_way_out}",
                    file.display(),
                    names.join(", ")
                )
            }
        })?
    } else {
        let of_dataset = |k: &&&Known| k.datasets.contains(&dataset);
        candidates.iter().find(of_dataset).ok_or_else(|| {
            format!(
                "the function `{function}` of the data set `{dataset}` is not built in, and there is no {}; {no_way_out}",
                file.display()
            )
        })?
    };
    Ok(known.name)
}

/// The records that a function returns as they stand, as examples are given in Python.
///
/// # Errors
/// Functions that do anything but return a list of records.
pub(super) fn samples(path: &Path, function: &str) -> Result<Vec<Record>, String> {
    let function = function.trim().trim_matches(['"', '\'']);
    let (module, name) = function.rsplit_once('.').unwrap_or(("", function));
    let file = path.with_file_name(format!("{}.py", module.replace('.', "/")));
    if !file.is_file() {
        return Err(format!(
            "the examples are those of `{function}`, but there is no {}",
            file.display()
        ));
    }
    let source = read(&file)?;
    let block = definition(&source, name)
        .ok_or_else(|| format!("{} has no function `{name}`", file.display()))?;
    let returned = block.split_once(':').and_then(|(_, body)| {
        // The signature may have types of its own with colons; the body begins on a line.
        let body = if body.trim_start().starts_with("return") {
            body
        } else {
            block.split_once(":\n")?.1
        };
        python::literal(body.trim_start().strip_prefix("return")?)
    });
    let records = match returned {
        Some(Value::Array(items)) => items
            .into_iter()
            .map(|item| match item {
                Value::Object(record) => Some(record),
                _ => None,
            })
            .collect::<Option<Vec<_>>>(),
        _ => None,
    };
    records.ok_or_else(|| {
        format!(
            "{}: `{name}` does more than return a list of records, which is all that is read of Python",
            file.display()
        )
    })
}

fn read(file: &Path) -> Result<String, String> {
    frugal_core::fs::read(file)
        .map_err(|e| e.to_string())
        .and_then(|bytes| {
            String::from_utf8(bytes).map_err(|_| format!("{}: not UTF-8 text", file.display()))
        })
}

/// A definition at the left margin, to where the next one begins.
fn definition<'a>(source: &'a str, name: &str) -> Option<&'a str> {
    let begins = |line: &str| {
        let rest = line.strip_prefix("def ").unwrap_or(line).strip_prefix(name);
        rest.is_some_and(|rest| rest.starts_with('(') || rest.starts_with(" ="))
    };
    let mut at = 0;
    let mut start = None;
    for line in source.split_inclusive('\n') {
        match start {
            None if begins(line) => start = Some(at),
            Some(start) if line.starts_with(|c: char| !c.is_whitespace() && !")]}".contains(c)) => {
                return source.get(start..at);
            }
            _ => {}
        }
        at += line.len();
    }
    start.and_then(|start| source.get(start..))
}

/// Identifies definitions by their text, whatever their white space and quotes.
fn digest(source: &str, names: &[&str]) -> Option<String> {
    let all: Option<String> = names.iter().map(|name| definition(source, name)).collect();
    let plain: String = all?
        .chars()
        .filter(|c| !c.is_whitespace())
        .map(|c| if c == '\'' { '"' } else { c })
        .collect();
    sha256(plain.as_bytes()).get(..16).map(str::to_owned)
}

/// Text, target or choices of a record.
pub(super) fn field(name: &str, record: &Record) -> Result<Value, String> {
    match body(name)? {
        Body::Field(of) => of(record),
        _ => Err(format!("`{name}` gives no field of a record")),
    }
}

/// The records that a function makes of a file's.
///
/// # Errors
/// The record, from 0, and what is wrong with it.
pub(super) fn docs(name: &str, records: Vec<Record>) -> Result<Vec<Record>, (usize, String)> {
    let body = body(name).map_err(|e| (0, e))?;
    let mut kept = Vec::with_capacity(records.len());
    for (row, record) in records.into_iter().enumerate() {
        let made = match body {
            Body::Docs(of) => of(record).map_err(|e| (row, e))?,
            Body::Only(field, wanted) => {
                let value = fields::text(&record, field).map_err(|e| (row, e))?;
                wanted(value).then_some(record)
            }
            _ => return Err((0, format!("`{name}` does not make records"))),
        };
        kept.extend(made);
    }
    Ok(kept)
}

/// Scores of an answer.
pub(super) fn results(name: &str, record: &Record, outcome: Outcome<'_>) -> Result<Found, String> {
    match body(name)? {
        Body::Results(of) => of(record, outcome),
        _ => Err(format!("`{name}` scores no answers")),
    }
}

/// An answer from what was written.
pub(super) fn filter(name: &str, text: &str, record: &Record) -> Result<String, String> {
    match body(name)? {
        Body::Filter(of) => of(text, record),
        _ => Err(format!("`{name}` filters no answers")),
    }
}

/// Whether a function runs answers as programs.
pub(super) fn runs_programs(name: &str) -> bool {
    matches!(body(name), Ok(Body::Programs))
}

/// Of how many classes a function gives the mean F1.
pub(super) fn class_f1(name: &str) -> Option<usize> {
    match body(name) {
        Ok(Body::ClassF1(classes)) => Some(classes),
        _ => None,
    }
}

/// Checks that a function gives a field of a record.
pub(super) fn check_field(name: &str) -> Result<(), String> {
    match body(name)? {
        Body::Field(_) => Ok(()),
        _ => Err(format!("`{name}` gives no field of a record")),
    }
}

/// Checks that a function makes records.
pub(super) fn check_docs(name: &str) -> Result<(), String> {
    match body(name)? {
        Body::Docs(_) | Body::Only(..) => Ok(()),
        _ => Err(format!("`process_docs`: `{name}` does not make records")),
    }
}

/// Checks that a function scores answers.
pub(super) fn check_results(name: &str) -> Result<(), String> {
    match body(name)? {
        Body::Results(_) => Ok(()),
        _ => Err(format!("`process_results`: `{name}` scores no answers")),
    }
}

/// Whether a function by this name filters answers.
pub(super) fn is_filter(name: &str) -> bool {
    matches!(body(name), Ok(Body::Filter(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_function_has_a_line_in_the_list_of_known_ones() {
        let names: Vec<&str> = FUNCTIONS.iter().map(|(name, _)| *name).collect();
        let known: Vec<&str> = KNOWN.iter().map(|k| k.name).collect();
        assert_eq!(names, known);
        assert!(KNOWN.iter().all(|k| k.digest.len() == 16));
    }

    #[test]
    fn definitions_are_compared_without_white_space() {
        let source = "import re\n\ndef f(x):\n    return 'a'\n\n\ndef g(x):\n  return f(x)\n\nh = partial(\n    g,\n)\n";
        assert_eq!(
            definition(source, "f"),
            Some("def f(x):\n    return 'a'\n\n\n")
        );
        assert_eq!(definition(source, "h"), Some("h = partial(\n    g,\n)\n"));
        assert_eq!(definition(source, "r"), None);
        let other = source.replace("    return 'a'", "\treturn \"a\"");
        assert_eq!(digest(source, &["f", "g"]), digest(&other, &["f", "g"]));
        assert_ne!(
            digest(source, &["f"]),
            digest(&source.replace("'a'", "'b'"), &["f"])
        );
        assert_eq!(digest(source, &["f", "k"]), None);
    }

    #[test]
    fn a_function_that_was_changed_is_not_taken_for_the_built_in_one() {
        let folder = tempfile::tempdir().unwrap();
        let task = folder.path().join("t.yaml");
        assert_eq!(
            resolve(&task, "utils.process_docs", "Rowan/hellaswag"),
            Ok("hellaswag.process_docs")
        );
        assert!(
            resolve(&task, "utils.process_docs", "me/mine")
                .unwrap_err()
                .contains("me/mine")
        );
        std::fs::write(
            folder.path().join("utils.py"),
            "def preprocess(text):\n    return text\n\ndef process_docs(dataset):\n    return dataset\n",
        )
        .unwrap();
        let error = resolve(&task, "utils.process_docs", "Rowan/hellaswag").unwrap_err();
        assert!(
            error.contains("another way") && error.contains("utils.py"),
            "{error}"
        );
        assert!(
            resolve(&task, "utils.strange", "x")
                .unwrap_err()
                .contains("`utils.strange` is not built in")
        );
    }

    #[test]
    fn examples_that_a_function_returns_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let task = folder.path().join("t.yaml");
        let file = folder.path().join("utils.py");
        std::fs::write(&file, "def shots() -> list[dict]:\n    return [\n        {'q': 'a' 'b', 'n': [1, 2], \"ok\": True},\n    ]\n\nx = 1\n").unwrap();
        let found = samples(&task, "utils.shots").unwrap();
        assert_eq!(
            Value::from(found[0].clone()),
            serde_json::json!({"q": "ab", "n": [1, 2], "ok": true})
        );
        std::fs::write(&file, "def shots():\n    return load('x')\n").unwrap();
        assert!(
            samples(&task, "utils.shots")
                .unwrap_err()
                .contains("more than return")
        );
    }
}
