//! The flags of `frugal eval`.

use std::path::PathBuf;

use anyhow::Result;
use clap::ValueEnum;
use frugal::model::Quantize;
use frugal::run::quantize_of;

use super::retrieval;
use crate::args::{Dtype, Machine, Model, Output};

const EXAMPLES: &str = "\
Examples:
  frugal eval --adapter runs/sst2 --data dev.tsv
  frugal eval --model smollm2-135m --data text.jsonl --max-length 512 --truncate
  frugal eval --adapter runs/sms-spam-lora --data sms-spam --json
  frugal eval --model smollm2-135m --tasks sst2,gsm8k --limit 200 --out runs/eval
  frugal eval --model smollm2-135m --tasks perplexity:book.txt
  frugal eval --tasks mmlu/default/_mmlu.yaml:data/mmlu --num-fewshot 5
  frugal eval --endpoint http://127.0.0.1:8080/v1 --tasks gsm8k --gen-kwargs max_gen_toks=512
  frugal eval --tasks list
  frugal eval --task retrieval --data scifact/ --index idx
  frugal eval --task retrieval --run bm25.trec --run dense.trec --qrels qrels.txt

With --data, an adapter with a classification head is measured by accuracy, macro-F1 and Matthews \
correlation, and --out keeps what it said of each example in predictions.jsonl; anything else is \
measured by loss and perplexity, and an adapter on preferences (prompt, chosen, rejected) by the loss of \
DPO, the share of pairs that it puts in order and the margin of its rewards over the model without it. With --tasks, a model is asked the questions of each task, and the \
results are those of lm-evaluation-harness, in its format. With --task retrieval, rankings are \
measured with the values of trec_eval.";

/// Tokens of a batch where nothing else is said.
const BATCH_TOKENS: usize = 4096;

/// Measure a model, with or without an adapter, on data or on tasks
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES, allow_negative_numbers = true)]
pub struct Args {
    #[command(flatten)]
    pub(super) model: Model,
    /// Data file (JSONL, JSON, CSV, TSV or text), or sms-spam for the test part of the built-in set
    #[arg(
        long,
        short,
        value_name = "FILE",
        help_heading = "Data",
        required_unless_present_any = ["tasks", "runs", "queries"],
        conflicts_with = "tasks"
    )]
    pub(super) data: Option<String>,
    /// Which column plays which role, for example text=sentence; repeatable
    #[arg(long = "column", value_name = "ROLE=NAME", value_parser = crate::args::pair, help_heading = "Data", conflicts_with = "tasks")]
    pub(super) columns: Vec<(String, String)>,
    /// How prompts and completions are written: auto, by the chat template where the model has one,
    /// or none, joined as they are [default: as the adapter's run did]
    #[arg(long, value_name = "NAME", value_parser = ["auto", "none"], help_heading = "Data", conflicts_with = "tasks")]
    pub(super) template: Option<String>,
    /// Longest example in tokens [default: what the model allows]
    #[arg(
        long,
        value_name = "N",
        default_value_t = 0,
        hide_default_value = true,
        help_heading = "Data",
        conflicts_with = "tasks"
    )]
    pub(super) max_length: usize,
    /// Cut longer examples instead of refusing them
    #[arg(long, help_heading = "Data", conflicts_with = "tasks")]
    pub(super) truncate: bool,
    /// Only the first N examples; 0 for all
    #[arg(
        long,
        value_name = "N",
        default_value_t = 0,
        hide_default_value = true,
        help_heading = "Data",
        conflicts_with = "tasks"
    )]
    pub(super) max_rows: usize,
    /// Also count the loss of prompts, not only of completions
    #[arg(long, help_heading = "Data", conflicts_with = "tasks")]
    pub(super) whole_text: bool,
    /// Tokens of a batch
    #[arg(
        long,
        value_name = "N",
        default_value_t = BATCH_TOKENS,
        value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..),
        help_heading = "Machine"
    )]
    pub(super) batch_tokens: usize,
    /// Write the logits of the first examples as safetensors, for comparison with other programs
    #[arg(
        long,
        value_name = "FILE",
        help_heading = "Output",
        conflicts_with = "tasks"
    )]
    pub(super) dump_logits: Option<PathBuf>,
    #[command(flatten)]
    pub(super) tasks: TaskFlags,
    #[command(flatten)]
    pub(super) retrieval: retrieval::Flags,
    #[command(flatten)]
    pub(super) machine: Machine,
    #[command(flatten)]
    pub(super) output: Output,
}

