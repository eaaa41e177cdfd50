//! From answers to scores of samples, and from these to the numbers of a task.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::answers::{Answer, AnswerLog, Written};
use super::filter::Filter;
use super::functions::{self, Outcome};
use super::kind::Kind;
use super::metric::{Choices, Metric, Score, likeliest};
use super::prompt::{Prepared, Request, Sample};
use super::results::Measured;
use super::task::Task;
use super::template::Renderer;
use super::{Context, EvalError};
use crate::programs::{self, ProgramError};
use crate::sandbox::{Limits, Sandbox};
use frugal_core::fs::FileError;

/// Scores by metric.
type Scores = Vec<(String, Score)>;

/// A sample with its answers and scores, filter by filter.
pub(super) struct Scored<'a> {
    sample: &'a Sample,
    answers: Vec<Answer>,
    /// Filter, filtered answers, scores by metric.
    filters: Vec<(String, Value, Scores)>,
}

/// Scores all samples; `None` if `goes_on` said so.
pub(super) fn score<'a>(
    task: &Task,
    context: &Context,
    prepared: &'a Prepared,
    log: &AnswerLog,
    goes_on: &mut dyn FnMut() -> bool,
) -> Result<Option<Vec<Scored<'a>>>, EvalError> {
    let scorer = Scorer {
        task,
        context,
        renderer: Renderer::new(&task.name),
    };
    let mut all = Vec::with_capacity(prepared.samples.len());
    for sample in &prepared.samples {
        let answers: Option<Vec<Answer>> = (0..sample.times())
            .map(|repeat| log.get(&sample.answer_hash(repeat)).cloned())
            .collect();
        let refused = |reason: String| scorer.renderer.refused(sample.doc_id, reason);
        let answers = answers
            .filter(|answers| !answers.is_empty())
            .ok_or_else(|| refused("the model gave no answer".into()))?;
        let filters = match &answers[0] {
            Answer::Choices(likelihoods) => {
                let scores = scorer.of_likelihoods(sample, likelihoods)?;
                vec![("none".to_owned(), json!(likelihoods), scores)]
            }
            Answer::Rolling(sum, tokens) => {
                let scores = scorer.of_rolling(sample, *sum, *tokens)?;
                vec![("none".to_owned(), json!(sum), scores)]
            }
            Answer::Written(_) => {
                let texts = answers.iter().filter_map(|answer| match answer {
                    Answer::Written(written) => Some(written.text.as_str()),
                    _ => None,
                });
                scorer.of_texts(sample, &texts.collect::<Vec<_>>())?
            }
        };
        all.push(Scored {
            sample,
            answers,
            filters,
        });
        if !goes_on() {
            return Ok(None);
        }
    }
    Ok(Some(all))
}

struct Scorer<'a> {
    task: &'a Task,
    context: &'a Context,
    renderer: Renderer,
}

