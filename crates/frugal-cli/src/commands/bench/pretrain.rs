//! `frugal bench pretrain`: a grid of pre-training runs, and the law of rate and batch that they
//! follow.

use anyhow::{Result, bail};
use frugal_core::fs::write_atomic;
use frugal_core::human;
use frugal_core::table::{Column, Table};
use frugal_eval::report::LawReport;
use frugal_eval::step_law::{STEP_LAW, Study, deviation_text, measured};
use frugal_eval::suite::Work;
use serde_json::json;

use super::jobs::{resolve, run_all};
use super::{Flags, Opened, end};
use crate::folder::RESULTS_FILE;
use crate::outcome::Outcome;
use crate::ui;

pub fn run(flags: &Flags, opened: &Opened) -> Result<Outcome> {
    let Opened { suite, title, out } = opened;
    let Some(grid) = &suite.grid else {
        bail!(
            "{title}: this suite has no `[grid]` of shapes, tokens, rates and batches; `frugal bench efficiency` compares listed runs"
        );
    };
    let jobs = resolve(suite, flags, out, &[Work::Pretrain])?;
    if flags.dry_run {
        return Ok(super::dry_run(&jobs));
    }
    let stopped = run_all(&jobs, out, flags.output, false)?;
    // Whatever part of the grid this call was for, the fit is of all that is there.
    let (runs, failures) = measured(&suite.jobs(&flags.data_dir), out);
    let study = Study::new(runs, grid.excess);
    let report = LawReport {
        title,
        subtitle: &suite.description,
        study: &study,
        failures: &failures,
    };
    write_atomic(&out.join("report.html"), report.to_html().as_bytes())?;
    write_atomic(&out.join("results.md"), report.to_markdown().as_bytes())?;
    let results =
        json!({ "description": suite.description, "published": STEP_LAW, "study": study });
    write_atomic(
        &out.join(RESULTS_FILE),
        (serde_json::to_string_pretty(&results)? + "\n").as_bytes(),
    )?;
    if flags.output.json {
        ui::print_json(
            &json!({ "suite": title, "study": study, "failures": failures, "out": out }),
        )?;
    } else {
        ui::table::print(&laws(&study));
        if !study.compared.is_empty() {
            ui::print("");
            ui::table::print(&compared(&study));
        }
        if let Some(warning) = study.edges.warning() {
            ui::warn(flags.output, &warning);
        }
        ui::print(&format!("\n{}", out.join("report.html").display()));
    }
    Ok(end(stopped, !failures.is_empty()))
}

fn laws(study: &Study) -> Table {
    let headings = [
        "rate by parameters",
        "±",
        "rate by tokens",
        "±",
        "batch by tokens",
        "±",
    ]
    .map(Column::number);
    let mut table = Table::new(std::iter::once(Column::text("law")).chain(headings));
    for (name, fit) in [
        ("runs near the best", study.fit),
        ("bottoms of bowls", study.bowls),
    ] {
        let Some(fit) = fit else { continue };
        let [_, a, b, _, c] = fit.deviations;
        let pairs = [
            (fit.law.rate_parameters, a),
            (fit.law.rate_tokens, b),
            (fit.law.batch_tokens, c),
        ];
        let cells = pairs
            .iter()
            .flat_map(|(value, deviation)| [format!("{value:.3}"), deviation_text(*deviation)]);
        table.row(std::iter::once(name.to_owned()).chain(cells));
    }
    let [a, b, c] = [
        STEP_LAW.rate_parameters,
        STEP_LAW.rate_tokens,
        STEP_LAW.batch_tokens,
    ]
    .map(|v| format!("{v:.3}"));
    table.row([
        "published".to_owned(),
        a,
        String::new(),
        b,
        String::new(),
        c,
    ]);
    table
}

fn compared(study: &Study) -> Table {
    let mut table = Table::new([
        Column::text("configuration"),
        Column::number("sizes"),
        Column::number("mean excess"),
        Column::number("worst"),
    ]);
    for row in &study.compared {
        let percent = |v: f64| format!("{:.2} %", 100.0 * v);
        table.row([
            row.name.clone(),
            human::count(row.excess.len() as u64),
            percent(row.mean),
            percent(row.worst),
        ]);
    }
    table
}
