//! `frugal pretrain`: a small language model from text.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use frugal::adapt::pretraining::REPARAMETERIZATIONS;
use frugal::run::{
    DecayData, PRETRAIN_FILE, PretrainConfig, Pretrained, Progress, architectures, check_parallel,
    image_architectures, pretrain, pretrain_images, pretrain_with, pretrain_worker, reads_images,
};
use frugal::train::mixture::MIXTURES;
use frugal::train::optim::OPTIMIZERS;
use frugal::train::parallel::ParallelReport;
use frugal_core::config::{self, ConfigErrors};
use frugal_core::human;

use super::parallel::{ParallelFlags, Role, was_stopped};
use crate::args::{Config, Layer, Output, command_line, count_value, path_value};
use crate::outcome::Outcome;
use crate::ui::run::{RunProgress, scores};
use crate::ui::{self, interrupt, table};

const EXAMPLES: &str = "\
Examples:
  frugal pretrain --data text.txt --out models/mine
  frugal pretrain --data text.txt --out models/mine --epochs 3 --set shape.num_hidden_layers=8
  frugal pretrain --data text.txt --out models/mine --arch mamba
  frugal pretrain --data cifar10/ --out models/seen --arch efficientvmamba --set train.batch_size=64
  frugal pretrain --data text.txt --out models/mine --optim galore --set optim.rank=64
  frugal pretrain --data text.txt --out models/mine --reparam sltrain --set reparam.rank=64
  frugal pretrain --data text.txt --out models/mine --arch gated_ssm --objective birdie
  frugal pretrain --data text.txt --out models/mine --objective mixture --set objective.weights.copying=1
  frugal pretrain --data text.txt --out models/longer --from models/mine
  frugal pretrain --data text.txt --out models/mine --parallel data=2,zero=3
  frugal pretrain --data text.txt --out models/mine --parallel pipeline=2,micro=4
  frugal pretrain --config recipe.toml --out models/mine
  frugal pretrain --data text.txt --out runs/stable --arch minicpm --lr 0.01 --max-steps 4000 \
    --set train.lr_scheduler_type=warmup_stable_decay --set train.decay_ratio=0 --set train.save_total_limit=0
  frugal pretrain --fork runs/stable --fork-step 2000 --decay-steps 200 --out runs/at-2000 \
    --set train.decay_type=exp --decay-data answers.jsonl=0.3

Trains a tokenizer and a decoder with tied embeddings and writes a Hugging Face folder; of an \
architecture that reads images, all weights of a new model on the classes of images: a folder with \
a folder for each class, a tar file of such, or a table of paths. Sizes are \
under [shape] in the configuration: vocab_size, hidden_size, intermediate_size, \
num_hidden_layers, num_attention_heads, num_key_value_heads, max_position_embeddings, and every \
key that the architecture's config.json has, as shape.state_size of mamba. What the \
optimizer keeps and what the layers are while they are trained is under [train.optim], for which \
--set optim.KEY=VALUE is short, and [reparam]. Mixtures of objectives have their settings under \
[objective]: bidirectional, length_scale, classes, weights, and those of the controller.";

