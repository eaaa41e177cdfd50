//! The evaluation harness: tasks as data, a model behind three calls, scores with standard errors.
//!
//! A run prepares every sample first (records, templates, examples), asks the model for what no
//! earlier run has answered, and scores from the answers alone. Answers are kept under a hash of
//! everything that decides them, so a run that was killed goes on where it was, and a changed
//! prompt, model or setting is asked anew.

mod answers;
mod filter;
mod metric;
mod prompt;
mod results;
mod task;
#[cfg(test)]
mod tests;
mod yaml;
mod yaml_depth;

use std::collections::BTreeMap;
use std::error::Error;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};
use thiserror::Error as ThisError;

pub use answers::{Answer, AnswerLog};
pub use filter::{Filter, INVALID, Step};
pub use metric::{Choices, Metric, Score};
pub use prompt::{Prepared, Record, Request, Sample};
pub use results::{EvalResults, Measured, TaskResult};
pub use task::{Generation, Kind, Prompt, Source, Task};

use super::programs::{self, ProgramError};
use super::sandbox::{Limits, Sandbox, SandboxError};
use frugal_core::data::{DataError, Message};
use frugal_core::fs::FileError;

/// What the model could not do.
pub type ModelFailure = Box<dyn Error + Send + Sync>;

/// What can go wrong in an evaluation.
#[derive(Debug, ThisError)]
#[non_exhaustive]
pub enum EvalError {
    /// A file.
    #[error(transparent)]
    File(#[from] FileError),
    /// The data.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A task that contradicts itself or the run.
    #[error("task `{task}`: {reason}")]
    Task {
        /// Name or file.
        task: String,
        /// What is wrong.
        reason: String,
    },
    /// A name that is no task.
    #[error("no task `{name}`{}: give one of {known}, or a task file ending in .toml", suggestion.as_ref().map_or(String::new(), |s| format!(" (did you mean `{s}`?)")))]
    UnknownTask {
        /// The name.
        name: String,
        /// Nearest task.
        suggestion: Option<String>,
        /// All tasks.
        known: String,
    },
    /// Data that is not there.
    #[error(
        "{file}: no such file beside the task, in the data folder (`--data-dir`, FRUGAL_DATA) or here"
    )]
    NoData {
        /// What was looked for.
        file: String,
    },
    /// A text that is none.
    #[error("{}: not UTF-8 text after byte {byte}", path.display())]
    Text {
        /// File.
        path: PathBuf,
        /// Bytes that are text.
        byte: usize,
    },
    /// A template that a record does not fit.
    #[error("task `{task}`, record {row}: {reason}; the record has: {fields}")]
    Template {
        /// Task.
        task: String,
        /// Record, from 0.
        row: usize,
        /// What the template engine says.
        reason: String,
        /// Fields of the record.
        fields: String,
    },
    /// A record that the task cannot use.
    #[error("task `{task}`, record {row}: {reason}")]
    Record {
        /// Task.
        task: String,
        /// Record, from 0.
        row: usize,
        /// What is wrong.
        reason: String,
    },
    /// The sandbox that answers run in.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// A task that runs what the model writes, without leave to do so.
    #[error(
        "task `{task}` runs programs that the model writes: give `--allow-code-execution` if you mean it"
    )]
    NoExecution {
        /// Task.
        task: String,
    },
    /// The model.
    #[error("{0}")]
    Model(#[source] ModelFailure),
}

/// Receives the answer to a request by the request's number; false ends the work.
pub type Sink<'a, T> = &'a mut dyn FnMut(usize, T) -> bool;

/// How a text may be continued.
#[derive(Clone, Copy, Debug)]
pub struct Continuations<'a> {
    /// What is given; may be empty.
    pub context: &'a str,
    /// What may follow.
    pub continuations: &'a [String],
}

/// A text to continue.
#[derive(Clone, Copy, Debug)]
pub struct ToContinue<'a> {
    /// What is given; may be empty.
    pub context: &'a str,
    /// Decides what is drawn.
    pub seed: u64,
}

/// A model as tasks see it. Answers may come in any order.
pub trait LanguageModel {
    /// Identifies model and adapter by content, for resuming.
    fn fingerprint(&self) -> &str;

