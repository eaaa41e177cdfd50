//! `frugal ask`: answers from an index.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::ValueEnum;
use frugal::decode::SamplerConfig;
use frugal::index::Filter;
use frugal::model::Quantize;
use frugal::retrieve::parametric::{DocumentStore, Merge};
use frugal::retrieve::perk::files;
use frugal::retrieve::rag::{Citation, CitedBy, CorrectiveOptions, Passage};
use frugal::retrieve::{Collection, SearchOptions};
use frugal::run::ask::{self, Ask, AskAnswer, AskOptions, Grader, ParametricSettings, PerkAsk};
use frugal_core::human;
use serde_json::json;

use super::search::Mode as SearchMode;
use crate::args::{Machine, Model, Output, Stop, Storage};
use crate::loaded;
use crate::outcome::Outcome;
use crate::ui::progress::Phase;
use crate::ui::{self, interrupt};

const EXAMPLES: &str = "\
Examples:
  frugal ask --index idx --model smollm2-135m \"What causes wing flutter?\"
  frugal ask --index idx -m smollm2-135m --mode crag --top-k 5 --show-passages \"What causes wing flutter?\"
  frugal ask --index idx -m smollm2-135m --rerank ./ms-marco-MiniLM-L6 --json \"What causes wing flutter?\"

Modes:
  rag    the best passages in the prompt
  crag   passages are graded first, and searched for again in other words if none is relevant
  prag   the best passages as parameters of the model that were trained for each
  dyprag the best passages as parameters of the model that a translator writes
  perk   the best passages are written into an adapter by a few gradient steps, and it answers

Passages are numbered in the prompt. Sources are those whose numbers the answer names, or else those \
that most words of one of its sentences come from.";

/// Most tokens of a segment where nothing is said.
const SEGMENT_TOKENS: u32 = 128;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum GraderName {
    /// Half of the question's content words stand in the passage
    #[default]
    Words,
    /// The cross-encoder of --rerank
    Reranker,
    /// The model itself
    Model,
}

