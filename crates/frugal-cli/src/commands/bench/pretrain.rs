//! `frugal bench pretrain`: a grid of pre-training runs, and the law of rate and batch that they
//! follow.

use anyhow::Result;
use frugal::run::bench::{BenchRequest, Queue, pretrain_grid};
use frugal_core::human;
use frugal_core::table::{Column, Table};
use frugal_eval::step_law::{STEP_LAW, Study, deviation_text};
use serde_json::json;

use super::outcome::end;
use crate::args::Output;
use crate::outcome::Outcome;
use crate::ui;

/// Runs, fits and prints.
pub(super) fn run(
    request: &BenchRequest,
    queue: &mut Queue<'_>,
    output: Output,
) -> Result<Outcome> {
    let found = pretrain_grid(request, queue)?;
    let study = &found.study;
    if output.json {
        ui::print_json(&json!({
            "suite": request.title, "study": study, "failures": found.failures, "out": request.out,
        }))?;
    } else {
        ui::table::print(&laws(study));
        if !study.compared.is_empty() {
            ui::print("");
            ui::table::print(&compared(study));
        }
        if let Some(warning) = study.edges.warning() {
            ui::warn(output, &warning);
        }
        ui::print(&format!("\n{}", request.out.join("report.html").display()));
    }
    Ok(end(found.stopped, !found.failures.is_empty()))
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
