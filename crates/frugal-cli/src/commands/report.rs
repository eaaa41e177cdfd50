//! `frugal report`: any set of runs on one page.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use frugal_core::events::{LOG_FILE, read_jsonl};
use frugal_core::fs::write_atomic;
use frugal_core::human;
use frugal_core::table::{Column, Table};
use frugal_eval::efficiency::Efficiency;
use frugal_eval::report::{Comparison, RECORD_FILE, Run, RunRecord, TaskScores};
use serde_json::{Value, json};

use crate::Outcome;
use crate::args::Output;
use crate::folder::RESULTS_FILE;
use crate::ui;

const EXAMPLES: &str = "\
Examples:
  frugal report runs/*
  frugal report runs/bench-text-encoder --metric macro_f1 --out comparison.html

A folder is a run or what `frugal eval --tasks --out` wrote, or holds such folders. Runs whose names differ only in a final -seedN are averaged.";

/// Compare finished runs: quality against parameters, memory and time
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Run folders, or folders of runs
    #[arg(required = true, value_name = "DIR")]
    folders: Vec<PathBuf>,
    /// The metric that decides [default: accuracy, else perplexity, else loss]
    #[arg(long, value_name = "NAME")]
    metric: Option<String>,
    /// The page; replaced if it exists
    #[arg(long, short, value_name = "FILE", default_value = "comparison.html")]
    out: PathBuf,
    #[command(flatten)]
    output: Output,
}

/// Reads the runs and writes the page.
pub fn run(args: &Args) -> Result<Outcome> {
    let (mut runs, mut tasks) = (Vec::new(), Vec::new());
    let (mut collections, mut left_out) = (Vec::new(), Vec::new());
    for folder in &args.folders {
        if !folder.is_dir() {
            bail!("{}: no such folder", folder.display());
        }
        let (first_run, before) = (runs.len(), runs.len() + tasks.len());
        collect(folder, &mut runs)?;
        collect_tasks(folder, &mut tasks)?;
        if !folder.join(RECORD_FILE).is_file() {
            collections.push((folder, first_run..runs.len()));
        }
        if runs.len() + tasks.len() == before {
            let folder = folder.display();
            left_out.push(format!("{folder}: neither a run nor a folder of runs: no `{RECORD_FILE}` or `{RESULTS_FILE}` there"));
        }
    }
    match left_out.first() {
        Some(first) if runs.is_empty() && tasks.is_empty() => bail!("{first}"),
        _ => left_out
            .iter()
            .for_each(|why| ui::warn(args.output, &format!("{why}; left out"))),
    }
    tell_apart(&mut runs, &collections);
    let subtitle = match runs.len() {
        1 => "one run".to_owned(),
        n => format!("{n} runs"),
    };
    let subtitle = match (runs.len(), tasks.len()) {
        (_, 0) => subtitle,
        (0, n) => format!("{n} evaluated on tasks"),
        (_, n) => format!("{subtitle}, {n} evaluated on tasks"),
    };
    let scores: Vec<_> = tasks
        .iter()
        .map(|t: &TaskScores| json!({ "name": t.name, "results": t.results["results"] }))
        .collect();
    let comparison =
        Comparison::new("Comparison", subtitle, args.metric.as_deref(), runs).with_tasks(tasks);
    let known = comparison.metrics();
    if let Some(unknown) = args
        .metric
        .as_deref()
        .filter(|metric| !known.is_empty() && !known.contains(metric))
    {
        let known: Vec<&str> = known.into_iter().collect();
        bail!(
            "`--metric {unknown}`: no run has it; they have: {}",
            known.join(", ")
        );
    }
    write_atomic(&args.out, comparison.to_html()?.as_bytes())?;
    if args.output.json {
        ui::print_json(
            &json!({ "metric": comparison.metric, "runs": comparison.rows(), "tasks": scores, "report": args.out }),
        )?;
    } else {
        if !comparison.rows().is_empty() {
            ui::table::print(&table(&comparison));
        }
        ui::print(&format!("\n{}", args.out.display()));
    }
    Ok(Outcome::Done)
}

/// The evaluation in this folder, or those in the folders within it.
fn collect_tasks(folder: &Path, tasks: &mut Vec<TaskScores>) -> Result<()> {
    let mut folders = vec![folder.to_owned()];
    if !folder.join(RESULTS_FILE).is_file() {
        folders = std::fs::read_dir(folder)?
            .flatten()
            .map(|entry| entry.path())
            .collect();
        folders.sort();
    }
    for folder in folders {
        let file = folder.join(RESULTS_FILE);
        if file.is_file() {
            let results: Value = serde_json::from_slice(&frugal_core::fs::read(&file)?)
                .with_context(|| format!("{}: not JSON", file.display()))?;
            if results["results"].is_object() {
                let name = folder.file_name().map_or_else(
                    || folder.display().to_string(),
                    |n| n.to_string_lossy().into_owned(),
                );
                tasks.push(TaskScores { name, results });
            }
        }
    }
    Ok(())
}

/// Names runs after their folder as well where two folders of runs use one name: they are not seeds
/// of one run.
fn tell_apart(runs: &mut [Run], collections: &[(&PathBuf, Range<usize>)]) {
    let names: Vec<BTreeSet<String>> = collections
        .iter()
        .map(|(_, range)| runs[range.clone()].iter().map(|r| r.name.clone()).collect())
        .collect();
    let shared = |name: &str| names.iter().filter(|names| names.contains(name)).count() > 1;
    for (folder, range) in collections {
        let same_end = collections
            .iter()
            .filter(|(other, _)| other.file_name() == folder.file_name())
            .count()
            > 1;
        let folder = folder.file_name().filter(|_| !same_end).map_or_else(
            || folder.display().to_string(),
            |n| n.to_string_lossy().into_owned(),
        );
        for run in runs[range.clone()]
            .iter_mut()
            .filter(|run| shared(&run.name))
        {
            run.name = format!("{folder}/{}", run.name);
        }
    }
}

fn collect(folder: &Path, runs: &mut Vec<Run>) -> Result<()> {
    let file = folder.join(RECORD_FILE);
    if file.is_file() {
        let record = RunRecord::read(&file)?;
        let folder_name = folder
            .canonicalize()
            .ok()
            .and_then(|f| Some(f.file_name()?.to_string_lossy().into_owned()));
        let name = folder_name.unwrap_or_else(|| record.run_info.experiment_name.clone());
        runs.push(Run {
            name: without_seed(&name).to_owned(),
            record,
            log: read_jsonl(&folder.join(LOG_FILE)).unwrap_or_default(),
            efficiency: Efficiency::read(folder),
        });
        return Ok(());
    }
    let mut inner: Vec<PathBuf> = std::fs::read_dir(folder)?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.is_dir())
        .collect();
    inner.sort();
    for folder in inner {
        if folder.join(RECORD_FILE).is_file() {
            collect(&folder, runs)?;
        }
    }
    Ok(())
}

/// `lora` of `lora-seed3`.
fn without_seed(name: &str) -> &str {
    match name.rsplit_once("-seed") {
        Some((head, digits))
            if !digits.is_empty() && digits.chars().all(|c| c.is_ascii_digit()) =>
        {
            head
        }
        _ => name,
    }
}

/// The comparison for a terminal.
pub fn table(comparison: &Comparison) -> Table {
    let headings = [
        &comparison.metric,
        "±",
        "parameters",
        "file",
        "memory",
        "time",
        "tokens/s",
    ]
    .map(Column::number);
    let mut table = Table::new(std::iter::once(Column::text("run")).chain(headings));
    for row in comparison.rows() {
        let number = |value: Option<f64>| value.map_or_else(|| "-".into(), ui::run::number);
        table.row([
            row.name.clone(),
            number(row.quality.map(|q| q.mean)),
            number(row.quality.and_then(|q| q.deviation)),
            row.num_trainable_params
                .map_or_else(|| "-".into(), human::count),
            row.file_size.map_or_else(|| "-".into(), human::bytes),
            row.peak_memory
                .map_or_else(|| "-".into(), |b| human::bytes(b as u64)),
            row.train_time.map_or_else(|| "-".into(), human::duration),
            row.tokens_per_second
                .map_or_else(|| "-".into(), |s| human::count(s.round() as u64)),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use frugal_eval::report::Status;

    use super::*;

    #[test]
    fn a_failed_run_has_no_numbers() {
        let mut record = RunRecord::default();
        record.train_info.status = Status::Failed;
        let runs = vec![Run {
            name: "broken".into(),
            record,
            ..Run::default()
        }];
        let text = table(&Comparison::new("", "", None, runs)).render(None, false);
        let cells: Vec<&str> = text.lines().last().unwrap().split_whitespace().collect();
        assert_eq!(cells, ["broken", "-", "-", "-", "-", "-", "-", "-"]);
    }

    #[test]
    fn only_a_number_after_seed_is_a_seed() {
        assert_eq!(
            [
                "lora-seed3",
                "lora",
                "lora-seed",
                "a-seedling",
                "a-seed1-seed22"
            ]
            .map(without_seed),
            ["lora", "lora", "lora-seed", "a-seedling", "a-seed1"]
        );
    }
}
