//! `frugal report`: any set of runs on one page.

use std::collections::BTreeSet;
use std::io::Read as _;
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use frugal_core::events::{LOG_FILE, read_jsonl};
use frugal_core::fs::write_atomic;
use frugal_core::human;
use frugal_core::table::{Column, Table};
use frugal_eval::efficiency::Efficiency;
use frugal_eval::measurement::{self, Kind, MEASUREMENTS_FILE, Measurement};
use frugal_eval::report::{Comparison, Group, RECORD_FILE, Run, RunRecord, TaskScores};
use serde_json::{Value, json};

use crate::args::Output;
use crate::folder::RESULTS_FILE;
use crate::outcome::Outcome;
use crate::ui;

const EXAMPLES: &str = "\
Examples:
  frugal report runs/*
  frugal report runs/bench-text-encoder --metric macro_f1 --out comparison.html

A folder is a run, or what `--out` of `frugal eval`, `measure` and `select` wrote, or holds such folders; a \
file is a fit that `frugal measure runtime --save` wrote, or a measurements.json. Runs whose names differ only \
in a final -seedN are averaged. What was measured on different data is shown side by side and not ranked.";

/// Compare finished runs: quality against parameters, memory and time
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Folders of runs and measurements, folders of these, or files of measurements
    #[arg(required = true, value_name = "DIR")]
    folders: Vec<PathBuf>,
    /// The metric that decides [default: accuracy, else perplexity, else loss]
    #[arg(long, value_name = "NAME")]
    metric: Option<String>,
    /// The page; one that is there is replaced
    #[arg(long, short, value_name = "FILE", default_value = "comparison.html")]
    out: PathBuf,
    #[command(flatten)]
    output: Output,
}

/// Reads the runs and writes the page.
pub fn run(args: &Args) -> Result<Outcome> {
    check_out(&args.out)?;
    let mut read = Read::default();
    let (mut collections, mut left_out) = (Vec::new(), Vec::new());
    for path in &args.folders {
        let (first_run, before) = (read.runs.len(), read.count());
        if path.is_file() {
            read.measurements.extend(measurement::read(path)?);
        } else if path.is_dir() {
            collect(path, &mut read.runs)?;
            collect_results(path, &mut read)?;
            if !path.join(RECORD_FILE).is_file() {
                collections.push((path, first_run..read.runs.len()));
            }
        } else {
            bail!("{}: no such folder or file", path.display());
        }
        if read.count() == before {
            let folder = path.display();
            left_out.push(format!("{folder}: neither a run nor a folder of runs: no `{RECORD_FILE}`, `{RESULTS_FILE}` or `{MEASUREMENTS_FILE}` there"));
        }
    }
    match left_out.first() {
        Some(first) if read.count() == 0 => bail!("{first}"),
        _ => left_out
            .iter()
            .for_each(|why| ui::warn(args.output, &format!("{why}; left out"))),
    }
    let Read {
        mut runs,
        tasks,
        measurements,
    } = read;
    tell_apart(&mut runs, &collections);
    let subtitle = subtitle(runs.len(), tasks.len(), measurements.len());
    let scores: Vec<_> = tasks
        .iter()
        .map(|t: &TaskScores| json!({ "name": t.name, "results": t.results["results"] }))
        .collect();
    let comparison = Comparison::new("Comparison", subtitle, args.metric.as_deref(), runs)
        .with_tasks(tasks)
        .with_measurements(measurements.clone());
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
        ui::print_json(&json!({
            "metric": comparison.metric, "runs": comparison.rows(), "ranked_apart": comparison.ranked_apart(),
            "tasks": scores, "measurements": measurements, "report": args.out,
        }))?;
    } else {
        print(&comparison, args.output);
        if !measurements.is_empty() {
            ui::table::print(&measured(&measurements));
        }
        ui::print(&format!("\n{}", args.out.display()));
    }
    Ok(Outcome::Done)
}

/// Refuses to replace a file that is no page: a page is made anew as often as one likes.
fn check_out(out: &Path) -> Result<()> {
    const PAGE: &[u8] = b"<!doctype html>";
    let Ok(about) = std::fs::metadata(out) else {
        return Ok(());
    };
    let mut start = Vec::new();
    if about.is_file() {
        std::fs::File::open(out)?
            .take(PAGE.len() as u64)
            .read_to_end(&mut start)?;
    }
    let is_empty = about.is_file() && about.len() == 0;
    if !start.eq_ignore_ascii_case(PAGE) && !is_empty {
        bail!(
            "{}: exists already and is no page; choose another `--out`",
            out.display()
        );
    }
    Ok(())
}

/// What was found.
#[derive(Default)]
struct Read {
    runs: Vec<Run>,
    tasks: Vec<TaskScores>,
    measurements: Vec<Measurement>,
}

impl Read {
    fn count(&self) -> usize {
        self.runs.len() + self.tasks.len() + self.measurements.len()
    }
}

fn subtitle(runs: usize, tasks: usize, measurements: usize) -> String {
    let counted = |n: usize, one: &str, many: &str| match n {
        0 => None,
        1 => Some(one.to_owned()),
        n => Some(format!("{n} {many}")),
    };
    let parts = [
        counted(runs, "one run", "runs"),
        counted(tasks, "1 evaluated on tasks", "evaluated on tasks"),
        counted(measurements, "one measurement", "measurements"),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

/// The results in this folder, or those in the folders within it.
fn collect_results(folder: &Path, read: &mut Read) -> Result<()> {
    let holds = |folder: &Path| {
        [RESULTS_FILE, MEASUREMENTS_FILE]
            .iter()
            .any(|name| folder.join(name).is_file())
    };
    let mut folders = vec![folder.to_owned()];
    if !holds(folder) {
        folders = std::fs::read_dir(folder)?
            .flatten()
            .map(|entry| entry.path())
            .collect();
        folders.sort();
    }
    for folder in folders {
        let mut measurements = Vec::new();
        let file = folder.join(MEASUREMENTS_FILE);
        if file.is_file() {
            measurements = measurement::read(&file)?;
        }
        let file = folder.join(RESULTS_FILE);
        if file.is_file() {
            let results: Value = serde_json::from_slice(&frugal_core::fs::read(&file)?)
                .with_context(|| format!("{}: not JSON", file.display()))?;
            if results["results"].is_object() {
                let name = folder.file_name().map_or_else(
                    || folder.display().to_string(),
                    |n| n.to_string_lossy().into_owned(),
                );
                let of_tasks = measurements.iter().position(|m| m.kind == Kind::Tasks);
                read.tasks.push(TaskScores {
                    name,
                    results,
                    measurement: of_tasks.map(|i| measurements.remove(i)),
                });
            }
        }
        read.measurements.extend(measurements);
    }
    Ok(())
}

/// Tables of the runs, one for each data that they were measured on.
pub fn print(comparison: &Comparison, output: Output) {
    let groups = comparison.groups();
    for (i, group) in groups.iter().enumerate() {
        if groups.len() > 1 {
            let gap = if i == 0 { "" } else { "\n" };
            ui::print(&format!("{gap}on {}", group.data));
        }
        ui::table::print(&table(comparison, group));
    }
    if let Some(why) = comparison.ranked_apart() {
        ui::warn(output, &why);
    }
}

/// Measurements for a terminal, those of one kind and data together.
fn measured(measurements: &[Measurement]) -> Table {
    let mut all: Vec<&Measurement> = measurements.iter().collect();
    all.sort_by_cached_key(|m| m.basis());
    let words = ["measured", "model", "on", "what"].map(Column::text);
    let mut table = Table::new(words.into_iter().chain([Column::number("value")]));
    for m in all {
        for (i, (name, value)) in m.values.iter().enumerate() {
            let head = if i == 0 {
                [m.kind.title().to_owned(), m.name(), m.basis_label()]
            } else {
                Default::default()
            };
            let cells = [name.replace('_', " "), ui::run::number(*value)];
            table.row(head.into_iter().chain(cells));
        }
    }
    table
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

/// Runs on one data for a terminal, and below them what any of them has to beat.
fn table(comparison: &Comparison, group: &Group<'_>) -> Table {
    let models: BTreeSet<&str> = comparison.rows().iter().map(|r| r.model.as_str()).collect();
    let model = (models.len() > 1).then_some("model");
    // Runs of which none has the deciding metric are told by the one that they have.
    let own = group.rows.iter().all(|row| row.quality.is_none());
    let other = group.rows.iter().filter_map(|row| row.otherwise).next();
    let other = other.filter(|_| own).map(|(metric, _)| metric);
    let headings = [
        other.unwrap_or(&comparison.metric),
        "±",
        "parameters",
        "file",
        "memory",
        "time",
        "tokens/s",
    ]
    .map(Column::number);
    let words = ["run"].into_iter().chain(model).map(Column::text);
    let mut table = Table::new(words.chain(headings));
    for row in &group.rows {
        let number = |value: Option<f64>| value.map_or_else(|| "-".into(), ui::run::number);
        let quality = match other {
            Some(metric) => row.otherwise.filter(|o| o.0 == metric).map(|o| o.1),
            None => row.quality,
        };
        let mut cells = vec![row.name.clone()];
        cells.extend(model.map(|_| row.model.clone()));
        cells.extend([
            number(quality.map(|q| q.mean)),
            number(quality.and_then(|q| q.deviation)),
            row.num_trainable_params
                .map_or_else(|| "-".into(), human::count),
            row.file_size.map_or_else(|| "-".into(), human::bytes),
            row.peak_memory
                .map_or_else(|| "-".into(), |b| human::bytes(b as u64)),
            row.train_time.map_or_else(|| "-".into(), human::duration),
            row.tokens_per_second
                .map_or_else(|| "-".into(), |s| human::count(s.round() as u64)),
        ]);
        table.row(cells);
    }
    for (name, value) in &group.references {
        let mut cells = vec![format!("({name})")];
        cells.extend(model.map(|_| String::new()));
        cells.push(ui::run::number(*value));
        table.row(cells);
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
        let comparison = Comparison::new("", "", None, runs);
        let text = table(&comparison, &comparison.groups()[0]).render(None, false);
        let cells: Vec<&str> = text.lines().last().unwrap().split_whitespace().collect();
        assert_eq!(cells, ["broken", "-", "-", "-", "-", "-", "-", "-"]);
    }

    #[test]
    fn only_pages_are_replaced_by_a_page() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for (name, text) in [("page.html", "<!DOCTYPE html>\n<p>"), ("empty", "")] {
            std::fs::write(at(name), text).unwrap();
            check_out(&at(name)).unwrap();
        }
        check_out(&at("new.html")).unwrap();
        std::fs::write(at("adapter_model.safetensors"), "weights").unwrap();
        for name in ["adapter_model.safetensors", ""] {
            let said = check_out(&at(name)).unwrap_err().to_string();
            assert!(said.contains("is no page"), "{said}");
        }
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
