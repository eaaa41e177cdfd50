//! `frugal mine`: hard negatives.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::ValueEnum;
use frugal::model::Quantize;
use frugal::retrieve::mine::MineOptions;
use frugal::retrieve::{Collection, SearchMode};
use frugal::run::{Mined, RunError, mine, read_mine_queries};
use frugal_core::fs::write_atomic;
use frugal_core::human;
use serde_json::{Map, Value, json};

use super::search::Mode;
use crate::args::{Machine, Output};
use crate::loaded;
use crate::outcome::Outcome;
use crate::ui::progress::{Counter, Phase};
use crate::ui::{self, interrupt};

const EXAMPLES: &str = "\
Examples:
  frugal mine --index idx --data queries.jsonl --out triplets.jsonl
  frugal mine --index idx --data queries.jsonl --range-min 10 --range-max 50 --relative-margin 0.05 --out triplets.jsonl
  frugal mine --index idx --data scifact/ --split train --filter-model ./ms-marco-MiniLM-L6 --number 5 --format n-tuple --out tuples.jsonl

A record of the data has a query (`query`, `anchor`, `question` or `text`) and its answers: `positive` \
(a text or several) or `positive_ids` (documents of the index). A BEIR folder, or queries with \
identifiers and --qrels, do as well.

Answers are taken out first, then candidates that margins or scores exclude; ranks are counted in what \
is left, as mine_hard_negatives of sentence-transformers does. The columns are those of its trainers: \
anchor, positive, negative, or negative_1 to negative_N.";

/// Relative margin of a filter where nothing else excludes: 95 % of the positive's score.
const USUAL_MARGIN: f64 = 0.05;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Triplet,
    NTuple,
}

/// Mine hard negatives: passages that look like an answer and are none
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES, allow_negative_numbers = true)]
pub struct Args {
    /// Folder of the index (see `frugal index`)
    #[arg(long, short, value_name = "DIR", help_heading = "Data")]
    index: PathBuf,
    /// Queries with their answers: a file, or a BEIR folder
    #[arg(long, short, value_name = "PATH", help_heading = "Data")]
    data: PathBuf,
    /// Relevance judgements, TREC's or BEIR's [default: qrels/SPLIT.tsv of a BEIR folder]
    #[arg(long, value_name = "FILE", help_heading = "Data")]
    qrels: Option<PathBuf>,
    /// Which judgements of a BEIR folder
    #[arg(
        long,
        value_name = "NAME",
        default_value = "train",
        help_heading = "Data"
    )]
    split: String,
    /// File of the negatives (JSONL)
    #[arg(long, short, value_name = "FILE", help_heading = "Output")]
    out: PathBuf,
    /// triplet (a line for each negative) or n-tuple (a line for each pair, which needs all of them)
    #[arg(
        long,
        value_name = "NAME",
        default_value = "triplet",
        hide_possible_values = true,
        help_heading = "Output"
    )]
    format: Format,
    /// Also write `scores`: of the answer, then of the negatives
    #[arg(long, help_heading = "Output")]
    scores: bool,
    /// bm25 (words), dense (vectors) or hybrid (both) [default: dense, or bm25 without vectors]
    #[arg(
        long,
        value_name = "NAME",
        hide_possible_values = true,
        help_heading = "Choice"
    )]
    mode: Option<Mode>,
    /// Negatives of a query
    #[arg(
        long,
        short,
        value_name = "N",
        default_value_t = 3,
        help_heading = "Choice"
    )]
    number: usize,
    /// Best candidates that are passed over, since some of them may be answers
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Choice")]
    range_min: usize,
    /// Last rank that is considered [default: enough for --number, ten times as many where scores
    /// exclude some]
    #[arg(long, value_name = "N", help_heading = "Choice")]
    range_max: Option<usize>,
    /// Highest score of a negative
    #[arg(long, value_name = "X", help_heading = "Choice")]
    max_score: Option<f64>,
    /// Lowest score of a negative
    #[arg(long, value_name = "X", help_heading = "Choice")]
    min_score: Option<f64>,
    /// How far below the answer's score a negative's has to be
    #[arg(long, value_name = "X", help_heading = "Choice")]
    absolute_margin: Option<f64>,
    /// The same as a share of the answer's score
    #[arg(long, value_name = "X", help_heading = "Choice")]
    relative_margin: Option<f64>,
    /// Score candidates and answers by this cross-encoder, to leave out those that may be answers
    /// [without margin or score: those within 5 % of the answer's score]
    #[arg(long, value_name = "MODEL", help_heading = "Choice")]
    filter_model: Option<String>,
    /// Draw among the candidates instead of taking the best
    #[arg(long, help_heading = "Choice")]
    random: bool,
    /// Decides what is drawn
    #[arg(
        long,
        value_name = "N",
        default_value_t = 0,
        requires = "random",
        help_heading = "Choice"
    )]
    seed: u64,
    #[command(flatten)]
    machine: Machine,
    #[command(flatten)]
    output: Output,
}

