//! From a task and its records to what the model is asked.

use std::path::PathBuf;

use serde_json::Value;

use super::fewshot::{Pool, shots};
use super::kind::Kind;
use super::metric::{Aggregation, Metric};
use super::record::Record;
use super::records;
use super::target::{Rendered, Target, accepted, answer, golds, rendered, shown};
use super::task::{Prompt, Task};
use super::template::Renderer;
use super::{Context, EvalError, LanguageModel, python};
use crate::measurement::sha256;
use frugal_core::data::Message;

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
    /// How likely is each of these continuations of a text of its own?
    Pairs {
        /// What is given, and what follows.
        pairs: Vec<(String, String)>,
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
    /// The target as the task gives it.
    pub target: Value,
    /// Texts that count as right.
    pub accepted: Vec<String>,
    /// The choices without delimiters.
    pub choices: Vec<String>,
    /// Numbers of the right choices.
    pub golds: Vec<usize>,
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
    /// Records of the task, before any limit.
    pub original: usize,
    /// The file.
    pub path: PathBuf,
    /// SHA-256 of the file.
    pub sha256: String,
    /// Examples in front of each question.
    pub num_fewshot: usize,
}

/// A seed from a hash in hexadecimal.
pub(super) fn seed_of(hash: &str) -> u64 {
    hash.get(..16)
        .and_then(|digits| u64::from_str_radix(digits, 16).ok())
        .unwrap_or_default()
}

