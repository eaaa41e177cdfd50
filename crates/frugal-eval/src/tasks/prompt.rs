//! From a task and its records to what the model is asked.

use std::path::{Path, PathBuf};

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, UndefinedBehavior};
use rand::SeedableRng;
use rand::seq::index::sample;
use rand_chacha::ChaCha8Rng;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::task::{Kind, Task};
use super::{Context, EvalError, LanguageModel};
use frugal_core::data::{self, Message};
use frugal_core::template;

/// A record of the data.
pub type Record = Map<String, Value>;

/// One question to the model.
#[derive(Clone, Debug, PartialEq)]
pub enum Request {
    /// How likely are these continuations of this text?
    Choices {
        /// What is given.
        context: String,
        /// Continuations, each with the delimiter in front.
        continuations: Vec<String>,
    },
    /// Continue this text, perhaps several times.
    Generate {
        /// What is given.
        context: String,
        /// How often.
        times: usize,
    },
    /// How likely is this text?
    Rolling {
        /// The text.
        text: String,
    },
}

/// A record, its prompt and what is right.
#[derive(Clone, Debug)]
pub struct Sample {
    /// Number of the record, from 0.
    pub doc_id: usize,
    /// The record.
    pub doc: Record,
    /// What the model is asked.
    pub request: Request,
    /// The target as the template gave it.
    pub target: String,
    /// The choices without delimiters.
    pub choices: Vec<String>,
    /// Number of the right choice.
    pub gold: usize,
    /// Identifies the question, the model and how it is asked.
    pub hash: String,
}

impl Sample {
    /// Answers that are asked for.
    pub(super) fn times(&self) -> usize {
        if let Request::Generate { times, .. } = self.request {
            times
        } else {
            1
        }
    }

    /// Identifies one of the answers.
    pub(super) fn answer_hash(&self, repeat: usize) -> String {
        if repeat == 0 {
            self.hash.clone()
        } else {
            sha256(format!("{} {repeat}", self.hash).as_bytes())
        }
    }
}

/// The samples of a task and what they were made from.
#[derive(Debug)]
pub struct Prepared {
    /// Samples in the order of the records.
    pub samples: Vec<Sample>,
    /// Records in the file, before any limit.
    pub original: usize,
    /// The file.
    pub path: PathBuf,
    /// SHA-256 of the file.
    pub sha256: String,
    /// Examples in front of each question.
    pub num_fewshot: usize,
}

/// SHA-256 in hexadecimal.
pub(super) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect()
}

/// A seed from a hash in hexadecimal.
pub(super) fn seed_of(hash: &str) -> u64 {
    hash.get(..16)
        .and_then(|digits| u64::from_str_radix(digits, 16).ok())
        .unwrap_or_default()
}

/// Templates of a task over a record.
pub(super) struct Renderer {
    environment: Environment<'static>,
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
        environment.set_unknown_method_callback(template::python_method);
        Self {
            environment,
            task: task.into(),
        }
    }

    pub(super) fn render(
        &self,
        source: &str,
        record: &Record,
        row: usize,
    ) -> Result<String, EvalError> {
        self.environment
            .render_str(source, template_object(record))
            .map_err(|e| {
                let fields = record
                    .keys()
                    .map(String::as_str)
                    .collect::<Vec<_>>()
                    .join(", ");
                EvalError::Template {
                    task: self.task.clone(),
                    row,
                    reason: template::describe(&e),
                    fields,
                }
            })
    }

    /// What an expression comes to; the name of a field is one.
    fn value(&self, expression: &str, record: &Record, row: usize) -> Result<Value, EvalError> {
        let text = self.render(&format!("{{{{ ({expression})|tojson }}}}"), record, row)?;
        serde_json::from_str(&text).map_err(|e| EvalError::Record {
            task: self.task.clone(),
            row,
            reason: format!("`{expression}`: {e}"),
        })
    }
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

/// What one record gives.
struct Rendered {
    text: String,
    target: String,
    /// What the answer begins with.
    prefix: String,
    choices: Vec<String>,
    gold: usize,
}