impl Args {
    /// Flags that models of images have no use for.
    pub(super) fn of_text(&self) -> impl Iterator<Item = &'static str> {
        let given = [
            ("--max-length", self.max_length > 0),
            ("--truncate", self.truncate),
            ("--column", !self.columns.is_empty()),
            ("--dump-logits", self.dump_logits.is_some()),
            ("--batch-tokens", self.batch_tokens != BATCH_TOKENS),
        ];
        let given = given.into_iter().filter(|(_, given)| *given);
        given.map(|(flag, _)| flag).chain(self.of_language_models())
    }

    /// Flags that only language models heed.
    pub(super) fn of_language_models(&self) -> impl Iterator<Item = &'static str> {
        let given = [
            ("--whole-text", self.whole_text),
            ("--template", self.template.is_some()),
        ];
        given
            .into_iter()
            .filter(|(_, given)| *given)
            .map(|(flag, _)| flag)
    }

    /// Flags that were given and that retrieval has no use for.
    pub(super) fn of_models(&self) -> Vec<&'static str> {
        let Self {
            model,
            data: _,
            columns: _,
            template: _,
            max_length: _,
            truncate: _,
            max_rows,
            whole_text: _,
            batch_tokens: _,
            dump_logits: _,
            tasks,
            retrieval: _,
            machine: _,
            output: _,
        } = self;
        let TaskFlags {
            tasks: names,
            limit,
            num_fewshot,
            fewshot_order,
            gen_kwargs,
            endpoint,
            served_model: _,
            api_key_env: _,
            apply_chat_template,
            fewshot_as_multiturn: _,
            system_instruction,
            seed,
            quantize,
            dtype,
            allow_code_execution,
            no_isolation: _,
            data_dir,
            out,
        } = tasks;
        let given = [
            ("--model", model.model.is_some()),
            ("--adapter", model.adapter.is_some()),
            ("--max-rows", *max_rows > 0),
            ("--tasks", !names.is_empty()),
            ("--limit", *limit > 0),
            ("--num-fewshot", num_fewshot.is_some()),
            ("--fewshot-order", fewshot_order.is_some()),
            ("--gen-kwargs", gen_kwargs.is_some()),
            ("--endpoint", endpoint.is_some()),
            ("--apply-chat-template", *apply_chat_template),
            ("--system-instruction", !system_instruction.is_empty()),
            ("--seed", *seed != 0),
            ("--quantize", quantize.is_some()),
            ("--dtype", dtype.is_some()),
            ("--allow-code-execution", *allow_code_execution),
            ("--data-dir", data_dir.is_some()),
            ("--out", out.is_some()),
        ];
        let given = given.into_iter().filter(|(_, given)| *given);
        given.map(|(flag, _)| flag).chain(self.of_text()).collect()
    }

    /// How weights are held: as the adapter was trained, unless something else is asked for.
    pub(super) fn quantize(&self) -> Result<Quantize> {
        let (_, adapter) = self.model.resolve()?;
        Ok(self
            .tasks
            .dtype
            .map(Dtype::quantize)
            .or(self.tasks.quantize)
            .unwrap_or_else(|| adapter.as_deref().map_or(Quantize::None, quantize_of)))
    }
}

