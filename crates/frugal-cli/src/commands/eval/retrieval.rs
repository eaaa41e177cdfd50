//! `frugal eval --task retrieval`: how good rankings are.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use frugal::index::read_queries;
use frugal::model::Quantize;
use frugal::retrieve::{Collection, document_of};
use frugal_core::table::{Column, Table};
use frugal_eval::retrieval::{Evaluation, Measure, Options, Qrels, Run, compare, evaluate};
use serde_json::{Value, json};

use crate::args::{Machine, Output};
use crate::commands::search::{SearchFlags, find};
use crate::outcome::Outcome;
use crate::ui::progress::{Counter, Phase};
use crate::ui::text::{fixed, signed};
use crate::ui::{self, interrupt, table};

/// Measures that are shown where none are named.
const MEASURES: [&str; 6] = [
    "ndcg@10",
    "map",
    "mrr@10",
    "recall@10",
    "recall@100",
    "P@10",
];
/// The part of a BEIR folder that is measured where none is named.
const SPLIT: &str = "test";
/// Rounds of the paired randomisation test.
const ROUNDS: usize = 10_000;

/// Flags of retrieval.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Retrieval")]
pub struct Flags {
    /// Another kind of measuring: retrieval, of an index or of TREC runs
    #[arg(long, value_name = "NAME", value_parser = ["retrieval"])]
    pub task: Option<String>,
    /// Index whose answers to the queries of --data are measured
    #[arg(long, value_name = "DIR", requires = "task")]
    index: Option<PathBuf>,
    /// TREC run; repeatable: each further one is compared with the first, query by query
    #[arg(long = "run", value_name = "FILE", requires = "task")]
    pub runs: Vec<PathBuf>,
    /// Relevance judgements, TREC's or BEIR's [default: qrels/SPLIT.tsv of --data]
    #[arg(long, value_name = "FILE", requires = "task")]
    qrels: Option<PathBuf>,
    /// Queries, where they are not in the folder of --data
    #[arg(long, value_name = "FILE", requires = "task")]
    queries: Option<PathBuf>,
    /// Which judgements of a BEIR folder
    #[arg(
        long,
        value_name = "NAME",
        default_value = SPLIT,
        requires = "task",
        conflicts_with = "qrels"
    )]
    split: String,
    /// Measure, for example ndcg@10, map, mrr, recall@100, P@5, success@1, Rprec; repeatable
    /// [default: ndcg@10 map mrr@10 recall@10 recall@100 P@10]
    #[arg(long = "measure", value_name = "NAME", requires = "task")]
    measures: Vec<String>,
    /// Grade from which a document counts as relevant, except for ndcg (trec_eval -l)
    #[arg(long, value_name = "N", default_value_t = 1, requires = "task")]
    level: u32,
    /// Leave out documents that nobody judged (trec_eval -J)
    #[arg(long, requires = "task")]
    judged_only: bool,
    /// Average over the queries of the run only; otherwise one without an answer counts as 0
    /// (trec_eval -c)
    #[arg(long, requires = "task")]
    answered_only: bool,
    /// Documents of a ranking
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..), requires = "task")]
    depth: u32,
    /// Show the values of each query too
    #[arg(long, requires = "task")]
    per_query: bool,
    /// Write the ranking of --index as a TREC run
    #[arg(long, value_name = "FILE", requires = "index")]
    write_run: Option<PathBuf>,
    #[command(flatten)]
    search: SearchFlags,
}

/// Measures and prints.
pub fn run(
    flags: &Flags,
    data: Option<&Path>,
    machine: &Machine,
    output: Output,
) -> Result<Outcome> {
    let measures = flags.measures()?;
    if flags.index.is_none() && flags.runs.is_empty() {
        bail!(
            "--task retrieval: give an index (`--index DIR --data FOLDER`) or runs (`--run FILE --qrels FILE`)"
        );
    }
    if let Some(file) = flags.write_run.as_ref().filter(|file| file.exists()) {
        bail!(
            "{}: exists already; choose another file for `--write-run`",
            file.display()
        );
    }
    let qrels = Qrels::read(&flags.judgements(data)?)?;
    let options = Options {
        all_queries: !flags.answered_only,
        level: flags.level,
        judged_only: flags.judged_only,
        depth: Some(flags.depth as usize),
        ignore_identical_ids: flags.index.is_some(),
    };
    let mut runs = Vec::new();
    let mut seconds = None;
    if let Some(index) = &flags.index {
        let begin = Instant::now();
        let Some(found) = flags.answer(index, data, &qrels, machine, output)? else {
            return Ok(Outcome::Interrupted);
        };
        seconds = Some(begin.elapsed().as_secs_f64());
        if let Some(file) = &flags.write_run {
            found.write(file)?;
        }
        runs.push(found);
    }
    for file in &flags.runs {
        let mut found = Run::read(file)?;
        found.name = file.display().to_string();
        runs.push(found);
    }
    let evaluations = runs
        .iter()
        .map(|run| evaluate(&qrels, run, &measures, &options))
        .collect::<Result<Vec<_>, _>>()?;
    show(flags, &measures, &evaluations, seconds, output)
}

