//! `frugal parametrize`: documents of an index as parameters of a model.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::ValueEnum;
use frugal::model::Quantize;
use frugal::retrieve::parametric::{
    EncodeOptions, ParametricConfig, StoreDtype, TranslatorInit, TranslatorTraining,
};
use frugal::retrieve::{Collection, SearchMode};
use frugal::run::{
    ItemSource, ParametrizeReport, ParametrizeRequest, ParametrizeStep, RunError,
    TranslatorRequest, parametrize, read_items,
};
use frugal_core::human;

use crate::args::{Machine, Model, Output};
use crate::loaded;
use crate::outcome::Outcome;
use crate::ui::progress::{Counter, Phase};
use crate::ui::{self, interrupt};

const EXAMPLES: &str = "\
Examples:
  frugal parametrize --index idx --model smollm2-135m --items questions.jsonl --out idx-parameters
  frugal parametrize --index idx --model smollm2-135m --items questions.jsonl --translator --out idx-parameters
  frugal ask --index idx --model smollm2-135m --mode prag --parameters idx-parameters \"Where was Orla Venn born?\"

A document is trained on questions about it: records of --items with `document` (its identifier in \
the index), `question` and `answer`, and perhaps `rewrite` (the document in other words). Without \
--items the model writes them, which small models do badly; documents of whose questions nothing \
can be read are left out and named.

Called again, only new documents, and those whose text or questions are others than they were \
trained on, are trained. What is in the folder beside them stays, unless --prune is given.

With --translator a network is trained on all documents that there are questions about. It writes \
such parameters from a text, for --mode dyprag: also for documents that come later.";

/// Number format of files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum StoredType {
    F16,
    F32,
}

impl From<StoredType> for StoreDtype {
    fn from(stored: StoredType) -> Self {
        match stored {
            StoredType::F16 => Self::F16,
            StoredType::F32 => Self::F32,
        }
    }
}

/// Train parameters for each document of an index, for answers without the text in the prompt
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES, allow_negative_numbers = true)]
pub struct Args {
    /// Folder of the index (see `frugal index`)
    #[arg(long, short, value_name = "DIR", help_heading = "Data")]
    index: PathBuf,
    /// Questions about documents (JSONL or a table) [default: the model writes them]
    #[arg(long, value_name = "FILE", help_heading = "Data")]
    items: Option<PathBuf>,
    /// Folder of the parameters; what it holds already is kept
    #[arg(long, short, value_name = "DIR", help_heading = "Output")]
    out: PathBuf,
    /// Number format of documents' files: f16 or f32
    #[arg(
        long = "type",
        value_name = "TYPE",
        default_value = "f16",
        hide_possible_values = true,
        help_heading = "Output"
    )]
    stored_type: StoredType,
    /// Remove parameters of documents that are not in this index, or had another text
    #[arg(long, help_heading = "Output")]
    prune: bool,
    #[command(flatten)]
    model: Model,
    /// Rank of a document's change
    #[arg(
        long,
        value_name = "N",
        default_value_t = 2,
        help_heading = "Documents"
    )]
    rank: usize,
    /// α: a change is α / rank times the product of its factors
    #[arg(
        long,
        value_name = "X",
        default_value_t = 32.0,
        help_heading = "Documents"
    )]
    alpha: f64,
    /// Learning rate of a document's training
    #[arg(
        long,
        value_name = "X",
        default_value_t = 3e-4,
        help_heading = "Documents"
    )]
    lr: f64,
    /// Passes over a document's sequences
    #[arg(
        long,
        value_name = "N",
        default_value_t = 1,
        help_heading = "Documents"
    )]
    epochs: usize,
    /// Learn the answers alone, not the prompts before them
    #[arg(long, help_heading = "Documents")]
    answers_only: bool,
    /// Train a translator on the documents
    #[arg(long, help_heading = "Translator")]
    translator: bool,
    /// Width of its hidden layers
    #[arg(
        long,
        value_name = "N",
        default_value_t = 32,
        requires = "translator",
        help_heading = "Translator"
    )]
    translator_width: usize,
    /// Its learning rate
    #[arg(
        long,
        value_name = "X",
        default_value_t = 1e-4,
        requires = "translator",
        help_heading = "Translator"
    )]
    translator_lr: f64,
    /// Passes over the documents
    #[arg(
        long,
        value_name = "N",
        default_value_t = 1,
        requires = "translator",
        help_heading = "Translator"
    )]
    translator_epochs: usize,
    /// Rates, weights, start and scale of the official code instead of ours
    #[arg(
        long,
        requires = "translator",
        conflicts_with = "translator_lr",
        help_heading = "Translator"
    )]
    official: bool,
    /// Decides the start of parameters and translator, and what the model writes
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Machine")]
    seed: u64,
    #[command(flatten)]
    machine: Machine,
    #[command(flatten)]
    output: Output,
}

