//! `frugal rerank`: candidates in the order in which they answer a query.

use std::path::PathBuf;

use anyhow::{Result, bail};
use frugal::model::Quantize;
use frugal::run::{
    DataConfig, PredictRequest, Predictor, Progress, Reranker, RunError, data_settings_of,
    quantize_of,
};
use frugal_core::data::TextRecord;
use serde_json::json;

use crate::args::{Machine, Model, Output};
use crate::outcome::Outcome;
use crate::ui::progress::Counter;
use crate::ui::{self, interrupt};

const EXAMPLES: &str = "\
Examples:
  frugal rerank --model ./ms-marco-MiniLM-L6 --query \"wing flutter\" --data candidates.jsonl
  frugal rerank --adapter runs/reranker --query \"wing flutter\" --text \"one text\" --text \"another\"

The model is a cross-encoder: a classifier with one output that reads query and candidate together.
Each candidate gives one line, the best first: its rank, its score, its place in the data (`line`)
and its text.";

/// Rerank candidates by how well they answer a query (cross-encoder)
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES, allow_negative_numbers = true)]
pub struct Args {
    #[command(flatten)]
    model: Model,
    /// The query
    #[arg(long, value_name = "TEXT", help_heading = "Data")]
    query: String,
    /// Candidate; repeatable
    #[arg(
        long = "text",
        short,
        value_name = "TEXT",
        help_heading = "Data",
        required_unless_present = "data",
        conflicts_with = "data"
    )]
    texts: Vec<String>,
    /// File of candidates (JSONL, JSON, CSV, TSV, text or Parquet, perhaps .gz or .zst), or - for
    /// standard input
    #[arg(long, short, value_name = "FILE", help_heading = "Data")]
    data: Option<PathBuf>,
    /// Which column is the text, for example text=passage
    #[arg(long = "column", value_name = "ROLE=NAME", value_parser = crate::args::pair, help_heading = "Data")]
    columns: Vec<(String, String)>,
    /// Longest pair in tokens; longer ones are cut [default: what the model allows]
    #[arg(
        long,
        value_name = "N",
        default_value_t = 0,
        hide_default_value = true,
        help_heading = "Data"
    )]
    max_length: usize,
    /// Show the best N only
    #[arg(long, short = 'k', value_name = "N", value_parser = clap::value_parser!(u32).range(1..), help_heading = "Output")]
    top_k: Option<u32>,
    /// How weights are held [default: as the adapter was trained]
    #[arg(long, value_name = "NAME", help_heading = "Machine")]
    quantize: Option<Quantize>,
    #[command(flatten)]
    machine: Machine,
    #[command(flatten)]
    output: Output,
}

/// Reads candidates, scores, sorts, prints.
pub fn run(args: &Args) -> Result<Outcome> {
    let (model, adapter) = args.model.resolve()?;
    let own = adapter.as_deref().map(data_settings_of).unwrap_or_default();
    let request = PredictRequest {
        quantize: args
            .quantize
            .unwrap_or_else(|| adapter.as_deref().map_or(Quantize::None, quantize_of)),
        model: model.clone(),
        adapter,
        data: DataConfig {
            columns: args.columns.iter().cloned().collect(),
            max_length: args.max_length,
            truncate: true,
            documents: None,
            ..own
        },
        device: args.machine.device_name().into(),
    };
    let mut warnings = Vec::new();
    let opened = Predictor::open(&request, &args.machine.lookup(), &mut |progress| {
        if let Progress::Warning { text } = progress {
            warnings.push(text.clone());
        }
    });
    warnings.iter().for_each(|text| ui::warn(args.output, text));
    let predictor = opened?;
    let reranker = Reranker::of(&model, predictor)?;
    let candidates = read(args, reranker.predictor())?;
    let texts: Vec<&str> = candidates.iter().map(|c| c.text.as_str()).collect();
    let stop = interrupt::flag("");
    let mut counter = Counter::new(args.output, "candidates", texts.len() as u64, 0);
    let scores = reranker.scores(&args.query, &texts, &mut |done| {
        counter.advance(done);
        !interrupt::asked(&stop)
    });
    drop(counter);
    let scores = match scores {
        Err(RunError::Interrupted) => return Ok(Outcome::Interrupted),
        scores => scores?,
    };
    let mut order: Vec<usize> = (0..candidates.len()).collect();
    // Equal scores stay in the order of the data.
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
    order.truncate(args.top_k.map_or(usize::MAX, |k| k as usize));
    let lines = order.iter().enumerate().map(|(i, &at)| {
        let candidate = &candidates[at];
        json!({
            "rank": i + 1,
            "score": scores[at],
            "line": candidate.line,
            "text": candidate.text,
        })
    });
    if args.output.json {
        let all: Vec<_> = lines.collect();
        let value = json!({ "query": args.query, "model": model, "score": reranker.scale(), "results": all });
        ui::print(&value.to_string());
    } else {
        lines.for_each(|line| ui::print(&line.to_string()));
    }
    Ok(Outcome::Done)
}

fn read(args: &Args, predictor: &Predictor) -> Result<Vec<TextRecord>> {
    let mut found: Vec<TextRecord> = Vec::new();
    match &args.data {
        Some(file) => {
            predictor.read(file, &mut |record| -> Result<(), RunError> {
                found.push(record);
                Ok(())
            })?;
            if found.is_empty() {
                bail!("{}: no candidates", file.display());
            }
        }
        None => found.extend(args.texts.iter().enumerate().map(|(i, text)| TextRecord {
            line: i + 1,
            text: text.clone(),
            text_pair: None,
            label: None,
        })),
    }
    Ok(found)
}
