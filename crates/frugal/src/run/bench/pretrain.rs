//! A grid of pre-training runs, and the law of rate and batch that they follow.

use frugal_eval::report::LawReport;
use frugal_eval::step_law::{STEP_LAW, Study, measured};
use serde_json::json;

use super::queue::Queue;
use super::request::BenchRequest;
use super::{BenchError, output};

/// What a grid of pre-training runs came to.
#[derive(Clone, Debug)]
pub struct GridResults {
    /// Whether it was stopped before the last run.
    pub stopped: bool,
    /// The law that all runs that there are follow.
    pub study: Study,
    /// Runs that failed.
    pub failures: Vec<(String, String)>,
}

/// Does the runs of a suite's grid and fits the law.
///
/// # Errors
/// As [`BenchRequest::plan`] and [`Queue::run_all`], a suite without a grid, and files that cannot
/// be written.
pub fn pretrain_grid(
    request: &BenchRequest,
    queue: &mut Queue<'_>,
) -> Result<GridResults, BenchError> {
    let suite = &request.suite;
    let runs = request.plan()?;
    let excess = suite.grid.as_ref().map(|grid| grid.excess);
    let excess = excess.ok_or_else(|| BenchError::NoGrid {
        title: request.title.clone(),
    })?;
    let _lock = request.claim(&runs)?;
    let stopped = queue.run_all(&runs, &request.out, false)?;
    // Whatever part of the grid this call was for, the fit is of all that is there.
    let (found, failures) = measured(&request.all_jobs(), &request.out);
    let study = Study::new(found, excess);
    let report = LawReport {
        title: &request.title,
        subtitle: &suite.description,
        study: &study,
        failures: &failures,
    };
    output::write(
        request,
        &report.to_html(),
        &report.to_markdown(),
        &json!({ "description": suite.description, "published": STEP_LAW, "study": study }),
    )?;
    Ok(GridResults {
        stopped,
        study,
        failures,
    })
}