impl From<GraderName> for Grader {
    fn from(name: GraderName) -> Self {
        match name {
            GraderName::Words => Self::Words,
            GraderName::Reranker => Self::Reranker,
            GraderName::Model => Self::Model,
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
enum MergeName {
    /// The exact sum of all changes
    #[default]
    Sum,
    /// The sum divided by the number of passages
    MeanDelta,
    /// The product of mean factors (DyPRAG's official code)
    MeanFactors,
}

impl From<MergeName> for Merge {
    fn from(name: MergeName) -> Self {
        match name {
            MergeName::Sum => Self::Sum,
            MergeName::MeanDelta => Self::MeanDelta,
            MergeName::MeanFactors => Self::MeanFactors,
        }
    }
}

/// Answer a question from the documents of an index
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES, allow_negative_numbers = true)]
pub struct Args {
    /// The question
    #[arg(value_name = "QUESTION")]
    question: String,
    /// Folder of the index (see `frugal index`)
    #[arg(long, short, value_name = "DIR", help_heading = "Search")]
    index: PathBuf,
    /// How the question is answered
    #[arg(long, value_name = "NAME", default_value = "rag")]
    mode: String,
    /// Passages that the model is given
    #[arg(long, short = 'k', value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..), help_heading = "Search")]
    top_k: u32,
    /// What is searched: bm25 (words), dense (vectors) or hybrid (both) [default: all that the index
    /// has]
    #[arg(
        long,
        value_name = "NAME",
        hide_possible_values = true,
        help_heading = "Search"
    )]
    search: Option<SearchMode>,
    /// Condition on a metadata field, for example year>1960; repeatable, all must hold
    #[arg(long = "filter", value_name = "CONDITION", help_heading = "Search")]
    filters: Vec<String>,
    /// Order the best passages anew by this cross-encoder
    #[arg(long, value_name = "MODEL", help_heading = "Search")]
    rerank: Option<String>,
    /// Passages that are given to the cross-encoder
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..), requires = "rerank", help_heading = "Search")]
    rerank_depth: u32,
    /// Who grades passages with --mode crag: words (half of the question's words stand in it),
    /// reranker (that of --rerank), model [default: words]
    #[arg(
        long,
        value_name = "NAME",
        hide_possible_values = true,
        help_heading = "Search"
    )]
    grader: Option<GraderName>,
    /// Relevant passages that suffice with --mode crag [default: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), help_heading = "Search")]
    min_relevant: Option<u32>,
    /// Further searches with --mode crag [default: 2]
    #[arg(long, value_name = "N", help_heading = "Search")]
    max_iterations: Option<u32>,
    /// Folder of the documents' parameters, for --mode prag and dyprag (see `frugal parametrize`)
    #[arg(long, value_name = "DIR", help_heading = "Search")]
    parameters: Option<PathBuf>,
    /// Give the passages in the prompt too with --mode prag and dyprag
    #[arg(long, help_heading = "Search")]
    combine: bool,
    /// How several passages become one change with --mode prag and dyprag: sum, mean_delta (sum by
    /// number), mean_factors (product of mean factors) [default: sum]
    #[arg(
        long,
        value_name = "NAME",
        hide_possible_values = true,
        help_heading = "Search"
    )]
    merge: Option<MergeName>,
    /// Most tokens of a prompt with passages [default: what the model has room for, at most 2048]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), help_heading = "Search")]
    context_tokens: Option<u32>,
    /// Meta-learned state for --mode perk (see `frugal meta-train`)
    #[arg(long, value_name = "DIR", help_heading = "Writing")]
    perk_state: Option<PathBuf>,
    /// Most tokens of the pieces that passages are cut into with --mode perk [default: 128]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), help_heading = "Writing")]
    segment_tokens: Option<u32>,
    /// Parts in which pieces are computed with --mode perk: more of them need less memory
    /// [default: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), help_heading = "Writing")]
    accumulation: Option<u32>,
    #[command(flatten)]
    model: Model,
    #[command(flatten)]
    storage: Storage,
    /// Most tokens of the answer
    #[arg(long, value_name = "N", default_value_t = 120, value_parser = clap::value_parser!(u32).range(1..), help_heading = "Sampling")]
    max_tokens: u32,
    /// 0 takes the likeliest token; higher is more varied
    #[arg(
        long,
        value_name = "T",
        default_value_t = 0.0,
        help_heading = "Sampling"
    )]
    temperature: f32,
    /// Only the likeliest tokens that together reach this probability
    #[arg(
        long,
        value_name = "P",
        default_value_t = 1.0,
        help_heading = "Sampling"
    )]
    top_p: f32,
    /// Makes every token less likely by this for each time that it was generated, which keeps small
    /// models from repeating themselves
    #[arg(
        long,
        value_name = "X",
        default_value_t = 0.3,
        help_heading = "Sampling"
    )]
    frequency_penalty: f32,
    /// Decides the random choices
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Sampling")]
    seed: u64,
    #[command(flatten)]
    stop: Stop,
    /// Show the passages that the model was given
    #[arg(long, help_heading = "Output")]
    show_passages: bool,
    #[command(flatten)]
    machine: Machine,
    #[command(flatten)]
    output: Output,
}

