//! Libraries with questions whose definitions are known.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use frugal_core::data::objects;
use frugal_nn::named_rng;
use frugal_retrieve::cramf::{Definition, KnowledgeBase, identifiers, leaks, mask};
use rand::seq::SliceRandom;
use serde_json::{Map, Value};

use super::{StudyError, StudyRequest};

/// Name of the first library.
pub(super) const MATHLIB: &str = "mathlib";
/// The file of the second.
pub(super) const PYTHON: &str = "python-docs/sympy.jsonl.gz";

/// A text, and the definitions that answer it.
pub(super) struct Question {
    pub text: String,
    pub right: HashSet<u32>,
    /// Whether the name of an answer means other things too.
    pub ambiguous: bool,
}

/// Definitions and questions.
pub(super) struct Library {
    pub name: &'static str,
    pub base: KnowledgeBase,
    pub repeated: usize,
    pub questions: Vec<Question>,
    pub about: &'static str,
}

/// Questions of a seed.
pub(super) fn drawn<'a>(
    all: &'a [Question],
    most: usize,
    seed: u64,
    name: &str,
) -> Vec<&'a Question> {
    let mut questions: Vec<&Question> = all.iter().collect();
    questions.shuffle(&mut named_rng(seed, name));
    questions.truncate(most);
    questions
}

fn read(path: &Path) -> Result<Vec<Map<String, Value>>, StudyError> {
    let bad = |reason: String| StudyError::Data {
        path: path.to_owned(),
        reason,
    };
    let bytes = std::fs::read(path).map_err(|e| bad(e.to_string()))?;
    objects(path, &bytes).map_err(|e| bad(e.to_string()))
}

fn text<'a>(record: &'a Map<String, Value>, field: &str) -> &'a str {
    record.get(field).and_then(Value::as_str).unwrap_or("")
}

fn definition(record: &Map<String, Value>) -> Definition {
    let first = |names: [&str; 2]| {
        let found = names.map(|name| text(record, name));
        let found = found.into_iter().find(|value| !value.is_empty());
        found.unwrap_or_default().to_owned()
    };
    Definition {
        name: text(record, "name").to_owned(),
        kind: text(record, "kind").to_owned(),
        module: first(["module", "file"]),
        signature: first(["signature", "statement"]),
        doc: text(record, "doc").to_owned(),
    }
}

/// Names of several definitions by their last parts.
fn ambiguous(base: &KnowledgeBase) -> HashSet<String> {
    let mut modules: HashMap<String, HashSet<&str>> = HashMap::new();
    for definition in base.definitions() {
        let last = definition.last_name().to_lowercase();
        modules.entry(last).or_default().insert(&definition.module);
    }
    modules.retain(|_, modules| modules.len() > 1);
    modules.into_keys().collect()
}

fn base(
    path: &Path,
    version: &str,
    definitions: Vec<Definition>,
) -> Result<(KnowledgeBase, usize), StudyError> {
    let made = KnowledgeBase::new(version, definitions);
    let (base, repeated) = made.map_err(|error| StudyError::Data {
        path: path.to_owned(),
        reason: error.to_string(),
    })?;
    Ok((base, repeated.len()))
}

