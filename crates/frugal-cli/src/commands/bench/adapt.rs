//! `frugal bench adapt`: ways to adapt a model, by quality and cost.

use std::path::Path;

use anyhow::Result;
use frugal_core::events::{LOG_FILE, read_jsonl};
use frugal_core::fs::write_atomic;
use frugal_eval::efficiency::Efficiency;
use frugal_eval::report::{Comparison, RECORD_FILE, Run, RunRecord};
use frugal_eval::suite::{Suite, Work};
use serde_json::json;

use super::jobs::{Resolved, resolve, run_all};
use super::{Flags, Opened, end};
use crate::commands::report::print;
use crate::folder::RESULTS_FILE;
use crate::outcome::Outcome;
use crate::ui;

pub fn run(flags: &Flags, opened: &Opened) -> Result<Outcome> {
    let Opened { suite, title, out } = opened;
    let jobs = resolve(suite, flags, out, &[Work::Tune])?;
    if flags.dry_run {
        return Ok(super::dry_run(&jobs));
    }
    let stopped = run_all(&jobs, out, flags.output, false)?;
    let comparison = compare(title, suite, &jobs, out)?;
    if flags.output.json {
        ui::print_json(&json!({
            "suite": title, "metric": comparison.metric, "runs": comparison.rows(),
            "ranked_apart": comparison.ranked_apart(), "out": out,
        }))?;
    } else {
        print(&comparison, flags.output);
        ui::print(&format!("\n{}", out.join("report.html").display()));
    }
    Ok(end(
        stopped,
        comparison.rows().iter().any(|row| !row.errors.is_empty()),
    ))
}

/// The comparison of all runs that there are, written beside them.
fn compare(title: &str, suite: &Suite, jobs: &[Resolved], out: &Path) -> Result<Comparison> {
    let run = |resolved: &Resolved| -> Option<Run> {
        let folder = out.join(resolved.job.folder());
        let record = RunRecord::read(&folder.join(RECORD_FILE)).ok()?;
        Some(Run {
            name: resolved.job.name.clone(),
            record,
            log: read_jsonl(&folder.join(LOG_FILE)).unwrap_or_default(),
            efficiency: Efficiency::read(&folder),
        })
    };
    let runs: Vec<Run> = jobs.iter().filter_map(run).collect();
    let comparison = Comparison::new(title, suite.description.clone(), Some(&suite.metric), runs);
    write_atomic(&out.join("report.html"), comparison.to_html()?.as_bytes())?;
    write_atomic(&out.join("results.md"), comparison.to_markdown().as_bytes())?;
    let rows = serde_json::to_string_pretty(
        &json!({ "metric": comparison.metric, "runs": comparison.rows() }),
    )?;
    write_atomic(&out.join(RESULTS_FILE), (rows + "\n").as_bytes())?;
    Ok(comparison)
}