/// What is asked and how.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Tasks")]
pub struct TaskFlags {
    /// Tasks, with commas between: names or task files (TOML, or YAML of lm-evaluation-harness, also
    /// of groups), each with :FILE or :FOLDER for data of your own; `list` shows the names
    #[arg(long, short, value_name = "TASKS", value_delimiter = ',')]
    pub(super) tasks: Vec<String>,
    /// Only the first N records of each task; 0 for all
    #[arg(
        long,
        value_name = "N",
        default_value_t = 0,
        hide_default_value = true,
        conflicts_with = "data"
    )]
    pub(super) limit: usize,
    /// Examples in front of each question [default: the task's]
    #[arg(long, value_name = "K", conflicts_with = "data")]
    pub(super) num_fewshot: Option<usize>,
    /// Which records become examples [default: as the task says, else random]
    #[arg(long, value_name = "HOW", value_enum, conflicts_with = "data")]
    pub(super) fewshot_order: Option<FewshotOrder>,
    /// Changes how the model writes: KEY=VALUE with commas between, or a JSON object; keys are until,
    /// max_gen_toks, do_sample, temperature, top_p, top_k, min_p, repetition_penalty
    #[arg(
        long,
        alias = "gen_kwargs",
        value_name = "SETTINGS",
        conflicts_with = "data"
    )]
    pub(super) gen_kwargs: Option<String>,
    /// A service that speaks OpenAI's protocol, instead of a model; for tasks that write text
    #[arg(long, value_name = "URL", conflicts_with_all = ["model", "adapter", "data", "quantize"])]
    pub(super) endpoint: Option<String>,
    /// What the service calls the model
    #[arg(
        long,
        value_name = "NAME",
        default_value = "default",
        requires = "endpoint",
        conflicts_with_all = ["model", "adapter", "data"]
    )]
    pub(super) served_model: String,
    /// Environment variable that holds the service's API key
    #[arg(long, value_name = "NAME", requires = "endpoint", conflicts_with_all = ["model", "adapter", "data"])]
    pub(super) api_key_env: Option<String>,
    /// Write prompts by the model's chat template
    #[arg(long, conflicts_with = "data")]
    pub(super) apply_chat_template: bool,
    /// Whether examples are turns of the conversation, as they are with --apply-chat-template unless
    /// this is false
    #[arg(
        long,
        value_name = "BOOL",
        num_args = 0..=1,
        default_missing_value = "true",
        requires = "apply_chat_template",
        conflicts_with = "data"
    )]
    pub(super) fewshot_as_multiturn: Option<bool>,
    /// Instruction in front of everything
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "",
        hide_default_value = true,
        conflicts_with = "data"
    )]
    pub(super) system_instruction: String,
    /// Decides which examples are drawn
    #[arg(long, value_name = "N", default_value_t = 0, conflicts_with = "data")]
    pub(super) seed: u64,
    /// How weights are held: none (single precision), stored, bf16, int8, nf4, nf4_double, q8_0,
    /// q4_0, q4_1, sparse [default: as in the run of the adapter, or none]
    #[arg(long, value_name = "NAME")]
    pub(super) quantize: Option<Quantize>,
    /// Numbers in which weights are held and multiplied: f32, bf16, or auto for what the processor
    /// is fastest at; adapters and sums stay in f32
    #[arg(
        long,
        visible_alias = "precision",
        value_name = "NAME",
        hide_possible_values = true,
        conflicts_with = "quantize"
    )]
    pub(super) dtype: Option<Dtype>,
    /// Run programs that the model writes, in a sandbox; humaneval needs it
    #[arg(long, conflicts_with = "data")]
    pub(super) allow_code_execution: bool,
    /// Run them even where the kernel cannot keep them from your files and network
    #[arg(long, requires = "allow_code_execution", conflicts_with = "data")]
    pub(super) no_isolation: bool,
    /// Folder with the tasks' data sets [default: $FRUGAL_DATA]
    #[arg(long, value_name = "DIR", conflicts_with = "data")]
    pub(super) data_dir: Option<PathBuf>,
    /// Keep answers, samples, results and what they cost in this folder; the same command goes on
    /// where it was stopped
    #[arg(long, short, value_name = "DIR")]
    pub(super) out: Option<PathBuf>,
}

/// Which records become examples.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum FewshotOrder {
    /// Drawn by the seed, for each question anew
    Random,
    /// The first ones
    First,
}

impl TaskFlags {
    /// Whether examples are turns of their own, as in lm-evaluation-harness from chats on.
    pub(super) fn multiturn(&self) -> bool {
        self.apply_chat_template && self.fewshot_as_multiturn.unwrap_or(true)
    }
}