/// Train a small language model and its tokenizer from text
#[derive(Debug, clap::Args)]
#[command(after_help = notes())]
pub struct Args {
    /// Text: each line, or each block between blank lines, is a document; or images
    #[arg(long, short, value_name = "FILE", help_heading = "Data")]
    data: Option<String>,
    /// Longest piece of a document in tokens [default: 256]
    #[arg(long, value_name = "N", help_heading = "Data")]
    max_length: Option<u64>,
    /// Architecture, one of those below [default: llama]
    #[arg(long, value_name = "NAME", value_parser = architecture(), hide_possible_values = true, help_heading = "Model")]
    arch: Option<String>,
    /// Begin as a fork of this run: with the parameters, the optimizer's state and the place in the
    /// data of one of its checkpoints, and with its configuration, which is otherwise left as it is
    #[arg(long, value_name = "RUN", conflicts_with_all = ["arch", "vocab_size", "from", "config"], help_heading = "Decay")]
    fork: Option<PathBuf>,
    /// The step of that checkpoint [default: the newest]
    #[arg(long, value_name = "N", requires = "fork", help_heading = "Decay")]
    fork_step: Option<u64>,
    /// Steps over which the learning rate falls at the end of warmup_stable_decay; a fork has no
    /// others
    #[arg(long, value_name = "N", help_heading = "Decay")]
    decay_steps: Option<u64>,
    /// Learn from these records too during the decay, as this share of its tokens: documents, prompts
    /// with completions, instructions or conversations; may be repeated
    #[arg(long, value_name = "FILE=SHARE", value_parser = decay_data, help_heading = "Decay")]
    decay_data: Vec<DecayData>,
    /// Begin with the weights and the tokenizer of this model in place of new ones: a name, a folder,
    /// or org/name on the hub
    #[arg(long, value_name = "MODEL", conflicts_with_all = ["arch", "vocab_size"], help_heading = "Model")]
    from: Option<String>,
    /// Tokens of the new tokenizer [default: 4096]
    #[arg(long, value_name = "N", help_heading = "Model")]
    vocab_size: Option<u64>,
    #[arg(long, value_name = "NAME", help = optimizers(), help_heading = "Training")]
    optim: Option<String>,
    #[arg(long, value_name = "NAME", help = reparameterizations(), help_heading = "Training")]
    reparam: Option<String>,
    #[arg(long, value_name = "NAME", help = objectives(), help_heading = "Training")]
    objective: Option<String>,
    /// Peak learning rate [default: 0.003]
    #[arg(long, value_name = "X", help_heading = "Training")]
    lr: Option<f64>,
    /// Passes over the data [default: 1]
    #[arg(long, value_name = "X", help_heading = "Training")]
    epochs: Option<f64>,
    /// Optimiser steps; wins over --epochs
    #[arg(long, value_name = "N", help_heading = "Training")]
    max_steps: Option<u64>,
    /// Tokens of a micro-batch [default: 4096]
    #[arg(long, value_name = "N", help_heading = "Training")]
    batch_tokens: Option<u64>,
    /// Decides every random choice [default: 0]
    #[arg(long, value_name = "N", help_heading = "Training")]
    seed: Option<u64>,
    /// Where to compute: cpu, or cuda, rocm, vulkan, metal, webgpu in builds with that feature
    /// [default: cpu]
    #[arg(long, value_name = "NAME", help_heading = "Machine")]
    device: Option<String>,
    #[command(flatten)]
    parallel: ParallelFlags,
    #[command(flatten)]
    config: Config,
    /// Folder to write, new or empty
    #[arg(long, short, value_name = "DIR", value_parser = crate::args::folder, help_heading = "Output")]
    out: Option<PathBuf>,
    /// Continue the run in --out
    #[arg(long, help_heading = "Output")]
    resume: bool,
    /// Check the configuration and print it, train nothing
    #[arg(long, help_heading = "Output")]
    dry_run: bool,
    #[command(flatten)]
    output: Output,
}