impl Flags {
    /// Refuses flags that have no part in what is measured: of those of models none has one.
    pub fn check(&self, of_models: &[&str], has_data: bool, machine: &Machine) -> Result<()> {
        let search = self.search.given();
        if self.task.is_none() {
            return match search.first() {
                Some(flag) => {
                    bail!("`{flag}` goes with `--task retrieval --index DIR`: leave it out")
                }
                None => Ok(()),
            };
        }
        if let Some(flag) = of_models.first() {
            bail!("`{flag}` has no part in `--task retrieval`: leave it out");
        }
        let judged = self.qrels.is_some();
        if self.index.is_none() {
            let more = [
                ("--queries", self.queries.is_some()),
                ("--device", machine.device.is_some()),
                ("--offline", machine.offline),
                ("--data", has_data && judged),
            ];
            let more = more
                .iter()
                .filter(|(_, given)| *given)
                .map(|(flag, _)| flag);
            if let Some(flag) = search.iter().chain(more).next() {
                bail!(
                    "`{flag}` has no part in measuring runs (`--run`), which are rankings already: leave it out, or measure an index (`--index`)"
                );
            }
            return Ok(());
        }
        if has_data && self.queries.is_some() && judged {
            bail!(
                "`--data` has no part where `--queries` and `--qrels` name both files: leave it out"
            );
        }
        self.search.check_mode()
    }

    fn measures(&self) -> Result<Vec<Measure>> {
        let named: Vec<&str> = match self.measures.is_empty() {
            true => MEASURES.to_vec(),
            false => self.measures.iter().map(String::as_str).collect(),
        };
        named
            .into_iter()
            .map(|name| Ok(name.parse::<Measure>()?))
            .collect()
    }

    fn judgements(&self, data: Option<&Path>) -> Result<PathBuf> {
        if let Some(file) = &self.qrels {
            return Ok(file.clone());
        }
        let folder = data.filter(|path| path.is_dir());
        let folder = folder.context(
            "--task retrieval: give the judgements with `--qrels FILE`, or a BEIR folder with `--data`",
        )?;
        let name = format!("{}.tsv", self.split);
        let usual = folder.join("qrels").join(&name);
        let beside = folder.join(format!("qrels-{name}"));
        if usual.is_file() {
            Ok(usual)
        } else if beside.is_file() {
            Ok(beside)
        } else {
            bail!(
                "{}: no such file; name the judgements with `--qrels` or the part with `--split`",
                usual.display()
            );
        }
    }

    /// The ranking of the index for every query with judgements; `None` if interrupted.
    fn answer(
        &self,
        folder: &Path,
        data: Option<&Path>,
        qrels: &Qrels,
        machine: &Machine,
        output: Output,
    ) -> Result<Option<Run>> {
        let queries = self.queries.as_deref().or(data);
        let queries = queries
            .context("--index: give the queries with `--data FOLDER` or `--queries FILE`")?;
        let mut queries = read_queries(queries)?;
        queries.retain(|(id, _)| qrels.get(id).is_some());
        if queries.is_empty() {
            bail!("none of the queries has judgements: are the identifiers the same?");
        }
        let depth = self.depth as usize;
        let options = self.search.options(depth)?;
        let lookup = machine.lookup();
        let phase = Phase::new(output, "opening the index");
        let collection = Collection::open(
            folder,
            options.mode,
            Quantize::None,
            &lookup,
            &machine.device()?,
        )?;
        let reranker = self.search.reranker(depth, machine, output)?;
        drop(phase);
        let stop = interrupt::flag("");
        let mut counter = Counter::new(output, "queries", queries.len() as u64, 0);
        let mut run = Run::new("frugal");
        for (id, text) in &queries {
            if interrupt::asked(&stop) {
                return Ok(None);
            }
            run.insert_empty(id);
            let mut seen = std::collections::HashSet::new();
            for answer in find(&collection, reranker.as_deref(), text, depth, &options)? {
                // Of the pieces of a document the best one counts.
                let document = document_of(&answer.document).to_owned();
                if seen.insert(document.clone()) {
                    run.insert(id, &document, answer.score)?;
                }
            }
            counter.step();
        }
        Ok(Some(run))
    }
}

