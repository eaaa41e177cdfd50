//! A run as it goes on, on standard error.

use std::time::{Duration, Instant};

use console::truncate_str;
use frugal::run::{Metrics, Progress};
use frugal::train::Event;
use frugal_core::human::{bytes, count, duration, significant};
use indicatif::{ProgressBar, ProgressDrawTarget};

use super::progress::{Phase, TICK, style};
use super::rate::Rate;
use crate::args::Output;

/// Columns below which the bar shows less.
const NARROW: usize = 100;
/// Parts of a step that the bar tells apart.
const PARTS: f64 = 1000.0;
/// Time without a line in a pipe after which one is said.
const SILENCE: Duration = Duration::from_secs(30);

/// Shows a run: phases, data, steps, evaluations.
pub struct RunProgress {
    output: Output,
    phase: Option<Phase>,
    steps: Option<Steps>,
    /// When the last line was said.
    said: Instant,
}

/// The steps of training.
struct Steps {
    /// On a terminal.
    bar: Option<ProgressBar>,
    total: u64,
    rate: Rate,
    /// Loss, learning rate and so on of the last logged step.
    numbers: String,
}

impl Steps {
    fn new(total: u64, done: u64) -> Self {
        let bar = super::stderr_is_terminal().then(|| {
            let length = total.saturating_mul(PARTS as u64);
            let bar = ProgressBar::with_draw_target(Some(length), ProgressDrawTarget::stderr())
                .with_style(style("{prefix} {wide_bar:.cyan} {msg}"))
                .with_prefix(format!("{done}/{total}"))
                .with_position(done.saturating_mul(PARTS as u64));
            bar.enable_steady_tick(TICK);
            bar
        });
        Self {
            bar,
            total,
            rate: Rate::new(Instant::now(), done as f64),
            numbers: String::new(),
        }
    }

    /// So many steps are done, with parts of one.
    fn advance(&mut self, done: f64) {
        self.rate.update(Instant::now(), done);
        if let Some(bar) = &self.bar {
            bar.set_position((done * PARTS) as u64);
            bar.set_prefix(format!("{}/{}", done as u64, self.total));
        }
        self.show("");
    }

    /// Puts `what` in front of the numbers.
    fn show(&self, what: &str) {
        if let Some(bar) = &self.bar {
            let text = format!("{what}{}{}", self.numbers, self.left());
            bar.set_message(text.trim_start_matches(" · ").to_owned());
        }
    }

    fn left(&self) -> String {
        self.rate.left_text(Instant::now(), self.total as f64)
    }
}

impl RunProgress {
    /// Shows nothing yet.
    pub fn new(output: Output) -> Self {
        Self {
            output,
            phase: None,
            steps: None,
            said: Instant::now(),
        }
    }

    /// Shows one thing that happened.
    pub fn on(&mut self, progress: &Progress) {
        if let Progress::Train(Event::Started { .. }) = progress {
            super::interrupt::begun();
        }
        if self.output.quiet {
            if let Progress::Fitted { flags, .. } = progress {
                // What was changed must not go by unseen.
                super::say(&format!("--fit sets {}", flags.join(" ")));
            }
            return;
        }
        match progress {
            Progress::Begin { what } => {
                self.end_steps();
                self.phase = None;
                self.phase = Some(Phase::new(self.output, what.clone()));
            }
            Progress::Counted { done, of } => {
                if let Some(phase) = &mut self.phase {
                    phase.count(*done, *of);
                }
            }
            Progress::Data {
                parts,
                truncated,
                example,
            } => {
                self.phase = None;
                data(parts, *truncated, example);
            }
            Progress::Scores { who, part, metrics } => {
                self.phase = None;
                self.say(&format!("{who} on {part}: {}", scores(metrics)));
            }
            Progress::Warning { text } => {
                self.phase = None;
                super::warn(self.output, text);
            }
            Progress::Fitted {
                needed,
                available,
                flags,
            } => {
                self.phase = None;
                self.say(&format!(
                    "the run needs about {}, and {} are available: --fit sets {}",
                    bytes(*needed),
                    bytes(*available),
                    flags.join(" ")
                ));
            }
            Progress::Train(event) => {
                self.phase = None;
                self.train(event);
            }
            // What a later library tells beyond this is not needed to follow a run.
            _ => {}
        }
    }

