//! `frugal search`: documents that answer a query.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::ValueEnum;
use frugal::index::store::{StoreOptions, StoreTarget};
use frugal::index::{Bm25, Document, Effort, Filter};
use frugal::model::Quantize;
use frugal::retrieve::prp::{PrpAlgorithm, PrpMode};
use frugal::retrieve::{Collection, SearchMode, SearchOptions, StoreCollection};
use frugal::run::Rerank;
use serde_json::{Value, json};

use crate::args::{Machine, Model, Output};
use crate::commands::rerank::RankerKind;
use crate::outcome::Outcome;
use crate::ui;
use crate::ui::progress::Phase;

const EXAMPLES: &str = "\
Examples:
  frugal search --index idx \"wing flutter at supersonic speed\"
  frugal search --index idx --mode bm25 --top-k 3 --filter 'year>1960' \"heat transfer\"
  frugal search --store chroma+http://localhost:8000#notes \"heat transfer\"
  frugal search --index idx --rerank ./ms-marco-MiniLM-L6 --json \"wing flutter\"
  frugal search --index idx --rerank prp --rerank-model smollm2-135m --rerank-depth 10 \"wing flutter\"

Without --mode an index with vectors is searched by words and vectors, whose ranks are fused \
(reciprocal rank fusion, k = 60), and one without by words.";

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    Bm25,
    Dense,
    Hybrid,
}

impl From<Mode> for SearchMode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Bm25 => Self::Bm25,
            Mode::Dense => Self::Dense,
            Mode::Hybrid => Self::Hybrid,
        }
    }
}

/// Constants of BM25 where nothing else is said.
const K1: f64 = 0.9;
const B: f64 = 0.4;
/// Candidates along a graph where nothing else is said.
const EF: u32 = 128;

/// Flags of a search, wherever it is made.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Search")]
pub struct SearchFlags {
    /// bm25 (words), dense (vectors) or hybrid (both) [default: all that the index has]
    #[arg(long, value_name = "NAME", hide_possible_values = true)]
    pub mode: Option<Mode>,
    /// Condition on a metadata field, for example year>1960, lang=en, venue in SIGIR,ECIR;
    /// repeatable, all must hold
    #[arg(long = "filter", value_name = "CONDITION")]
    pub filters: Vec<String>,
    /// BM25: how slowly the frequency of a term saturates
    #[arg(long, value_name = "X", default_value_t = K1)]
    pub k1: f64,
    /// BM25: how much long documents are held back, from 0 to 1
    #[arg(long, value_name = "X", default_value_t = B)]
    pub b: f64,
    /// Look at all vectors, also where the index has a graph over them
    #[arg(long)]
    pub exact: bool,
    /// Candidates that are kept on the way along the graph: more find more and take longer
    #[arg(long, value_name = "N", default_value_t = EF, value_parser = clap::value_parser!(u32).range(1..=100_000), conflicts_with = "exact")]
    pub ef: u32,
    /// Order the best documents anew: by this cross-encoder, or by a language model with prp
    /// (pairwise ranking prompting, Sliding-10) or blockrank (attention of one prompt)
    #[arg(long, value_name = "MODEL|prp|blockrank")]
    pub rerank: Option<String>,
    /// Language model of `--rerank prp` and `--rerank blockrank`
    #[arg(long, value_name = "MODEL", requires = "rerank")]
    pub rerank_model: Option<String>,
    /// Adapter of that model
    #[arg(long, value_name = "DIR", requires = "rerank")]
    pub rerank_adapter: Option<PathBuf>,
    /// Documents that are ordered anew
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..), requires = "rerank")]
    pub rerank_depth: u32,
}

