//! `frugal bench adapt`: ways to adapt a model, by quality and cost.

use anyhow::Result;
use frugal::run::bench::{BenchRequest, Queue, adapt};
use serde_json::json;

use super::outcome::end;
use crate::args::Output;
use crate::commands::report::print;
use crate::outcome::Outcome;
use crate::ui;

/// Runs, compares and prints.
pub(super) fn run(
    request: &BenchRequest,
    queue: &mut Queue<'_>,
    output: Output,
) -> Result<Outcome> {
    let found = adapt(request, queue)?;
    let comparison = &found.comparison;
    if output.json {
        ui::print_json(&json!({
            "suite": request.title, "metric": comparison.metric, "runs": comparison.rows(),
            "ranked_apart": comparison.ranked_apart(), "out": request.out,
        }))?;
    } else {
        print(comparison, output);
        ui::print(&format!("\n{}", request.out.join("report.html").display()));
    }
    Ok(end(found.stopped, found.has_failures()))
}