    /// Log-likelihood of every continuation in nats, with whether greedy decoding would write it.
    ///
    /// # Errors
    /// What the model cannot do.
    fn loglikelihood(
        &mut self,
        requests: &[Continuations<'_>],
        answer: Sink<'_, Vec<(f64, bool)>>,
    ) -> Result<(), ModelFailure>;

    /// Log-likelihood of whole texts in nats and their numbers of tokens; long ones in disjoint
    /// windows.
    ///
    /// # Errors
    /// What the model cannot do.
    fn loglikelihood_rolling(
        &mut self,
        texts: &[&str],
        answer: Sink<'_, (f64, usize)>,
    ) -> Result<(), ModelFailure>;

    /// Continues texts until one of `generation.until`, the model's own end, or the longest length.
    ///
    /// # Errors
    /// What the model cannot do.
    fn generate_until(
        &mut self,
        requests: &[ToContinue<'_>],
        generation: &Generation,
        answer: Sink<'_, String>,
    ) -> Result<(), ModelFailure>;

    /// A conversation as the model reads it, up to where its answer begins.
    ///
    /// # Errors
    /// Models without a chat template, conversations that the template refuses.
    fn chat(&self, messages: &[Message]) -> Result<String, ModelFailure>;
}

/// How tasks are run.
#[derive(Clone, Debug, Default)]
pub struct Context {
    /// Folder that holds data sets.
    pub data: Option<PathBuf>,
    /// Folder of the task's file.
    pub task_folder: Option<PathBuf>,
    /// Only the first records; 0 for all.
    pub limit: usize,
    /// Examples in front of each question instead of the task's own number.
    pub num_fewshot: Option<usize>,
    /// Take the first records as examples instead of drawing them.
    pub first_shots: bool,
    /// Decides what is drawn.
    pub seed: u64,
    /// Write prompts by the model's chat template.
    pub chat_template: bool,
    /// Examples as turns of the conversation instead of one message.
    pub fewshot_as_multiturn: bool,
    /// Instruction in front of everything.
    pub system: String,
    /// Folder for answers, samples and results.
    pub out: Option<PathBuf>,
    /// Where programs that the model writes may run; without it, tasks that run some are refused.
    pub sandbox: Option<Sandbox>,
}

/// What an evaluation tells while it goes on.
#[derive(Clone, Copy, Debug)]
pub enum EvalEvent<'a> {
    /// A task begins.
    Task {
        /// Name.
        name: &'a str,
        /// Answers that are wanted.
        answers: usize,
        /// Of these answered by an earlier run.
        answered: usize,
    },
    /// An answer is there.
    Answered,
}

/// Receives events; false ends the work.
pub type Observe<'a> = &'a mut dyn FnMut(EvalEvent<'_>) -> bool;

/// Runs a task; `None` if `observe` ended it. With an output folder, `answers_NAME.jsonl` is
/// written on the way and `samples_NAME.jsonl` at the end.
///
/// # Errors
/// Anything wrong with the task, the data, the model or the output folder.
pub fn run(
    task: &Task,
    context: &Context,
    model: &mut dyn LanguageModel,
    observe: Observe<'_>,
) -> Result<Option<TaskResult>, EvalError> {
    if task.metrics.iter().any(|m| m.attempts().is_some()) && context.sandbox.is_none() {
        return Err(EvalError::NoExecution {
            task: task.name.clone(),
        });
    }
    let prepared = prompt::prepare(task, context, model)?;
    let mut log = match &context.out {
        Some(out) => AnswerLog::open(&out.join(format!("answers_{}.jsonl", task.name)))?,
        None => AnswerLog::in_memory(),
    };
    let all = prepared
        .samples
        .iter()
        .flat_map(|s| (0..s.times()).map(move |repeat| (s, s.answer_hash(repeat))));
    let open: Vec<(&Sample, String)> = all.filter(|(_, hash)| log.get(hash).is_none()).collect();
    let wanted: usize = prepared.samples.iter().map(Sample::times).sum();
    let answered = wanted - open.len();
    if !observe(EvalEvent::Task {
        name: &task.name,
        answers: wanted,
        answered,
    }) {
        return Ok(None);
    }
    let mut failure = None;
    let mut stopped = false;
    let mut keep = |sample: usize, answer: Answer| -> bool {
        if let Err(error) = log.add(&open[sample].1, answer) {
            failure = Some(error);
            return false;
        }
        stopped = !observe(EvalEvent::Answered);
        !stopped
    };
    ask(task, model, &open, &mut keep).map_err(EvalError::Model)?;
    if let Some(error) = failure {
        return Err(error.into());
    }
    if stopped {
        return Ok(None);
    }
    let scored = score(task, context, &prepared, &log)?;
    if let Some(out) = &context.out {
        write_samples(&out.join(format!("samples_{}.jsonl", task.name)), &scored)?;
    }
    let mut result = TaskResult::new(task, &prepared);
    result.resumed = answered;
    result.measured = measure(task, &scored, context.seed);
    Ok(Some(result))
}

fn ask(
    task: &Task,
    model: &mut dyn LanguageModel,
    open: &[(&Sample, String)],
    keep: &mut dyn FnMut(usize, Answer) -> bool,
) -> Result<(), ModelFailure> {
    if open.is_empty() {
        return Ok(());
    }
    match task.kind {
        Kind::MultipleChoice => {
            let requests: Vec<Continuations<'_>> = open
                .iter()
                .filter_map(|(s, _)| match &s.request {
                    Request::Choices {
                        context,
                        continuations,
                    } => Some(Continuations {
                        context,
                        continuations,
                    }),
                    _ => None,
                })
                .collect();
            model.loglikelihood(&requests, &mut |i, answer| keep(i, Answer::Choices(answer)))
        }
        Kind::GenerateUntil => {
            let requests: Vec<ToContinue<'_>> = open
                .iter()
                .filter_map(|(s, hash)| match &s.request {
                    // The hash stands for all that decides the answer, so the same question is
                    // answered alike in any company.
                    Request::Generate { context, .. } => Some(ToContinue {
                        context,
                        seed: prompt::seed_of(hash),
                    }),
                    _ => None,
                })
                .collect();
            model.generate_until(&requests, &task.generation, &mut |i, text| {
                keep(i, Answer::Text(text))
            })
        }
        Kind::LoglikelihoodRolling => {
            let texts: Vec<&str> = open
                .iter()
                .filter_map(|(s, _)| {
                    if let Request::Rolling { text } = &s.request {
                        Some(text.as_str())
                    } else {
                        None
                    }
                })
                .collect();
            model.loglikelihood_rolling(&texts, &mut |i, (sum, tokens)| {
                keep(i, Answer::Rolling(sum, tokens))
            })
        }
    }
}

/// Scores by metric.
type Scores = Vec<(String, Score)>;

/// A sample with its answers and scores, filter by filter.
struct Scored<'a> {
    sample: &'a Sample,
    answers: Vec<Answer>,
    /// Filter, filtered answers, scores by metric.
    filters: Vec<(String, Value, Scores)>,
}

fn score<'a>(
    task: &Task,
    context: &Context,
    prepared: &'a Prepared,
    log: &AnswerLog,
) -> Result<Vec<Scored<'a>>, EvalError> {
    let renderer = prompt::Renderer::new(&task.name);
    let mut all = Vec::with_capacity(prepared.samples.len());
    for sample in &prepared.samples {
        let answers: Option<Vec<Answer>> = (0..sample.times())
            .map(|repeat| log.get(&sample.answer_hash(repeat)).cloned())
            .collect();
        let Some((answers, first)) =
            answers.and_then(|answers| answers.first().cloned().map(|first| (answers, first)))
        else {
            let reason = "the model gave no answer".to_owned();
            return Err(EvalError::Record {
                task: task.name.clone(),
                row: sample.doc_id,
                reason,
            });
        };
        let of = |score: &dyn Fn(&Metric) -> Score| {
            task.metrics
                .iter()
                .map(|m| (m.name().into_owned(), score(m)))
                .collect::<Vec<_>>()
        };
        let none = || "none".to_owned();
        let filters = match &first {
            Answer::Choices(lls) => {
                let log_likelihoods: Vec<f64> = lls.iter().map(|l| l.0).collect();
                let choices = Choices {
                    log_likelihoods: &log_likelihoods,
                    texts: &sample.choices,
                    gold: sample.gold,
                };
                vec![(none(), json!(lls), of(&|m| m.of_choices(choices)))]
            }
            Answer::Rolling(sum, tokens) => {
                let Request::Rolling { text } = &sample.request else {
                    continue;
                };
                vec![(
                    none(),
                    json!(sum),
                    of(&|m| m.of_likelihood(*sum, text, *tokens)),
                )]
            }
            Answer::Text(_) => {
                let texts: Vec<&str> = answers
                    .iter()
                    .filter_map(|a| {
                        if let Answer::Text(t) = a {
                            Some(t.as_str())
                        } else {
                            None
                        }
                    })
                    .collect();
                let as_it_is = [Filter {
                    name: none(),
                    steps: Vec::new(),
                }];
                let filters = if task.filters.is_empty() {
                    &as_it_is[..]
                } else {
                    &task.filters
                };
                let filtered = |filter: &Filter| -> Result<_, EvalError> {
                    let render =
                        |template: &str| renderer.render(template, &sample.doc, sample.doc_id);
                    let found = texts
                        .iter()
                        .map(|text| filter.apply(text, render))
                        .collect::<Result<Vec<_>, _>>()?;
                    let scores = score_texts(task, context, &found, sample)?;
                    let shown = if let [only] = found.as_slice() {
                        json!(only)
                    } else {
                        json!(found)
                    };
                    Ok((filter.name.clone(), shown, scores))
                };
                filters.iter().map(filtered).collect::<Result<_, _>>()?
            }
        };
        all.push(Scored {
            sample,
            answers,
            filters,
        });
    }
    Ok(all)
}

