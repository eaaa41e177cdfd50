//! `frugal predict`: labels for texts.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use frugal::model::Quantize;
use frugal::run::{
    DataConfig, PredictRequest, Predictor, ProblemType, Progress, RunError, Tags, data_settings_of,
    quantize_of,
};
use frugal::train::Tokenized;
use frugal_core::data::TextRecord;
use serde_json::{Value, json};

use crate::args::{Dtype, Machine, Model, Output, Texts};
use crate::outcome::Outcome;
use crate::ui::{self, interrupt};

const EXAMPLES: &str = "\
Examples:
  frugal predict --adapter runs/sms-spam-lora --text \"You have won a prize\"
  frugal predict --adapter runs/reviews --data new.csv --out labels.csv
  tail -f messages.jsonl | frugal predict --adapter runs/reviews --data -

Each text gives one line, as soon as it is known: the text, its likeliest label, the score of that \
label and the probability of each. Labels in the data are not needed; where they are given, they \
are repeated as `gold`. A model that labels words gives the label and score of each, and the \
entities that they mark; words are the file's `tokens`, or the text divided at white space. Columns are those of the adapter's run unless --column says otherwise.";

/// Tell the labels of texts with a trained classifier
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES, allow_negative_numbers = true)]
pub struct Args {
    #[command(flatten)]
    model: Model,
    #[command(flatten)]
    texts: Texts,
    /// Longest text in tokens [default: what the model allows]
    #[arg(
        long,
        value_name = "N",
        default_value_t = 0,
        hide_default_value = true,
        help_heading = "Data"
    )]
    max_length: usize,
    /// Cut longer texts instead of refusing them
    #[arg(long, help_heading = "Data")]
    truncate: bool,
    /// Texts that are computed together [default: 16, from standard input 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..), help_heading = "Machine")]
    batch_size: Option<u16>,
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
    /// File to write, new [default: standard output]
    #[arg(long, short, value_name = "FILE", help_heading = "Output")]
    out: Option<PathBuf>,
    /// jsonl or csv [default: as the file's name ends, else jsonl]
    #[arg(long, value_name = "NAME", value_parser = ["jsonl", "csv"], help_heading = "Output")]
    format: Option<String>,
    #[command(flatten)]
    machine: Machine,
}

impl Args {
    fn is_csv(&self) -> bool {
        let by_name = || {
            let end = self.out.as_deref().and_then(Path::extension);
            end.is_some_and(|end| end.eq_ignore_ascii_case("csv"))
        };
        self.format
            .as_deref()
            .map_or_else(by_name, |format| format == "csv")
    }

    fn batch_size(&self) -> usize {
        let piped = self.texts.data.as_deref() == Some(Path::new("-"));
        let default = if piped { 1 } else { 16 };
        self.batch_size.map_or(default, usize::from)
    }
}

/// Reads texts, predicts, writes.
pub fn run(args: &Args) -> Result<Outcome> {
    if let Some(out) = args.out.as_ref().filter(|out| out.exists()) {
        bail!(
            "{}: exists already; choose another file for `--out`",
            out.display()
        );
    }
    let (model, adapter) = args.model.resolve()?;
    let own = adapter.as_deref().map(data_settings_of).unwrap_or_default();
    let columns = match args.texts.column.is_empty() {
        true => own.columns.clone(),
        false => args.texts.columns()?,
    };
    let request = PredictRequest {
        quantize: args
            .dtype
            .map(Dtype::quantize)
            .or(args.quantize)
            .unwrap_or_else(|| adapter.as_deref().map_or(Quantize::None, quantize_of)),
        model,
        adapter,
        data: DataConfig {
            columns,
            max_length: args.max_length,
            truncate: args.truncate,
            documents: None,
            ..own
        },
        device: args.machine.device_name().into(),
    };
    let output = Output {
        json: false,
        quiet: false,
    };
    let mut warnings = Vec::new();
    let opened = Predictor::open(&request, &args.machine.lookup(), &mut |progress| {
        if let Progress::Warning { text } = progress {
            warnings.push(text.clone());
        }
    });
    warnings.iter().for_each(|text| ui::warn(output, text));
    let predictor = opened?;
    let stop = interrupt::flag("");
    let writer = Writer::new(args, &predictor)?;
    let mut work = Work {
        predictor: &predictor,
        waiting: Vec::new(),
        size: args.batch_size(),
        writer,
    };
    let source = args.texts.data.clone().unwrap_or_else(|| "text".into());
    let named = args.texts.column.iter().find(|(role, _)| role == "label");
    let asked = named.map(|(_, column)| column);
    let mut any = false;
    let mut take = |record: TextRecord| -> Result<(), RunError> {
        any = true;
        if interrupt::asked(&stop) {
            return Err(RunError::Invalid(INTERRUPTED.into()));
        }
        let place =
            |e: RunError| RunError::Invalid(format!("{}:{}: {e}", source.display(), record.line));
        if let (Some(column), None) = (asked, &record.label) {
            let why = format!("no column {column:?} for the label, which `--column` names");
            return Err(place(RunError::Invalid(why)));
        }
        if let Some(gold) = record.label.as_ref().filter(|_| predictor.labels_tokens()) {
            predictor.check_tags(gold).map_err(place)?;
        }
        let ids = match predictor.labels_tokens() {
            true => predictor.encode_words(&record.tokens),
            false => predictor.encode(&record.text, record.text_pair.as_deref()),
        };
        let ids = ids.map_err(place)?;
        work.take(record, ids)
            .map_err(|e| RunError::Invalid(format!("{e:#}")))
    };
    let read = match &args.texts.data {
        Some(file) => predictor.read(file, &mut take),
        None => args.texts.given().try_for_each(&mut take),
    };
    match read {
        Err(RunError::Invalid(why)) if why == INTERRUPTED => return Ok(Outcome::Interrupted),
        read => read?,
    }
    if let Some(file) = args
        .texts
        .data
        .as_deref()
        .filter(|f| !any && *f != Path::new("-"))
    {
        bail!("{}: no texts", file.display());
    }
    work.flush()?;
    work.writer.finish(args.out.as_deref())?;
    Ok(Outcome::Done)
}

