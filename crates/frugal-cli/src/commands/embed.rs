//! `frugal embed`: vectors of texts.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Result, bail};
use clap::ValueEnum;
use frugal::model::Quantize;
use frugal::retrieve::{
    EmbedOptions, Embeddings, Encoder, EncoderRequest, Precision, Prompt, RetrieveError,
    SparseEncoder,
};
use serde_json::{Value, json};

use crate::args::{Dtype, Machine, Model, Output, Texts};
use crate::outcome::Outcome;
use crate::ui::progress::{Counter, Phase};
use crate::ui::{self, interrupt};

const EXAMPLES: &str = "\
Examples:
  frugal embed --model minilm-l6 --text \"a first text\" --text \"a second\"
  frugal embed --model minilm-l6 --data texts.jsonl --out vectors.safetensors
  frugal embed --model minilm-l6 --data texts.csv --column text=title --out vectors.npy --quantize int8
  frugal embed --model splade-tiny --sparse --text \"wing flutter\"

Pooling, layers, normalisation, prompts and the longest text are those of the model's \
sentence-transformers folder (`modules.json`); a model without one is pooled by the mean of its \
tokens. Longer texts are cut, and how many were is said. With --sparse the model is a masked language \
model that weighs entries of its vocabulary (SPLADE); each text gives those above 0, the heaviest first.";

/// Elements of the vectors that are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "lower")]
enum Elements {
    Float32,
    Int8,
    Uint8,
    Binary,
    Ubinary,
}

impl From<Elements> for Precision {
    fn from(elements: Elements) -> Self {
        match elements {
            Elements::Float32 => Self::Float32,
            Elements::Int8 => Self::Int8,
            Elements::Uint8 => Self::Uint8,
            Elements::Binary => Self::Binary,
            Elements::Ubinary => Self::Ubinary,
        }
    }
}

/// Embed texts: vectors whose products tell how close texts are
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES, allow_negative_numbers = true)]
pub struct Args {
    #[command(flatten)]
    model: Model,
    #[command(flatten)]
    texts: Texts,
    /// Longest text in tokens; longer ones are cut [default: what the model says]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), help_heading = "Data")]
    max_length: Option<u32>,
    /// Text that goes before each text [default: the model's default prompt, if it has one]
    #[arg(
        long,
        value_name = "TEXT",
        conflicts_with = "prompt_name",
        help_heading = "Vectors"
    )]
    prompt: Option<String>,
    /// The model's prompt of this name, for example query or passage
    #[arg(long, value_name = "NAME", help_heading = "Vectors")]
    prompt_name: Option<String>,
    /// Give vectors length 1 (L2 norm) whatever the model says
    #[arg(long, help_heading = "Vectors")]
    normalize: bool,
    /// Keep the first N dimensions (Matryoshka models)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), help_heading = "Vectors")]
    truncate_dim: Option<u32>,
    /// Weigh entries of the vocabulary (learned sparse encoder) in place of making a vector
    #[arg(long, conflicts_with_all = ["normalize", "truncate_dim", "elements"], help_heading = "Vectors")]
    sparse: bool,
    /// Elements of the vectors: float32, int8 or uint8 (with the range of each dimension), binary or
    /// ubinary (eight dimensions to a byte)
    #[arg(
        long = "quantize",
        visible_alias = "precision",
        value_name = "NAME",
        default_value = "float32",
        hide_possible_values = true,
        help_heading = "Vectors"
    )]
    elements: Elements,
    /// How the model's weights are held
    #[arg(
        long,
        value_name = "NAME",
        default_value = "none",
        help_heading = "Machine"
    )]
    quantize_weights: Quantize,
    /// Numbers in which weights are held and multiplied: f32, bf16, or auto for what the processor
    /// is fastest at; sums stay in f32
    #[arg(
        long,
        value_name = "NAME",
        hide_possible_values = true,
        conflicts_with = "quantize_weights",
        help_heading = "Machine"
    )]
    dtype: Option<Dtype>,
    /// File to write, new: .safetensors, .npy or .jsonl [default: JSONL on standard output]
    #[arg(long, short, value_name = "FILE", help_heading = "Output")]
    out: Option<PathBuf>,
    #[command(flatten)]
    machine: Machine,
    #[command(flatten)]
    output: Output,
}

