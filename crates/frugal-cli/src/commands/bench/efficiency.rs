//! `frugal bench efficiency`: groups of runs by the six measures of what they cost.

use anyhow::{Result, bail};
use frugal_core::fs::write_atomic;
use frugal_core::human;
use frugal_core::table::{Column, Table};
use frugal_eval::efficiency::{System, scaled};
use frugal_eval::report::{EfficiencyReport, SystemGroup};
use frugal_eval::suite::{Group, Job, Suite, Work};
use serde_json::{Value, json};

use super::jobs::{resolve, run_all};
use super::{Flags, Opened, end};
use crate::folder::RESULTS_FILE;
use crate::outcome::Outcome;
use crate::ui;

pub fn run(flags: &Flags, opened: &Opened) -> Result<Outcome> {
    let Opened { suite, title, out } = opened;
    let all = suite.jobs(&flags.data_dir);
    let groups = groups(suite, &all)?;
    let jobs = resolve(suite, flags, out, &Work::ALL)?;
    if flags.dry_run {
        return Ok(super::dry_run(&jobs));
    }
    let stopped = run_all(&jobs, out, flags.output, true)?;
    // Whatever part of the suite this call was for, the comparison is of all that is there.
    let read = |(group, work): (Group, Work)| {
        let system = |name: &String| {
            let folders: Vec<_> = all
                .iter()
                .filter(|job| job.name == *name)
                .map(|job| out.join(job.folder()))
                .collect();
            System::read(name, work, folders.iter().map(|f| f.as_path()))
        };
        let mut systems: Vec<System> = group
            .runs
            .iter()
            .map(system)
            .filter(|s| s.runs > 0 || !s.errors.is_empty())
            .collect();
        let baseline = group.baseline.unwrap_or_else(|| group.runs[0].clone());
        System::compare(&mut systems, &baseline);
        SystemGroup {
            name: group.name,
            work,
            baseline,
            systems,
        }
    };
    let groups: Vec<SystemGroup> = groups.into_iter().map(read).collect();
    let report = EfficiencyReport {
        title,
        subtitle: &suite.description,
        groups: &groups,
    };
    write_atomic(&out.join("report.html"), report.to_html().as_bytes())?;
    write_atomic(&out.join("results.md"), report.to_markdown().as_bytes())?;
    let entry = |g: &SystemGroup| json!({ "name": g.name, "command": g.work.name(), "baseline": g.baseline, "systems": g.systems, "scaled": scaled(&g.systems) });
    let results: Vec<Value> = groups.iter().map(entry).collect();
    let text = serde_json::to_string_pretty(
        &json!({ "description": suite.description, "groups": results }),
    )? + "\n";
    write_atomic(&out.join(RESULTS_FILE), text.as_bytes())?;
    if flags.output.json {
        ui::print_json(&json!({ "suite": title, "groups": results, "out": out }))?;
    } else {
        for group in &groups {
            ui::print(&group.name);
            ui::table::print(&table(group));
            ui::print("");
        }
        ui::print(&out.join("report.html").display().to_string());
    }
    Ok(end(
        stopped,
        groups
            .iter()
            .flat_map(|g| &g.systems)
            .any(|s| !s.errors.is_empty()),
    ))
}

/// The suite's groups with what their runs do: the measures of different commands have different
/// units.
fn groups(suite: &Suite, jobs: &[Job]) -> Result<Vec<(Group, Work)>> {
    let mut groups = suite.groups.clone();
    if groups.is_empty() {
        let mut runs: Vec<String> = Vec::new();
        jobs.iter().for_each(|job| {
            if !runs.contains(&job.name) {
                runs.push(job.name.clone())
            }
        });
        groups.push(Group {
            name: "Runs".into(),
            runs,
            baseline: None,
        });
    }
    let with_work = |group: Group| {
        let mut works: Vec<Work> = jobs
            .iter()
            .filter(|job| group.runs.contains(&job.name))
            .map(|job| job.work)
            .collect();
        works.sort();
        works.dedup();
        match works[..] {
            [work] => Ok((group, work)),
            _ => bail!(
                "group `{}`: its runs are of several commands, whose measures cannot be compared: give each a group",
                group.name
            ),
        }
    };
    groups.into_iter().map(with_work).collect()
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
