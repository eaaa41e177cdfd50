//! The evaluation harness: tasks as data, a model behind three calls, scores with standard errors.
//!
//! A run prepares every sample first (records, templates, examples), asks the model for what no
//! earlier run has answered, and scores from the answers alone. Answers are kept under a hash of
//! everything that decides them, so a run that was killed goes on where it was, and a changed
//! prompt, model or setting is asked anew.

mod answers;
mod fewshot;
mod filter;
mod functions;
mod generation;
mod group;
mod metric;
mod prompt;
mod python;
mod records;
mod results;
mod score;
mod target;
mod task;
mod template;
#[cfg(test)]
mod tests;
mod yaml;

use std::error::Error;
use std::path::PathBuf;

use thiserror::Error as ThisError;

pub use answers::{Answer, AnswerLog, Written};
pub use filter::{Filter, Form, INVALID, Step, Vote};
pub use generation::override_generation;
pub use group::{Group, GroupMetric, Plan};
pub use metric::{Aggregation, Choices, Metric, Score};
pub use prompt::{Prepared, Record, Request, Sample};
pub use results::{EvalResults, Measured, TaskResult};
pub use task::{Fewshot, Generation, Hub, Kind, Prompt, Sampler, Source, Task};

use super::sandbox::{Sandbox, SandboxError};
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
        answer: Sink<'_, Written>,
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
    /// Draw examples also where the task takes the first ones.
    pub random_shots: bool,
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
    /// All answers are there and are about to be scored.
    Scoring {
        /// Name.
        name: &'a str,
        /// Samples to score.
        samples: usize,
    },
    /// A sample is scored.
    Scored,
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
    if !observe(EvalEvent::Scoring {
        name: &task.name,
        samples: prepared.samples.len(),
    }) {
        return Ok(None);
    }
    let scored = score::score(task, context, &prepared, &log, &mut || {
        observe(EvalEvent::Scored)
    })?;
    let Some(scored) = scored else {
        return Ok(None);
    };
    if let Some(out) = &context.out {
        score::write_samples(&out.join(format!("samples_{}.jsonl", task.name)), &scored)?;
    }
    let mut result = TaskResult::new(task, &prepared);
    result.resumed = answered;
    result.measured = score::measure(task, &scored, context.seed)?;
    Ok(Some(result))
}

/// Requests that are put to the model at a time, so that the first answers come soon.
const AT_ONCE: usize = 512;

fn ask(
    task: &Task,
    model: &mut dyn LanguageModel,
    open: &[(&Sample, String)],
    keep: &mut dyn FnMut(usize, Answer) -> bool,
) -> Result<(), ModelFailure> {
    let mut goes_on = true;
    for (part, asked) in open.chunks(AT_ONCE).enumerate() {
        let mut keep = |i: usize, answer: Answer| {
            goes_on = keep(part * AT_ONCE + i, answer);
            goes_on
        };
        match task.kind {
            Kind::MultipleChoice | Kind::Loglikelihood => {
                ask_likelihoods(model, asked, &mut keep)?;
            }
            Kind::GenerateUntil => {
                let requests = asked.iter().filter_map(|(s, hash)| match &s.request {
                    // The hash stands for all that decides the answer, so the same question is
                    // answered alike in any company.
                    Request::Generate { context, .. } => Some(ToContinue {
                        context,
                        seed: prompt::seed_of(hash),
                    }),
                    _ => None,
                });
                let requests: Vec<ToContinue<'_>> = requests.collect();
                model.generate_until(&requests, &task.generation, &mut |i, text| {
                    keep(i, Answer::Written(text))
                })?;
            }
            Kind::LoglikelihoodRolling => {
                let texts = asked.iter().filter_map(|(s, _)| match &s.request {
                    Request::Rolling { text } => Some(text.as_str()),
                    _ => None,
                });
                let texts: Vec<&str> = texts.collect();
                model.loglikelihood_rolling(&texts, &mut |i, (sum, tokens)| {
                    keep(i, Answer::Rolling(sum, tokens))
                })?;
            }
        }
        if !goes_on {
            break;
        }
    }
    Ok(())
}

/// Each context is a request of its own; a sample is answered when all of its requests are.
fn ask_likelihoods(
    model: &mut dyn LanguageModel,
    asked: &[(&Sample, String)],
    keep: &mut dyn FnMut(usize, Answer) -> bool,
) -> Result<(), ModelFailure> {
    let (mut requests, mut owners) = (Vec::new(), Vec::new());
    for (owner, (sample, _)) in asked.iter().enumerate() {
        let of_sample: Vec<Continuations<'_>> = match &sample.request {
            Request::Choices {
                context,
                continuations,
            } => vec![Continuations {
                context,
                continuations,
            }],
            Request::Pairs { pairs } => pairs
                .iter()
                .map(|(context, continuation)| Continuations {
                    context,
                    continuations: std::slice::from_ref(continuation),
                })
                .collect(),
            _ => Vec::new(),
        };
        owners.extend((0..of_sample.len()).map(|place| (owner, place)));
        requests.extend(of_sample);
    }
    let mut found: Vec<Vec<Option<Vec<(f64, bool)>>>> = vec![Vec::new(); asked.len()];
    for (owner, _) in &owners {
        found[*owner].push(None);
    }
    model.loglikelihood(&requests, &mut |i, likelihoods| {
        let (owner, place) = owners[i];
        found[owner][place] = Some(likelihoods);
        let complete: Option<Vec<Vec<(f64, bool)>>> = found[owner].iter().cloned().collect();
        complete.is_none_or(|all| keep(owner, Answer::Choices(all.concat())))
    })
}