impl Args {
    fn options(&self) -> Result<AskOptions> {
        let top_k = self.top_k as usize;
        Ok(AskOptions {
            search: SearchOptions {
                mode: self.search.map(Into::into),
                top_k,
                filter: Filter::parse(&self.filters)?,
                ..SearchOptions::default()
            },
            rerank_depth: self.rerank_depth as usize,
            context_tokens: self.context_tokens.map(|n| n as usize),
            max_tokens: self.max_tokens as usize,
            sampler: SamplerConfig {
                temperature: self.temperature,
                top_p: self.top_p,
                frequency_penalty: self.frequency_penalty,
                ..SamplerConfig::default()
            },
            seed: self.seed,
            stop: self.stop.texts.clone(),
            cache_type: self.storage.cache_type(),
            grader: self.grader.unwrap_or_default().into(),
            corrective: CorrectiveOptions {
                min_relevant: self.min_relevant.unwrap_or(1) as usize,
                max_iterations: self.max_iterations.unwrap_or(2) as usize,
                keep: top_k,
            },
            parametric: ParametricSettings {
                parameters: self.parameters.clone(),
                combine: self.combine,
                merge: self.merge.unwrap_or_default().into(),
            },
            perk: self.perk_state.clone().map(|state| PerkAsk {
                state,
                segment_tokens: self.segment_tokens.unwrap_or(SEGMENT_TOKENS) as usize,
                groups: self.accumulation.unwrap_or(1) as usize,
            }),
        })
    }

    /// Flags that the mode would not look at, whatever their value, and those that it lacks.
    fn check_mode(&self) -> Result<()> {
        let mode = self.mode.as_str();
        let parametric = matches!(mode, "prag" | "dyprag");
        let corrective =
            self.grader.is_some() || self.min_relevant.is_some() || self.max_iterations.is_some();
        if corrective && mode != "crag" {
            bail!("`--grader`, `--min-relevant` and `--max-iterations` are for `--mode crag`");
        }
        let asked = self.parameters.is_some() || self.combine || self.merge.is_some();
        if asked && !parametric {
            bail!(
                "`--parameters`, `--combine` and `--merge` are for `--mode prag` and `--mode dyprag`"
            );
        }
        let writing = self.perk_state.is_some()
            || self.segment_tokens.is_some()
            || self.accumulation.is_some();
        if writing && mode != "perk" {
            bail!("`--perk-state`, `--segment-tokens` and `--accumulation` are for `--mode perk`");
        }
        if parametric && self.parameters.is_none() {
            bail!(
                "--mode {mode}: name the folder of the documents' parameters with `--parameters`; `frugal parametrize` makes it"
            );
        }
        if mode == "perk" && self.perk_state.is_none() {
            bail!(
                "`--mode perk` needs a meta-learned state: name its folder with `--perk-state` (`frugal meta-train` makes one)"
            );
        }
        if mode == "perk" && self.model.adapter.is_some() {
            bail!("`--mode perk` writes into an adapter of its own: leave out `--adapter`");
        }
        if parametric && self.model.adapter.is_some() {
            bail!(
                "--mode {mode}: documents' parameters are trained for the model as it is: leave out `--adapter`, or merge it into the \
                 model first (`frugal merge`) and make the parameters anew"
            );
        }
        let without_passages = mode == "perk" || (parametric && !self.combine);
        if without_passages && self.context_tokens.is_some() {
            let way_out = if parametric { ": add `--combine`" } else { "" };
            bail!(
                "`--context-tokens` bounds passages in the prompt, where `--mode {mode}` has none{way_out}"
            );
        }
        if self.grader == Some(GraderName::Reranker) && self.rerank.is_none() {
            bail!("`--grader reranker` needs a cross-encoder: name it with `--rerank`");
        }
        let least = self.min_relevant.unwrap_or(1);
        if least > self.top_k {
            bail!(
                "--min-relevant {least}: no more than `--top-k {}` passages are kept",
                self.top_k
            );
        }
        Ok(())
    }
}

