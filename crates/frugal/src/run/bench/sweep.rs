//! Sweeps: every arm of a comparison gets the same number of trials, its settings are picked on one
//! part of the data and reported on another, over several seeds.
//!
//! The trial that is picked is the reported run of its seed, so it is not done twice.

use std::collections::BTreeSet;

use frugal_eval::report::{
    Claim, Comparison, Evaluation, RECORD_FILE, RunRecord, Spread, Status, SweepReport, SweptArm,
    Trial,
};
use frugal_eval::suite::{Job, SweptSetting, value_label};
use serde_json::{Value as Json, json};
use toml::Value;

use super::adapt::read_run;
use super::planned::{BenchSettings, PlannedRun, check, planned_run};
use super::queue::Queue;
use super::request::BenchRequest;
use super::{BenchError, output};

/// The part of the data on which settings are picked.
const SELECT_ON: &str = "validation";
/// The part on which the picked ones are reported.
const REPORT_ON: &str = "test";
/// Share of the training data that is held out for a test where the suite has none.
const TEST_SHARE: f64 = 0.1;
/// Fewer seeds than this give no interval worth the name.
const MIN_SEEDS: usize = 3;
/// More trials of an arm than this are a mistake.
const MAX_TRIALS: usize = 256;

/// What is swept and compared.
#[derive(Clone, Debug, Default)]
pub struct SweepRequest {
    /// Swept settings; with several, all combinations are tried.
    pub settings: Vec<SweptSetting>,
    /// The arm that the others are compared with; the first by default.
    pub baseline: Option<String>,
}

/// What a swept comparison came to.
#[derive(Clone, Debug)]
pub struct SweepResults {
    /// Whether it was stopped before the last run.
    pub stopped: bool,
    /// Whether a run failed.
    pub has_failures: bool,
    /// What was tried and picked, and which claims stand.
    pub sweep: SweepReport,
    /// The comparison of the picked settings.
    pub comparison: Comparison,
}

/// An arm with its trials.
#[derive(Clone, Debug)]
struct Arm {
    name: String,
    trials: Vec<Planned>,
}

/// A trial before it is run.
#[derive(Clone, Debug)]
struct Planned {
    values: Vec<Value>,
    /// Changes of the suite's settings that make it.
    overrides: Vec<String>,
    run: PlannedRun,
}

/// All trials of a sweep.
#[derive(Clone, Debug)]
pub struct SweepPlan {
    arms: Vec<Arm>,
    seeds: Vec<u64>,
    baseline: String,
}

impl SweepPlan {
    /// The trials, one arm after the other.
    pub fn trials(&self) -> impl Iterator<Item = &PlannedRun> {
        let arms = self.arms.iter();
        arms.flat_map(|arm| arm.trials.iter().map(|trial| &trial.run))
    }

    /// Seeds of the reported runs.
    pub fn seeds(&self) -> &[u64] {
        &self.seeds
    }
}

/// Checks a sweep: every trial's settings before the first one starts.
///
/// # Errors
/// As [`BenchRequest::plan`]; fewer than three seeds, settings that are swept and set at once,
/// values that a run cannot have, data without a part to pick on.
pub fn plan_sweep(request: &BenchRequest, sweep: &SweepRequest) -> Result<SweepPlan, BenchError> {
    let seeds = seeds(request)?;
    check_settings(request, sweep)?;
    let mut jobs = request.named_jobs()?;
    let first = request.suite.seeds.first();
    jobs.retain(|job| Some(&job.seed) == first);
    let arms = jobs
        .iter()
        .map(|job| arm(request, sweep, job, seeds[0]))
        .collect::<Result<Vec<Arm>, _>>()?;
    let mut names: BTreeSet<String> = BTreeSet::new();
    for trial in arms.iter().flat_map(|arm| &arm.trials) {
        let name = &trial.run.job.name;
        if !names.insert(name.clone()) {
            return Err(BenchError::Sweep(format!(
                "two trials would be called `{name}`: give one of the runs another name in the suite"
            )));
        }
    }
    let baseline = match &sweep.baseline {
        Some(name) => name.clone(),
        None => arms.first().map(|arm| arm.name.clone()).unwrap_or_default(),
    };
    if !arms.iter().any(|arm| arm.name == baseline) {
        let known: Vec<&str> = arms.iter().map(|arm| arm.name.as_str()).collect();
        return Err(BenchError::UnknownRun {
            name: baseline,
            known: known.join(", "),
        });
    }
    Ok(SweepPlan {
        arms,
        seeds,
        baseline,
    })
}