const INTERRUPTED: &str = "interrupted";

/// Texts on their way to a batch.
struct Work<'a> {
    predictor: &'a Predictor,
    waiting: Vec<(TextRecord, Tokenized)>,
    size: usize,
    writer: Writer,
}

impl Work<'_> {
    fn take(&mut self, record: TextRecord, ids: Tokenized) -> Result<()> {
        self.waiting.push((record, ids));
        if self.waiting.len() < self.size {
            return Ok(());
        }
        self.flush()
    }

    fn flush(&mut self) -> Result<()> {
        let waiting = std::mem::take(&mut self.waiting);
        if self.predictor.labels_tokens() {
            let (records, ids): (Vec<_>, Vec<_>) = waiting
                .into_iter()
                .map(|(record, ids)| {
                    let words = record.tokens.len();
                    (record, (ids, words))
                })
                .unzip();
            let found = self.predictor.tag(&ids)?;
            for (record, tags) in records.iter().zip(&found) {
                self.writer.write_tags(record, tags)?;
            }
            return self.writer.flush();
        }
        let (records, ids): (Vec<_>, Vec<_>) = waiting.into_iter().unzip();
        let found = self.predictor.predict(&ids)?;
        for (record, values) in records.iter().zip(&found) {
            self.writer.write(record, self.predictor.labels(), values)?;
        }
        self.writer.flush()
    }
}

/// Where predictions go: standard output, or a file that appears once it is whole.
struct Writer {
    problem: ProblemType,
    csv: bool,
    file: Option<(BufWriter<File>, PathBuf)>,
}

impl Writer {
    fn new(args: &Args, predictor: &Predictor) -> Result<Self> {
        let labels = predictor.labels();
        let file = match &args.out {
            None => None,
            Some(out) => {
                let mut name = out.file_name().unwrap_or_default().to_owned();
                name.push(".partial");
                let partial = out.with_file_name(name);
                let file = File::create(&partial)
                    .with_context(|| format!("{}: cannot create", partial.display()))?;
                Some((BufWriter::new(file), partial))
            }
        };
        let mut writer = Self {
            problem: predictor.problem(),
            csv: args.is_csv(),
            file,
        };
        if writer.csv && predictor.labels_tokens() {
            let columns = ["line", "word", "label", "score"].map(str::to_owned);
            writer.line(&csv_row(&columns))?;
        } else if writer.csv {
            let names = labels.iter().map(|label| format!("probability of {label}"));
            let first: &[&str] = match writer.problem {
                ProblemType::SingleLabel => &["text", "label", "score"],
                ProblemType::MultiLabel => &["text", "labels"],
                ProblemType::Regression => &["text"],
            };
            let mut columns: Vec<String> = first.iter().map(|name| (*name).to_owned()).collect();
            match writer.problem {
                ProblemType::Regression => columns.extend(labels.iter().cloned()),
                _ => columns.extend(names),
            }
            writer.line(&csv_row(&columns))?;
        }
        Ok(writer)
    }