    fn say(&mut self, text: &str) {
        self.said = Instant::now();
        match self.steps.as_ref().and_then(|steps| steps.bar.as_ref()) {
            Some(bar) => bar.suspend(|| super::say(text)),
            None => super::say(text),
        }
    }

    fn end_steps(&mut self) {
        if let Some(bar) = self.steps.take().and_then(|steps| steps.bar) {
            bar.finish_and_clear();
        }
    }

    fn train(&mut self, event: &Event) {
        match event {
            Event::Started {
                total_steps,
                examples,
                skipped,
                trainable_parameters,
            } => {
                let skipped = if *skipped > 0 {
                    format!(" ({} without a target left out)", count(*skipped as u64))
                } else {
                    String::new()
                };
                let (examples, steps) = (count(*examples as u64), count(*total_steps));
                self.say(&format!(
                    "training {} parameters on {examples} examples{skipped}: {steps} steps",
                    count(*trainable_parameters as u64)
                ));
                self.steps = Some(Steps::new(*total_steps, 0));
            }
            Event::CheckpointSkipped { reason } => {
                self.say(&format!("passed over a checkpoint: {reason}"))
            }
            Event::LengthChanged { change } => super::warn(self.output, change),
            Event::Resumed {
                step, epoch, path, ..
            } => {
                self.say(&format!(
                    "continuing after step {step} (epoch {epoch:.2}) from {}",
                    path.display()
                ));
                let total = self.steps.as_ref().map_or(0, |steps| steps.total);
                self.end_steps();
                self.steps = Some(Steps::new(total, *step));
            }
            Event::MicroBatch { step, done, of, .. } => self.micro_batch(*step, *done, *of),
            Event::Evaluating { done, of } => self.evaluating(*done, *of),
            Event::Step { .. } => self.step(event),
            Event::Evaluated {
                step,
                epoch,
                metrics,
                seconds,
            } => {
                self.say(&format!(
                    "step {step} · epoch {epoch:.2} · validation: {} · {}",
                    scores(metrics),
                    duration(*seconds)
                ));
            }
            Event::NewBest {
                step,
                metric,
                value,
            } => self.say(&format!(
                "step {step} · best {metric} so far: {}",
                number(*value)
            )),
            Event::EarlyStop { step, evaluations } => {
                self.say(&format!(
                    "step {step} · stopped: {evaluations} evaluations without improvement"
                ));
            }
            Event::Interrupted { step, path } => {
                let saved = path
                    .as_ref()
                    .map_or(String::new(), |p| format!(", saved in {}", p.display()));
                self.say(&format!("step {step} · interrupted{saved}"));
            }
            // Checkpoints are routine, and events to come are no reason to fail.
            _ => {}
        }
    }

    fn micro_batch(&mut self, step: u64, done: usize, of: usize) {
        let Some(steps) = &mut self.steps else { return };
        steps.advance(step as f64 + done as f64 / of.max(1) as f64);
        if steps.bar.is_none() && self.said.elapsed() >= SILENCE {
            let (total, left) = (steps.total, steps.left());
            let part = if of > 1 {
                format!(", micro-batch {done}/{of}")
            } else {
                String::new()
            };
            self.say(&format!("step {}/{total}{part}{left}", step + 1));
        }
    }

    fn evaluating(&mut self, done: usize, of: usize) {
        let Some(steps) = &self.steps else { return };
        steps.show(&format!("evaluating {done}/{of}"));
        if steps.bar.is_none() && self.said.elapsed() >= SILENCE {
            self.say(&format!("evaluating {done}/{of}"));
        }
    }

