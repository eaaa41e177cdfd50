//! `frugal plan parallel`: how a training step is divided among many devices.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use frugal::model::load::ModelFiles;
use frugal_core::human;
use frugal_core::table::{Column, Table};
use frugal_eval::parallel::known::{Published, published};
use frugal_eval::parallel::{
    BytesPerParameter, CostModel, Estimate, Machine, ParallelPlan, PassTimes, PlanTuner, Scaling,
    ScalingPoint, Schedule, TransformerShape, Tuned, ZeroStage, scaling, simulate, timeline,
};
use frugal_eval::report::scaling_svg;
use serde_json::json;

use crate::args::{Output, lookup};
use crate::outcome::Outcome;
use crate::ui::{self, table};

const EXAMPLES: &str = "\
Examples:
  frugal plan parallel --model 175b
  frugal plan parallel --model 1t --gpus 3072 --tensor 8 --pipeline 64 --batch 9600
  frugal plan parallel --model 22b --gpus 128 --batch 640 --tune 40
  frugal plan parallel --model 175b --scaling strong --batch 8000 --plot scaling.svg
  frugal plan parallel --model smollm2-135m --gpus 8 --batch 512 --machine cluster.toml --json

The models 22b, 175b and 1t are those of the Frontier paper (arXiv 2312.12705) with its plans; what is \
not given is taken from them. Of other models the configuration is read, and without --tensor and \
--pipeline a plan is searched.

A machine is a TOML file with the keys of `crates/frugal-eval/src/parallel/frontier.toml`, which is the \
built-in one; its two efficiencies belong to be measured.";