/// Builds all samples.
pub(super) fn prepare(
    task: &Task,
    context: &Context,
    model: &dyn LanguageModel,
) -> Result<Prepared, EvalError> {
    let (path, sha256_of_file, records) = records::test(task, context)?;
    let num_fewshot = if task.zero_shot || task.kind == Kind::LoglikelihoodRolling {
        0
    } else {
        context.num_fewshot.unwrap_or(task.num_fewshot)
    };
    let pool = Pool::new(task, context, &records, num_fewshot)?;
    let renderer = Renderer::new(&task.name);
    let limit = if context.limit == 0 {
        records.len()
    } else {
        context.limit.min(records.len())
    };
    let original = records.len();
    let shot_prompt = task.fewshot.prompt.as_ref().unwrap_or(&task.prompt);
    let mut samples = Vec::with_capacity(limit);
    for (doc_id, doc) in records.iter().take(limit).enumerate() {
        let own = rendered(&task.prompt, task.kind, &renderer, doc, doc_id)?;
        let description = renderer.text(&task.prompt.description, doc, doc_id)?;
        let mut turns = Vec::new();
        for i in shots(task, context, &pool, doc_id, num_fewshot) {
            let record = pool.record(&records, i);
            let shot = rendered(shot_prompt, task.kind, &renderer, record, i)?;
            turns
                .push(shot_turn(shot_prompt, &shot).map_err(|reason| renderer.refused(i, reason))?);
        }
        let asked = Asked {
            task,
            context,
            model,
            own: &own,
            shots: &turns,
            description: &description,
        };
        let request = asked.request().map_err(|e| match e {
            Failure::Record(reason) => renderer.refused(doc_id, reason),
            Failure::Model(e) => EvalError::Model(e),
        })?;
        let (mut accepted_texts, mut gold) = (Vec::new(), Vec::new());
        let right = match task.kind {
            // What a function scores may have no single right choice.
            Kind::MultipleChoice if !task.process_results.is_empty() => {
                gold = golds(&task.prompt, &own).unwrap_or_default();
                Ok(())
            }
            Kind::MultipleChoice => golds(&task.prompt, &own)
                .and_then(|found| check_classes(task, own.choices.len()).map(|()| found))
                .map(|found| gold = found),
            _ => accepted(&own).map(|found| accepted_texts = found),
        };
        right.map_err(|reason| renderer.refused(doc_id, reason))?;
        let hash = hash(task, context, model, &request, &own.shown);
        samples.push(Sample {
            doc_id,
            doc: doc.clone(),
            request,
            target: own.shown,
            accepted: accepted_texts,
            choices: own.choices,
            golds: gold,
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

/// Plain F1 tells one class from another: of more it would be that of the second alone.
fn check_classes(task: &Task, choices: usize) -> Result<(), String> {
    let of_classes = matches!(task.aggregations.get("f1"), Some(Aggregation::ClassF1(_)));
    if choices > 2 && !of_classes && task.metrics.contains(&Metric::F1) {
        return Err(format!(
            "metric `f1` is that of two choices, but there are {choices}; `acc` and `mcc` take any number"
        ));
    }
    Ok(())
}

enum Failure {
    Record(String),
    Model(super::ModelFailure),
}

/// A question and its answer, with what stands after each.
struct Turn {
    question: String,
    after_question: String,
    answer: String,
    after_answer: String,
}

impl Turn {
    fn text(&self) -> String {
        let Self {
            question,
            after_question,
            answer,
            after_answer,
        } = self;
        format!("{question}{after_question}{answer}{after_answer}")
    }
}

/// An example. Without an answer it is the question alone, with nothing after it.
fn shot_turn(prompt: &Prompt, shot: &Rendered) -> Result<Turn, String> {
    let question = match shot.given {
        Some(given) => shot.choices[given].clone(),
        None => shot.text.clone(),
    };
    let mut answer = answer(shot)?;
    // A choice that a task of our own names by its letter is written out.
    if prompt.letters && !shot.choices.is_empty() && shot.given.is_none() {
        answer = shot.choices[golds(prompt, shot)?.first().copied().unwrap_or_default()].clone();
    }
    let answered = !answer.is_empty();
    let answer = if answered {
        join(&shot.prefix, &answer, " ")
    } else {
        shot.prefix.clone()
    };
    let delimiter = if answered && shot.prefix.is_empty() {
        prompt.target_delimiter.as_str()
    } else {
        between(&question, &shot.prefix, &prompt.target_delimiter)
    };
    Ok(Turn {
        after_question: delimiter.to_owned(),
        question,
        answer,
        after_answer: if answered {
            prompt.fewshot_delimiter.clone()
        } else {
            String::new()
        },
    })
}

/// All that makes a request.
struct Asked<'a> {
    task: &'a Task,
    context: &'a Context,
    model: &'a dyn LanguageModel,
    own: &'a Rendered,
    shots: &'a [Turn],
    description: &'a str,
}

impl Asked<'_> {
    fn request(&self) -> Result<Request, Failure> {
        let (task, own) = (self.task, self.own);
        if task.kind == Kind::LoglikelihoodRolling {
            let text = accepted(own).map_err(Failure::Record)?;
            return Ok(Request::Rolling {
                text: text.concat(),
            });
        }
        let prompt = &task.prompt;
        let begun = &prompt.gen_prefix;
        let inside = !begun.is_empty() && !begun.ends_with(char::is_whitespace);
        // A chat template ends where an answer begins.
        let delimiter = if !self.context.chat_template || inside {
            prompt.target_delimiter.as_str()
        } else {
            ""
        };
        if own.given.is_some() && task.kind == Kind::MultipleChoice {
            let continuation = match &own.target {
                Target::Text(text) => format!("{delimiter}{text}"),
                other => format!("{delimiter}{}", python::text(&shown(other))),
            };
            let pairs = own.choices.iter().map(|choice| {
                Ok::<_, Failure>((self.prompt_of(choice, "")?, continuation.clone()))
            });
            return Ok(Request::Pairs {
                pairs: pairs.collect::<Result<_, Failure>>()?,
            });
        }
        let context = self.prompt_of(&own.text, &prompt.target_delimiter)?;
        Ok(match task.kind {
            Kind::MultipleChoice => {
                let continuations = own.choices.iter().map(|c| format!("{delimiter}{c}"));
                if task.metrics.contains(&super::Metric::AccMutualInfo) {
                    let continuations: Vec<String> = continuations.collect();
                    let given = continuations.iter().map(|c| (context.clone(), c.clone()));
                    let alone = continuations.iter().map(|c| (String::new(), c.clone()));
                    return Ok(Request::Pairs {
                        pairs: given.chain(alone).collect(),
                    });
                }
                Request::Choices {
                    context,
                    continuations: continuations.collect(),
                }
            }
            Kind::Loglikelihood => {
                let mut targets = accepted(own).map_err(Failure::Record)?;
                match (targets.pop(), targets.is_empty()) {
                    (Some(target), true) => Request::Pairs {
                        pairs: vec![(context, target)],
                    },
                    _ => {
                        let reason = "a list of targets has no single log-likelihood".to_owned();
                        return Err(Failure::Record(reason));
                    }
                }
            }
            _ => Request::Generate {
                context,
                times: task.repeats,
            },
        })
    }

    /// What the model reads for a question, up to where it goes on.
    fn prompt_of(&self, question: &str, target_delimiter: &str) -> Result<String, Failure> {
        let prompt = &self.task.prompt;
        let prefix = &self.own.prefix;
        let system = join(
            &self.context.system,
            self.description,
            &prompt.fewshot_delimiter,
        );
        if !self.context.chat_template {
            let shots: String = self.shots.iter().map(Turn::text).collect();
            let delimiter = between(question, prefix, target_delimiter);
            return Ok(format!("{system}{shots}{question}{delimiter}{prefix}"));
        }
        let mut messages = Vec::new();
        if !system.is_empty() {
            messages.push(Message::new("system", &system));
        }
        if self.context.fewshot_as_multiturn {
            for shot in self.shots {
                messages.push(Message::new("user", &shot.question));
                if !shot.answer.is_empty() {
                    messages.push(Message::new("assistant", &shot.answer));
                }
            }
            messages.push(Message::new("user", question));
        } else {
            let shots: String = self.shots.iter().map(Turn::text).collect();
            messages.push(Message::new("user", shots + question));
        }
        let text = self.model.chat(&messages).map_err(Failure::Model)?;
        Ok(text + prefix)
    }
}

/// Puts the delimiter between two texts unless white space is there already.
fn join(first: &str, second: &str, delimiter: &str) -> String {
    let delimiter = between(first, second, delimiter);
    format!("{first}{delimiter}{second}")
}

/// The delimiter, if two texts need one between them.
fn between<'a>(first: &str, second: &str, delimiter: &'a str) -> &'a str {
    let space = first.ends_with(char::is_whitespace) || second.starts_with(char::is_whitespace);
    if first.is_empty() || second.is_empty() || space {
        ""
    } else {
        delimiter
    }
}

/// What decides an answer: the task, the model, the words and how they are continued.
fn hash(
    task: &Task,
    context: &Context,
    model: &dyn LanguageModel,
    request: &Request,
    target: &Value,
) -> String {
    let asked = match request {
        Request::Choices {
            context,
            continuations,
        } => serde_json::json!({ "context": context, "continuations": continuations }),
        Request::Pairs { pairs } => serde_json::json!({ "pairs": pairs }),
        Request::Generate { context: text, .. } => {
            serde_json::json!({ "context": text, "generation": task.generation, "seed": context.seed })
        }
        Request::Rolling { text } => serde_json::json!({ "text": text }),
    };
    let all = serde_json::json!({ "task": task.name, "version": task.version, "model": model.fingerprint(), "asked": asked, "target": target });
    sha256(all.to_string().as_bytes())
}