    fn step(&mut self, event: &Event) {
        let (
            Event::Step {
                step,
                total_steps,
                epoch,
                loss,
                lr,
                tokens_per_second,
                peak_memory_bytes,
                ..
            },
            Some(steps),
        ) = (event, &mut self.steps)
        else {
            return;
        };
        let memory = peak_memory_bytes.map_or(String::new(), |n| format!(" · {} peak", bytes(n)));
        let speed = format!("{} tok/s", count(tokens_per_second.round() as u64));
        // The bar must stay within one line.
        let numbers = if steps.bar.is_some() && super::stderr_width() < NARROW {
            format!(" · loss {loss:.4} · {speed}")
        } else {
            format!(" · loss {loss:.4} · lr {lr:.1e} · {speed}{memory}")
        };
        steps.numbers.clone_from(&numbers);
        steps.show("");
        if steps.bar.is_none() {
            let left = steps.left();
            self.say(&format!(
                "step {step}/{total_steps} · epoch {epoch:.2}{numbers}{left}"
            ));
        }
    }
}

impl Drop for RunProgress {
    fn drop(&mut self) {
        self.phase = None;
        self.end_steps();
    }
}

/// The parts of the data and one example as the model sees it.
fn data(parts: &[(String, usize, usize, usize)], truncated: usize, example: &str) {
    super::say(&parts_lines(parts, truncated));
    if !example.trim().is_empty() {
        super::say(&format!("the first example:\n{}", example_lines(example)));
    }
}

/// One line for each part.
pub fn parts_lines(parts: &[(String, usize, usize, usize)], truncated: usize) -> String {
    let line = |(name, examples, tokens, longest): &(String, usize, usize, usize)| {
        format!(
            "{name}: {} examples, {} tokens, longest {longest}",
            count(*examples as u64),
            count(*tokens as u64)
        )
    };
    let mut lines: Vec<String> = parts.iter().map(line).collect();
    if truncated > 0 {
        lines.push(format!(
            "{} examples were cut to the allowed length",
            count(truncated as u64)
        ));
    }
    lines.join("\n")
}

/// Lines of an example, each cut to the width, and not too many.
pub fn example_lines(example: &str) -> String {
    const LINES: usize = 12;
    let width = super::width();
    let mut lines: Vec<String> = example
        .lines()
        .map(|line| truncate_str(line.trim_end(), width, "…").into_owned())
        .collect();
    if lines.len() > LINES {
        // The last line sums up.
        let last = lines.pop();
        lines.truncate(LINES - 2);
        lines.push("    ...".into());
        lines.extend(last);
    }
    lines.join("\n")
}

/// Metrics in a line.
pub fn scores(metrics: &Metrics) -> String {
    ordered(metrics)
        .into_iter()
        .map(|(name, value)| format!("{name} {}", number(value)))
        .collect::<Vec<_>>()
        .join(" · ")
}

/// Metrics with those that people look for first.
pub fn ordered(metrics: &Metrics) -> Vec<(&str, f64)> {
    const FIRST: [&str; 11] = [
        "accuracy",
        "micro_f1",
        "macro_f1",
        "subset_accuracy",
        "matthews_correlation",
        "pearson",
        "spearman",
        "mse",
        "mae",
        "perplexity",
        "loss",
    ];
    let mut metrics: Vec<(&str, f64)> = metrics
        .iter()
        .map(|(name, value)| (name.as_str(), *value))
        .collect();
    metrics.sort_by_key(|(name, _)| {
        FIRST
            .iter()
            .position(|first| first == name)
            .unwrap_or(FIRST.len())
    });
    metrics
}

/// A metric as people read it.
pub fn number(value: f64) -> String {
    if value.abs() < 100.0 {
        format!("{value:.4}")
    } else {
        significant(value, 5)
    }
}
