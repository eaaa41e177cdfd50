//! `frugal bench adapt --sweep`: the same number of trials for every run before runs are compared.

use anyhow::Result;
use frugal::run::bench::{BenchRequest, Queue, SweepRequest, plan_sweep, sweep_adapt};
use frugal_core::table::{Column, Table};
use frugal_eval::report::{CLAIM_HEADINGS, SweepReport};
use frugal_eval::suite::SweptSetting;
use serde_json::json;

use super::outcome::end;
use crate::args::Output;
use crate::commands::report::print;
use crate::outcome::Outcome;
use crate::ui;

/// What is swept.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Sweep")]
pub(super) struct Flags {
    /// Try values of a setting in every run before the runs are compared: KEY=VALUE,VALUE,... or
    /// KEY=FACTORxCOUNT around the run's own, for example lr=3x5; repeated, all combinations
    #[arg(
        long = "sweep",
        value_name = "KEY=VALUES",
        value_parser = SweptSetting::parse,
        conflicts_with = "list"
    )]
    settings: Vec<SweptSetting>,
    /// The part of the data on which settings are picked; the picked ones are reported on the test
    /// part, a tenth of the training data where the suite has none
    #[arg(
        long,
        value_name = "PART",
        value_parser = ["validation"],
        default_value = "validation",
        requires = "settings"
    )]
    select_on: String,
    /// The run that the others are compared with [default: the first]
    #[arg(long, value_name = "NAME", requires = "settings")]
    baseline: Option<String>,
}

impl Flags {
    /// The sweep that was asked for, if one was.
    pub(super) fn request(&self) -> Option<SweepRequest> {
        (!self.settings.is_empty()).then(|| SweepRequest {
            settings: self.settings.clone(),
            baseline: self.baseline.clone(),
        })
    }
}

/// Shows the trials.
pub(super) fn dry_run(request: &BenchRequest, sweep: &SweepRequest) -> Result<Outcome> {
    let plan = plan_sweep(request, sweep)?;
    for run in plan.trials() {
        ui::print(&format!("{}: {}", run.job.folder(), run.settings.summary()));
    }
    ui::print(&format!(
        "then the picked ones with the seeds {:?}",
        plan.seeds()
    ));
    Ok(Outcome::Done)
}

/// Tries, picks, compares and prints.
pub(super) fn run(
    request: &BenchRequest,
    sweep: &SweepRequest,
    queue: &mut Queue<'_>,
    output: Output,
) -> Result<Outcome> {
    let found = sweep_adapt(request, sweep, queue)?;
    let (comparison, report) = (&found.comparison, &found.sweep);
    if output.json {
        ui::print_json(&json!({
            "suite": request.title, "metric": comparison.metric, "runs": comparison.rows(),
            "ranked_apart": comparison.ranked_apart(), "sweep": report, "out": request.out,
        }))?;
    } else {
        print(comparison, output);
        ui::print("");
        ui::table::print(&picks(report));
        if !report.claims.is_empty() {
            ui::print("");
            ui::table::print(&claims(report));
            ui::note(output, &report.method());
        }
        for warning in report.warnings() {
            ui::warn(output, &warning);
        }
        ui::print(&format!("\n{}", request.out.join("report.html").display()));
    }
    Ok(end(found.stopped, found.has_failures))
}

fn picks(report: &SweepReport) -> Table {
    let mut table = Table::new([
        Column::text("run"),
        Column::number("trials"),
        Column::text("picked"),
    ]);
    for arm in &report.arms {
        table.row([
            arm.name.clone(),
            arm.trials.len().to_string(),
            arm.picked_text(&report.settings),
        ]);
    }
    table
}

fn claims(report: &SweepReport) -> Table {
    let headings = CLAIM_HEADINGS.iter().enumerate().map(|(i, heading)| {
        let heading = heading.to_lowercase();
        if i < 2 {
            Column::text(heading)
        } else {
            Column::number(heading)
        }
    });
    let mut table = Table::new(headings);
    for cells in report.claim_cells() {
        table.row(cells);
    }
    table
}