/// Queries of the runs that are left out because nobody judged them.
fn unjudged(evaluations: &[Evaluation]) -> String {
    let of = |e: &Evaluation| match e.without_judgements.len() {
        0 => None,
        1 => Some(format!("; 1 query of {} has no judgements", e.name)),
        n => Some(format!("; {n} queries of {} have no judgements", e.name)),
    };
    evaluations.iter().filter_map(of).collect()
}

fn show(
    flags: &Flags,
    measures: &[Measure],
    evaluations: &[Evaluation],
    seconds: Option<f64>,
    output: Output,
) -> Result<Outcome> {
    let (first, rest) = evaluations.split_first().context("no run")?;
    let rest: Vec<&Evaluation> = rest.iter().collect();
    let comparisons = match (rest.is_empty(), measures.first()) {
        (false, Some(measure)) => compare(first, &rest, *measure, ROUNDS, 0)?,
        _ => Vec::new(),
    };
    if output.json {
        let of = |e: &Evaluation| -> Value {
            let means: serde_json::Map<String, Value> = measures
                .iter()
                .zip(&e.means)
                .map(|(measure, mean)| (measure.to_string(), json!(mean)))
                .collect();
            let queries: Vec<Value> = e
                .queries
                .iter()
                .map(|q| json!({ "id": q.id, "answered": q.in_run, "values": q.values }))
                .collect();
            let mut value = json!({
                "name": e.name,
                "queries": e.queries.len(),
                "unanswered": e.missing.len(),
                "without_judgements": e.without_judgements.len(),
                "means": means,
            });
            if flags.per_query {
                value["per_query"] = json!(queries);
            }
            value
        };
        let compared: Vec<Value> = comparisons
            .iter()
            .map(|c| {
                json!({
                    "name": c.name,
                    "measure": measures[0].to_string(),
                    "difference": c.test.difference,
                    "p_value": c.test.p_value,
                    "p_value_holm": c.corrected_p,
                    "wins": c.test.wins,
                    "losses": c.test.losses,
                    "ties": c.test.ties,
                })
            })
            .collect();
        let value = json!({
            "runs": evaluations.iter().map(of).collect::<Vec<_>>(),
            "comparisons": compared,
            "seconds": seconds,
        });
        ui::print(&value.to_string());
        return Ok(Outcome::Done);
    }
    let mut columns = vec![Column::text("run")];
    columns.extend(measures.iter().map(|m| Column::number(m.to_string())));
    let mut rows = Table::new(columns);
    for evaluation in evaluations {
        let mut row = vec![evaluation.name.clone()];
        row.extend(evaluation.means.iter().map(|mean| fixed(*mean, 4)));
        rows.row(row);
    }
    if flags.per_query {
        for query in &first.queries {
            let mut row = vec![query.id.clone()];
            row.extend(query.values.iter().map(|value| fixed(*value, 4)));
            rows.row(row);
        }
    }
    table::print(&rows);
    ui::print(&format!(
        "{} queries{}{}{}",
        first.queries.len(),
        match (first.missing.len(), flags.answered_only) {
            (0, _) => String::new(),
            (n, false) => format!(", {n} of them without an answer, which count as 0"),
            (n, true) => format!("; {n} without an answer are left out"),
        },
        unjudged(evaluations),
        seconds.map_or_else(String::new, |s| format!(
            " · {:.1} queries/s",
            first.queries.len() as f64 / s.max(1e-9)
        ))
    ));
    for c in &comparisons {
        ui::print(&format!(
            "{}: {} {} against {} (p = {:.4}, Holm {:.4}; better on {}, worse on {}, equal on {})",
            c.name,
            signed(c.test.difference, 4),
            measures[0],
            first.name,
            c.test.p_value,
            c.corrected_p,
            c.test.wins,
            c.test.losses,
            c.test.ties
        ));
    }
    Ok(Outcome::Done)
}