/// How vectors are written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Format {
    Safetensors,
    Npy,
    Jsonl,
}

impl Args {
    fn format(&self) -> Result<Format> {
        let Some(out) = &self.out else {
            return Ok(Format::Jsonl);
        };
        let ending = out.extension().unwrap_or_default().to_string_lossy();
        let format = match ending.to_ascii_lowercase().as_str() {
            "safetensors" => Format::Safetensors,
            "npy" => Format::Npy,
            "jsonl" => Format::Jsonl,
            _ => bail!(
                "--out {}: the name must end in .safetensors, .npy or .jsonl",
                out.display()
            ),
        };
        if out.exists() {
            bail!(
                "{}: exists already; choose another file for `--out`",
                out.display()
            );
        }
        Ok(format)
    }

    fn prompt(&self) -> Prompt {
        match (&self.prompt, &self.prompt_name) {
            (Some(text), _) => Prompt::Text(text.clone()),
            (None, Some(name)) => Prompt::Named(name.clone()),
            (None, None) => Prompt::Default,
        }
    }

    fn options(&self) -> EmbedOptions {
        EmbedOptions {
            prompt: self.prompt(),
            normalize: self.normalize,
            truncate_dim: self.truncate_dim.map(|n| n as usize),
        }
    }
}

/// Reads texts, embeds, writes.
pub fn run(args: &Args) -> Result<Outcome> {
    let format = args.format()?;
    if format == Format::Jsonl && args.elements != Elements::Float32 {
        bail!("--quantize: vectors of fewer bits go to a file, for example `--out vectors.npy`");
    }
    let (model, adapter) = args.model.resolve()?;
    let texts: Vec<String> = args.texts.read()?.into_iter().map(|r| r.text).collect();
    let request = EncoderRequest {
        model: model.clone(),
        adapter,
        max_length: args.max_length.map(|n| n as usize),
        quantize: args.dtype.map_or(args.quantize_weights, Dtype::quantize),
    };
    if args.sparse {
        return sparse(args, format, &request, &texts);
    }
    let stop = interrupt::flag("");
    let phase = Phase::new(args.output, format!("reading {model}"));
    let encoder = Encoder::open(&request, &args.machine.lookup(), &args.machine.device()?)?;
    drop(phase);
    if !encoder.modules().found && args.model.model.is_some() {
        ui::warn(
            args.output,
            &format!(
                "{model}: no `modules.json`: vectors are the mean of the tokens' hidden states"
            ),
        );
    }
    let options = args.options();
    let refs: Vec<&str> = texts.iter().map(String::as_str).collect();
    let begin = Instant::now();
    let mut counter = Counter::new(args.output, "texts", refs.len() as u64, 0);
    let found = encoder.embed(&refs, &options, &mut |done| {
        counter.advance(done);
        !interrupt::asked(&stop)
    });
    drop(counter);
    let embeddings = match found {
        Err(RetrieveError::Interrupted) => return Ok(Outcome::Interrupted),
        found => found?,
    };
    let seconds = begin.elapsed().as_secs_f64();
    warn_of_cut(
        args,
        embeddings.truncated,
        texts.len(),
        encoder.max_length(),
    );
    write(args, format, &encoder, &texts, &embeddings)?;
    if let Some(out) = &args.out {
        let dimension = embeddings.dimension;
        if args.output.json {
            let summary = json!({
                "out": out,
                "texts": texts.len(),
                "dimension": dimension,
                "truncated": embeddings.truncated,
                "seconds": seconds,
            });
            ui::print(&summary.to_string());
        } else {
            ui::print(&format!(
                "{}: {} vectors of {dimension} dimensions, {:.0} texts/s",
                out.display(),
                texts.len(),
                texts.len() as f64 / seconds.max(1e-9)
            ));
        }
    }
    Ok(Outcome::Done)
}