impl SearchFlags {
    /// The flags that were given.
    pub fn given(&self) -> Vec<&'static str> {
        let given = [
            ("--mode", self.mode.is_some()),
            ("--filter", !self.filters.is_empty()),
            ("--rerank", self.rerank.is_some()),
        ];
        let given = given.into_iter().filter(|(_, given)| *given);
        let given = given.map(|(flag, _)| flag);
        given
            .chain(self.of_words())
            .chain(self.of_vectors())
            .collect()
    }

    fn of_words(&self) -> impl Iterator<Item = &'static str> {
        let given = [("--k1", self.k1 != K1), ("--b", self.b != B)];
        let given = given.into_iter().filter(|(_, given)| *given);
        given.map(|(flag, _)| flag)
    }

    fn of_vectors(&self) -> impl Iterator<Item = &'static str> {
        let given = [("--exact", self.exact), ("--ef", self.ef != EF)];
        let given = given.into_iter().filter(|(_, given)| *given);
        given.map(|(flag, _)| flag)
    }

    /// Refuses flags without effect in the mode that is asked for.
    pub fn check_mode(&self) -> Result<()> {
        let (flag, mode) = match self.mode {
            Some(Mode::Bm25) => (self.of_vectors().next(), "bm25"),
            Some(Mode::Dense) => (self.of_words().next(), "dense"),
            Some(Mode::Hybrid) | None => (None, ""),
        };
        match flag {
            Some(flag) => bail!("`{flag}` has no effect with `--mode {mode}`: leave it out"),
            None => Ok(()),
        }
    }

    /// What orders the documents anew, if that is asked for.
    pub fn reranker(
        &self,
        top_k: usize,
        machine: &Machine,
        output: Output,
    ) -> Result<Option<Box<dyn Rerank>>> {
        let Some(name) = &self.rerank else {
            return Ok(None);
        };
        let Some(kind) = RankerKind::prompted(name) else {
            if self.rerank_model.is_some() || self.rerank_adapter.is_some() {
                bail!(
                    "`--rerank-model` and `--rerank-adapter` go with `--rerank prp` and `--rerank blockrank`; `--rerank {name}` names a cross-encoder itself"
                );
            }
            let reranker = crate::loaded::reranker(name, machine, output)?;
            return Ok(Some(Box::new(reranker)));
        };
        if self.rerank_model.is_none() && self.rerank_adapter.is_none() {
            bail!(
                "`--rerank {name}`: name the language model with `--rerank-model`, for example smollm2-135m"
            );
        }
        let model = Model {
            model: self.rerank_model.clone(),
            adapter: self.rerank_adapter.clone(),
        };
        let mode = kind.mode(PrpAlgorithm::default(), PrpMode::default(), top_k);
        let reranker = crate::loaded::prompted_reranker(&model, mode, machine, output)?;
        Ok(Some(Box::new(reranker)))
    }

    pub fn options(&self, top_k: usize) -> Result<SearchOptions> {
        let depth = match self.rerank {
            Some(_) => top_k.max(self.rerank_depth as usize),
            None => top_k,
        };
        Ok(SearchOptions {
            mode: self.mode.map(SearchMode::from),
            top_k: depth,
            filter: Filter::parse(&self.filters)?,
            bm25: Bm25 {
                k1: self.k1,
                b: self.b,
            },
            effort: match self.exact {
                true => Effort::Exact,
                false => Effort::Graph {
                    ef: self.ef as usize,
                },
            },
        })
    }
}

/// Search an index: by words, by vectors or by both
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES, allow_negative_numbers = true)]
pub struct Args {
    /// What is looked for
    #[arg(value_name = "QUERY")]
    query: String,
    /// Folder of the index (see `frugal index`)
    #[arg(
        long,
        short,
        value_name = "DIR",
        help_heading = "Search",
        required_unless_present = "store"
    )]
    index: Option<PathBuf>,
    /// Search a database instead (see `frugal index --store`), by vectors
    #[arg(long, value_name = "URL", help_heading = "Search", conflicts_with_all = ["index", "k1", "b", "exact", "ef"])]
    store: Option<StoreTarget>,
    /// Longest wait for an answer of the store, in seconds
    #[arg(long, value_name = "N", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=3600), requires = "store", help_heading = "Search")]
    store_timeout: u32,
    /// How many documents are shown
    #[arg(long, short = 'k', value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..), help_heading = "Search")]
    top_k: u32,
    #[command(flatten)]
    search: SearchFlags,
    #[command(flatten)]
    machine: Machine,
    #[command(flatten)]
    output: Output,
}

/// A document that was found.
pub struct Answer {
    pub score: f64,
    pub document: Document,
}

