//! Many runs side by side: one table, quality against cost, learning curves.

mod basis;
mod page;
mod table;
mod tasks;

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use self::basis::{Basis, judged};
use super::markup::lower_is_better;
use super::spread::Spread;
use super::sweep::SweepReport;
use super::{RunRecord, Status};
use crate::efficiency::Efficiency;
use crate::measurement::Measurement;
use frugal_core::events::Scalars;
use frugal_core::{human, metrics};
pub use tasks::TaskScores;

/// A run to compare.
#[derive(Clone, Debug, Default)]
pub struct Run {
    /// Name without the seed; runs of one name are averaged.
    pub name: String,
    /// What it cost and gained.
    pub record: RunRecord,
    /// Its log.
    pub log: Vec<Scalars>,
    /// What was sampled while it ran, where it was.
    pub efficiency: Option<Efficiency>,
}

/// The runs of one name together.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Compared {
    /// Name.
    pub name: String,
    /// Method.
    pub method: String,
    /// Model.
    pub model: String,
    /// How long was trained, in words.
    pub budget: String,
    /// What quality was measured on; only runs that share it are ranked.
    pub data: String,
    /// Runs that finished.
    pub runs: usize,
    /// The deciding metric.
    pub quality: Option<Spread>,
    /// Where the runs lack it, the first usual one that they have: runs of another task stand in
    /// one table with the rest.
    pub otherwise: Option<(&'static str, Spread)>,
    /// Trained parameters of a run that finished.
    pub num_trainable_params: Option<u64>,
    /// Saved bytes of a run that finished.
    pub file_size: Option<u64>,
    /// Bytes; the median.
    pub peak_memory: Option<f64>,
    /// Seconds of training; the median.
    pub train_time: Option<f64>,
    /// The median.
    pub tokens_per_second: Option<f64>,
    /// Bytes on average over the run, where it was sampled; the median.
    pub average_memory: Option<f64>,
    /// Watts on average over the run, where it was sampled; the median.
    pub average_power: Option<f64>,
    /// Whether that power is modelled and not measured.
    pub power_is_modelled: bool,
    /// What was lost on unrelated text: `adapted - base` of the measure of forgetting.
    pub forgetting: Option<Spread>,
    /// That measure, `perplexity` or `probe_accuracy`.
    pub forgetting_measure: Option<String>,
    /// Why runs failed.
    pub errors: Vec<String>,
}

/// Many runs, grouped by name and sorted by quality.
#[derive(Clone, Debug, Default)]
pub struct Comparison {
    /// Heading of the page.
    pub title: String,
    /// One line below it.
    pub subtitle: String,
    /// The metric that decides.
    pub metric: String,
    runs: Vec<Run>,
    rows: Vec<Compared>,
    tasks: Vec<TaskScores>,
    measurements: Vec<Measurement>,
    sweep: Option<SweepReport>,
}

/// Runs that were measured on the same data, best first.
#[derive(Clone, Debug)]
pub struct Group<'a> {
    /// The data.
    pub data: &'a str,
    /// The runs.
    pub rows: Vec<&'a Compared>,
    /// What any method has to beat, by the deciding metric: the untrained model, the commonest
    /// class, chance.
    pub references: Vec<(String, f64)>,
}

/// Metrics that decide unless one is named, the first that there is.
const USUAL: [&str; 5] = ["accuracy", "perplexity", "micro_f1", "pearson", "loss"];