impl Args {
    fn translator(&self) -> Option<TranslatorRequest> {
        let base = match self.official {
            true => TranslatorTraining::official(),
            false => TranslatorTraining {
                lr: self.translator_lr,
                ..TranslatorTraining::default()
            },
        };
        self.translator.then_some(TranslatorRequest {
            width: self.translator_width,
            init: match self.official {
                true => TranslatorInit::Official,
                false => TranslatorInit::NoChange,
            },
            scale_in_delta: !self.official,
            training: TranslatorTraining {
                epochs: self.translator_epochs,
                seed: self.seed,
                ..base
            },
        })
    }
}

/// Reads questions, trains, writes.
pub fn run(args: &Args) -> Result<Outcome> {
    if args.model.model.is_none() && args.model.adapter.is_none() {
        bail!("name a model, for example `--model smollm2-135m`");
    }
    let items = match &args.items {
        Some(file) => ItemSource::Given(read_items(file)?),
        None => ItemSource::Model { seed: args.seed },
    };
    let stop = interrupt::flag("stopping; what is done is kept");
    let request = ParametrizeRequest {
        out: args.out.clone(),
        prune: args.prune,
        parameters: ParametricConfig {
            r: args.rank,
            lora_alpha: args.alpha,
            seed: args.seed,
            ..ParametricConfig::default()
        },
        encode: EncodeOptions {
            lr: args.lr,
            epochs: args.epochs,
            label_prompt: !args.answers_only,
            ..EncodeOptions::default()
        },
        dtype: args.stored_type.into(),
        items,
        translator: args.translator(),
        stop: &stop,
    };
    request.parameters.validate()?;
    request.encode.validate()?;
    let phase = Phase::new(args.output, "opening the index");
    let (lookup, device) = (args.machine.lookup(), args.machine.device()?);
    let words = Some(SearchMode::Bm25);
    let collection = Collection::open(&args.index, words, Quantize::None, &lookup, &device)?;
    drop(phase);
    let opened = loaded::read_for_scoring(&args.model, &args.machine, Quantize::None, args.output)?;
    let mut documents: Option<Counter> = None;
    let mut steps: Option<Counter> = None;
    let output = args.output;
    let found = parametrize(&opened, &collection, &request, &mut |step| match step {
        ParametrizeStep::Document { of, .. } => documents
            .get_or_insert_with(|| Counter::new(output, "documents", of as u64, 0))
            .step(),
        ParametrizeStep::Translator { of, .. } => steps
            .get_or_insert_with(|| Counter::new(output, "translator", of as u64, 0))
            .step(),
    });
    drop((documents, steps));
    let report = match found {
        Err(RunError::Interrupted) => return Ok(Outcome::Interrupted),
        found => found?,
    };
    if args.output.json {
        ui::print_json(&report)?;
    } else {
        show(args, &report);
    }
    // Whoever asked for parameters wants some.
    Ok(match report.documents {
        0 => Outcome::Negative,
        _ => Outcome::Done,
    })
}

fn show(args: &Args, report: &ParametrizeReport) {
    ui::print(&format!(
        "{} documents with parameters ({} trained now), {} in {}",
        report.documents,
        report.trained,
        human::bytes(report.bytes),
        args.out.display()
    ));
    let told = [
        (&report.without_items, "no parameters"),
        (&report.kept, "what was trained before stays"),
    ];
    for (documents, what) in told {
        if !documents.is_empty() {
            let text = format!("no question about {}: {what}", shortened(documents));
            ui::warn(args.output, &text);
        }
    }
    if report.others > 0 {
        ui::print(&format!(
            "{} of other documents or earlier texts stay there (`--prune` removes them)",
            report.others
        ));
    }
    if report.removed > 0 {
        ui::print(&format!(
            "{} of other documents or earlier texts were removed",
            report.removed
        ));
    }
    if let Some(losses) = report.translator {
        ui::print(&format!(
            "translator: cross-entropy {}, divergence {}, squared difference {} in its last pass",
            human::significant(losses.lm, 4),
            human::significant(losses.kl, 3),
            human::significant(losses.mse, 3)
        ));
    }
}

/// The first of some names.
fn shortened(names: &[String]) -> String {
    const SHOWN: usize = 5;
    let shown = names.iter().take(SHOWN).map(String::as_str);
    let shown = shown.collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}
