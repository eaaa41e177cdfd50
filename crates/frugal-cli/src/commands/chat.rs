//! `frugal chat`: a conversation in the terminal.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Result, bail};
use console::style;
use frugal::decode::Sampler;
use frugal::run::{Answered, Conversation, ConversationOptions};
use frugal_core::human;
use frugal_core::template::source_of;
use rustyline::error::ReadlineError;
use serde_json::json;

use super::generate::needs_chat_template;
use crate::args::{Machine, Model, Output, Sampling, Stop, Storage};
use crate::failure;
use crate::loaded;
use crate::outcome::Outcome;
use crate::ui::text::Wrapping;
use crate::ui::{self, interrupt};

const EXAMPLES: &str = "\
Examples:
  frugal models fetch smollm2-135m
  frugal chat -m smollm2-135m
  frugal chat -m smollm2-135m --adapter runs/support --system \"Answer in one sentence.\"

In the conversation: /reset, /system TEXT, /save FILE, /help, /quit. \
Ctrl-C stops an answer; Ctrl-D ends the conversation.";

const HELP: &str = "\
/reset         forget the conversation
/system TEXT   start anew with these instructions
/save FILE     write the conversation as one line of JSONL, which `frugal tune` reads
/quit          end (or Ctrl-D)";

/// Talk to a model in the terminal
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES, allow_negative_numbers = true)]
pub struct Args {
    #[command(flatten)]
    model: Model,
    #[command(flatten)]
    storage: Storage,
    /// Instructions that the conversation starts with
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Chat template in place of the model's: a Jinja file, or chatml, gemma, llama2, llama3,
    /// mistral, phi3, vicuna, zephyr
    #[arg(long, value_name = "FILE|NAME")]
    chat_template: Option<String>,
    /// 0 takes the likeliest token; higher is more varied
    #[arg(
        long,
        value_name = "T",
        default_value_t = 0.7,
        help_heading = "Sampling"
    )]
    temperature: f32,
    #[command(flatten)]
    sampling: Sampling,
    #[command(flatten)]
    stop: Stop,
    #[command(flatten)]
    machine: Machine,
    /// No greeting and no speeds
    #[arg(long, short, help_heading = "Output")]
    quiet: bool,
}

/// Reads, answers, repeats.
pub fn run(args: &Args) -> Result<Outcome> {
    let output = Output {
        json: false,
        quiet: args.quiet,
    };
    let sampler = args.sampling.config(args.temperature);
    let mut sampler = Sampler::new(sampler, args.sampling.seed)?;
    let loaded =
        loaded::read_for_text(&args.model, &args.machine, args.storage.quantize(), output)?;
    let mut tokenizer = loaded.files.tokenizer()?.clone();
    loaded.refuse_classifiers()?;
    if let Some(given) = &args.chat_template {
        tokenizer.set_chat_template(&source_of(given)?)?;
    }
    needs_chat_template(
        &tokenizer,
        loaded.files.name(),
        "Use `frugal generate`, or give one with `--chat-template`",
    )?;
    let options = ConversationOptions {
        max_tokens: args.sampling.max_tokens,
        stop: args.stop.texts.clone(),
        cache_type: args.storage.cache_type(),
    };
    let conversation = Conversation::new(&loaded, tokenizer, &options)?;
    let mut editor = rustyline::DefaultEditor::new()?;
    // After the editor, which handles the signal itself from its creation on: while it reads it
    // sees Ctrl-C as a key anyway.
    let stop = interrupt::flag("");
    let mut chat = Chat {
        conversation,
        saved: None,
        stop: &stop,
        output,
    };
    chat.conversation.start(args.system.as_deref());
    ui::note(
        output,
        &style(format!(
            "{} · /help for commands, Ctrl-D to end",
            loaded.files.name()
        ))
        .dim()
        .for_stderr()
        .to_string(),
    );
    loop {
        match editor.readline("> ") {
            Ok(line) if line.trim().is_empty() => {}
            Ok(line) => {
                let _ = editor.add_history_entry(&line);
                match line.trim().strip_prefix('/') {
                    Some(command) => {
                        if !chat.command(command)? {
                            return Ok(Outcome::Done);
                        }
                    }
                    // A message that cannot be answered does not end the conversation.
                    None => {
                        if let Err(error) = chat.answer(&line, &mut sampler) {
                            failure::report(&error);
                        }
                    }
                }
            }
            Err(ReadlineError::Eof | ReadlineError::Interrupted) => return Ok(Outcome::Done),
            Err(error) => return Err(error.into()),
        }
    }
}

struct Chat<'a> {
    conversation: Conversation,
    /// The file of the last `/save`, which may be written again.
    saved: Option<PathBuf>,
    stop: &'a AtomicBool,
    output: Output,
}

impl Chat<'_> {
    /// Does what a line that starts with `/` says; false ends the conversation.
    fn command(&mut self, command: &str) -> Result<bool> {
        let (name, rest) = command
            .split_once(char::is_whitespace)
            .unwrap_or((command, ""));
        let rest = rest.trim();
        match name {
            "quit" | "exit" => return Ok(false),
            "help" => ui::print(HELP),
            "reset" => {
                self.conversation.reset();
                ui::note(self.output, "forgotten");
            }
            "system" if rest.is_empty() => ui::say("give the instructions: /system TEXT"),
            "system" => {
                self.conversation.start(Some(rest));
                ui::note(self.output, "started anew");
            }
            "save" if rest.is_empty() => ui::say("give a file: /save FILE"),
            "save" => match self.save(Path::new(rest)) {
                Ok(()) => ui::note(self.output, &format!("saved in {rest}")),
                Err(error) => ui::say(&format!("error: {error}")),
            },
            other => ui::say(&format!("no command /{other}; /help lists them")),
        }
        Ok(true)
    }

    fn save(&mut self, path: &Path) -> Result<()> {
        if path.exists() && self.saved.as_deref() != Some(path) {
            bail!("{}: exists already; choose another name", path.display());
        }
        let line = json!({ "messages": self.conversation.messages() }).to_string() + "\n";
        frugal_core::fs::write_atomic(path, line.as_bytes())?;
        self.saved = Some(path.into());
        Ok(())
    }

    fn answer(&mut self, line: &str, sampler: &mut Sampler) -> Result<()> {
        self.stop.store(false, Ordering::SeqCst);
        // Wrapped between words for a person; programs get the text as it is.
        let mut wrapping = ui::stdout_is_terminal().then(|| Wrapping::new(ui::width()));
        let start = Instant::now();
        let mut begun = false;
        let answered = self.conversation.answer(line, sampler, &mut |text| {
            begun = true;
            let text = ui::shown(text);
            match &mut wrapping {
                Some(wrapping) => ui::write(&wrapping.push(&text)),
                None => ui::write(&text),
            }
            !self.stop.load(Ordering::SeqCst)
        });
        if begun {
            let rest = wrapping.as_mut().map(Wrapping::finish);
            ui::print(&rest.unwrap_or_default());
        }
        let Answered { tokens, forgotten } = answered?;
        if forgotten > 0 {
            ui::warn(
                self.output,
                "the conversation is too long for the model: its oldest turns are forgotten",
            );
        }
        if ui::stderr_is_terminal() {
            let speed = tokens as f64 / start.elapsed().as_secs_f64();
            let line = format!("{tokens} tokens · {} tok/s", human::significant(speed, 3));
            ui::note(self.output, &style(line).dim().for_stderr().to_string());
        }
        Ok(())
    }
}
