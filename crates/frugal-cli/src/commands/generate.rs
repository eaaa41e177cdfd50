//! `frugal generate`: continues prompts.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use console::style;
use frugal::adapt::ActiveAdapters;
use frugal::decode::{GenerateConfig, Generation, Next, generate_until};
use frugal_core::data::Message;
use frugal_core::human;
use frugal_core::tokenizer::{StopStream, TextTokenizer, TokenizerError};
use serde_json::{Value, json};

use crate::args::{Machine, Model, Output, Sampling, Stop, Storage};
use crate::loaded::{Loaded, adapter_name};
use crate::outcome::Outcome;
use crate::ui::text::Wrapping;
use crate::ui::{self, interrupt};

const EXAMPLES: &str = "\
Examples:
  frugal generate --prompt \"The cat sat\"
  frugal generate -m smollm2-135m --chat -p \"Why is the sky blue?\" --max-tokens 80
  frugal generate -m smollm2-135m --adapter runs/support --prompts questions.txt --json

Several prompts are continued together, in one batch. A record of a JSONL file may name an adapter of its own:
  {\"prompt\": \"My parcel is late.\", \"adapter\": \"runs/support\"}";

/// Continue one prompt or many
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES, allow_negative_numbers = true)]
pub struct Args {
    /// Text to continue; repeatable
    #[arg(
        long = "prompt",
        short,
        value_name = "TEXT",
        required_unless_present = "file"
    )]
    prompts: Vec<String>,
    /// File with a prompt on each line, or JSONL with a `prompt` and perhaps an `adapter` in each
    /// record; - for standard input
    #[arg(long = "prompts", value_name = "FILE")]
    file: Option<PathBuf>,
    /// Treat each prompt as a message to an assistant, by the model's chat template
    #[arg(long)]
    chat: bool,
    /// Instructions in front of the message; implies --chat
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    #[command(flatten)]
    model: Model,
    #[command(flatten)]
    storage: Storage,
    /// 0 takes the likeliest token; higher is more varied
    #[arg(
        long,
        value_name = "T",
        default_value_t = 0.0,
        help_heading = "Sampling"
    )]
    temperature: f32,
    #[command(flatten)]
    sampling: Sampling,
    #[command(flatten)]
    stop: Stop,
    #[command(flatten)]
    machine: Machine,
    #[command(flatten)]
    output: Output,
}

impl Args {
    fn is_chat(&self) -> bool {
        self.chat || self.system.is_some()
    }
}

/// Refuses a model whose tokenizer cannot write a conversation; `instead` says what to do.
pub fn needs_chat_template(tokenizer: &TextTokenizer, model: &str, instead: &str) -> Result<()> {
    if !tokenizer.has_chat_template() {
        bail!("`{model}` has no chat template: it was not made for conversations. {instead}");
    }
    Ok(())
}

