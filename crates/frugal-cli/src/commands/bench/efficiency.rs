//! `frugal bench efficiency`: groups of runs by the six measures of what they cost.

use anyhow::Result;
use frugal::run::bench::{BenchRequest, Queue, efficiency};
use frugal_core::human;
use frugal_core::table::{Column, Table};
use frugal_eval::report::SystemGroup;
use serde_json::json;

use super::outcome::end;
use crate::args::Output;
use crate::outcome::Outcome;
use crate::ui;

/// Runs, compares and prints.
pub(super) fn run(
    request: &BenchRequest,
    queue: &mut Queue<'_>,
    output: Output,
) -> Result<Outcome> {
    let found = efficiency(request, queue)?;
    if output.json {
        ui::print_json(
            &json!({ "suite": request.title, "groups": found.to_json(), "out": request.out }),
        )?;
    } else {
        for group in &found.groups {
            ui::print(&group.name);
            ui::table::print(&table(group));
            ui::print("");
        }
        ui::print(&request.out.join("report.html").display().to_string());
    }
    Ok(end(found.stopped, found.has_failures()))
}

fn table(group: &SystemGroup) -> Table {
    // Numbers break where there is no room for them: short headings leave them some.
    let power = if group.systems.iter().any(|s| s.power_is_modelled) {
        "modelled power"
    } else {
        "power"
    };
    let headings = [
        "perplexity",
        "memory",
        "busy",
        "latency",
        "throughput",
        power,
        "size gain",
        "cache",
    ]
    .map(Column::number);
    let mut table = Table::new(std::iter::once(Column::text("run")).chain(headings));
    for s in &group.systems {
        let shown = |value: Option<f64>, text: &dyn Fn(f64) -> String| {
            value.map_or_else(|| "-".to_owned(), text)
        };
        let bytes = |v: f64| human::bytes(v as u64);
        table.row([
            s.name.clone(),
            shown(s.perplexity, &ui::run::number),
            shown(s.average_memory, &bytes),
            shown(s.utilisation, &|v| format!("{:.0} %", 100.0 * v)),
            shown(s.latency, &|v| {
                format!("{} ms", human::significant(1000.0 * v, 3))
            }),
            shown(s.throughput, &|v| human::significant(v, 3)),
            shown(s.power, &|v| format!("{v:.1} W")),
            shown(s.compression, &|v| human::significant(v, 4)),
            shown(s.cache_bytes_per_token, &bytes),
        ]);
    }
    table
}