/// Resolves the configuration, trains, says what came of it.
pub fn run(args: &Args) -> Result<Outcome> {
    let config = resolve(args)?;
    check_fork(args, &config)?;
    if args.dry_run {
        for text in config.idle() {
            ui::warn(args.output, &text);
        }
        if args.output.json {
            ui::print_json(&config)?;
        } else {
            ui::print(config::to_toml(&config)?.trim_end());
        }
        return Ok(Outcome::Done);
    }
    if let Some(layout) = args.parallel.layout() {
        check_parallel(&config, layout)?;
    }
    let stop = interrupt::flag("stopping after this step; press Ctrl-C again to end at once");
    if !args.parallel.is_given() {
        interrupt::reading();
    }
    if config.from.is_none() && reads_images(&config.shape.arch) {
        let tuned = {
            let mut progress = RunProgress::new(args.output);
            pretrain_images(&config, &command_line(), args.resume, &stop, &mut |p| {
                progress.on(p)
            })?
        };
        return super::tune::report(&tuned, args.output, "the same command and --resume");
    }
    let trained = {
        let (command, resume) = (command_line(), args.resume);
        // Which folder and which device is each process's own affair.
        let common = PretrainConfig {
            out: PathBuf::new(),
            device: String::new(),
            ..config.clone()
        };
        let mut progress = RunProgress::new(args.output);
        let observe = &mut |p: &Progress| progress.on(p);
        let done: Result<Option<Pretrained>> = match args.parallel.role(&common)? {
            Role::Alone => pretrain(&config, &command, resume, &stop, observe)
                .map(Some)
                .map_err(Into::into),
            Role::First(first) => {
                pretrain_with(&config, &command, resume, &stop, observe, |work| {
                    first.with_others(&stop, |group| Ok(work(Some(group))?))
                })
                .map(Some)
            }
            Role::Other(other) => {
                let done =
                    other.with_others(&stop, |group| Ok(pretrain_worker(&config, &stop, group)?));
                done.map(|()| None)
            }
        };
        match done {
            Ok(Some(trained)) => trained,
            Ok(None) => return Ok(Outcome::Done),
            Err(error) if was_stopped(&error) => {
                drop(progress);
                ui::note(args.output, "stopped before the run began");
                return Ok(Outcome::Interrupted);
            }
            Err(error) => return Err(error),
        }
    };
    if args.output.json {
        ui::print_json(&trained)?;
    } else if trained.interrupted {
        ui::note(args.output, "continue with the same command and --resume");
    } else {
        let speed = trained.tokens as f64 / trained.seconds.max(1e-9);
        let mut rows = vec![
            ("parameters", human::count(trained.parameters as u64)),
            ("trained", trained_memory(&trained)),
            ("held-out text", scores(&trained.metrics)),
            (
                "training",
                format!(
                    "{}, {} tokens/s",
                    human::duration(trained.seconds),
                    human::count(speed.round() as u64)
                ),
            ),
            ("model", trained.out.display().to_string()),
        ];
        if let Some(report) = &trained.parallel {
            rows.insert(3, ("processes", processes(report)));
        }
        ui::print(&table::pairs(&rows));
    }
    Ok(if trained.interrupted {
        Outcome::Interrupted
    } else {
        Outcome::Done
    })
}

/// Who trained, and what each keeps.
fn processes(report: &ParallelReport) -> String {
    let list = |bytes: &[u64]| {
        let all = bytes.iter().map(|n| human::bytes(*n));
        all.collect::<Vec<_>>().join(", ")
    };
    let stages = match report.pipeline {
        1 => String::new(),
        stages => format!(" of {stages} stages"),
    };
    format!(
        "{}{stages}, ZeRO-{}: of each rank parameters {}; gradients {}; optimizer {}; most resident in a step {}; rank 0 sent {}",
        report.data,
        report.zero,
        list(&report.parameter_bytes),
        list(&report.gradient_bytes),
        list(&report.optimizer_bytes),
        list(&report.resident_bytes),
        human::bytes(report.bytes_sent)
    )
}

fn optimizers() -> String {
    let names = OPTIMIZERS.iter().map(|entry| entry.name);
    let names: Vec<&str> = names.collect();
    format!("Optimizer: {} [default: {}]", names.join(", "), names[0])
}

fn reparameterizations() -> String {
    let names = REPARAMETERIZATIONS.iter().map(|entry| entry.name);
    let names: Vec<&str> = names.collect();
    format!(
        "What layers are while they are trained: {}; the saved weights are dense",
        names.join(", ")
    )
}

fn objectives() -> String {
    let known = MIXTURES
        .iter()
        .map(|(name, _, about)| format!("{name} ({about})"));
    let known: Vec<String> = known.collect();
    format!(
        "What is learnt of the text: causal_lm (plain next tokens), or a mixture of objectives: {} [default: causal_lm]",
        known.join(", ")
    )
}

/// What is trained, and the bytes that it takes.
fn trained_memory(trained: &Pretrained) -> String {
    let memory = trained.memory;
    format!(
        "{}: weights {}, gradients {}, optimizer {}",
        human::count(trained.trainable_parameters as u64),
        human::bytes(memory.weights),
        human::bytes(memory.gradients),
        human::bytes(memory.states)
    )
}

/// `optim.KEY=VALUE` as the key of the configuration that it is short for.
fn spelled_out(text: &str) -> String {
    let rest = text.trim_start().strip_prefix("optim");
    match rest.filter(|rest| rest.starts_with(['.', '='])) {
        Some(rest) => format!("train.optim{rest}"),
        None => text.to_owned(),
    }
}