/// The best documents for a query, reranked if that is asked for.
pub fn find(
    collection: &Collection,
    reranker: Option<&dyn Rerank>,
    query: &str,
    top_k: usize,
    options: &SearchOptions,
) -> Result<Vec<Answer>> {
    let found = collection.search(&[query], options)?;
    let mut answers = Vec::new();
    for hit in found.into_iter().flatten() {
        let Some(document) = collection.document(&hit.id)? else {
            bail!("{}: found, but not in the index", hit.id);
        };
        answers.push(Answer {
            score: hit.score,
            document,
        });
    }
    ordered(reranker, query, answers, top_k)
}

/// The best answers, reranked if that is asked for.
fn ordered(
    reranker: Option<&dyn Rerank>,
    query: &str,
    mut answers: Vec<Answer>,
    top_k: usize,
) -> Result<Vec<Answer>> {
    if let Some(reranker) = reranker {
        let texts: Vec<String> = answers
            .iter()
            .map(|a| a.document.title_and_text())
            .collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let scores = reranker.scores(query, &texts, &mut |_| true)?;
        for (answer, score) in answers.iter_mut().zip(scores) {
            answer.score = f64::from(score);
        }
        answers.sort_by(|a, b| b.score.total_cmp(&a.score));
    }
    answers.truncate(top_k);
    Ok(answers)
}

/// The nearest documents of a store.
fn in_store(args: &Args, target: &StoreTarget, options: &SearchOptions) -> Result<Vec<Answer>> {
    if matches!(options.mode, Some(SearchMode::Bm25 | SearchMode::Hybrid)) {
        bail!("--mode: a store is searched by vectors alone: leave it out, or use `--mode dense`");
    }
    let wait = StoreOptions {
        timeout: Duration::from_secs(args.store_timeout.into()),
        ..StoreOptions::default()
    };
    let (lookup, device) = (args.machine.lookup(), args.machine.device()?);
    let mut store = StoreCollection::open(target, wait, &lookup, &device)?;
    let hits = store.search(&args.query, options.top_k, &options.filter)?;
    let answers = hits.into_iter().map(|hit| Answer {
        score: hit.score,
        document: hit.document,
    });
    Ok(answers.collect())
}

/// Searches and shows.
pub fn run(args: &Args) -> Result<Outcome> {
    let top_k = args.top_k as usize;
    args.search.check_mode()?;
    let options = args.search.options(top_k)?;
    let lookup = args.machine.lookup();
    let phase = Phase::new(args.output, "opening the index");
    let collection = match &args.index {
        None => None,
        Some(index) => Some(Collection::open(
            index,
            options.mode,
            Quantize::None,
            &lookup,
            &args.machine.device()?,
        )?),
    };
    let reranker = args.search.reranker(top_k, &args.machine, args.output)?;
    drop(phase);
    let reranker = reranker.as_deref();
    let answers = match (&collection, &args.store) {
        (Some(collection), _) => find(collection, reranker, &args.query, top_k, &options)?,
        (None, Some(store)) => {
            let found = in_store(args, store, &options)?;
            ordered(reranker, &args.query, found, top_k)?
        }
        (None, None) => bail!("--index: name an index"),
    };
    if args.output.json {
        let results: Vec<Value> = answers
            .iter()
            .enumerate()
            .map(|(i, answer)| {
                json!({
                    "rank": i + 1,
                    "id": answer.document.id,
                    "score": answer.score,
                    "title": answer.document.title,
                    "text": answer.document.text,
                    "metadata": answer.document.metadata,
                })
            })
            .collect();
        ui::print(&json!({ "query": args.query, "results": results }).to_string());
    } else if answers.is_empty() {
        ui::print("nothing found");
    } else {
        for (i, answer) in answers.iter().enumerate() {
            let document = &answer.document;
            let head = match document.title.trim() {
                "" => document.id.clone(),
                title => format!("{title} ({})", document.id),
            };
            ui::print(&format!(
                "{:>3}. {}  {}",
                i + 1,
                ui::text::fixed(answer.score, 4),
                ui::without_control(&head)
            ));
            ui::print(&format!(
                "     {}",
                ui::without_control(&snippet(&document.text))
            ));
        }
    }
    Ok(Outcome::Done)
}

/// The beginning of a text in one line.
fn snippet(text: &str) -> String {
    const WIDTH: usize = 150;
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(WIDTH) {
        Some((end, _)) => format!("{}...", line[..end].trim_end()),
        None => line,
    }
}