/// Show memory, time and traffic of a training step that is divided among many devices
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// 22b, 175b, 1t, or a model whose configuration is read
    #[arg(long, short, value_name = "MODEL", default_value = "175b")]
    model: String,
    /// Devices
    #[arg(long, value_name = "N", help_heading = "Plan")]
    gpus: Option<u64>,
    /// Sequences of a step on all devices
    #[arg(long, value_name = "N", help_heading = "Plan")]
    batch: Option<u64>,
    /// Tensor-parallel degree
    #[arg(long, value_name = "T", help_heading = "Plan")]
    tensor: Option<u64>,
    /// Stages of the pipeline
    #[arg(long, value_name = "P", help_heading = "Plan")]
    pipeline: Option<u64>,
    /// Sequences of a micro-batch
    #[arg(long, value_name = "N", help_heading = "Plan")]
    micro_batch: Option<u64>,
    /// What replicas shard: 0 nothing, 1 optimizer states, 2 gradients too, 3 weights too
    #[arg(long, value_name = "STAGE", value_parser = clap::value_parser!(u8).range(0..=3), help_heading = "Plan")]
    zero: Option<u8>,
    /// Order of the pipeline: gpipe, 1f1b, interleaved
    #[arg(long, value_name = "NAME", value_parser = Schedule::named, help_heading = "Plan")]
    schedule: Option<Schedule>,
    /// Chunks of layers on each stage of an interleaved schedule
    #[arg(long, value_name = "N", help_heading = "Plan")]
    chunks: Option<u64>,
    /// Keep activations instead of computing them again
    #[arg(long, help_heading = "Plan")]
    no_recompute: bool,
    /// Attention keeps its scores
    #[arg(long, help_heading = "Plan")]
    no_flash_attention: bool,
    /// Tokens of a sequence
    #[arg(long, value_name = "N", help_heading = "Plan")]
    sequence_length: Option<u64>,
    /// Bytes of a parameter in training
    #[arg(
        long,
        value_enum,
        value_name = "KIND",
        default_value = "mixed",
        help_heading = "Plan"
    )]
    states: States,
    /// Search for the plan with the highest throughput, trying so many
    #[arg(long, value_name = "TRIALS", help_heading = "Search")]
    tune: Option<usize>,
    /// Decides the draws of the search
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Search")]
    seed: u64,
    /// Vary the replicas: weak keeps the batch of each, strong that of a step
    #[arg(long, value_enum, value_name = "KIND", help_heading = "Output")]
    scaling: Option<Kind>,
    /// Write the scaling as an SVG drawing
    #[arg(
        long,
        value_name = "FILE",
        requires = "scaling",
        help_heading = "Output"
    )]
    plot: Option<PathBuf>,
    /// Draw the order of the pipeline, with passes of equal length
    #[arg(long, help_heading = "Output")]
    timeline: bool,
    /// Profile of the machine [default: Frontier]
    #[arg(long, value_name = "FILE", help_heading = "Machine")]
    machine: Option<PathBuf>,
    /// Never use the network; also set by HF_HUB_OFFLINE=1
    #[arg(long, help_heading = "Machine")]
    offline: bool,
    #[command(flatten)]
    output: Output,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Kind {
    Weak,
    Strong,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum States {
    /// Mixed precision with Adam: 2 + 2 + 4 + 4 + 4
    Mixed,
    /// The table of the Frontier paper: 2 + 4 + 4 + 4
    FrontierTable,
    /// Single precision with Adam: 4 + 4 + 8
    Single,
}

/// More stages or passes are not drawn.
const DRAWN: u64 = 64;
/// Trials of a search that was not asked for.
const TRIALS: usize = 40;
/// More trials than this are refused.
const MAX_TRIALS: usize = 4096;

/// Plans and prints.
pub fn run(args: &Args) -> Result<Outcome> {
    let known = published(&args.model);
    let shape = shape(args, known)?;
    let model = CostModel {
        shape,
        machine: match &args.machine {
            Some(path) => Machine::read(path)?,
            None => Machine::frontier()?,
        },
        bytes: match args.states {
            States::Mixed => BytesPerParameter::MIXED_ADAM,
            States::FrontierTable => BytesPerParameter::FRONTIER_TABLE,
            States::Single => BytesPerParameter::SINGLE_ADAM,
        },
    };
    let (plan, tuned) = plan(args, known, &model)?;
    let found = model.estimate(&plan)?;
    let scaled = match args.scaling {
        None => None,
        Some(kind) => {
            let kind = match kind {
                Kind::Weak => Scaling::Weak,
                Kind::Strong => Scaling::Strong,
            };
            Some((kind, scaling(&model, &plan, kind)?))
        }
    };
    if let (Some(path), Some((kind, points))) = (&args.plot, &scaled) {
        write_plot(path, *kind, points)?;
    }
    if args.output.json {
        ui::print_json(&json!({
            "model": args.model, "shape": shape, "machine": model.machine,
            "bytes_per_parameter": model.bytes, "estimate": found,
            "tuned": tuned, "scaling": scaled.as_ref().map(|(kind, points)| json!({ "kind": kind, "points": points })),
            "published_utilization": known.map(|k| k.utilization),
        }))?;
        return Ok(Outcome::Done);
    }
    print(&found, &model, known);
    if let Some(tuned) = &tuned {
        print_search(tuned);
    }
    if let Some((_, points)) = &scaled {
        print_scaling(points);
    }
    if args.timeline {
        draw(&plan)?;
    }
    if found.tensor_leaves_node {
        let text = format!(
            "tensor degree {} is more than the {} devices of a node: its all-reduces cross the fabric",
            plan.tensor, model.machine.gpus_per_node
        );
        ui::warn(args.output, &text);
    }
    Ok(Outcome::Done)
}

/// The model's sizes: those of the paper, or of a configuration.
fn shape(args: &Args, known: Option<&Published>) -> Result<TransformerShape> {
    let mut shape = match known {
        Some(known) => known.shape,
        None => read_shape(&args.model, args.offline)?,
    };
    if let Some(tokens) = args.sequence_length {
        shape.sequence = tokens;
    }
    shape.check()?;
    Ok(shape)
}

fn read_shape(name: &str, offline: bool) -> Result<TransformerShape> {
    let files = ModelFiles::open(name, &lookup(offline))?;
    let config = files.config();
    let cost = config.cost();
    if config.family.is_encoder
        || cost.experts > 1
        || cost.recurrence.is_some()
        || cost.latent.is_some()
        || cost.param_tokens.is_some()
        || cost.routes_tokens
    {
        bail!(
            "{}: `model_type` {}: plans are for decoders of equal blocks of attention and one feed-forward layer",
            config.source,
            config.model_type()
        );
    }
    let sizes = [
        config.num_hidden_layers,
        config.hidden_size,
        config.num_attention_heads,
        config.num_key_value_heads,
        config.head_dim,
        config.intermediate_size,
        config.vocab_size,
        config.max_position_embeddings,
    ];
    let [
        layers,
        hidden,
        heads,
        key_value_heads,
        head_dim,
        ffn,
        vocab,
        sequence,
    ] = sizes.map(|size| size as u64);
    // A site of a learnt position table, and biases, are what a GPT has beside a Llama.
    let gpt = matches!(config.model_type(), "gpt2" | "gpt_neox");
    Ok(TransformerShape {
        layers,
        hidden,
        heads,
        key_value_heads,
        head_dim,
        ffn,
        gated: cost.gated,
        vocab,
        sequence,
        learned_positions: config.model_type() == "gpt2",
        biases: gpt,
        tied: config.tie_word_embeddings,
    })
}

/// The plan that is meant: the flags, what the paper has, or what a search finds.
fn plan(
    args: &Args,
    known: Option<&Published>,
    model: &CostModel,
) -> Result<(ParallelPlan, Option<Tuned>)> {
    let base = known.map_or_else(ParallelPlan::default, |known| known.plan);
    let zero = args
        .zero
        .map(|stage| ZeroStage::try_from(stage).map_err(anyhow::Error::msg));
    let schedule = args.schedule.unwrap_or(base.schedule);
    let base = ParallelPlan {
        tensor: args.tensor.unwrap_or(base.tensor),
        pipeline: args.pipeline.unwrap_or(base.pipeline),
        micro_batch: args.micro_batch.unwrap_or(base.micro_batch),
        zero: zero.transpose()?.unwrap_or(base.zero),
        schedule,
        chunks: match args.chunks {
            Some(chunks) => chunks,
            None if schedule == Schedule::Interleaved => 2,
            None => 1,
        },
        recompute: !args.no_recompute,
        flash_attention: !args.no_flash_attention,
        ..base
    };
    let gpus = match (args.gpus, known) {
        (Some(gpus), _) => gpus,
        (None, Some(known)) => known.gpus,
        (None, None) => bail!("`--gpus` says for how many devices to plan"),
    };
    let is_open = known.is_none() && args.tensor.is_none() && args.pipeline.is_none();
    if args.tune.is_none() && !is_open {
        // The paper's batches are those of a replica, of which too few devices make none: that is said
        // of the devices.
        let replicas = gpus / (base.tensor.max(1).saturating_mul(base.pipeline.max(1))).max(1);
        let replicas = replicas.max(1);
        let own = base
            .micro_batches
            .saturating_mul(base.micro_batch)
            .saturating_mul(replicas);
        if args.batch.is_none() && own > frugal_eval::parallel::MAX_COUNT {
            bail!(
                "{replicas} replicas with the usual batch of each make {own} sequences of a step: give `--batch`"
            );
        }
        let batch = args.batch.unwrap_or(own);
        let plan = limited(base, gpus, batch)?.for_world(gpus, batch)?;
        return Ok((plan, None));
    }
    let batch = args
        .batch
        .with_context(|| "`--batch` says for how many sequences in a step a plan is searched")?;
    let base = limited(base, gpus, batch)?;
    let trials = args.tune.unwrap_or(TRIALS);
    if trials == 0 || trials > MAX_TRIALS {
        bail!("--tune must be between 1 and {MAX_TRIALS}");
    }
    let mut tuner = PlanTuner::new(gpus, batch, args.seed);
    tuner.base = base;
    let space = &mut tuner.space;
    // What is given is not searched.
    if args.tensor.is_some() {
        space.tensor = vec![base.tensor];
    }
    if args.pipeline.is_some() {
        space.pipeline = vec![base.pipeline];
    }
    if args.micro_batch.is_some() {
        space.micro_batch = vec![base.micro_batch];
    }
    if args.zero.is_some() {
        space.zero = vec![base.zero];
    }
    if args.schedule.is_some() {
        space.schedule = vec![(base.schedule, base.chunks)];
    } else if args.chunks.is_some() {
        space.schedule.retain(|(_, chunks)| *chunks == base.chunks);
        if space.schedule.is_empty() {
            space.schedule = vec![(Schedule::Interleaved, base.chunks)];
        }
    }
    if args.no_recompute {
        space.recompute = vec![false];
    }
    let measure = |plan: &ParallelPlan| model.estimate(plan).map(|e| e.sequences_per_second);
    let tuned = tuner.tune(&model.shape, trials, measure)?;
    let Some(best) = &tuned.best else {
        let last = tuned.trials.last().and_then(|trial| trial.error.clone());
        bail!(
            "none of the {} plans tried can run, the last because: {}",
            tuned.trials.len(),
            last.unwrap_or_default()
        );
    };
    Ok((best.plan, Some(tuned)))
}

/// Numbers that products can be formed of.
fn limited(plan: ParallelPlan, gpus: u64, batch: u64) -> Result<ParallelPlan> {
    let numbers = [
        ("--gpus", gpus),
        ("--batch", batch),
        ("--tensor", plan.tensor),
        ("--pipeline", plan.pipeline),
        ("--micro-batch", plan.micro_batch),
        ("--chunks", plan.chunks),
    ];
    let most = frugal_eval::parallel::MAX_COUNT;
    for (name, value) in numbers {
        if !(1..=most).contains(&value) {
            bail!("{name} is {value}, but must be between 1 and {most}");
        }
    }
    Ok(plan)
}

fn write_plot(path: &Path, kind: Scaling, points: &[ScalingPoint]) -> Result<()> {
    if let Some(svg) = scaling_svg(kind, points)? {
        frugal_core::fs::write_atomic(path, svg.as_bytes())?;
    }
    Ok(())
}

fn percent(share: f64) -> String {
    format!("{:.2} %", 100.0 * share)
}

fn degrees(plan: &ParallelPlan) -> String {
    let chunks = if plan.chunks > 1 {
        format!(" of {} chunks", plan.chunks)
    } else {
        String::new()
    };
    format!(
        "tensor {} × pipeline {} × data {}, ZeRO-{}, {}{chunks}{}",
        plan.tensor,
        plan.pipeline,
        plan.data,
        u8::from(plan.zero),
        plan.schedule.name(),
        if plan.recompute { ", recomputed" } else { "" },
    )
}

fn print(found: &Estimate, model: &CostModel, known: Option<&Published>) {
    let plan = &found.plan;
    let bytes = |v: f64| human::bytes(v.round() as u64);
    let fullest = (0..found.memory.len())
        .max_by(|&a, &b| found.memory[a].total().total_cmp(&found.memory[b].total()))
        .unwrap_or(0);
    let memory = found.memory.get(fullest).copied().unwrap_or_default();
    let of = |seconds: f64| {
        format!(
            "{} ({})",
            human::duration(seconds),
            percent(seconds / found.seconds)
        )
    };
    let b = model.bytes;
    let measured = known.map_or_else(String::new, |known| {
        format!(
            "; measured with the paper's plan: {}",
            percent(known.utilization)
        )
    });
    ui::print(&table::pairs(&[
        ("parameters", human::count(found.parameters as u64)),
        (
            "devices",
            format!("{} of {}", human::count(found.gpus), model.machine.name),
        ),
        ("plan", degrees(plan)),
        (
            "batch",
            format!(
                "{} sequences: micro-batch {} × {} micro-batches × {} replicas",
                human::count(found.global_batch),
                plan.micro_batch,
                human::count(plan.micro_batches),
                plan.data
            ),
        ),
        (
            "bytes of a parameter",
            format!(
                "{}: weight {}, gradient {}, master copy {}, momentum {}, variance {}",
                b.total(),
                b.weight,
                b.gradient,
                b.master,
                b.momentum,
                b.variance
            ),
        ),
        (
            "memory of a device",
            format!(
                "{} of {} (stage {fullest} is the fullest)",
                bytes(found.peak_memory),
                bytes(model.machine.memory_bytes - model.machine.reserved_bytes)
            ),
        ),
        ("  weights", bytes(memory.weights)),
        ("  gradients", bytes(memory.gradients)),
        ("  optimizer", bytes(memory.optimizer)),
        ("  activations", bytes(memory.activations)),
        ("  working space", bytes(memory.workspace)),
        ("time of a step", human::duration(found.seconds)),
        ("  compute", of(found.time.compute)),
        ("  tensor all-reduces", of(found.time.tensor)),
        ("  bubble and messages", of(found.time.bubble)),
        ("  gradient exchange", of(found.time.data)),
        (
            "sent by a device",
            format!(
                "tensor {}, pipeline {}, data {}",
                bytes(found.traffic.tensor),
                bytes(found.traffic.pipeline),
                bytes(found.traffic.data)
            ),
        ),
        ("bubble of equal stages", percent(found.bubble_of_total)),
        (
            "throughput",
            format!(
                "{} tokens/s, {:.1} TFLOP/s a device",
                human::count(found.tokens_per_second.round() as u64),
                found.flops_per_gpu / 1e12
            ),
        ),
        (
            "utilisation",
            format!("{} predicted{measured}", percent(found.utilization)),
        ),
    ]));
}

fn print_search(tuned: &Tuned) {
    let mut values: Vec<f64> = tuned
        .trials
        .iter()
        .filter_map(|trial| trial.value)
        .collect();
    values.sort_by(f64::total_cmp);
    let failed = tuned.trials.len() - values.len();
    let mut shown = Table::new([
        Column::number("trial"),
        Column::text("plan"),
        Column::number("micro-batch"),
        Column::number("sequences/s"),
    ]);
    let mut best = f64::NEG_INFINITY;
    for (i, trial) in tuned.trials.iter().enumerate() {
        let Some(value) = trial.value.filter(|value| *value > best) else {
            continue;
        };
        best = value;
        shown.row([
            (i + 1).to_string(),
            degrees(&trial.plan),
            trial.plan.micro_batch.to_string(),
            human::significant(value, 4),
        ]);
    }
    ui::print(&format!(
        "\n{} of {} plans tried, {failed} failed; those that were better than all before:",
        tuned.trials.len(),
        tuned.candidates
    ));
    table::print(&shown);
}

fn print_scaling(points: &[ScalingPoint]) {
    let mut shown = Table::new([
        Column::number("devices"),
        Column::number("batch"),
        Column::number("sequences/s"),
        Column::number("efficiency"),
        Column::text(""),
    ]);
    for point in points {
        let bar = (20.0 * point.efficiency.clamp(0.0, 1.0)).round() as usize;
        shown.row([
            human::count(point.gpus),
            human::count(point.global_batch),
            human::significant(point.sequences_per_second, 4),
            percent(point.efficiency),
            "\u{2588}".repeat(bar),
        ]);
    }
    ui::print("");
    table::print(&shown);
}

/// The order of the first micro-batches.
fn draw(plan: &ParallelPlan) -> Result<()> {
    if plan.pipeline > DRAWN {
        bail!(
            "--timeline draws {DRAWN} stages at most, and there are {}",
            plan.pipeline
        );
    }
    let most = (DRAWN / plan.pipeline).clamp(1, 4) * plan.pipeline;
    let short = ParallelPlan {
        micro_batches: plan.micro_batches.min(most),
        ..*plan
    };
    let part = 1.0 / plan.chunks as f64;
    let found = simulate(&short, &PassTimes::equal(&short, part, 2.0 * part))?;
    ui::print(&format!(
        "\nThe first {} micro-batches; digits are forward passes, letters backward passes:",
        short.micro_batches
    ));
    for line in timeline(&found, ui::width().saturating_sub(2)) {
        ui::print(&format!("  {line}"));
    }
    Ok(())
}
