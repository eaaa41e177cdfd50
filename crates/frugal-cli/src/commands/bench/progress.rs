//! How the runs of a suite go: a bar where a person looks on, and a line for each run.

use frugal::run::bench::{BenchEvent, PlannedRun, RunEnd};
use frugal_core::human;
use frugal_eval::report::RunRecord;
use indicatif::{ProgressBar, ProgressDrawTarget};

use crate::args::Output;
use crate::ui::progress::{Phase, style};
use crate::ui::{self, run::scores};

/// Shows the events of a queue.
pub(super) struct QueueProgress {
    output: Output,
    phase: Option<Phase>,
    bar: ProgressBar,
}

impl QueueProgress {
    pub(super) fn new(output: Output) -> Self {
        Self {
            output,
            phase: None,
            bar: ProgressBar::hidden(),
        }
    }

    pub(super) fn on(&mut self, event: BenchEvent<'_>) {
        match event {
            BenchEvent::Checking { runs } => {
                let what = format!("checking the runs of `frugal tune`: {runs}");
                self.phase = Some(Phase::new(self.output, what));
            }
            BenchEvent::Queue { done, of } => {
                self.phase = None;
                self.bar = bar(of as u64, self.output);
                self.bar.inc(done as u64);
            }
            BenchEvent::Begin { run } => {
                self.bar.set_message(format!("{} · ", run.job.folder()));
            }
            BenchEvent::End {
                run,
                end,
                record,
                seconds_left,
            } => {
                self.line(&line(run, end, record, seconds_left));
                self.bar.inc(1);
            }
            BenchEvent::Finished => self.bar.finish_and_clear(),
            _ => {}
        }
    }

    fn line(&self, text: &str) {
        if !self.output.quiet {
            self.bar.suspend(|| ui::say(text));
        }
    }
}

fn line(run: &PlannedRun, end: &RunEnd, record: Option<&RunRecord>, left: f64) -> String {
    let said = match (end, record) {
        (RunEnd::Done, Some(record)) => {
            let last = record.evaluation.last();
            let scores = last.map(|e| scores(&e.adapted)).unwrap_or_default();
            format!("{scores} · {}", human::duration(record.run_info.total_time))
        }
        (RunEnd::Done, None) => "done".into(),
        (RunEnd::Interrupted, _) => "interrupted".into(),
        (RunEnd::Failed(reason), _) => format!("failed: {reason}"),
    };
    let left = human::duration(left);
    format!("{}: {said} · about {left} left", run.job.folder())
}

fn bar(length: u64, output: Output) -> ProgressBar {
    if output.quiet || !ui::stderr_is_terminal() {
        return ProgressBar::with_draw_target(Some(length), ProgressDrawTarget::hidden());
    }
    let template = "{pos}/{len} {wide_bar:.cyan} {msg}{elapsed}";
    ProgressBar::with_draw_target(Some(length), ProgressDrawTarget::stderr())
        .with_style(style(template))
}
