//! Ways to adapt a model, by quality and cost.

use frugal_core::events::{LOG_FILE, read_jsonl};
use frugal_eval::efficiency::Efficiency;
use frugal_eval::report::{Comparison, RECORD_FILE, Run, RunRecord};
use frugal_eval::suite::Job;
use serde_json::json;

use super::queue::Queue;
use super::request::BenchRequest;
use super::{BenchError, output};

/// What a comparison of ways to adapt a model came to.
#[derive(Clone, Debug)]
pub struct AdaptResults {
    /// Whether it was stopped before the last run.
    pub stopped: bool,
    /// The comparison of all runs that there are.
    pub comparison: Comparison,
}

impl AdaptResults {
    /// Whether a run failed.
    pub fn has_failures(&self) -> bool {
        let mut rows = self.comparison.rows().iter();
        rows.any(|row| !row.errors.is_empty())
    }
}

/// Does the runs of a suite and compares them.
///
/// # Errors
/// As [`BenchRequest::plan`] and [`Queue::run_all`], and files that cannot be written.
pub fn adapt(request: &BenchRequest, queue: &mut Queue<'_>) -> Result<AdaptResults, BenchError> {
    let runs = request.plan()?;
    let _lock = request.claim(&runs)?;
    let stopped = queue.run_all(&runs, &request.out, false)?;
    let suite = &request.suite;
    let found = runs.iter();
    let found = found
        .filter_map(|run| read_run(request, &run.job))
        .collect();
    let metric = Some(suite.metric.as_str());
    let comparison = Comparison::new(&request.title, suite.description.clone(), metric, found);
    output::write(
        request,
        &comparison.to_html()?,
        &comparison.to_markdown(),
        &json!({ "metric": comparison.metric, "runs": comparison.rows() }),
    )?;
    Ok(AdaptResults {
        stopped,
        comparison,
    })
}

/// What a run left in its folder.
pub(super) fn read_run(request: &BenchRequest, job: &Job) -> Option<Run> {
    let folder = request.folder(job);
    let record = RunRecord::read(&folder.join(RECORD_FILE)).ok()?;
    Some(Run {
        name: job.name.clone(),
        record,
        log: read_jsonl(&folder.join(LOG_FILE)).unwrap_or_default(),
        efficiency: Efficiency::read(&folder),
    })
}