fn rendered(
    task: &Task,
    renderer: &Renderer,
    record: &Record,
    row: usize,
) -> Result<Rendered, EvalError> {
    let text = renderer.render(&task.prompt.text, record, row)?;
    let target = renderer.render(&task.prompt.target, record, row)?;
    let prefix = renderer.render(&task.prompt.gen_prefix, record, row)?;
    if task.kind != Kind::MultipleChoice {
        return Ok(Rendered {
            text,
            target,
            prefix,
            choices: Vec::new(),
            gold: 0,
        });
    }
    let fail = |reason: String| EvalError::Record {
        task: task.name.clone(),
        row,
        reason,
    };
    let choices = if task.prompt.choices_field.is_empty() {
        task.prompt
            .choices
            .iter()
            .map(|c| renderer.render(c, record, row))
            .collect::<Result<Vec<_>, _>>()?
    } else {
        let field = &task.prompt.choices_field;
        // A name that is no expression, as `answer choices`, is a field all the same.
        let list = record
            .get(field)
            .cloned()
            .map_or_else(|| renderer.value(field, record, row), Ok)?;
        let list = list
            .as_array()
            .ok_or_else(|| fail(format!("`{field}` is not a list of choices")))?;
        list.iter()
            .map(|c| {
                c.as_str()
                    .map(str::to_owned)
                    .ok_or_else(|| fail(format!("`{field}` holds something that is not text")))
            })
            .collect::<Result<_, _>>()?
    };
    if choices.len() < 2 || choices.iter().any(String::is_empty) {
        return Err(fail(
            "there must be at least two choices, none of them empty".into(),
        ));
    }
    let gold = gold(&target, &choices).ok_or_else(|| {
        fail(format!(
            "the target {target:?} is neither one of the choices nor its number or letter"
        ))
    })?;
    Ok(Rendered {
        text,
        target,
        prefix,
        choices,
        gold,
    })
}

/// A number from 0, the text of a choice, or its letter.
fn gold(target: &str, choices: &[String]) -> Option<usize> {
    let target = target.trim();
    if let Some(i) = choices.iter().position(|c| c == target) {
        return Some(i);
    }
    if let Ok(i) = target.parse::<usize>() {
        return (i < choices.len()).then_some(i);
    }
    let mut letters = target.chars();
    match (letters.next(), letters.next()) {
        (Some(letter @ 'A'..='Z'), None) => {
            Some(letter as usize - 'A' as usize).filter(|i| *i < choices.len())
        }
        _ => None,
    }
}

/// Builds all samples.
pub(super) fn prepare(
    task: &Task,
    context: &Context,
    model: &dyn LanguageModel,
) -> Result<Prepared, EvalError> {
    let path = find(&task.source.test, context)?;
    let (records, sha256_of_file) = read(&path)?;
    let fewshot = match task.source.fewshot.as_str() {
        "" => None,
        file => Some(file),
    };
    let num_fewshot = context.num_fewshot.unwrap_or(task.num_fewshot);
    let examples = match fewshot {
        Some(file) if num_fewshot > 0 => Some(read(&find(file, context)?)?.0),
        _ => None,
    };
    let pool = examples.as_ref().unwrap_or(&records);
    let available = if examples.is_some() {
        pool.len()
    } else {
        pool.len() - 1
    };
    if num_fewshot > available {
        return Err(EvalError::Task {
            task: task.name.clone(),
            reason: format!("{num_fewshot} examples wanted, but there are {available}"),
        });
    }
    let renderer = Renderer::new(&task.name);
    let limit = if context.limit == 0 {
        records.len()
    } else {
        context.limit.min(records.len())
    };
    let original = records.len();
    let mut samples = Vec::with_capacity(limit);
    for (doc_id, doc) in records.iter().take(limit).enumerate() {
        let own = rendered(task, &renderer, doc, doc_id)?;
        let shots = shots(
            task,
            context,
            pool.len(),
            if examples.is_some() {
                None
            } else {
                Some(doc_id)
            },
            num_fewshot,
            doc_id,
        );
        let shots = shots
            .into_iter()
            .map(|i| rendered(task, &renderer, &pool[i], i))
            .collect::<Result<Vec<_>, _>>()?;
        let request = request(task, context, model, &own, &shots)?;
        let hash = hash(task, context, model, &request, &own.target);
        samples.push(Sample {
            doc_id,
            doc: doc.clone(),
            request,
            target: own.target,
            choices: own.choices,
            gold: own.gold,
            hash,
        });
    }
    Ok(Prepared {
        samples,
        original,
        path,
        sha256: sha256_of_file,
        num_fewshot,
    })
}

/// Which records serve as examples: the first ones, or drawn for each question anew; never the
/// question itself.
fn shots(
    task: &Task,
    context: &Context,
    pool: usize,
    own: Option<usize>,
    count: usize,
    doc_id: usize,
) -> Vec<usize> {
    if count == 0 {
        return Vec::new();
    }
    if context.first_shots {
        return (0..pool).filter(|i| Some(*i) != own).take(count).collect();
    }
    let digest =
        Sha256::digest(format!("examples {} {} {doc_id}", context.seed, task.name).as_bytes());
    let mut seed = [0; 32];
    seed.copy_from_slice(&digest);
    let mut rng = ChaCha8Rng::from_seed(seed);
    let drawn = sample(&mut rng, pool, (count + 1).min(pool));
    drawn
        .into_iter()
        .filter(|i| Some(*i) != own)
        .take(count)
        .collect()
}