    fn write(&mut self, record: &TextRecord, labels: &[String], values: &[f32]) -> Result<()> {
        let found = Found {
            problem: self.problem,
            labels,
            values,
        };
        if self.csv {
            let cells = std::iter::once(record.text.clone()).chain(found.cells());
            return self.line(&csv_row(&cells.collect::<Vec<_>>()));
        }
        let mut line = json!({ "text": record.text });
        if let Some(pair) = &record.text_pair {
            line["text_pair"] = json!(pair);
        }
        for (key, value) in found.fields() {
            line[key] = value;
        }
        if let Some(gold) = &record.label {
            line["gold"] = json!(gold);
        }
        self.line(&line.to_string())
    }

    /// Of a text whose words are labelled one line, as CSV one line for each word.
    fn write_tags(&mut self, record: &TextRecord, tags: &Tags) -> Result<()> {
        if !self.csv {
            let mut line = json!({ "text": record.text, "tokens": record.tokens });
            if let (Some(line), Value::Object(found)) = (line.as_object_mut(), json!(tags)) {
                line.extend(found);
            }
            if let Some(gold) = &record.label {
                line["gold"] = json!(gold);
            }
            return self.line(&line.to_string());
        }
        let said = tags.labels.iter().zip(&tags.scores);
        for (word, (label, score)) in record.tokens.iter().zip(said) {
            let cells = [
                record.line.to_string(),
                word.clone(),
                label.clone().unwrap_or_default(),
                score.map_or_else(String::new, |score| score.to_string()),
            ];
            self.line(&csv_row(&cells))?;
        }
        Ok(())
    }

    fn line(&mut self, line: &str) -> Result<()> {
        match &mut self.file {
            Some((file, path)) => writeln!(file, "{line}")
                .with_context(|| format!("{}: cannot write", path.display())),
            None => {
                ui::print(line);
                Ok(())
            }
        }
    }

    fn flush(&mut self) -> Result<()> {
        match &mut self.file {
            Some((file, path)) => file
                .flush()
                .with_context(|| format!("{}: cannot write", path.display())),
            None => Ok(()),
        }
    }

    fn finish(mut self, out: Option<&Path>) -> Result<()> {
        self.flush()?;
        match (self.file, out) {
            (Some((_, partial)), Some(out)) => std::fs::rename(&partial, out)
                .with_context(|| format!("{}: cannot create", out.display())),
            _ => Ok(()),
        }
    }
}

/// What was found for a text.
struct Found<'a> {
    problem: ProblemType,
    labels: &'a [String],
    values: &'a [f32],
}

impl Found<'_> {
    /// The labels that are likelier than not.
    fn likely(&self) -> Vec<&str> {
        let pairs = self.labels.iter().zip(self.values);
        let likely = pairs.filter(|(_, p)| **p > 0.5);
        likely.map(|(label, _)| label.as_str()).collect()
    }

    fn fields(&self) -> Vec<(&'static str, Value)> {
        let values = self.values.iter().map(|value| json!(value));
        let all = Value::Object(self.labels.iter().cloned().zip(values).collect());
        match self.problem {
            ProblemType::SingleLabel => {
                let best = likeliest(self.values);
                let (label, score) = (json!(self.labels[best]), json!(self.values[best]));
                vec![("label", label), ("score", score), ("probabilities", all)]
            }
            ProblemType::MultiLabel => {
                vec![("labels", json!(self.likely())), ("probabilities", all)]
            }
            ProblemType::Regression => vec![("scores", all)],
        }
    }

    fn cells(&self) -> Vec<String> {
        let first = match self.problem {
            ProblemType::SingleLabel => {
                let best = likeliest(self.values);
                vec![self.labels[best].clone(), self.values[best].to_string()]
            }
            ProblemType::MultiLabel => vec![self.likely().join("|")],
            ProblemType::Regression => Vec::new(),
        };
        let numbers = self.values.iter().map(f32::to_string);
        first.into_iter().chain(numbers).collect()
    }
}

/// Position of the largest probability, the first of equal ones.
fn likeliest(probabilities: &[f32]) -> usize {
    let mut best = 0;
    for (i, p) in probabilities.iter().enumerate() {
        if *p > probabilities[best] {
            best = i;
        }
    }
    best
}

/// A row as RFC 4180 writes it.
fn csv_row(cells: &[String]) -> String {
    let quoted = |cell: &String| {
        if cell.contains([',', '"', '\n', '\r']) {
            format!("\"{}\"", cell.replace('"', "\"\""))
        } else {
            cell.clone()
        }
    };
    cells.iter().map(quoted).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_with_separators_are_quoted() {
        let cells = ["a", "b,c", "say \"x\"", "two\nlines", ""].map(str::to_owned);
        assert_eq!(
            csv_row(&cells),
            "a,\"b,c\",\"say \"\"x\"\"\",\"two\nlines\","
        );
    }
}