impl Comparison {
    /// Groups runs by name. Without `metric` it is `accuracy` where the runs have it, otherwise
    /// `perplexity`, `micro_f1` (several labels) or `pearson` (numbers), otherwise `loss`.
    pub fn new(
        title: impl Into<String>,
        subtitle: impl Into<String>,
        metric: Option<&str>,
        runs: Vec<Run>,
    ) -> Self {
        let has = |name: &&&str| {
            runs.iter()
                .any(|r| judged(&r.record).is_some_and(|e| e.adapted.contains_key(**name)))
        };
        let metric = metric
            .or_else(|| USUAL.iter().find(has).copied())
            .unwrap_or("accuracy")
            .to_owned();
        let (places, labels) = placed(&runs, &metric);
        let of_run: BTreeSet<(usize, &str)> = places
            .iter()
            .copied()
            .zip(runs.iter().map(|r| r.name.as_str()))
            .collect();
        let mut rows: Vec<(usize, Compared)> = of_run
            .iter()
            .map(|&(place, name)| {
                let same = runs
                    .iter()
                    .zip(&places)
                    .filter(|(r, p)| **p == place && r.name == name);
                let mut row = row(name, &metric, same.map(|(r, _)| r));
                row.data = labels.get(place).cloned().unwrap_or_default();
                (place, row)
            })
            .collect();
        let signed = |mean: f64| {
            if lower_is_better(&metric) {
                -mean
            } else {
                mean
            }
        };
        let quality = |row: &Compared| {
            row.quality
                .map(|q| signed(q.mean))
                .filter(|q| !q.is_nan())
                .unwrap_or(f64::NEG_INFINITY)
        };
        rows.sort_by(|a, b| {
            a.0.cmp(&b.0)
                .then_with(|| quality(&b.1).total_cmp(&quality(&a.1)))
                .then_with(|| a.1.name.cmp(&b.1.name))
        });
        Self {
            title: title.into(),
            subtitle: subtitle.into(),
            metric,
            runs,
            rows: rows.into_iter().map(|(_, row)| row).collect(),
            tasks: Vec::new(),
            measurements: Vec::new(),
            sweep: None,
        }
    }

    /// The same page with the scores of models on tasks.
    pub fn with_tasks(mut self, tasks: Vec<TaskScores>) -> Self {
        self.tasks = tasks;
        self
    }

    /// The same page with what was measured of models.
    pub fn with_measurements(mut self, measurements: Vec<Measurement>) -> Self {
        self.measurements = measurements;
        self
    }

    /// The same page with the sweep that the settings of its runs come from.
    pub fn with_sweep(mut self, sweep: SweepReport) -> Self {
        self.sweep = Some(sweep);
        self
    }

    /// The rows, those on the same data together and of these the best first.
    pub fn rows(&self) -> &[Compared] {
        &self.rows
    }