/// Seeds of the reported runs: those that were asked for, or the suite's.
fn seeds(request: &BenchRequest) -> Result<Vec<u64>, BenchError> {
    let asked = &request.seeds;
    let seeds = if asked.is_empty() {
        &request.suite.seeds
    } else {
        asked
    };
    let different: BTreeSet<&u64> = seeds.iter().collect();
    if different.len() < seeds.len() {
        return Err(BenchError::Sweep(format!(
            "the seeds {seeds:?} repeat one: list each once"
        )));
    }
    if seeds.len() < MIN_SEEDS {
        return Err(BenchError::Sweep(format!(
            "a swept comparison is reported over at least {MIN_SEEDS} seeds, here are {seeds:?}: list them, as in `--seeds 0,1,2`"
        )));
    }
    Ok(seeds.clone())
}

fn check_settings(request: &BenchRequest, sweep: &SweepRequest) -> Result<(), BenchError> {
    let mut keys = BTreeSet::new();
    for setting in &sweep.settings {
        let key = setting.key.as_str();
        if !keys.insert(key) {
            return Err(BenchError::Sweep(format!(
                "`{key}` is swept twice: list all its values in one `--sweep`"
            )));
        }
        let is_set = |text: &&String| text.split('=').next().map(str::trim) == Some(key);
        if let Some(text) = request.overrides.iter().find(is_set) {
            return Err(BenchError::Sweep(format!(
                "`{key}` is swept and set by `{text}`: leave one out"
            )));
        }
    }
    Ok(())
}

/// The trials of a run of the suite.
fn arm(
    request: &BenchRequest,
    sweep: &SweepRequest,
    job: &Job,
    seed: u64,
) -> Result<Arm, BenchError> {
    let named = |source| BenchError::Settings {
        run: job.name.clone(),
        source,
    };
    let unusable = |reason: String| BenchError::Refused {
        run: job.name.clone(),
        reason,
    };
    let own = check(job, &request.overrides).map_err(named)?;
    let settings = own.to_json()?;
    let mut grid: Vec<Vec<Value>> = vec![Vec::new()];
    for setting in &sweep.settings {
        let values = setting
            .values_for(at(&settings, &setting.key))
            .map_err(unusable)?;
        let longer = grid.iter().flat_map(|row| {
            let with = |value: &Value| row.iter().chain([value]).cloned().collect();
            values.iter().map(with).collect::<Vec<Vec<Value>>>()
        });
        grid = longer.collect();
        if grid.len() > MAX_TRIALS {
            return Err(BenchError::Sweep(format!(
                "more than {MAX_TRIALS} trials of each run: sweep fewer settings or values"
            )));
        }
    }
    let mut shared = request.overrides.clone();
    shared.extend(split(&own, seed).map_err(unusable)?);
    let trial = |values: Vec<Value>| {
        let mut job = with_seed(job, seed);
        let mut overrides = shared.clone();
        for (setting, value) in sweep.settings.iter().zip(&values) {
            job.name += &format!("-{}{}", setting.short(), value_label(value));
            overrides.push(format!("{}={value}", setting.key));
        }
        let run = planned_run(job, &overrides, &request.data_dir, &request.out)?;
        Ok(Planned {
            values,
            overrides,
            run,
        })
    };
    Ok(Arm {
        name: job.name.clone(),
        trials: grid
            .into_iter()
            .map(trial)
            .collect::<Result<_, BenchError>>()?,
    })
}

/// The same job with another seed.
fn with_seed(job: &Job, seed: u64) -> Job {
    let mut job = job.clone();
    job.seed = seed;
    let value = i64::try_from(seed).unwrap_or(i64::MAX);
    job.settings.insert("seed".into(), Value::Integer(value));
    job
}

/// A value by its dotted key.
fn at<'a>(settings: &'a Json, key: &str) -> Option<&'a Json> {
    key.split('.').try_fold(settings, |at, part| at.get(part))
}

/// What makes the parts of the data that a run lacks, the same for every seed: what one seed picks
/// on must not be what another is reported on.
fn split(settings: &BenchSettings, seed: u64) -> Result<Vec<String>, String> {
    let BenchSettings::Tune(config) = settings else {
        return Err("only runs of `frugal tune` can be swept".into());
    };
    let data = &config.data;
    if frugal_core::data::builtin(&data.train).is_ok() {
        return Ok(Vec::new());
    }
    if data.validation.is_none() && data.validation_share == 0.0 {
        return Err("its data have no validation part to pick settings on: give `data.validation`, or a `data.validation_share` above 0".into());
    }
    let mut overrides = Vec::new();
    if data.test.is_none() && data.test_share == 0.0 {
        overrides.push(format!("data.test_share={TEST_SHARE}"));
    }
    let holds_out = data.test.is_none() || data.validation.is_none();
    if holds_out && data.split_seed.is_none() {
        overrides.push(format!("data.split_seed={seed}"));
    }
    Ok(overrides)
}

