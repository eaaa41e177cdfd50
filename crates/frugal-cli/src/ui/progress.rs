//! Progress on standard error: bars on a terminal, plain lines in a pipe, nothing with `--quiet`.
//!
//! What is here is for single pieces of work; [`super::run`] shows whole runs.

use std::time::Duration;

use frugal_core::fetch;
use frugal_core::human::bytes;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::args::Output;

pub(super) const TICK: Duration = Duration::from_millis(120);
const BAR_CHARS: &str = "━╸ ";

pub fn style(template: &str) -> ProgressStyle {
    // The templates are constants of this file; a mistake in one shows as the plain default bar.
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars(BAR_CHARS)
}

/// One step of work of unknown length, shown while the value lives.
pub struct Phase(ProgressBar);

impl Phase {
    /// Shows `text` with a spinner on a terminal, as a line in a pipe.
    pub fn new(output: Output, text: impl Into<String>) -> Self {
        let text = text.into();
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr()).with_style(style("{spinner:.cyan} {msg}"));
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

/// The download of a model.
pub struct FetchProgress {
    output: Output,
    bar: Option<ProgressBar>,
    file: String,
}

impl FetchProgress {
    /// Shows nothing yet.
    pub fn new(output: Output) -> Self {
        Self { output, bar: None, file: String::new() }
    }

    /// Shows how far the fetch is.
    pub fn update(&mut self, progress: fetch::Progress<'_>) {
        if self.output.quiet {
            return;
        }
        match progress {
            fetch::Progress::Download { package, number, of } => {
                let text = format!("downloading {package} ({number} of {of})");
                if super::stderr_is_terminal() {
                    self.clear();
                    let bar = ProgressBar::new_spinner().with_style(style("{spinner:.cyan} {msg} {elapsed:.dim}")).with_message(text);
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
                    let template = "  unpacking {msg} {bar:30.cyan} {decimal_bytes}/{decimal_total_bytes}";
                    self.bar = Some(ProgressBar::new(of).with_style(style(template)).with_message(self.file.clone()));
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