/// `FILE=SHARE`.
fn decay_data(text: &str) -> Result<DecayData, String> {
    let (data, share) = text.rsplit_once('=').ok_or("give FILE=SHARE")?;
    let share = share
        .parse()
        .map_err(|_| format!("{share:?} is no share of the tokens"))?;
    Ok(DecayData {
        data: data.to_owned(),
        share,
    })
}

fn architecture() -> impl TypedValueParser<Value = String> {
    let all = architectures().chain(image_architectures());
    PossibleValuesParser::new(all.map(|(name, _)| name))
}

fn notes() -> String {
    let kind = |(name, about)| format!("\n  {name:<15} {about}");
    format!(
        "{EXAMPLES}\n\nArchitectures:{}\n\nThat read images:{}",
        architectures().map(kind).collect::<String>(),
        image_architectures().map(kind).collect::<String>()
    )
}

/// What a fork settles itself: the warm-up is that of its run, and with a decay it ends behind that.
fn check_fork(args: &Args, config: &PretrainConfig) -> Result<()> {
    let Some(run) = &config.fork else {
        return Ok(());
    };
    let set = |names: &[&str]| {
        let mut keys = args
            .config
            .overrides
            .iter()
            .filter_map(|set| set.split_once('='));
        keys.any(|(key, _)| names.contains(&key.trim()))
    };
    let given = [
        ("--max-steps", args.max_steps.is_some()),
        ("train.max_steps", set(&["train.max_steps"])),
        ("--epochs", args.epochs.is_some()),
        (
            "train.epochs",
            set(&["train.epochs", "train.num_train_epochs"]),
        ),
    ];
    let warmups = ["train.warmup_steps", "train.warmup_ratio"];
    if let Some(name) = warmups.into_iter().find(|name| set(&[*name])) {
        bail!(
            "`{name}`: a fork has the warm-up of {}, which is behind it: leave it out",
            run.display()
        );
    }
    let decays = config.train.decay_steps > 0;
    if let Some((name, _)) = given.into_iter().find(|(_, is_given)| decays && *is_given) {
        bail!(
            "`{name}`: a fork ends with its decay, {} steps behind where it begins: leave it out and give another `--decay-steps`, or fork {} anew without (`--set train.decay_steps=0`)",
            config.train.decay_steps,
            run.display()
        );
    }
    Ok(())
}

fn resolve(args: &Args) -> Result<PretrainConfig, ConfigErrors> {
    let mut layer = Layer::default();
    layer.set("data", args.data.clone());
    layer.set("from", args.from.clone());
    layer.set("out", path_value(&args.out));
    layer.set("fork", path_value(&args.fork));
    // A fork does not begin where the run that it is of did.
    let step = args.fork.as_ref().map(|_| args.fork_step.unwrap_or(0));
    layer.set("fork_step", count_value(step));
    let more = args.decay_data.iter().map(|part| {
        toml::Table::from_iter([
            ("data".to_owned(), part.data.clone().into()),
            ("share".to_owned(), part.share.into()),
        ])
    });
    let more: Vec<toml::Table> = more.collect();
    layer.set("decay_data", (!more.is_empty()).then_some(more));
    layer.set("train.decay_steps", count_value(args.decay_steps));
    layer.set("device", args.device.clone());
    layer.set("seed", count_value(args.seed));
    layer.set("max_length", count_value(args.max_length));
    layer.set("shape.arch", args.arch.clone());
    layer.set("shape.vocab_size", count_value(args.vocab_size));
    layer.set("reparam.name", args.reparam.clone());
    layer.set("objective.name", args.objective.clone());
    layer.set("train.optim.name", args.optim.clone());
    layer.set("train.lr", args.lr);
    layer.set("train.epochs", args.epochs);
    layer.set("train.max_steps", count_value(args.max_steps));
    layer.set("train.max_tokens", count_value(args.batch_tokens));
    let given = args.config.overrides.iter();
    let overrides: Vec<String> = given.map(|text| spelled_out(text)).collect();
    let of_fork = args.fork.as_ref().map(|run| run.join(PRETRAIN_FILE));
    let mut config: PretrainConfig = config::load_with(
        args.config.config.as_deref().or(of_fork.as_deref()),
        layer.table(),
        &overrides,
        PretrainConfig::problems,
    )?;
    config.resolve();
    Ok(config)
}