impl Scorer<'_> {
    fn by(&self, score: impl Fn(&Metric) -> Score) -> Scores {
        let all = self.task.metrics.iter();
        all.map(|m| (m.name().into_owned(), score(m))).collect()
    }

    /// What the task's own function says, for the metrics that the task lists.
    fn by_function(&self, sample: &Sample, outcome: Outcome<'_>) -> Result<Scores, EvalError> {
        let refused = |reason: String| self.renderer.refused(sample.doc_id, reason);
        let name = &self.task.process_results;
        let found = functions::results(name, &sample.doc, outcome).map_err(refused)?;
        let of = |metric: &Metric| {
            let wanted = metric.name().into_owned();
            let score = found.iter().find(|(name, _)| *name == wanted);
            score
                .map(|(_, score)| (wanted.clone(), *score))
                .ok_or_else(|| refused(format!("`{name}` gives no `{wanted}`")))
        };
        self.task.metrics.iter().map(of).collect()
    }

    fn of_likelihoods(
        &self,
        sample: &Sample,
        likelihoods: &[(f64, bool)],
    ) -> Result<Scores, EvalError> {
        let (log_likelihoods, greedy): (Vec<f64>, Vec<bool>) = likelihoods.iter().copied().unzip();
        if !self.task.process_results.is_empty() {
            let outcome = Outcome {
                likelihoods: &log_likelihoods,
                texts: &[],
            };
            return self.by_function(sample, outcome);
        }
        if self.task.kind == Kind::Loglikelihood {
            let (sum, greedy) = likelihoods.first().copied().unwrap_or_default();
            return Ok(self.by(|m| m.of_target(sum, greedy)));
        }
        let count = sample.choices.len().min(log_likelihoods.len());
        let (given, alone) = log_likelihoods.split_at(count);
        let choices = Choices {
            log_likelihoods: given,
            greedy: &greedy,
            unconditional: alone,
            texts: &sample.choices,
            golds: &sample.golds,
        };
        Ok(self.by(|m| m.of_choices(choices)))
    }

    fn of_rolling(&self, sample: &Sample, sum: f64, tokens: usize) -> Result<Scores, EvalError> {
        if !self.task.process_results.is_empty() {
            let outcome = Outcome {
                likelihoods: &[sum],
                texts: &[],
            };
            return self.by_function(sample, outcome);
        }
        let text = match &sample.request {
            Request::Rolling { text } => text.as_str(),
            _ => "",
        };
        Ok(self.by(|m| m.of_likelihood(sum, text, tokens)))
    }

    fn of_texts(
        &self,
        sample: &Sample,
        texts: &[&str],
    ) -> Result<Vec<(String, Value, Scores)>, EvalError> {
        let as_it_is = [Filter {
            name: "none".to_owned(),
            steps: Vec::new(),
        }];
        let filters = if self.task.filters.is_empty() {
            &as_it_is[..]
        } else {
            &self.task.filters
        };
        let filtered = |filter: &Filter| -> Result<(String, Value, Scores), EvalError> {
            let found = filter.of_record(texts, &self.renderer, &sample.doc, sample.doc_id)?;
            let scores = if self.task.process_results.is_empty() {
                self.of_answers(&found, sample)?
            } else {
                let outcome = Outcome {
                    likelihoods: &[],
                    texts: &found,
                };
                self.by_function(sample, outcome)?
            };
            let shown = if let [only] = found.as_slice() {
                json!(only)
            } else {
                json!(found)
            };
            Ok((filter.name.clone(), shown, scores))
        };
        filters.iter().map(filtered).collect()
    }

    /// Scores of the answers to one question: programs count together, of the rest the mean.
    fn of_answers(&self, answers: &[String], sample: &Sample) -> Result<Scores, EvalError> {
        let mut succeeded = 0;
        let programs = self.task.metrics.iter().any(|m| m.attempts().is_some());
        if let Some(sandbox) = self.context.sandbox.as_ref().filter(|_| programs) {
            succeeded = self.passing(sandbox, answers, sample)?;
        }
        Ok(self.by(|metric| match metric.attempts() {
            Some(_) => metric.of_programs(answers.len(), succeeded),
            None => metric.of_texts(answers, &sample.accepted),
        }))
    }

    /// How many programs pass the tests of their record.
    fn passing(
        &self,
        sandbox: &Sandbox,
        answers: &[String],
        sample: &Sample,
    ) -> Result<usize, EvalError> {
        let text = |key: &str| sample.doc.get(key).and_then(Value::as_str).unwrap_or("");
        // The functions that the data's own solution has are those that the test may call.
        let mut wanted = programs::defined_functions(text("code"));
        wanted.push(text("entry_point").to_owned());
        let code = sample.accepted.join("\n");
        let test = programs::Test {
            code: &code,
            prompt: text("prompt"),
            wanted: &wanted,
        };
        let mut passing = 0;
        for answer in answers {
            let verdict = programs::check(sandbox, answer, &test, &Limits::default());
            let verdict = verdict.map_err(|e| match e {
                ProgramError::Sandbox(e) => e.into(),
                other => self.renderer.refused(sample.doc_id, other.to_string()),
            })?;
            passing += usize::from(verdict == programs::Verdict::Pass);
        }
        Ok(passing)
    }
}

