//! The evaluation harness: tasks as data, a model behind three calls, scores with standard errors.
//!
//! A run prepares every sample first (records, templates, examples), asks the model for what no
//! earlier run has answered, and scores from the answers alone. Answers are kept under a hash of
//! everything that decides them, so a run that was killed goes on where it was, and a changed
//! prompt, model or setting is asked anew.

mod answers;
mod check;
mod context;
mod error;
mod fewshot;
mod filter;
mod find;
mod functions;
mod generation;
mod group;
mod kind;
mod metric;
mod model;
mod pooled;
mod prompt;
mod python;
mod record;
mod records;
mod results;
mod score;
mod target;
mod task;
mod template;
#[cfg(test)]
mod tests;
mod yaml;
mod yaml_depth;
mod yaml_value;

pub use answers::{Answer, AnswerLog, Written};
pub use context::Context;
pub use error::{EvalError, ModelFailure};
pub use filter::{Filter, Form, INVALID, Step, Vote};
pub use generation::override_generation;
pub use group::{Group, GroupMetric, Plan};
pub use kind::Kind;
pub use metric::{Aggregation, Choices, Metric, Score};
pub use model::{Continuations, LanguageModel, Sink, ToContinue};
pub use prompt::{Prepared, Request, Sample};
pub use record::Record;
pub use results::{EvalResults, Measured, TaskResult};
pub use task::{Fewshot, Generation, Hub, Prompt, Sampler, Source, Task};

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
