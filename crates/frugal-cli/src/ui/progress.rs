//! Progress on standard error: bars on a terminal, plain lines in a pipe, nothing with `--quiet`.
//!
//! What is here is for single pieces of work; [`super::run`] shows whole runs.

use std::time::{Duration, Instant};

use frugal_core::human::{bytes, duration, significant};
use frugal_formats::fetch;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::args::Output;

pub(super) const TICK: Duration = Duration::from_millis(120);
const BAR_CHARS: &str = "━╸ ";

pub fn style(template: &str) -> ProgressStyle {
    // The templates are constants of this file; a mistake in one shows as the plain default bar.
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars(BAR_CHARS)
}

/// One step of work of unknown length, shown while the value lives.
pub struct Phase(ProgressBar);

impl Phase {
    /// Shows `text` with a spinner on a terminal, as a line in a pipe.
    pub fn new(output: Output, text: impl Into<String>) -> Self {
        let text = text.into();
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr())
            .with_style(style("{spinner:.cyan} {msg}"));
        if output.quiet {
            bar.set_draw_target(ProgressDrawTarget::hidden());
        } else if !super::stderr_is_terminal() {
            eprintln!("{text}");
        } else {
            bar.set_message(text);
            bar.enable_steady_tick(TICK);
        }
        Self(bar)
    }
}

impl Drop for Phase {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// Pieces of work that are counted, as the trainer shows its steps.
pub struct Counter {
    output: Output,
    what: String,
    bar: Option<ProgressBar>,
    total: u64,
    done: u64,
    /// When counting began, and how many pieces were done by then.
    start: (Instant, u64),
    said: Instant,
}

/// Seconds between lines in a pipe.
const LINES: Duration = Duration::from_secs(10);

impl Counter {
    /// Of `total` pieces of `what`, `done` are done.
    pub fn new(output: Output, what: impl Into<String>, total: u64, done: u64) -> Self {
        let what = what.into();
        let mut bar = None;
        if !output.quiet && super::stderr_is_terminal() {
            let shown = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr())
                .with_style(style("{pos}/{len} {wide_bar:.cyan} {msg}{eta} left"))
                .with_message(format!("{what} · "))
                .with_position(done);
            shown.enable_steady_tick(TICK);
            shown.reset_eta();
            bar = Some(shown);
        }
        Self {
            output,
            what,
            bar,
            total,
            done,
            start: (Instant::now(), done),
            said: Instant::now(),
        }
    }

    /// One more is done.
    pub fn step(&mut self) {
        self.done += 1;
        let fresh = (self.done - self.start.1) as f64;
        let speed = fresh / self.start.0.elapsed().as_secs_f64().max(1e-9);
        let message = format!("{} · {} a second", self.what, significant(speed, 3));
        match &self.bar {
            Some(bar) => {
                bar.set_position(self.done);
                bar.set_message(format!("{message} · "));
            }
            None if !self.output.quiet
                && (self.said.elapsed() >= LINES || self.done == self.total) =>
            {
                self.said = Instant::now();
                let left = duration(self.total.saturating_sub(self.done) as f64 / speed);
                eprintln!("{}/{} · {message} · {left} left", self.done, self.total);
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
                if super::stderr_is_terminal() {
                    self.clear();
                    let bar = ProgressBar::new_spinner()
                        .with_style(style("{spinner:.cyan} {msg} {elapsed:.dim}"))
                        .with_message(text);
                    bar.enable_steady_tick(TICK);
                    self.bar = Some(bar);
                } else {
                    eprintln!("{text}");
                }
            }
            fetch::Progress::Unpack { file, done, of } => {
                let first = self.file != file;
                if first {
                    self.file = file.into();
                }
                if !super::stderr_is_terminal() {
                    if first {
                        eprintln!("unpacking and checking {file} ({})", bytes(of));
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
