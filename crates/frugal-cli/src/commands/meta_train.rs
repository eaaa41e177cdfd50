//! `frugal meta-train`: learning to write contexts into an adapter.

use std::path::PathBuf;

use anyhow::{Result, bail};
use frugal::retrieve::perk::{MetaTrainConfig, PerkConfig};
use frugal::run::{MetaTrainRequest, OpenOptions, Progress, open, run_meta_train};
use frugal_core::human;

use crate::args::{Machine, Output};
use crate::outcome::Outcome;
use crate::ui::progress::{Counter, Phase};
use crate::ui::{self, interrupt};

const EXAMPLES: &str = "\
Examples:
  frugal meta-train --model smollm2-135m --data tasks.jsonl --rank 16 --lora-alpha 4 --lr 3e-4 --out memory
  frugal ask --index idx --model smollm2-135m --mode perk --perk-state memory \"What causes wing flutter?\"

A record of the data has `context` (a list of segments), `question`, `answer`, and where the model is \
to write what an answer rests on in front of it, `support` (a list of texts).

Each step writes the context of one task into an adapter by --inner-steps gradient steps, and makes \
the answer likelier without the context by changing where the adapter begins, how fast it learns and \
which tokens count. Defaults are those of PERK (arXiv 2507.06415) for models of half a billion \
parameters; the study of docs/perk.md has a smaller rank and higher rates.";

/// Learn to write long contexts into an adapter by a few gradient steps (PERK)
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES, allow_negative_numbers = true)]
pub struct Args {
    /// Name (see `frugal models`), folder, GGUF file, or org/name on the Hugging Face hub
    #[arg(long, short, value_name = "MODEL", help_heading = "Data")]
    model: String,
    /// Tasks (JSONL): context, question, answer, support
    #[arg(long, short, value_name = "FILE", help_heading = "Data")]
    data: PathBuf,
    /// New folder of the state
    #[arg(long, short, value_name = "DIR", help_heading = "Output")]
    out: PathBuf,
    /// Rank of the adapter
    #[arg(long, value_name = "R", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..), help_heading = "Writing")]
    rank: u32,
    /// Scale numerator: the scale is this over the square root of the rank
    #[arg(
        long,
        value_name = "X",
        default_value_t = 16.0,
        help_heading = "Writing"
    )]
    lora_alpha: f64,
    /// Adapted layers, separated by commas [default: every linear layer but the head]
    #[arg(
        long,
        value_name = "NAMES",
        value_delimiter = ',',
        help_heading = "Writing"
    )]
    target_modules: Vec<String>,
    /// Gradient steps on a context
    #[arg(long, value_name = "N", default_value_t = 4, help_heading = "Writing")]
    inner_steps: usize,
    /// Learning rate of these steps, from which learnt rates begin
    #[arg(
        long,
        value_name = "LR",
        default_value_t = 5e-5,
        help_heading = "Writing"
    )]
    inner_lr: f64,
    /// Keep the one learning rate for all tensors and steps
    #[arg(long, help_heading = "Writing")]
    no_learned_rates: bool,
    /// Let all tokens of a context count the same
    #[arg(long, help_heading = "Writing")]
    no_token_weights: bool,
    /// Inner steps at the end through which gradients go; 0 is first-order
    #[arg(long, value_name = "N", default_value_t = 2, help_heading = "Learning")]
    retained_steps: usize,
    /// Peak learning rate
    #[arg(
        long,
        value_name = "LR",
        default_value_t = 1e-5,
        help_heading = "Learning"
    )]
    lr: f64,
    /// Peak rate of the learnt learning rates [default: --lr]
    #[arg(long, value_name = "LR", help_heading = "Learning")]
    rates_lr: Option<f64>,
    /// Passes over the tasks
    #[arg(
        long,
        value_name = "N",
        default_value_t = 2.0,
        help_heading = "Learning"
    )]
    epochs: f64,
    /// Steps, one task each, in place of --epochs
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true, value_parser = clap::value_parser!(u64), help_heading = "Learning")]
    max_steps: u64,
    /// Decides initial values and order
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Learning")]
    seed: u64,
    #[command(flatten)]
    machine: Machine,
    #[command(flatten)]
    output: Output,
}

impl Args {
    fn state(&self) -> PerkConfig {
        PerkConfig {
            r: self.rank as usize,
            lora_alpha: self.lora_alpha,
            target_modules: self.target_modules.clone(),
            inner_steps: self.inner_steps,
            inner_lr: self.inner_lr,
            learned_rates: !self.no_learned_rates,
            token_weights: !self.no_token_weights,
            ..PerkConfig::default()
        }
    }

    fn train(&self) -> MetaTrainConfig {
        MetaTrainConfig {
            retained_steps: self.retained_steps,
            lr: self.lr,
            rates_lr: self.rates_lr,
            epochs: self.epochs,
            max_steps: self.max_steps,
            seed: self.seed,
            ..MetaTrainConfig::default()
        }
    }
}

/// Reads, learns, writes.
pub fn run(args: &Args) -> Result<Outcome> {
    let (state, train) = (args.state(), args.train());
    state.validate()?;
    train.validate(&state)?;
    if args.no_learned_rates && args.rates_lr.is_some() {
        bail!("`--rates-lr` is for learnt rates, which `--no-learned-rates` leaves out");
    }
    let (lookup, device) = (args.machine.lookup(), args.machine.device()?);
    let options = OpenOptions {
        needs_tokenizer: true,
        ..OpenOptions::new(&lookup, device)
    };
    let (mut phase, mut warnings) = (None, Vec::new());
    let opened = open(&args.model, &[], &options, &mut |progress| match progress {
        Progress::Begin { what } => phase = Some(Phase::new(args.output, what.clone())),
        Progress::Warning { text } => warnings.push(text.clone()),
        _ => {}
    });
    drop(phase);
    warnings.iter().for_each(|text| ui::warn(args.output, text));
    let opened = opened?;
    let stop = interrupt::flag("the state as it is by then will be written");
    let mut counter = None;
    let request = MetaTrainRequest {
        opened: &opened,
        data: &args.data,
        out: &args.out,
        state,
        train,
        stop: &stop,
    };
    let learned = run_meta_train(&request, &mut |_, of| {
        counter
            .get_or_insert_with(|| Counter::new(args.output, "steps", of, 0))
            .step();
    });
    drop(counter);
    let learned = learned?;
    if let Some(reason) = &learned.failed {
        bail!(
            "{reason}; the state of the {} steps before is in {}",
            learned.steps,
            learned.out.display()
        );
    }
    if args.output.json {
        ui::print_json(&serde_json::to_value(&learned)?)?;
    } else {
        let [adapter, weights, rates] = learned.parameters;
        ui::print(&format!(
            "{}: {} steps on {} tasks in {}; loss of the answers {} to {}; {adapter} values in the adapter, {weights} in token weights, {rates} learning rates",
            learned.out.display(),
            learned.steps,
            learned.tasks,
            human::duration(learned.seconds),
            human::significant(learned.loss[0], 4),
            human::significant(learned.loss[1], 4),
        ));
    }
    Ok(match learned.interrupted {
        true => Outcome::Interrupted,
        false => Outcome::Done,
    })
}
