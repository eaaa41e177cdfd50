//! `frugal bench retrieve` and `frugal bench rag`: experiments on published systems.

use std::path::PathBuf;

use anyhow::Result;
use frugal::run::study::{
    self, Outcome as Found, STUDIES, StudyError, StudyEvent, StudyKind, StudyRequest,
};
use frugal_core::table::{Column, Table};
use serde_json::json;

use crate::args::Output;
use crate::outcome::Outcome;
use crate::ui::progress::Counter;
use crate::ui::{self, interrupt};

/// Which study, where, with which seeds.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Name of the study
    #[arg(long, value_name = "NAME", required_unless_present = "list")]
    pub(super) suite: Option<String>,
    /// List the studies
    #[arg(long)]
    pub(super) list: bool,
    /// Where the data sets are, each in a folder of its name
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub(super) data_dir: PathBuf,
    /// Folder of the results [default: runs/bench-SUITE]
    #[arg(long, short, value_name = "DIR")]
    pub(super) out: Option<PathBuf>,
    /// Seeds
    #[arg(long, value_name = "SEEDS", value_delimiter = ',', default_values_t = [0, 1, 2])]
    pub(super) seeds: Vec<u64>,
    /// The smallest size at which every arm runs; no claim is judged
    #[arg(long)]
    pub(super) smoke: bool,
    #[command(flatten)]
    pub(super) output: Output,
}

/// Runs a study, or lists those of a kind.
pub(super) fn run(kind: StudyKind, args: &Args) -> Result<Outcome> {
    let Some(name) = args.suite.as_ref().filter(|_| !args.list) else {
        return list(kind, args.output);
    };
    let study = study::find(kind, name)?;
    let stop = interrupt::flag("stopping after this step");
    let request = StudyRequest {
        data_dir: args.data_dir.clone(),
        out: args
            .out
            .clone()
            .unwrap_or_else(|| PathBuf::from(format!("runs/bench-{name}"))),
        seeds: args.seeds.clone(),
        smoke: args.smoke,
        stop: &stop,
    };
    let mut progress: Option<Counter> = None;
    let mut observe = |event| match event {
        StudyEvent::Planned { steps } => {
            progress = Some(Counter::new(args.output, study.name, steps, 0));
        }
        StudyEvent::Step { what } => {
            if !ui::stderr_is_terminal() {
                ui::note(args.output, &what);
            }
            if let Some(counter) = &mut progress {
                counter.step();
            }
        }
    };
    let found = match study::run(study, &request, &mut observe) {
        Err(StudyError::Stopped) => return Ok(Outcome::Interrupted),
        found => found?,
    };
    drop(progress);
    if args.output.json {
        ui::print_json(&found)?;
    } else {
        show(&found);
        ui::note(
            args.output,
            &format!("results in {}", request.out.display()),
        );
    }
    Ok(Outcome::Done)
}

fn show(found: &Found) {
    let (heads, rows) = found.table();
    let mut columns = heads.into_iter();
    let first = columns.next().map(Column::text);
    let mut table = Table::new(first.into_iter().chain(columns.map(Column::number)));
    for row in rows {
        table.row(row);
    }
    ui::table::print(&table);
    for claim in &found.claims {
        ui::print(&format!("{}: {}", claim.claim, claim.describe()));
    }
    for note in &found.notes {
        ui::print(note);
    }
}

fn list(kind: StudyKind, output: Output) -> Result<Outcome> {
    let found = STUDIES.iter().filter(|study| study.kind == kind);
    if output.json {
        let entry = |s: &&&study::Study| json!({ "name": s.name, "description": s.about, "source": s.source });
        ui::print_json(
            &found
                .collect::<Vec<_>>()
                .iter()
                .map(entry)
                .collect::<Vec<_>>(),
        )?;
    } else {
        for study in found {
            ui::print(&format!(
                "{}: {} ({})",
                study.name, study.about, study.source
            ));
        }
    }
    Ok(Outcome::Done)
}