/// Scores of the answers to one question: programs count together, of the rest the mean.
fn score_texts(
    task: &Task,
    context: &Context,
    answers: &[String],
    sample: &Sample,
) -> Result<Scores, EvalError> {
    let target = &sample.target;
    let mut succeeded = 0;
    if let Some(sandbox) = context
        .sandbox
        .as_ref()
        .filter(|_| task.metrics.iter().any(|m| m.attempts().is_some()))
    {
        let text = |key: &str| sample.doc.get(key).and_then(Value::as_str).unwrap_or("");
        // The functions that the data's own solution has are those that the test may call.
        let mut wanted = programs::defined_functions(text("code"));
        wanted.push(text("entry_point").to_owned());
        let test = programs::Test {
            code: target,
            prompt: text("prompt"),
            wanted: &wanted,
        };
        for answer in answers {
            let verdict = programs::check(sandbox, answer, &test, &Limits::default());
            let verdict = verdict.map_err(|e| match e {
                ProgramError::Sandbox(e) => e.into(),
                other => EvalError::Record {
                    task: task.name.clone(),
                    row: sample.doc_id,
                    reason: other.to_string(),
                },
            })?;
            succeeded += usize::from(verdict == programs::Verdict::Pass);
        }
    }
    let score = |metric: &Metric| {
        let score = match metric.attempts() {
            Some(_) => metric.of_programs(answers.len(), succeeded),
            None => metric.of_texts(answers, target),
        };
        (metric.name().into_owned(), score)
    };
    Ok(task.metrics.iter().map(score).collect())
}