/// What the scores of all samples come to, metric by metric and filter by filter.
pub(super) fn measure(
    task: &Task,
    scored: &[Scored<'_>],
    seed: u64,
) -> Result<Vec<Measured>, EvalError> {
    let mut measured = Vec::new();
    let Some(first) = scored.first() else {
        return Ok(measured);
    };
    for (m, metric) in task.metrics.iter().enumerate() {
        let name = metric.name();
        let aggregation = task.aggregations.get(name.as_ref()).copied();
        for (f, (filter, ..)) in first.filters.iter().enumerate() {
            let scores: Vec<Score> = scored.iter().map(|s| s.filters[f].2[m].1).collect();
            let found = metric.aggregate(&scores, aggregation, seed);
            let (value, stderr) = found.ok_or_else(|| EvalError::Task {
                task: task.name.clone(),
                reason: format!("`{name}` has no value over these samples"),
            })?;
            measured.push(Measured {
                metric: name.clone().into_owned(),
                filter: filter.clone(),
                value,
                stderr,
                higher_is_better: task
                    .directions
                    .get(name.as_ref())
                    .copied()
                    .unwrap_or(metric.higher_is_better()),
            });
        }
    }
    Ok(measured)
}

/// One line for each sample and filter, with the names of lm-evaluation-harness.
pub(super) fn write_samples(path: &Path, scored: &[Scored<'_>]) -> Result<(), FileError> {
    frugal_core::fs::write_atomic_with(path, |out| {
        for one in scored {
            let shared = shared(one);
            for (filter, found, scores) in &one.filters {
                let mut line = shared.clone();
                line.insert("filtered_resps".into(), found.clone());
                line.insert("filter".into(), json!(filter));
                let names: Vec<&str> = scores.iter().map(|s| s.0.as_str()).collect();
                line.insert("metrics".into(), json!(names));
                for (name, score) in scores {
                    let value = match score {
                        Score::Value(v) => json!(v),
                        Score::Classes(gold, chosen) => json!([gold, chosen]),
                        Score::Ratio(sum, units) => json!([sum, units]),
                    };
                    line.insert(name.clone(), value);
                }
                writeln!(out, "{}", Value::Object(line))?;
            }
        }
        Ok(())
    })
}

/// What the lines of a sample have in common.
fn shared(one: &Scored<'_>) -> Map<String, Value> {
    let sample = one.sample;
    let pairs: Vec<Vec<&str>> = match &sample.request {
        Request::Choices {
            context,
            continuations,
        } => continuations
            .iter()
            .map(|c| vec![context.as_str(), c.as_str()])
            .collect(),
        Request::Pairs { pairs } => pairs
            .iter()
            .map(|(context, c)| vec![context.as_str(), c.as_str()])
            .collect(),
        Request::Generate { context, .. } => vec![vec![context.as_str()]],
        Request::Rolling { text } => vec![vec![text.as_str()]],
    };
    let numbered = |prefix: &str, all: Vec<Value>| -> Value {
        let all = all.into_iter().enumerate();
        Value::Object(all.map(|(i, v)| (format!("{prefix}_{i}"), v)).collect())
    };
    let arguments = pairs
        .into_iter()
        .map(|parts| numbered("arg", parts.into_iter().map(Value::from).collect()))
        .collect();
    let of_answer = |answer: &Answer| match answer {
        Answer::Choices(all) => json!(all.iter().map(|l| json!([[l.0, l.1]])).collect::<Vec<_>>()),
        Answer::Written(written) => json!(written.text),
        Answer::Rolling(sum, tokens) => json!([sum, tokens]),
    };
    let resps = match one.answers.as_slice() {
        [choices @ Answer::Choices(_)] => of_answer(choices),
        answers => json!([answers.iter().map(of_answer).collect::<Vec<_>>()]),
    };
    let mut line = Map::from_iter([
        ("doc_id".to_owned(), json!(sample.doc_id)),
        ("doc".to_owned(), json!(sample.doc)),
        ("target".to_owned(), sample.target.clone()),
        ("arguments".to_owned(), numbered("gen_args", arguments)),
        ("resps".to_owned(), resps),
        ("sample_hash".to_owned(), json!(sample.hash)),
    ]);
    line.extend(certainty(one));
    line
}

/// How sure the model was, as columns that `frugal select` reads: the log-likelihood of what it
/// chose or wrote, and by how much the best choice is ahead.
fn certainty(one: &Scored<'_>) -> Map<String, Value> {
    let mut columns = Map::new();
    let mut add = |name: &str, value: Value| {
        columns.insert(name.to_owned(), value);
    };
    match one.answers.first() {
        Some(Answer::Choices(all)) => {
            let count = one.sample.choices.len().clamp(1, all.len().max(1));
            let all: Vec<f64> = all.iter().take(count).map(|l| l.0).collect();
            let chosen = likeliest(&all);
            let Some(best) = all.get(chosen) else {
                return columns;
            };
            add("logprob", json!(best));
            if all.len() > 1 {
                let others = all.iter().enumerate().filter(|(i, _)| *i != chosen);
                let next = others.map(|(_, ll)| *ll).fold(f64::NEG_INFINITY, f64::max);
                let sum: f64 = all.iter().map(|ll| (ll - best).exp()).sum();
                add("logprob_margin", json!(best - next));
                add("probability", json!(1.0 / sum));
                add("chosen", json!(chosen));
                if let [gold] = one.sample.golds.as_slice() {
                    add("gold", json!(gold));
                } else {
                    add("gold", json!(one.sample.golds));
                }
            }
        }
        Some(Answer::Written(Written {
            likelihood: Some((sum, tokens)),
            ..
        })) => {
            add("logprob", json!(sum));
            add("logprob_mean", json!(sum / (*tokens).max(1) as f64));
            add("tokens", json!(tokens));
        }
        Some(Answer::Rolling(sum, tokens)) => {
            add("logprob", json!(sum));
            add("tokens", json!(tokens));
        }
        _ => {}
    }
    columns
}