/// Definitions, classes and structures of mathlib 3, and statements of ProofNet and miniF2F whose
/// formal form uses them. Lean 4 spells `is_open` as `IsOpen`; both have one key.
pub(super) fn mathlib(request: &StudyRequest<'_>, most: usize) -> Result<Library, StudyError> {
    let path = request.data("mathlib3-decls/decls.jsonl.gz")?;
    let records = read(&path)?;
    let wanted = |kind: &str| {
        matches!(
            kind,
            "def" | "class" | "structure" | "abbreviation" | "inductive"
        )
    };
    let definitions = records.iter().map(definition);
    let definitions = definitions.filter(|d| wanted(&d.kind) && !d.signature.trim().is_empty());
    let definitions: Vec<Definition> = definitions.collect();
    let step = definitions
        .len()
        .div_ceil(most.min(definitions.len()).max(1));
    let definitions = definitions.into_iter().step_by(step).collect();
    let (base, repeated) = base(&path, "mathlib3 65a1391a", definitions)?;
    let several = ambiguous(&base);
    let mut questions = Vec::new();
    let files = [
        (
            "proofnet/proofnet_lean4.jsonl.gz",
            "informal_stmt",
            "formal_statement",
        ),
        ("minif2f/minif2f.jsonl.gz", "informal_statement", "lean4"),
    ];
    for (file, informal, formal) in files {
        for record in read(&request.data(file)?)? {
            let statement = text(&record, informal).split("\\begin{proof}").next();
            let code = format!("{}\n{}", text(&record, "header"), text(&record, formal));
            let right = used(&base, &code);
            let statement = statement.unwrap_or_default().trim();
            if right.is_empty() || statement.is_empty() {
                continue;
            }
            let is = |id: &u32| several.contains(&last(&base, *id));
            questions.push(Question {
                text: statement.to_owned(),
                ambiguous: right.iter().any(is),
                right,
            });
        }
    }
    // A part of the library may have no answers; every arm runs all the same.
    if questions.is_empty() {
        questions.push(Question {
            text: "Show that the sum of two continuous functions is continuous.".into(),
            right: HashSet::new(),
            ambiguous: false,
        });
    }
    Ok(Library {
        name: MATHLIB,
        base,
        repeated,
        questions,
        about: "Questions are the informal statements of ProofNet and miniF2F; right is any definition that the formal statement \
                uses. These are of Lean 4, the library of Lean 3: names that were changed in between count for no arm.",
    })
}

fn last(base: &KnowledgeBase, id: u32) -> String {
    base.definitions()[id as usize].last_name().to_lowercase()
}

/// Definitions that code uses by their full names, also within the namespaces that it opens.
fn used(base: &KnowledgeBase, code: &str) -> HashSet<u32> {
    let opened = code.lines().filter_map(|line| line.strip_prefix("open "));
    let opened: Vec<&str> = opened
        .flat_map(str::split_whitespace)
        .filter(|name| *name != "scoped")
        .collect();
    let statement = code.lines().filter(|line| {
        let skipped = ["open ", "import ", "set_option ", "noncomputable "];
        !skipped.iter().any(|start| line.starts_with(start))
    });
    let statement = statement.collect::<Vec<_>>().join("\n");
    let mut found = HashSet::new();
    for name in identifiers(&statement) {
        // One letter is a variable.
        if name.chars().count() < 2 {
            continue;
        }
        found.extend(base.named(name));
        for namespace in &opened {
            found.extend(base.named(&format!("{namespace}.{name}")));
        }
    }
    found
}

/// The functions and classes of a Python library, and what their documentation says after its first
/// paragraph, without their names.
pub(super) fn python(
    request: &StudyRequest<'_>,
    most: usize,
) -> Result<Option<Library>, StudyError> {
    let Ok(path) = request.data(PYTHON) else {
        return Ok(None);
    };
    let records = read(&path)?;
    let version = records.first().map_or("", |r| text(r, "library_version"));
    let records: Vec<&Map<String, Value>> = records
        .iter()
        .filter(|r| !text(r, "name").is_empty())
        .take(most)
        .collect();
    let definitions = records.iter().map(|r| definition(r)).collect();
    let (base, repeated) = base(&path, version, definitions)?;
    let several = ambiguous(&base);
    let mut questions = Vec::new();
    for record in records {
        let (name, more) = (text(record, "name"), text(record, "more"));
        let masked = mask(more, name);
        if more.split_whitespace().count() < 8 || leaks(&masked, name) {
            continue;
        }
        let right: HashSet<u32> = base.named(name).iter().copied().collect();
        questions.push(Question {
            text: masked,
            ambiguous: right.iter().any(|id| several.contains(&last(&base, *id))),
            right,
        });
    }
    Ok(Some(Library {
        name: "sympy",
        base,
        repeated,
        questions,
        about: "Questions are what the documentation of a function or class says after its first paragraph, its name masked; the \
                first paragraph is in the knowledge base.",
    }))
}