fn measure(task: &Task, scored: &[Scored<'_>], seed: u64) -> Vec<Measured> {
    let mut measured = Vec::new();
    let Some(first) = scored.first() else {
        return measured;
    };
    for metric in &task.metrics {
        for (f, (filter, ..)) in first.filters.iter().enumerate() {
            let scores: Vec<Score> = scored
                .iter()
                .filter_map(|s| {
                    s.filters[f]
                        .2
                        .iter()
                        .find(|(n, _)| *n == metric.name())
                        .map(|(_, score)| *score)
                })
                .collect();
            let Some((value, stderr)) = metric.aggregate(&scores, seed) else {
                continue;
            };
            let filter = filter.clone();
            measured.push(Measured {
                metric: metric.name().into(),
                filter,
                value,
                stderr,
                higher_is_better: metric.higher_is_better(),
            });
        }
    }
    measured
}

/// One line for each sample and filter, with the names of lm-evaluation-harness.
fn write_samples(path: &Path, scored: &[Scored<'_>]) -> Result<(), FileError> {
    frugal_core::fs::write_atomic_with(path, |out| {
        for one in scored {
            let arguments = match &one.sample.request {
                Request::Choices {
                    context,
                    continuations,
                } => continuations
                    .iter()
                    .map(|c| vec![context.as_str(), c.as_str()])
                    .collect(),
                Request::Generate { context, .. } => vec![vec![context.as_str()]],
                Request::Rolling { text } => vec![vec![text.as_str()]],
            };
            let named = |parts: &[&str]| -> BTreeMap<String, String> {
                parts
                    .iter()
                    .enumerate()
                    .map(|(i, p)| (format!("arg_{i}"), (*p).to_owned()))
                    .collect()
            };
            let arguments: Map<String, Value> = arguments
                .iter()
                .enumerate()
                .map(|(i, a)| (format!("gen_args_{i}"), json!(named(a))))
                .collect();
            let of_answer = |answer: &Answer| match answer {
                Answer::Choices(lls) => {
                    json!(lls.iter().map(|l| json!([[l.0, l.1]])).collect::<Vec<_>>())
                }
                Answer::Text(text) => json!(text),
                Answer::Rolling(sum, tokens) => json!([sum, tokens]),
            };
            let resps = match one.answers.as_slice() {
                [choices @ Answer::Choices(_)] => of_answer(choices),
                answers => json!([answers.iter().map(of_answer).collect::<Vec<_>>()]),
            };
            for (filter, found, scores) in &one.filters {
                let mut line = json!({
                    "doc_id": one.sample.doc_id,
                    "doc": one.sample.doc,
                    "target": one.sample.target,
                    "arguments": arguments,
                    "resps": resps,
                    "filtered_resps": found,
                    "filter": filter,
                    "metrics": scores.iter().map(|s| s.0.as_str()).collect::<Vec<_>>(),
                    "sample_hash": one.sample.hash,
                });
                for (name, score) in scores {
                    line[name.as_str()] = match score {
                        Score::Value(v) => json!(v),
                        Score::Classes(gold, chosen) => json!([gold, chosen]),
                        Score::Ratio(sum, units) => json!([sum, units]),
                    };
                }
                writeln!(out, "{line}")?;
            }
        }
        Ok(())
    })
}