/// Tries all settings, picks, does the picked ones with every seed and compares them.
///
/// # Errors
/// As [`plan_sweep`] and [`Queue::run_all`], and files that cannot be written.
pub fn sweep_adapt(
    request: &BenchRequest,
    sweep: &SweepRequest,
    queue: &mut Queue<'_>,
) -> Result<SweepResults, BenchError> {
    let plan = plan_sweep(request, sweep)?;
    let trials: Vec<PlannedRun> = plan.trials().cloned().collect();
    let _lock = request.claim(&trials)?;
    let mut stopped = queue.run_all(&trials, &request.out, false)?;
    let mut report = tried(request, sweep, &plan);
    let mut reported = Vec::new();
    if !stopped {
        check_metric(request, &plan, &report)?;
        pick(&mut report);
        reported = reported_runs(request, &plan, &report)?;
        let runs: Vec<PlannedRun> = reported.iter().map(|(_, run)| run.clone()).collect();
        stopped = queue.run_all(&runs, &request.out, false)?;
    }
    compare(request, &mut report, &reported);
    let found = reported.iter().filter_map(|(arm, run)| {
        let mut found = read_run(request, &run.job)?;
        found.name.clone_from(arm);
        Some(found)
    });
    let (suite, metric) = (&request.suite, request.suite.metric.as_str());
    let subtitle = suite.description.clone();
    let comparison = Comparison::new(&request.title, subtitle, Some(metric), found.collect())
        .with_sweep(report.clone());
    output::write(
        request,
        &comparison.to_html()?,
        &comparison.to_markdown(),
        &json!({ "metric": metric, "runs": comparison.rows(), "sweep": report }),
    )?;
    let mut tried = report.arms.iter().flat_map(|arm| &arm.trials);
    let mut rows = comparison.rows().iter();
    let has_failures =
        tried.any(|trial| trial.error.is_some()) || rows.any(|row| !row.errors.is_empty());
    Ok(SweepResults {
        stopped,
        has_failures,
        sweep: report,
        comparison,
    })
}

/// The trials with what they scored.
fn tried(request: &BenchRequest, sweep: &SweepRequest, plan: &SweepPlan) -> SweepReport {
    let metric = &request.suite.metric;
    let trial = |planned: &Planned| {
        let record = record_of(request, &planned.run.job);
        let error = record.as_ref().map(|r| r.run_info.error_msg.clone());
        Trial {
            values: planned.values.iter().map(value_label).collect(),
            score: record.and_then(|record| score(&record, SELECT_ON, metric)),
            error: error.filter(|error| !error.is_empty()),
        }
    };
    let arm = |arm: &Arm| SweptArm {
        name: arm.name.clone(),
        trials: arm.trials.iter().map(trial).collect(),
        ..SweptArm::default()
    };
    SweepReport {
        settings: sweep.settings.iter().map(|s| s.key.clone()).collect(),
        metric: metric.clone(),
        select_on: SELECT_ON.into(),
        report_on: REPORT_ON.into(),
        trial_seed: plan.seeds[0],
        seeds: plan.seeds.clone(),
        trials: plan.arms.first().map_or(0, |arm| arm.trials.len()),
        baseline: plan.baseline.clone(),
        arms: plan.arms.iter().map(arm).collect(),
        claims: Vec::new(),
    }
}

fn record_of(request: &BenchRequest, job: &Job) -> Option<RunRecord> {
    RunRecord::read(&request.folder(job).join(RECORD_FILE)).ok()
}

/// A metric of a run that has finished, on a part of its data.
fn score(record: &RunRecord, part: &str, metric: &str) -> Option<f64> {
    let is_done = record.train_info.status == Status::Success;
    let on = |e: &&Evaluation| e.split == part;
    let evaluation = record.evaluation.iter().find(on).filter(|_| is_done)?;
    evaluation.adapted.get(metric).copied()
}

