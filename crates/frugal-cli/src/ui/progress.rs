//! Progress on standard error: bars on a terminal, plain lines in a pipe, nothing with `--quiet`.
//!
//! What is here is for single pieces of work; [`super::run`] shows whole runs.

use std::time::{Duration, Instant};

use frugal_core::human::{bytes, significant};
use frugal_formats::fetch;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::rate::Rate;
use crate::args::Output;
use crate::ui;

pub(super) const TICK: Duration = Duration::from_millis(120);
const BAR_CHARS: &str = "━╸ ";

pub fn style(template: &str) -> ProgressStyle {
    // The templates are constants of this file; a mistake in one shows as the plain default bar.
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars(BAR_CHARS)
}

/// One step of work, shown while the value lives; of unknown length until it is counted.
pub struct Phase {
    output: Output,
    text: String,
    bar: ProgressBar,
    begun: Instant,
    counted: Option<Counted>,
}

/// How far counted work is.
struct Counted {
    rate: Rate,
    /// When a line was last said in a pipe.
    said: Instant,
}

impl Phase {
    /// Shows `text` with a spinner on a terminal, as a line in a pipe.
    pub fn new(output: Output, text: impl Into<String>) -> Self {
        let text = text.into();
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr())
            .with_style(style("{spinner:.cyan} {msg}"));
        if output.quiet {
            bar.set_draw_target(ProgressDrawTarget::hidden());
        } else if !ui::stderr_is_terminal() {
            ui::say(&text);
        } else {
            bar.set_message(text.clone());
            bar.enable_steady_tick(TICK);
        }
        Self {
            output,
            text,
            bar,
            begun: Instant::now(),
            counted: None,
        }
    }

    /// So many of so many pieces are done.
    pub fn count(&mut self, done: usize, of: usize) {
        let now = Instant::now();
        let (bar, begun) = (&self.bar, self.begun);
        let counted = self.counted.get_or_insert_with(|| {
            bar.set_style(style("{msg} {wide_bar:.cyan} {pos}/{len}{prefix}"));
            bar.set_length(of as u64);
            Counted {
                rate: Rate::new(begun, 0.0),
                said: begun,
            }
        });
        counted.rate.update(now, done as f64);
        let left = counted.rate.left_text(now, of as f64);
        if ui::stderr_is_terminal() {
            bar.set_prefix(left);
            bar.set_position(done as u64);
        } else if !self.output.quiet && counted.said.elapsed() >= LINES {
            counted.said = now;
            ui::say(&format!("{}: {done}/{of}{left}", self.text));
        }
    }
}

impl Drop for Phase {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// Pieces of work that are counted, as the trainer shows its steps.
pub struct Counter {
    output: Output,
    what: String,
    bar: Option<ProgressBar>,
    total: u64,
    done: u64,
    rate: Rate,
    said: Instant,
}

/// Time between lines in a pipe.
pub(super) const LINES: Duration = Duration::from_secs(10);

impl Counter {
    /// Of `total` pieces of `what`, `done` are done; a total of 0 is not known.
    pub fn new(output: Output, what: impl Into<String>, total: u64, done: u64) -> Self {
        let what = what.into();
        let mut bar = None;
        if !output.quiet && ui::stderr_is_terminal() {
            let template = match total {
                0 => "{spinner:.cyan} {pos} {msg}",
                _ => "{pos}/{len} {wide_bar:.cyan} {msg}",
            };
            let known = (total > 0).then_some(total);
            let shown = ProgressBar::with_draw_target(known, ProgressDrawTarget::stderr())
                .with_style(style(template))
                .with_message(what.clone())
                .with_position(done);
            shown.enable_steady_tick(TICK);
            bar = Some(shown);
        }
        Self {
            output,
            what,
            bar,
            total,
            done,
            rate: Rate::new(Instant::now(), done as f64),
            said: Instant::now(),
        }
    }

    /// One more is done.
    pub fn step(&mut self) {
        self.advance(1);
    }

    /// So many more are done.
    pub fn advance(&mut self, count: usize) {
        self.done += count as u64;
        let now = Instant::now();
        self.rate.update(now, self.done as f64);
        let speed = self.rate.per_second().map_or_else(String::new, |rate| {
            format!(" · {} a second", significant(rate, 3))
        });
        let left = match self.total {
            0 => String::new(),
            total => self.rate.left_text(now, total as f64),
        };
        let message = format!("{}{speed}{left}", self.what);
        let is_due = self.said.elapsed() >= LINES || self.done == self.total;
        match &self.bar {
            Some(bar) => {
                bar.set_position(self.done);
                bar.set_message(message);
            }
            None if !self.output.quiet && is_due => {
                self.said = now;
                let of = match self.total {
                    0 => String::new(),
                    total => format!("/{total}"),
                };
                ui::say(&format!("{}{of} · {message}", self.done));
            }
            None => {}
        }
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

/// The download of a model.
pub struct FetchProgress {
    output: Output,
    bar: Option<ProgressBar>,
    file: String,
}

impl FetchProgress {
    /// Shows nothing yet.
    pub fn new(output: Output) -> Self {
        Self {
            output,
            bar: None,
            file: String::new(),
        }
    }

    /// Shows how far the fetch is.
    pub fn update(&mut self, progress: fetch::Progress<'_>) {
        if self.output.quiet {
            return;
        }
        match progress {
            fetch::Progress::Download {
                package,
                number,
                of,
            } => {
                let text = format!("downloading {package} ({number} of {of})");
                if ui::stderr_is_terminal() {
                    self.clear();
                    let bar = ProgressBar::new_spinner()
                        .with_style(style("{spinner:.cyan} {msg} {elapsed:.dim}"))
                        .with_message(text);
                    bar.enable_steady_tick(TICK);
                    self.bar = Some(bar);
                } else {
                    ui::say(&text);
                }
            }
            fetch::Progress::Unpack { file, done, of } => {
                let first = self.file != file;
                if first {
                    self.file = file.into();
                }
                if !ui::stderr_is_terminal() {
                    if first {
                        ui::say(&format!("unpacking and checking {file} ({})", bytes(of)));
                    }
                    return;
                }
                if first {
                    self.clear();
                    let template =
                        "  unpacking {msg} {bar:30.cyan} {decimal_bytes}/{decimal_total_bytes}";
                    self.bar = Some(
                        ProgressBar::new(of)
                            .with_style(style(template))
                            .with_message(self.file.clone()),
                    );
                }
                if let Some(bar) = &self.bar {
                    bar.set_position(done);
                }
            }
            fetch::Progress::Convert { file } => {
                self.clear();
                ui::say(&format!("converting the weights into {file}"));
            }
        }
    }

    fn clear(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl Drop for FetchProgress {
    fn drop(&mut self) {
        self.clear();
    }
}
