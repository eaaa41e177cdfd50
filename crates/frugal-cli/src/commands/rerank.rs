//! `frugal rerank`: candidates in the order in which they answer a query.

use anyhow::{Result, bail};
use clap::ValueEnum;
use frugal::model::Quantize;
use frugal::retrieve::blockrank::BlockRankOptions;
use frugal::retrieve::prp::{PrpAlgorithm, PrpMode, PrpOptions};
use frugal::run::{
    DataConfig, PredictRequest, Predictor, Progress, PromptedMode, PromptedReranker, PrpCost,
    Rerank, Reranker, RunError, data_settings_of, quantize_of,
};
use frugal_core::data::TextRecord;
use serde_json::json;

use crate::args::{Dtype, Machine, Model, Output, Texts};
use crate::outcome::Outcome;
use crate::ui::progress::Counter;
use crate::ui::{self, interrupt};

const EXAMPLES: &str = "\
Examples:
  frugal rerank --model ./ms-marco-MiniLM-L6 --query \"wing flutter\" --data candidates.jsonl
  frugal rerank --adapter runs/reranker --query \"wing flutter\" --text \"one text\" --text \"another\"
  frugal rerank --model smollm2-135m --mode prp --algorithm allpair --query \"wing flutter\" --data candidates.jsonl

By default the model is a cross-encoder: a classifier with one output that reads query and candidate \
together. With --mode prp a language model is asked of pairs which one is more relevant (pairwise \
ranking prompting), with --mode blockrank it reads all candidates in one prompt and its attention \
ranks them; it should have been trained for that. \
Each candidate gives one line, the best first: its rank, its score, its place in the data (`line`) \
and its text.";

/// What ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RankerKind {
    CrossEncoder,
    Prp,
    #[value(name = "blockrank")]
    BlockRank,
}

impl RankerKind {
    /// The kind of language model that a name stands for where others are models.
    pub fn prompted(name: &str) -> Option<Self> {
        match name {
            "prp" => Some(Self::Prp),
            "blockrank" => Some(Self::BlockRank),
            _ => None,
        }
    }

    /// How a language model of this kind ranks; a cross-encoder is none.
    pub fn mode(self, algorithm: PrpAlgorithm, ask: PrpMode, top_k: usize) -> PromptedMode {
        match self {
            Self::BlockRank => PromptedMode::BlockRank(BlockRankOptions::default()),
            Self::CrossEncoder | Self::Prp => PromptedMode::Prp {
                algorithm,
                options: PrpOptions {
                    mode: ask,
                    ..PrpOptions::default()
                },
                top_k,
            },
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Algorithm {
    Allpair,
    Sorting,
    Sliding,
}

/// Rerank candidates by how well they answer a query
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES, allow_negative_numbers = true)]
pub struct Args {
    #[command(flatten)]
    model: Model,
    /// What ranks: cross-encoder, or a language model with prp (pairwise ranking prompting) or
    /// blockrank (attention of one prompt)
    #[arg(
        long,
        value_name = "NAME",
        default_value = "cross-encoder",
        hide_possible_values = true
    )]
    mode: RankerKind,
    /// With --mode prp: allpair (every pair), sorting (heapsort) or sliding (passes of bubble sort)
    /// [default: sliding]
    #[arg(long, value_name = "NAME", hide_possible_values = true)]
    algorithm: Option<Algorithm>,
    /// With --algorithm sliding: how many passes [default: 10]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    passes: Option<u32>,
    /// With --mode prp: let the model write its answers in place of comparing their likelihoods
    #[arg(long)]
    generate: bool,
    /// The query
    #[arg(long, value_name = "TEXT", help_heading = "Data")]
    query: String,
    #[command(flatten)]
    texts: Texts,
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
    /// Numbers in which weights are held and multiplied: f32, bf16, or auto for what the processor
    /// is fastest at; adapters and sums stay in f32
    #[arg(
        long,
        visible_alias = "precision",
        value_name = "NAME",
        hide_possible_values = true,
        conflicts_with = "quantize",
        help_heading = "Machine"
    )]
    dtype: Option<Dtype>,
    #[command(flatten)]
    machine: Machine,
    #[command(flatten)]
    output: Output,
}