fn warn_of_cut(args: &Args, truncated: usize, texts: usize, max_length: usize) {
    if truncated > 0 {
        ui::warn(
            args.output,
            &format!(
                "{truncated} of {texts} texts have more than {max_length} tokens and were cut"
            ),
        );
    }
}

/// Weights of vocabulary entries in place of vectors.
fn sparse(
    args: &Args,
    format: Format,
    request: &EncoderRequest,
    texts: &[String],
) -> Result<Outcome> {
    if format != Format::Jsonl {
        bail!("--sparse: weights of words go to standard output or to a file that ends in .jsonl");
    }
    let stop = interrupt::flag("");
    let phase = Phase::new(args.output, format!("reading {}", request.model));
    let encoder = SparseEncoder::open(request, &args.machine.lookup(), &args.machine.device()?)?;
    drop(phase);
    let refs: Vec<&str> = texts.iter().map(String::as_str).collect();
    let begin = Instant::now();
    let mut counter = Counter::new(args.output, "texts", refs.len() as u64, 0);
    let found = encoder.embed(&refs, &args.prompt(), &mut |done| {
        counter.advance(done);
        !interrupt::asked(&stop)
    });
    drop(counter);
    let found = match found {
        Err(RetrieveError::Interrupted) => return Ok(Outcome::Interrupted),
        found => found?,
    };
    let seconds = begin.elapsed().as_secs_f64();
    warn_of_cut(args, found.truncated, texts.len(), encoder.max_length());
    let lines = || {
        texts.iter().zip(&found.rows).map(|(text, row)| {
            let name = |id: u32| encoder.token(id).unwrap_or_else(|| format!("[{id}]"));
            let weights: serde_json::Map<String, Value> = row
                .iter()
                .map(|(id, weight)| (name(*id), (*weight).into()))
                .collect();
            json!({ "text": text, "weights": weights }).to_string()
        })
    };
    let Some(out) = &args.out else {
        lines().for_each(|line| ui::print(&line));
        return Ok(Outcome::Done);
    };
    frugal_core::fs::write_atomic_with(out, |file| {
        lines().try_for_each(|line| writeln!(file, "{line}"))
    })?;
    let entries: usize = found.rows.iter().map(Vec::len).sum();
    let mean = entries as f64 / texts.len().max(1) as f64;
    if args.output.json {
        let summary = json!({
            "out": out,
            "texts": texts.len(),
            "mean_entries": mean,
            "truncated": found.truncated,
            "seconds": seconds,
        });
        ui::print(&summary.to_string());
    } else {
        ui::print(&format!(
            "{}: {} texts with {mean:.1} entries on average, {:.0} texts/s",
            out.display(),
            texts.len(),
            texts.len() as f64 / seconds.max(1e-9)
        ));
    }
    Ok(Outcome::Done)
}

fn write(
    args: &Args,
    format: Format,
    encoder: &Encoder,
    texts: &[String],
    embeddings: &Embeddings,
) -> Result<()> {
    let vectors = || embeddings.quantize(args.elements.into());
    let lines = || {
        let rows = texts.iter().zip(embeddings.rows());
        rows.map(|(text, row)| json!({ "text": text, "embedding": row }).to_string())
    };
    match (format, &args.out) {
        (Format::Safetensors, Some(out)) => {
            let metadata = HashMap::from([
                ("model".to_owned(), encoder.name().to_owned()),
                ("dimension".to_owned(), embeddings.dimension.to_string()),
                (
                    "precision".to_owned(),
                    serde_json::to_value(Precision::from(args.elements))?
                        .as_str()
                        .unwrap_or_default()
                        .to_owned(),
                ),
            ]);
            vectors().save_safetensors(out, metadata)?;
        }
        (Format::Npy, Some(out)) => vectors().save_npy(out)?,
        (Format::Jsonl, Some(out)) => frugal_core::fs::write_atomic_with(out, |file| {
            lines().try_for_each(|line| writeln!(file, "{line}"))
        })?,
        (_, None) => lines().for_each(|line| ui::print(&line)),
    }
    Ok(())
}