/// Whether the runs that finished have the metric that decides.
fn check_metric(
    request: &BenchRequest,
    plan: &SweepPlan,
    report: &SweepReport,
) -> Result<(), BenchError> {
    let mut tried = report.arms.iter().flat_map(|arm| &arm.trials);
    if tried.any(|trial| trial.score.is_some()) {
        return Ok(());
    }
    let on = |e: &&Evaluation| e.split == SELECT_ON;
    let mut records = plan.trials().filter_map(|run| record_of(request, &run.job));
    let found = records.find_map(|r| r.evaluation.iter().find(on).map(|e| e.adapted.clone()));
    let Some(found) = found else {
        return Ok(());
    };
    let known: Vec<&str> = found.keys().map(String::as_str).collect();
    Err(BenchError::Sweep(format!(
        "the runs have no `{}` on their {SELECT_ON} part, by which the suite decides; they have {}: set `metric` in the suite",
        report.metric,
        known.join(", ")
    )))
}

/// Picks the best trial of each arm.
fn pick(report: &mut SweepReport) {
    let picks: Vec<Option<usize>> = report
        .arms
        .iter()
        .map(|arm| report.best(&arm.trials))
        .collect();
    let settings = report.settings.clone();
    for (arm, picked) in report.arms.iter_mut().zip(picks) {
        arm.picked = picked;
        let Some(picked) = picked else { continue };
        let values = |i: usize| {
            arm.trials
                .iter()
                .map(move |trial| trial.values[i].parse::<f64>())
        };
        arm.at_edge = (0..settings.len())
            .filter(|&i| {
                let numbers: Result<Vec<f64>, _> = values(i).collect();
                numbers.is_ok_and(|numbers| is_edge(&numbers, numbers[picked]))
            })
            .map(|i| settings[i].clone())
            .collect();
    }
}

/// Whether a number is the lowest or highest of at least three different ones.
fn is_edge(numbers: &[f64], picked: f64) -> bool {
    let mut sorted = numbers.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.dedup();
    sorted.len() > 2 && (sorted.first() == Some(&picked) || sorted.last() == Some(&picked))
}

/// The picked settings of each arm with every seed: the arm's name and the run.
fn reported_runs(
    request: &BenchRequest,
    plan: &SweepPlan,
    report: &SweepReport,
) -> Result<Vec<(String, PlannedRun)>, BenchError> {
    let mut runs = Vec::new();
    for &seed in &plan.seeds {
        for (arm, swept) in plan.arms.iter().zip(&report.arms) {
            let Some(picked) = swept.picked else { continue };
            let trial = &arm.trials[picked];
            let job = with_seed(&trial.run.job, seed);
            let run = planned_run(job, &trial.overrides, &request.data_dir, &request.out)?;
            runs.push((arm.name.clone(), run));
        }
    }
    Ok(runs)
}

/// The reported scores, and each arm against the baseline, paired by seed.
fn compare(request: &BenchRequest, report: &mut SweepReport, reported: &[(String, PlannedRun)]) {
    let metric = report.metric.clone();
    let of_seed = |arm: &str, seed: u64| -> Option<f64> {
        let mut runs = reported.iter();
        let (_, run) = runs.find(|(name, run)| name == arm && run.job.seed == seed)?;
        score(&record_of(request, &run.job)?, REPORT_ON, &metric)
    };
    let seeds = report.seeds.clone();
    for arm in &mut report.arms {
        let scores: Vec<f64> = seeds
            .iter()
            .filter_map(|&seed| of_seed(&arm.name, seed))
            .collect();
        arm.reported = Spread::new(&scores);
    }
    if reported.is_empty() {
        return;
    }
    let baseline = report.baseline.clone();
    let claim = |arm: &SweptArm| {
        let pairs = seeds.iter().filter_map(|&seed| {
            Some(report.gain(of_seed(&arm.name, seed)?, of_seed(&baseline, seed)?))
        });
        Claim::new(&arm.name, &pairs.collect::<Vec<f64>>())
    };
    let others = report.arms.iter().filter(|arm| arm.name != baseline);
    report.claims = others.map(claim).collect();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_ends_of_three_or_more_values_are_edges() {
        assert!(is_edge(&[0.1, 0.3, 1.0], 1.0) && is_edge(&[0.1, 0.3, 1.0], 0.1));
        assert!(!is_edge(&[0.1, 0.3, 1.0], 0.3) && !is_edge(&[0.1, 0.3], 0.1));
        // Several settings repeat the values of one.
        assert!(!is_edge(&[1.0, 1.0, 2.0, 2.0], 2.0));
    }
}