/// Reads candidates, scores, sorts, prints.
pub fn run(args: &Args) -> Result<Outcome> {
    if args.mode != RankerKind::Prp
        && (args.algorithm.is_some() || args.passes.is_some() || args.generate)
    {
        bail!("`--algorithm`, `--passes` and `--generate` go with `--mode prp`");
    }
    if args.mode != RankerKind::CrossEncoder {
        return run_prompted(args);
    }
    let (model, adapter) = args.model.resolve()?;
    let own = adapter.as_deref().map(data_settings_of).unwrap_or_default();
    let request = PredictRequest {
        quantize: args
            .dtype
            .map(Dtype::quantize)
            .or(args.quantize)
            .unwrap_or_else(|| adapter.as_deref().map_or(Quantize::None, quantize_of)),
        model: model.clone(),
        adapter,
        data: DataConfig {
            columns: args.texts.columns()?,
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
    let candidates = match &args.texts.data {
        None => args.texts.given().collect(),
        Some(file) => {
            let mut found = Vec::new();
            reranker.predictor().read(file, &mut |record| {
                found.push(record);
                Ok(())
            })?;
            found
        }
    };
    if candidates.is_empty() {
        bail!("{}: no texts", file_name(args));
    }
    let texts: Vec<&str> = candidates.iter().map(|c| c.text.as_str()).collect();
    match scored(args, texts.len(), &mut |progress| {
        reranker.scores(&args.query, &texts, progress)
    })? {
        Some(scores) => show(args, &model, reranker.scale(), &candidates, &scores, None),
        None => Ok(Outcome::Interrupted),
    }
}

/// The same by a language model.
fn run_prompted(args: &Args) -> Result<Outcome> {
    if args.max_length > 0 || args.quantize.is_some() || args.dtype.is_some() {
        bail!("`--max-length`, `--quantize` and `--dtype` go with `--mode cross-encoder`");
    }
    let passes = match (args.algorithm, args.passes) {
        (Some(Algorithm::Allpair | Algorithm::Sorting), Some(_)) => {
            bail!("`--passes` goes with `--algorithm sliding`")
        }
        (_, passes) => passes.map_or(10, |passes| passes as usize),
    };
    let algorithm = match args.algorithm {
        Some(Algorithm::Allpair) => PrpAlgorithm::Allpair,
        Some(Algorithm::Sorting) => PrpAlgorithm::Sorting,
        Some(Algorithm::Sliding) | None => PrpAlgorithm::Sliding(passes),
    };
    let ask = match args.generate {
        true => PrpMode::Generation,
        false => PrpMode::Scoring,
    };
    let candidates = args.texts.read()?;
    let top_k = args.top_k.map_or(usize::MAX, |k| k as usize);
    let mode = args.mode.mode(algorithm, ask, top_k);
    let reranker: PromptedReranker =
        crate::loaded::prompted_reranker(&args.model, mode, &args.machine, args.output)?;
    let texts: Vec<&str> = candidates.iter().map(|c| c.text.as_str()).collect();
    let found = scored(args, texts.len(), &mut |progress| {
        reranker.scores_and_cost(&args.query, &texts, progress)
    })?;
    let Some((scores, cost)) = found else {
        return Ok(Outcome::Interrupted);
    };
    let model = reranker.opened().files.name();
    show(args, model, reranker.scale(), &candidates, &scores, cost)
}

/// What `work` gives, with its progress shown; nothing when it was interrupted.
fn scored<T>(
    args: &Args,
    candidates: usize,
    work: &mut dyn FnMut(&mut dyn FnMut(usize) -> bool) -> Result<T, RunError>,
) -> Result<Option<T>> {
    let stop = interrupt::flag("");
    let mut counter = Counter::new(args.output, "candidates", candidates as u64, 0);
    let found = work(&mut |done| {
        counter.advance(done);
        !interrupt::asked(&stop)
    });
    drop(counter);
    match found {
        Err(RunError::Interrupted) => Ok(None),
        found => Ok(Some(found?)),
    }
}

fn show(
    args: &Args,
    model: &str,
    scale: &str,
    candidates: &[TextRecord],
    scores: &[f32],
    cost: Option<PrpCost>,
) -> Result<Outcome> {
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
        let mut value =
            json!({ "query": args.query, "model": model, "score": scale, "results": all });
        if let Some(cost) = cost {
            value["cost"] = json!({
                "calls": cost.calls,
                "questions": cost.questions,
                "computed_tokens": cost.computed_tokens,
                "prompt_tokens": cost.prompt_tokens,
                "conflict_rate": cost.conflict_rate,
                "cycle_rate": cost.cycle_rate,
            });
        }
        ui::print(&value.to_string());
    } else {
        lines.for_each(|line| ui::print(&line.to_string()));
    }
    if let Some(rate) = cost.and_then(|cost| cost.conflict_rate)
        && rate == 1.0
        && scores.len() > 1
    {
        ui::warn(
            args.output,
            "the model gave contradicting answers to every pair (it answers by position), so the order is that of the data: take a larger model, or one that was tuned to compare",
        );
    }
    Ok(Outcome::Done)
}

/// The file of candidates, for messages.
fn file_name(args: &Args) -> String {
    let file = args.texts.data.as_deref();
    file.map_or_else(|| "--text".into(), |file| file.display().to_string())
}