fn request(
    task: &Task,
    context: &Context,
    model: &dyn LanguageModel,
    own: &Rendered,
    shots: &[Rendered],
) -> Result<Request, EvalError> {
    let prompt = &task.prompt;
    if task.kind == Kind::LoglikelihoodRolling {
        return Ok(Request::Rolling {
            text: own.target.clone(),
        });
    }
    let answer = |r: &Rendered| {
        join(
            &r.prefix,
            r.choices.get(r.gold).unwrap_or(&r.target),
            &prompt.target_delimiter,
        )
    };
    let system = join(
        &context.system,
        &prompt.description,
        &prompt.fewshot_delimiter,
    );
    let (text, delimiter) = if context.chat_template {
        let system = Some(&system)
            .filter(|s| !s.is_empty())
            .map(|s| Message::new("system", s));
        let mut messages: Vec<Message> = system.into_iter().collect();
        if context.fewshot_as_multiturn {
            for shot in shots {
                messages.push(Message::new("user", &shot.text));
                messages.push(Message::new("assistant", answer(shot)));
            }
            messages.push(Message::new("user", &own.text));
        } else {
            messages.push(Message::new(
                "user",
                shots_text(prompt, shots, answer) + &own.text,
            ));
        }
        // The template ends where an answer begins.
        (model.chat(&messages).map_err(EvalError::Model)?, "")
    } else {
        (
            system + &shots_text(prompt, shots, answer) + &own.text,
            prompt.target_delimiter.as_str(),
        )
    };
    Ok(match task.kind {
        Kind::MultipleChoice => Request::Choices {
            context: text,
            continuations: own
                .choices
                .iter()
                .map(|c| format!("{delimiter}{c}"))
                .collect(),
        },
        // As lm-evaluation-harness does: a space before what the answer begins with, unless a turn
        // has just begun.
        _ if own.prefix.is_empty() => Request::Generate {
            context: text,
            times: task.repeats,
        },
        _ if context.chat_template => Request::Generate {
            context: text + &own.prefix,
            times: task.repeats,
        },
        _ => Request::Generate {
            context: join(&text, &own.prefix, delimiter),
            times: task.repeats,
        },
    })
}

fn shots_text(
    prompt: &super::task::Prompt,
    shots: &[Rendered],
    answer: impl Fn(&Rendered) -> String,
) -> String {
    shots
        .iter()
        .map(|s| {
            format!(
                "{}{}{}{}",
                s.text,
                prompt.target_delimiter,
                answer(s),
                prompt.fewshot_delimiter
            )
        })
        .collect()
}

/// Puts the delimiter between two texts unless white space is there already.
fn join(first: &str, second: &str, delimiter: &str) -> String {
    let space = first.ends_with(char::is_whitespace) || second.starts_with(char::is_whitespace);
    let delimiter = if first.is_empty() || second.is_empty() || space {
        ""
    } else {
        delimiter
    };
    format!("{first}{delimiter}{second}")
}

/// What decides an answer: the task, the model, the words and how they are continued.
fn hash(
    task: &Task,
    context: &Context,
    model: &dyn LanguageModel,
    request: &Request,
    target: &str,
) -> String {
    let asked = match request {
        Request::Choices {
            context,
            continuations,
        } => serde_json::json!({ "context": context, "continuations": continuations }),
        Request::Generate { context: text, .. } => {
            serde_json::json!({ "context": text, "generation": task.generation, "seed": context.seed })
        }
        Request::Rolling { text } => serde_json::json!({ "text": text }),
    };
    let all = serde_json::json!({ "task": task.name, "version": task.version, "model": model.fingerprint(), "asked": asked, "target": target });
    sha256(all.to_string().as_bytes())
}

/// The data folder, the task's own folder, and the path as it is.
fn find(file: &str, context: &Context) -> Result<PathBuf, EvalError> {
    let folders = [context.task_folder.as_deref(), context.data.as_deref()];
    let found = folders
        .into_iter()
        .flatten()
        .map(|folder| folder.join(file))
        .chain([PathBuf::from(file)])
        .find(|p| p.is_file());
    found.ok_or_else(|| EvalError::NoData { file: file.into() })
}

fn read(path: &Path) -> Result<(Vec<Record>, String), EvalError> {
    let bytes = frugal_core::fs::read(path)?;
    let digest = sha256(&bytes);
    let name = path.to_string_lossy();
    let (bytes, inner) = match name.strip_suffix(".gz") {
        Some(inner) => (unzip(path, &bytes)?, PathBuf::from(inner)),
        None => (bytes, path.to_owned()),
    };
    // A text is measured as a whole.
    let records = if inner.extension().is_some_and(|e| e == "txt" || e == "md") {
        let text = String::from_utf8(bytes).map_err(|e| EvalError::Text {
            path: path.to_owned(),
            byte: e.utf8_error().valid_up_to(),
        })?;
        vec![Record::from_iter([(
            "text".to_owned(),
            Value::String(text),
        )])]
    } else {
        data::objects(&inner, &bytes)?
    };
    Ok((records, digest))
}

fn unzip(path: &Path, bytes: &[u8]) -> Result<Vec<u8>, EvalError> {
    use std::io::Read;
    let mut out = Vec::new();
    flate2::read::MultiGzDecoder::new(bytes)
        .read_to_end(&mut out)
        .map_err(frugal_core::fs::FileError::at(path, "cannot decompress"))?;
    Ok(out)
}