    /// The rows by what they were measured on. Only rows of one group are ranked.
    pub fn groups(&self) -> Vec<Group<'_>> {
        let mut groups: Vec<Group<'_>> = Vec::new();
        for row in &self.rows {
            match groups.iter_mut().find(|group| group.data == row.data) {
                Some(group) => group.rows.push(row),
                None => groups.push(Group {
                    data: &row.data,
                    rows: vec![row],
                    references: Vec::new(),
                }),
            }
        }
        for group in &mut groups {
            group.references = self.references(&group.rows);
        }
        groups
    }

    /// Why not all runs are ranked together; `None` where they are.
    pub fn ranked_apart(&self) -> Option<String> {
        let groups = self.groups();
        let names = |group: &Group<'_>| {
            let names: Vec<&str> = group.rows.iter().map(|r| r.name.as_str()).collect();
            format!("{} on {}", names.join(", "), group.data)
        };
        (groups.len() > 1).then(|| {
            let all: Vec<String> = groups.iter().map(names).collect();
            format!(
                "measured on different data, so not ranked together: {}",
                all.join("; ")
            )
        })
    }

    /// The deciding metric of what was there before training and of what needs none, as the runs of
    /// these rows recorded it.
    fn references(&self, rows: &[&Compared]) -> Vec<(String, f64)> {
        let names: BTreeSet<&str> = rows.iter().map(|r| r.name.as_str()).collect();
        let mut found: Vec<(String, f64)> = Vec::new();
        let runs = self.runs.iter().filter(|r| names.contains(r.name.as_str()));
        for record in runs.map(|r| &r.record) {
            let Some(evaluation) = judged(record) else {
                continue;
            };
            let base = evaluation.base.get(&self.metric).map(|value| {
                let untrained = format!("untrained {}", record.meta_info.model_info.name);
                (untrained.trim_end().to_owned(), *value)
            });
            let others = evaluation
                .baselines
                .iter()
                .filter_map(|(name, metrics)| Some((name.clone(), *metrics.get(&self.metric)?)));
            for (name, value) in base.into_iter().chain(others) {
                if !found.iter().any(|(known, _)| *known == name) {
                    found.push((name, value));
                }
            }
        }
        found
    }

    /// What all runs share, for the head of the page: model, data, budget.
    pub fn facts(&self) -> Vec<(&'static str, String)> {
        let distinct = |values: &mut dyn Iterator<Item = String>| -> String {
            let all: BTreeSet<String> = values.filter(|v| !v.is_empty()).collect();
            match all.len() {
                0..=3 => all.into_iter().collect::<Vec<_>>().join("; "),
                n => format!("{n} different ones, see the table"),
            }
        };
        let train = |record: &RunRecord| {
            let data = record.meta_info.dataset_info.iter();
            data.filter(|d| d.split == "train")
                .map(|d| {
                    format!(
                        "{} ({} examples)",
                        d.source,
                        human::count(d.examples as u64)
                    )
                })
                .collect::<Vec<_>>()
                .join(", ")
        };
        let all = [
            (
                "model",
                distinct(&mut self.rows.iter().map(|r| r.model.clone())),
            ),
            (
                "trained on",
                distinct(&mut self.runs.iter().map(|r| train(&r.record))),
            ),
            (
                "measured on",
                distinct(&mut self.rows.iter().map(|r| r.data.clone())),
            ),
            (
                "budget",
                distinct(&mut self.rows.iter().map(|r| r.budget.clone())),
            ),
        ];
        all.into_iter()
            .filter(|(_, value)| !value.is_empty())
            .collect()
    }

    /// What the runs that finished can be judged by.
    pub fn metrics(&self) -> BTreeSet<&str> {
        let done = self
            .runs
            .iter()
            .filter(|r| r.record.train_info.status == Status::Success);
        done.filter_map(|r| judged(&r.record))
            .flat_map(|e| e.adapted.keys().map(String::as_str))
            .collect()
    }
}

/// For each run the number of the data that it was measured on, and the names of these. Runs that
/// were not measured stand with those of their name, or with the first.
fn placed(runs: &[Run], metric: &str) -> (Vec<usize>, Vec<String>) {
    let measured = |r: &&Run| judged(&r.record).is_some();
    let known = runs
        .iter()
        .filter(measured)
        .all(|r| r.record.meta_info.model_info.vocabulary.is_some());
    let bases: Vec<Option<Basis>> = runs
        .iter()
        .map(|r| Basis::of(&r.record, metric, known))
        .collect();
    let all: Vec<Basis> = bases
        .iter()
        .flatten()
        .collect::<BTreeSet<_>>()
        .into_iter()
        .cloned()
        .collect();
    let number: BTreeMap<&Basis, usize> = all.iter().enumerate().map(|(i, b)| (b, i)).collect();
    let place = |(run, basis): (&Run, &Option<Basis>)| {
        let of_name = || {
            let mut same = runs.iter().zip(&bases).filter(|(r, _)| r.name == run.name);
            same.find_map(|(_, b)| b.as_ref())
        };
        let basis = basis.as_ref().or_else(of_name);
        basis.and_then(|b| number.get(b).copied()).unwrap_or(0)
    };
    let model = |basis: &Basis| {
        let mut same = runs
            .iter()
            .zip(&bases)
            .filter(|(_, b)| b.as_ref() == Some(basis));
        same.next()
            .map(|(r, _)| r.record.meta_info.model_info.name.clone())
            .unwrap_or_default()
    };
    (
        runs.iter().zip(&bases).map(place).collect(),
        basis::labels(&all, model),
    )
}