impl Args {
    fn options(&self) -> MineOptions {
        let mut options = MineOptions {
            number: self.number,
            range_min: self.range_min,
            range_max: self.range_max,
            max_score: self.max_score,
            min_score: self.min_score,
            absolute_margin: self.absolute_margin,
            relative_margin: self.relative_margin,
            random: self.random.then_some(self.seed),
        };
        if self.filter_model.is_some() && !options.has_thresholds() {
            options.relative_margin = Some(USUAL_MARGIN);
        }
        options
    }

    /// The lines of one pair.
    fn lines(&self, mined: &Mined<'_>, text: &mut String) -> usize {
        let mut pair = Map::new();
        pair.insert("anchor".into(), json!(mined.query));
        pair.insert("positive".into(), json!(mined.positive));
        let with_scores = |line: &mut Map<String, Value>, negatives: &[(String, f64)]| {
            if self.scores {
                let of = negatives.iter().map(|(_, score)| Some(*score));
                let all: Vec<Option<f64>> =
                    std::iter::once(mined.positive_score).chain(of).collect();
                line.insert("scores".into(), json!(all));
            }
        };
        let mut push = |line: Map<String, Value>| {
            text.push_str(&Value::Object(line).to_string());
            text.push('\n');
        };
        match self.format {
            Format::Triplet => {
                for negative in mined.negatives {
                    let mut line = pair.clone();
                    line.insert("negative".into(), json!(negative.0));
                    with_scores(&mut line, std::slice::from_ref(negative));
                    push(line);
                }
                mined.negatives.len()
            }
            Format::NTuple if mined.negatives.len() < self.number => 0,
            Format::NTuple => {
                for (i, (negative, _)) in mined.negatives.iter().enumerate() {
                    pair.insert(format!("negative_{}", i + 1), json!(negative));
                }
                with_scores(&mut pair, mined.negatives);
                push(pair);
                1
            }
        }
    }
}

/// Searches, chooses, writes.
pub fn run(args: &Args) -> Result<Outcome> {
    if args.out.exists() {
        bail!(
            "{}: exists already; choose another `--out`",
            args.out.display()
        );
    }
    let queries = read_mine_queries(&args.data, args.qrels.as_deref(), &args.split)?;
    let options = args.options();
    let phase = Phase::new(args.output, "opening the index");
    let collection = Collection::open(
        &args.index,
        args.mode.map(SearchMode::from),
        Quantize::None,
        &args.machine.lookup(),
        &args.machine.device()?,
    )?;
    drop(phase);
    let has_vectors = collection.index().settings().encoder.is_some();
    let usual = if has_vectors {
        SearchMode::Dense
    } else {
        SearchMode::Bm25
    };
    let mode = args.mode.map_or(usual, SearchMode::from);
    let reranker = args.filter_model.as_ref();
    let reranker = reranker
        .map(|model| loaded::reranker(model, &args.machine, args.output))
        .transpose()?;
    let stop = interrupt::flag("");
    let mut counter = Counter::new(args.output, "queries", queries.len() as u64, 0);
    let (mut text, mut lines) = (String::new(), 0);
    let report = mine(
        &collection,
        reranker.as_ref(),
        &queries,
        &options,
        mode,
        &mut |mined| lines += args.lines(mined, &mut text),
        &mut |done| {
            counter.advance(done);
            !interrupt::asked(&stop)
        },
    );
    drop(counter);
    let report = match report {
        Err(RunError::Interrupted) => return Ok(Outcome::Interrupted),
        report => report?,
    };
    if lines == 0 {
        bail!(
            "no negatives: of {} queries none has {} left after {} answers and {} candidates within margins and scores were taken out; raise `--range-max`, or lower margins and `--range-min`",
            report.queries,
            if args.format == Format::NTuple {
                args.number
            } else {
                1
            },
            report.excluded.positives,
            report.excluded.margin + report.excluded.max_score + report.excluded.min_score,
        );
    }
    write_atomic(&args.out, text.as_bytes())?;
    if args.output.json {
        let value = json!({ "out": args.out, "lines": lines, "report": report, "relative_margin": options.relative_margin });
        ui::print_json(&value)?;
        return Ok(Outcome::Done);
    }
    ui::print(&format!(
        "{}: {lines} lines of {} pairs; ranks {} to {}, {} candidates left out by margin or score",
        args.out.display(),
        report.pairs,
        report.ranks.0,
        report.ranks.1,
        report.excluded.margin + report.excluded.max_score + report.excluded.min_score
    ));
    if let (Some(positive), Some(negative)) = (report.positive_score, report.negative_score) {
        let of = |score: f64| human::significant(score, 4);
        ui::print(&format!(
            "mean score {} of answers, {} of negatives",
            of(positive),
            of(negative)
        ));
    }
    if report.short > 0 {
        let text = format!(
            "{} of {} queries have fewer than {} negatives, {} none",
            report.short, report.queries, args.number, report.without
        );
        ui::warn(args.output, &text);
    }
    Ok(Outcome::Done)
}
