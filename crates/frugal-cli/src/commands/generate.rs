//! `frugal generate`: continues prompts.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use console::style;
use frugal::run::{Continued, GenerateRequest, Prompt, adapter_name};
use frugal_core::human;
use frugal_core::tokenizer::TextTokenizer;
use serde_json::{Value, json};

use crate::args::{Machine, Model, Output, Sampling, Stop, Storage};
use crate::loaded;
use crate::outcome::Outcome;
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
    for flag in args.sampling.idle(args.temperature) {
        let why = format!("`{flag}` has no effect: at temperature 0 the likeliest token is taken");
        ui::warn(args.output, &why);
    }
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
    let loaded = loaded::read_several_for_text(
        &args.model,
        &folders,
        &args.machine,
        args.storage.quantize(),
        args.output,
    )?;
    loaded.refuse_classifiers()?;
    if args.is_chat() {
        let instead = "Leave out `--chat` and `--system`, or give one in `frugal chat` with `--chat-template`";
        needs_chat_template(loaded.files.tokenizer()?, loaded.files.name(), instead)?;
    }
    let prompt = |(text, folder): (&String, &Option<PathBuf>)| Prompt {
        text: text.clone(),
        adapter: folder.as_deref().map(adapter_name),
    };
    let request = GenerateRequest {
        prompts: prompts.iter().zip(&adapters).map(prompt).collect(),
        chat: args.is_chat(),
        system: args.system.clone(),
        stop: args.stop.texts.clone(),
        max_tokens: args.sampling.max_tokens,
        sampler,
        seed: args.sampling.seed,
        cache_type: args.storage.cache_type(),
    };
    let interrupted = interrupt::flag("");
    let shown = prompts.len() == 1 && !args.output.json && ui::stdout_is_terminal();
    let start = Instant::now();
    let mut first_token = None;
    let results = frugal::run::generate(&loaded, &request, &mut |piece| {
        if first_token.is_none() {
            first_token = Some(start.elapsed());
            if shown && !args.is_chat() {
                ui::write(&style(ui::shown(&prompts[0])).dim().to_string());
            }
        }
        if shown {
            ui::write(&ui::shown(piece.text));
        }
        !interrupt::asked(&interrupted)
    })?;
    let seconds = start.elapsed().as_secs_f64();
    if shown {
        ui::print("");
    }
    let prompt_seconds = first_token.map_or(seconds, |t| t.as_secs_f64());
    let timing = Timing::new(&results, seconds, prompt_seconds);
    match args.output.json {
        _ if shown => {}
        true => {
            let described = results.iter().zip(&prompts).zip(&adapters);
            let described = described.map(|((result, prompt), adapter)| {
                let mut value = describe(result, prompt);
                value["adapter"] = json!(adapter);
                value
            });
            let results: Vec<Value> = described.collect();
            let mut value = json!({ "model": loaded.files.name(), "adapter": args.model.adapter, "seconds": seconds, "prompt_seconds": prompt_seconds, "tokens_per_second": timing.speed });
            if let [Value::Object(only)] = results.as_slice() {
                only.iter()
                    .for_each(|(key, field)| value[key] = field.clone());
            }
            value["results"] = json!(results);
            ui::print_json(&value)?;
        }
        false => {
            for (i, (result, prompt)) in results.iter().zip(&prompts).enumerate() {
                if prompts.len() > 1 {
                    ui::print(&format!(
                        "{}{}",
                        if i > 0 { "\n" } else { "" },
                        style(format!("> {}", ui::shown(prompt))).bold()
                    ));
                }
                ui::print(&ui::shown(&result.text));
            }
        }
    }
    if ui::stderr_is_terminal() && !args.output.json {
        let line = timing.line();
        ui::note(args.output, &style(line).dim().for_stderr().to_string());
    }
    Ok(if interrupt::asked(&interrupted) {
        Outcome::Interrupted
    } else {
        Outcome::Done
    })
}

/// How fast it went.
struct Timing {
    prompt_tokens: usize,
    prompt_seconds: f64,
    tokens: usize,
    speed: Option<f64>,
}

impl Timing {
    fn new(results: &[Continued], seconds: f64, prompt_seconds: f64) -> Self {
        let tokens: usize = results.iter().map(|r| r.tokens.len()).sum();
        // The first token of each prompt comes out of reading the prompt.
        let later = tokens.saturating_sub(results.len());
        Self {
            prompt_tokens: results.iter().map(|r| r.prompt_tokens).sum(),
            prompt_seconds,
            tokens,
            speed: (later > 0).then(|| later as f64 / (seconds - prompt_seconds).max(1e-9)),
        }
    }

    fn line(&self) -> String {
        let speed = self.speed.map_or(String::new(), |s| {
            format!(" · {} tok/s", human::significant(s, 3))
        });
        format!(
            "{} prompt tokens in {} · {} new{speed}",
            self.prompt_tokens,
            human::duration(self.prompt_seconds),
            self.tokens
        )
    }
}

fn describe(result: &Continued, prompt: &str) -> Value {
    json!({ "prompt": prompt, "text": result.text, "prompt_tokens": result.prompt_tokens, "tokens": result.tokens.len(), "token_ids": result.tokens, "finish": result.finish })
}

/// A text to continue, and the folder of the adapter to do it with.
struct Given {
    text: String,
    adapter: Option<PathBuf>,
}

/// The prompts of the flags, then those of the file.
fn prompts(args: &Args) -> Result<Vec<Given>> {
    let plain = |text: &str| Given {
        text: text.to_owned(),
        adapter: args.model.adapter.clone(),
    };
    let mut prompts: Vec<Given> = args.prompts.iter().map(|text| plain(text)).collect();
    if let Some(path) = &args.file {
        let name = path.display();
        let text = if path == Path::new("-") {
            let mut text = String::new();
            std::io::stdin()
                .read_to_string(&mut text)
                .context("standard input: cannot read")?;
            text
        } else {
            let bytes = frugal_core::fs::read_data(path)?;
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
fn record(line: &str, adapter: Option<PathBuf>) -> Result<Given> {
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
    Ok(Given { text, adapter })
}