/// How long a run trained, as its configuration says it.
fn budget(record: &RunRecord) -> String {
    let train = &record.run_info.train_config["train"];
    let number = |name: &str| train[name].as_f64().filter(|v| *v > 0.0);
    let length = match (number("max_steps"), number("epochs")) {
        (Some(steps), _) => format!("{} steps", human::count(steps as u64)),
        (None, Some(1.0)) => "1 epoch".to_owned(),
        (None, Some(epochs)) => format!("{epochs} epochs"),
        (None, None) => return String::new(),
    };
    let accumulated = number("gradient_accumulation_steps").unwrap_or(1.0);
    match number("batch_size") {
        Some(batch) => format!(
            "{length}, batches of {}",
            human::count((batch * accumulated) as u64)
        ),
        None => length,
    }
}

fn row<'a>(name: &str, metric: &str, runs: impl Iterator<Item = &'a Run>) -> Compared {
    let runs: Vec<&Run> = runs.collect();
    let done: Vec<&RunRecord> = runs
        .iter()
        .map(|r| &r.record)
        .filter(|r| r.train_info.status == Status::Success)
        .collect();
    let all = |value: &dyn Fn(&RunRecord) -> Option<f64>| {
        done.iter().filter_map(|r| value(r)).collect::<Vec<f64>>()
    };
    let median = |value: &dyn Fn(&RunRecord) -> Option<f64>| metrics::median(&all(value));
    let sampled = |value: &dyn Fn(&Efficiency) -> f64| {
        runs.iter()
            .filter_map(|r| r.efficiency.as_ref())
            .map(value)
            .collect::<Vec<f64>>()
    };
    let method = runs
        .first()
        .and_then(|r| r.record.run_info.train_config["method"]["name"].as_str())
        .unwrap_or_default()
        .to_owned();
    let of_metric = |metric: &str| Spread::new(&all(&|r| judged(r)?.adapted.get(metric).copied()));
    let quality = of_metric(metric);
    let forgetting_measure = done
        .iter()
        .find_map(|r| Some(r.forgetting.as_ref()?.measure.clone()));
    let lost = all(&|r| {
        r.forgetting
            .as_ref()
            .filter(|f| Some(&f.measure) == forgetting_measure.as_ref())
            .map(|f| f.adapted - f.base)
    });
    // A model that is evaluated as it is has trained nothing.
    let above_zero = |value: u64| Some(value).filter(|v| *v > 0);
    Compared {
        name: name.to_owned(),
        method,
        model: runs
            .first()
            .map(|r| r.record.meta_info.model_info.name.clone())
            .unwrap_or_default(),
        budget: runs.first().map(|r| budget(&r.record)).unwrap_or_default(),
        data: String::new(),
        runs: done.len(),
        quality,
        otherwise: if quality.is_some() {
            None
        } else {
            USUAL
                .into_iter()
                .find_map(|metric| Some((metric, of_metric(metric)?)))
        },
        num_trainable_params: done
            .first()
            .and_then(|r| above_zero(r.train_info.num_trainable_params)),
        file_size: done
            .first()
            .and_then(|r| above_zero(r.train_info.file_size)),
        peak_memory: median(&|r| r.train_info.peak_memory.map(|b| b as f64)),
        train_time: median(&|r| Some(r.train_info.train_time).filter(|t| *t > 0.0)),
        tokens_per_second: median(&|r| r.train_info.tokens_per_second()),
        average_memory: metrics::median(&sampled(&|e| e.average_memory)),
        average_power: metrics::median(&sampled(&|e| e.average_power)),
        power_is_modelled: runs
            .iter()
            .filter_map(|r| r.efficiency.as_ref())
            .any(|e| e.power_is_modelled),
        forgetting: Spread::new(&lost),
        forgetting_measure,
        errors: runs
            .iter()
            .map(|r| r.record.run_info.error_msg.clone())
            .filter(|e| !e.is_empty())
            .collect(),
    }
}

#[cfg(test)]
mod tests;
