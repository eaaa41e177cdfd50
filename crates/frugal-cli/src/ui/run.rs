//! A run as it goes on, on standard error.

use std::time::Instant;

use console::truncate_str;
use frugal::run::{Metrics, Progress};
use frugal::train::Event;
use frugal_core::human::{bytes, count, duration, significant};
use indicatif::{ProgressBar, ProgressDrawTarget};

use super::progress::{Phase, TICK, style};
use crate::args::Output;

/// Cells that a bar has at least; numbers beside it give way.
const BAR: usize = 20;

/// Shows a run: phases, data, steps, evaluations.
pub struct RunProgress {
    output: Output,
    phase: Option<Phase>,
    bar: Option<ProgressBar>,
    /// When the first step began and which it was, for the time left in a pipe.
    started: (Instant, u64),
}

impl RunProgress {
    /// Shows nothing yet.
    pub fn new(output: Output) -> Self {
        Self {
            output,
            phase: None,
            bar: None,
            started: (Instant::now(), 0),
        }
    }

    /// Shows one thing that happened.
    pub fn on(&mut self, progress: &Progress) {
        if self.output.quiet {
            return;
        }
        match progress {
            Progress::Begin { what } => {
                self.end_bar();
                self.phase = None;
                self.phase = Some(Phase::new(self.output, what.clone()));
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
                eprintln!("{who} on {part}: {}", scores(metrics));
            }
            Progress::Train(event) => {
                self.phase = None;
                self.train(event);
            }
            // What a later library tells beyond this is not needed to follow a run.
            _ => {}
        }
    }

    fn say(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| eprintln!("{text}")),
            None => eprintln!("{text}"),
        }
    }

    fn begin(&mut self, total_steps: u64, step: u64) {
        self.started = (Instant::now(), step);
        if let Some(bar) = &self.bar {
            bar.set_position(step);
            bar.reset_eta();
        } else if super::stderr_is_terminal() {
            let bar =
                ProgressBar::with_draw_target(Some(total_steps), ProgressDrawTarget::stderr())
                    .with_style(style("{pos}/{len} {wide_bar:.cyan} {msg}{eta} left"))
                    .with_position(step);
            bar.enable_steady_tick(TICK);
            self.bar = Some(bar);
        }
    }

    fn end_bar(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }

    fn seconds_left(&self, step: u64, total: u64) -> f64 {
        let (start, first) = self.started;
        let done = step.saturating_sub(first).max(1);
        start.elapsed().as_secs_f64() / done as f64 * total.saturating_sub(step) as f64
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
                eprintln!(
                    "training {} parameters on {examples} examples{skipped}: {steps} steps",
                    count(*trainable_parameters as u64)
                );
                self.begin(*total_steps, 0);
            }
            Event::CheckpointSkipped { reason } => {
                self.say(&format!("passed over a checkpoint: {reason}"))
            }
            Event::Resumed {
                step, epoch, path, ..
            } => {
                self.say(&format!(
                    "continuing after step {step} (epoch {epoch:.2}) from {}",
                    path.display()
                ));
                let total = self.bar.as_ref().and_then(ProgressBar::length).unwrap_or(0);
                self.begin(total, *step);
            }
            Event::Step {
                step,
                total_steps,
                epoch,
                loss,
                lr,
                tokens_per_second,
                peak_memory_bytes,
                ..
            } => {
                let memory =
                    peak_memory_bytes.map_or(String::new(), |n| format!(" · {} peak", bytes(n)));
                let speed = format!("{} tok/s", count(tokens_per_second.round() as u64));
                let loss = format!("loss {loss:.4}");
                let all = format!("{loss} · lr {lr:.1e} · {speed}{memory}");
                let numbers = match &self.bar {
                    None => all,
                    Some(_) => {
                        let shorter = [
                            all,
                            format!("{loss} · {speed}{memory}"),
                            format!("{loss} · {speed}"),
                            loss,
                        ];
                        // Steps, the time left, and what stands between.
                        let others = 2 * total_steps.to_string().len() + 18;
                        fitting(shorter, super::stderr_width().saturating_sub(BAR + others))
                    }
                };
                match &self.bar {
                    Some(bar) => {
                        bar.set_position(*step);
                        bar.set_message(format!("{numbers} · "));
                    }
                    None => {
                        let left = duration(self.seconds_left(*step, *total_steps));
                        eprintln!(
                            "step {step}/{total_steps} · epoch {epoch:.2} · {numbers} · {left} left"
                        );
                    }
                }
            }
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
}

/// The first text that fits, or the last.
fn fitting<const N: usize>(texts: [String; N], room: usize) -> String {
    let mut found = String::new();
    for text in texts {
        let fits = text.chars().count() <= room;
        found = text;
        if fits {
            break;
        }
    }
    found
}

impl Drop for RunProgress {
    fn drop(&mut self) {
        self.phase = None;
        self.end_bar();
    }
}

/// The parts of the data and one example as the model sees it.
fn data(parts: &[(String, usize, usize, usize)], truncated: usize, example: &str) {
    eprintln!("{}", parts_lines(parts, truncated));
    if !example.trim().is_empty() {
        eprintln!("the first example:\n{}", example_lines(example));
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
    const FIRST: [&str; 5] = [
        "accuracy",
        "macro_f1",
        "matthews_correlation",
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_keeps_its_cells_and_numbers_give_way() {
        let texts = || ["aaaa · bbbb".to_owned(), "aaaa".to_owned(), "a".to_owned()];
        assert_eq!(fitting(texts(), 11), "aaaa · bbbb");
        assert_eq!(fitting(texts(), 10), "aaaa");
        assert_eq!(fitting(texts(), 0), "a");
    }
}