/// Generates and prints.
pub fn run(args: &Args) -> Result<Outcome> {
    let sampler = args.sampling.config(args.temperature);
    sampler.validate()?;
    let (prompts, adapters): (Vec<String>, Vec<Option<PathBuf>>) = prompts(args)?
        .into_iter()
        .map(|p| (p.text, p.adapter))
        .unzip();
    let mut folders: Vec<PathBuf> = args
        .model
        .adapter
        .iter()
        .chain(adapters.iter().flatten())
        .cloned()
        .collect();
    folders.sort();
    folders.dedup();
    let loaded = Loaded::read_several_for_text(
        &args.model,
        &folders,
        &args.machine,
        args.storage.quantize,
        args.output,
    )?;
    let mut names: Vec<Option<String>> = adapters
        .iter()
        .map(|folder| folder.as_deref().map(adapter_name))
        .collect();
    let choice = if names.windows(2).all(|pair| pair[0] == pair[1]) {
        names
            .swap_remove(0)
            .map_or(ActiveAdapters::Base, ActiveAdapters::One)
    } else {
        ActiveAdapters::PerSequence(names)
    };
    loaded.refuse_classifiers()?;
    let tokenizer = loaded.files.tokenizer()?;
    if args.is_chat() {
        let instead = "Leave out `--chat` and `--system`, or give one in `frugal chat` with `--chat-template`";
        needs_chat_template(tokenizer, loaded.files.name(), instead)?;
    }
    let encoded = prompts
        .iter()
        .map(|prompt| encode(prompt, tokenizer, args))
        .collect::<Result<Vec<_>>>()?;
    let config = GenerateConfig {
        max_tokens: args.sampling.max_tokens,
        sampler,
        eos_token_ids: tokenizer.eos_ids().to_vec(),
        seed: args.sampling.seed,
        cache_type: args.storage.cache_type(),
    };
    let interrupted = interrupt::flag("");
    let stops = args.stop.texts(tokenizer);
    let shown = prompts.len() == 1 && !args.output.json && ui::stdout_is_terminal();
    let mut answers: Vec<Answer<'_>> = prompts
        .iter()
        .map(|_| Answer::new(tokenizer, &stops, shown))
        .collect();
    if shown && !args.is_chat() {
        ui::write(&style(ui::shown(&prompts[0])).dim().to_string());
    }
    let start = Instant::now();
    let mut first_token = None;
    let mut on_token = |prompt: usize, token: u32| {
        first_token.get_or_insert_with(|| start.elapsed());
        answers[prompt].push(token);
        match (interrupt::asked(&interrupted), answers[prompt].is_stopped()) {
            (true, _) => Next::Nothing,
            (false, true) => Next::Others,
            (false, false) => Next::Sequence,
        }
    };
    let results = generate_until(
        loaded.backbone.as_ref(),
        &loaded.adapters,
        choice,
        &encoded,
        &config,
        &mut on_token,
    )?;
    let seconds = start.elapsed().as_secs_f64();
    let tokens: usize = results.iter().map(|r| r.tokens.len()).sum();
    let prompt_seconds = first_token.map_or(seconds, |t| t.as_secs_f64());
    // The first token of each prompt comes out of reading the prompt.
    let speed = tokens.saturating_sub(prompts.len()) as f64 / (seconds - prompt_seconds).max(1e-9);
    let speed = if tokens > prompts.len() {
        Some(speed)
    } else {
        None
    };
    let texts = answers.into_iter().map(Answer::finish);
    let texts = texts.collect::<Result<Vec<String>>>()?;
    match args.output.json {
        _ if shown => {}
        true => {
            let described = results
                .iter()
                .zip(&prompts)
                .zip(&adapters)
                .zip(encoded.iter().zip(&texts))
                .map(|(((result, prompt), adapter), (ids, text))| {
                    let mut value = describe(result, prompt, ids.len(), text);
                    value["adapter"] = json!(adapter);
                    value
                });
            let results: Vec<Value> = described.collect();
            let mut value = json!({ "model": loaded.files.name(), "adapter": args.model.adapter, "seconds": seconds, "prompt_seconds": prompt_seconds, "tokens_per_second": speed });
            if let [Value::Object(only)] = results.as_slice() {
                only.iter()
                    .for_each(|(key, field)| value[key] = field.clone());
            }
            value["results"] = json!(results);
            ui::print_json(&value)?;
        }
        false => {
            for (i, (text, prompt)) in texts.iter().zip(&prompts).enumerate() {
                if prompts.len() > 1 {
                    ui::print(&format!(
                        "{}{}",
                        if i > 0 { "\n" } else { "" },
                        style(format!("> {}", ui::shown(prompt))).bold()
                    ));
                }
                ui::print(&ui::shown(text));
            }
        }
    }
    if ui::stderr_is_terminal() && !args.output.json {
        let speed = speed.map_or(String::new(), |s| {
            format!(" · {} tok/s", human::significant(s, 3))
        });
        let prompt_tokens: usize = encoded.iter().map(Vec::len).sum();
        let line = format!(
            "{} prompt tokens in {} · {} new{speed}",
            prompt_tokens,
            human::duration(prompt_seconds),
            tokens
        );
        ui::note(args.output, &style(line).dim().for_stderr().to_string());
    }
    Ok(if interrupt::asked(&interrupted) {
        Outcome::Interrupted
    } else {
        Outcome::Done
    })
}

fn describe(result: &Generation, prompt: &str, prompt_tokens: usize, text: &str) -> Value {
    json!({ "prompt": prompt, "text": text, "prompt_tokens": prompt_tokens, "tokens": result.tokens.len(), "token_ids": result.tokens, "finish": result.finish })
}

fn encode(prompt: &str, tokenizer: &TextTokenizer, args: &Args) -> Result<Vec<u32>> {
    if !args.is_chat() {
        return Ok(tokenizer.encode(prompt, true)?);
    }
    let system = args.system.iter().map(|text| Message::new("system", text));
    let messages: Vec<Message> = system.chain([Message::new("user", prompt)]).collect();
    Ok(tokenizer.encode(&tokenizer.render_chat(&messages, true)?, false)?)
}