/// Searches, answers, shows.
pub fn run(args: &Args) -> Result<Outcome> {
    let mode = ask::find(&args.mode)?;
    args.check_mode()?;
    // Before anything large is read.
    if let Some(folder) = &args.parameters {
        DocumentStore::read_config(folder)?;
    }
    if let Some(folder) = &args.perk_state {
        files::read_config(folder)?;
    }
    let options = args.options()?;
    if args.model.model.is_none() && args.model.adapter.is_none() {
        bail!("name a model that writes, for example `--model smollm2-135m`");
    }
    let phase = Phase::new(args.output, "opening the index");
    let collection = Collection::open(
        &args.index,
        options.search.mode,
        Quantize::None,
        &args.machine.lookup(),
        &args.machine.device()?,
    )?;
    drop(phase);
    let rerank = args.rerank.as_ref();
    let reranker = rerank
        .map(|model| loaded::reranker(model, &args.machine, args.output))
        .transpose()?;
    let storage = args.storage.quantize();
    let opened = loaded::read_for_text(&args.model, &args.machine, storage, args.output)?;
    let stop = interrupt::flag("");
    let shown = !args.output.json && ui::stdout_is_terminal() && !args.show_passages;
    let mut on_text = |text: &str| {
        if shown {
            ui::write(&ui::shown(text));
        }
        !interrupt::asked(&stop)
    };
    let mut session = Ask::new(
        &opened,
        &collection,
        reranker.as_ref(),
        &options,
        &mut on_text,
    )?;
    let found = ask::answer(mode, &mut session, &args.question)?;
    if args.output.json {
        let mut value = serde_json::to_value(&found)?;
        value["question"] = json!(args.question);
        value["mode"] = json!(mode.name);
        value["model"] = json!(opened.files.name());
        value["adapter"] = json!(args.model.adapter);
        ui::print_json(&value)?;
    } else {
        show(args, &found, shown);
    }
    Ok(match interrupt::asked(&stop) {
        true => Outcome::Interrupted,
        false => Outcome::Done,
    })
}

fn show(args: &Args, found: &AskAnswer, streamed: bool) {
    if args.show_passages {
        for (i, passage) in found.passages.iter().enumerate() {
            let head = format!("[{}] {} · {:.4}", i + 1, name_of(passage), passage.score);
            ui::print(&ui::without_control(&head));
            ui::print(&format!("{}\n", ui::shown(passage.text.trim())));
        }
    }
    match streamed {
        true => ui::print(""),
        false if found.answer.is_empty() => {}
        false => ui::print(&ui::shown(&found.answer)),
    }
    if found.finish.is_none() {
        ui::print("nothing to answer from");
    }
    if !found.citations.is_empty() {
        let by_words = found.citations.iter().all(|c| c.by == CitedBy::Words);
        let how = if by_words { " (by their words)" } else { "" };
        ui::print(&format!("\nSources{how}:"));
        for citation in &found.citations {
            ui::print(&ui::without_control(&source(citation)));
        }
    }
    found
        .warnings
        .iter()
        .for_each(|text| ui::warn(args.output, text));
    found
        .notes
        .iter()
        .for_each(|note| ui::note(args.output, note));
    let stages: Vec<String> = found
        .stages
        .iter()
        .map(|stage| format!("{} {}", stage.name, human::duration(stage.seconds)))
        .collect();
    let memory = found.stages.iter().filter_map(|s| s.peak_bytes).max();
    let memory = memory.map_or(String::new(), |peak| {
        format!(" · {} peak", human::bytes(peak))
    });
    if ui::stderr_is_terminal() {
        let tokens = format!(
            "{} prompt tokens, {} new",
            found.prompt_tokens, found.tokens
        );
        ui::note(
            args.output,
            &format!("{} · {tokens}{memory}", stages.join(" · ")),
        );
    }
}

fn name_of(passage: &Passage) -> String {
    named(&passage.title, &passage.id)
}

fn named(title: &str, id: &str) -> String {
    match title.trim() {
        "" => id.to_owned(),
        title => format!("{title} ({id})"),
    }
}

fn source(citation: &Citation) -> String {
    format!(
        "  [{}] {}",
        citation.number,
        named(&citation.title, &citation.id)
    )
}

#[cfg(test)]
mod tests {
    use frugal::run::ask::MODES;

    use super::*;

    #[test]
    fn the_help_names_every_mode() {
        for mode in MODES {
            let line = EXAMPLES
                .lines()
                .find(|line| line.trim_start().starts_with(mode.name));
            let line = line.unwrap_or_default();
            assert!(line.ends_with(mode.about), "{}: {line:?}", mode.name);
        }
    }
}