/// A text to continue, and the folder of the adapter to do it with.
struct Prompt {
    text: String,
    adapter: Option<PathBuf>,
}

/// The prompts of the flags, then those of the file.
fn prompts(args: &Args) -> Result<Vec<Prompt>> {
    let plain = |text: &str| Prompt {
        text: text.to_owned(),
        adapter: args.model.adapter.clone(),
    };
    let mut prompts: Vec<Prompt> = args.prompts.iter().map(|text| plain(text)).collect();
    if let Some(path) = &args.file {
        let name = path.display();
        let text = if path == Path::new("-") {
            let mut text = String::new();
            std::io::stdin()
                .read_to_string(&mut text)
                .context("standard input: cannot read")?;
            text
        } else {
            let bytes = frugal_core::fs::read(path)?;
            String::from_utf8(bytes).map_err(|e| {
                anyhow::anyhow!(
                    "{name}: not UTF-8 text after byte {}",
                    e.utf8_error().valid_up_to()
                )
            })?
        };
        let records = path.extension().is_some_and(|e| e == "jsonl");
        for (i, line) in text
            .lines()
            .enumerate()
            .filter(|(_, line)| !line.trim().is_empty())
        {
            let plain = plain(line);
            prompts.push(if records {
                record(line, plain.adapter).with_context(|| format!("{name}:{}", i + 1))?
            } else {
                plain
            });
        }
    }
    if prompts.is_empty() {
        bail!("no prompt: the file has no line with text");
    }
    Ok(prompts)
}

/// A record of a JSONL file; `adapter` is for one that names none.
fn record(line: &str, adapter: Option<PathBuf>) -> Result<Prompt> {
    let value: Value = serde_json::from_str(line).context("malformed JSON")?;
    let text = value
        .get("prompt")
        .and_then(Value::as_str)
        .context("no text under the key `prompt`")?
        .to_owned();
    let adapter = match value.get("adapter") {
        None => adapter,
        Some(Value::Null) => None,
        Some(Value::String(folder)) => Some(folder.into()),
        Some(other) => bail!("`adapter` is {other}: name a folder, or null for the model as it is"),
    };
    Ok(Prompt { text, adapter })
}

/// The text of an answer as it is generated, up to a text to stop at.
pub struct Answer<'a> {
    stream: StopStream<'a>,
    text: String,
    shown: bool,
    /// Wraps between words for a person; programs get the text as it is.
    wrapping: Option<Wrapping>,
    error: Option<TokenizerError>,
}

impl<'a> Answer<'a> {
    /// An answer that ends before any of the texts, and is written to the terminal if `shown`.
    pub fn new(tokenizer: &'a TextTokenizer, stops: &[String], shown: bool) -> Self {
        Self {
            stream: StopStream::new(tokenizer, stops),
            text: String::new(),
            shown,
            wrapping: None,
            error: None,
        }
    }

    /// The same, shown and wrapped between words where a person reads it.
    pub fn for_people(tokenizer: &'a TextTokenizer, stops: &[String]) -> Self {
        Self {
            wrapping: ui::stdout_is_terminal().then(|| Wrapping::new(ui::width())),
            ..Self::new(tokenizer, stops, true)
        }
    }

    /// Takes one more token.
    pub fn push(&mut self, token: u32) {
        match self.stream.push(token) {
            Ok(text) => self.take(text.as_deref()),
            Err(error) => self.error = Some(error),
        }
    }

    /// Whether a text to stop at has come.
    pub fn is_stopped(&self) -> bool {
        self.stream.is_stopped()
    }

    /// The whole text; ends the line if it was shown.
    pub fn finish(mut self) -> Result<String> {
        if let Some(error) = self.error.take() {
            return Err(error.into());
        }
        let rest = self.stream.clone().finish()?;
        self.take(rest.as_deref());
        if self.shown {
            let rest = self.wrapping.as_mut().map(Wrapping::finish);
            ui::print(&rest.unwrap_or_default());
        }
        Ok(self.text)
    }

    fn take(&mut self, text: Option<&str>) {
        let text = text.unwrap_or_default();
        if self.shown {
            let text = ui::shown(text);
            match &mut self.wrapping {
                Some(wrapping) => ui::write(&wrapping.push(&text)),
                None => ui::write(&text),
            }
        }
        self.text.push_str(text);
    }
}
