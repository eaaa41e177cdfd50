//! The log of a run: what the trainer tells, in `log.jsonl` and for TensorBoard.

use std::path::Path;
use std::time::Instant;

use frugal_core::events::{LogError, RunLog, Scalars, names};

use crate::train::Event;

/// Writes events to the run's log; a failure is kept until the trainer returns.
pub(super) struct Logger<'a> {
    out: &'a Path,
    log: Option<RunLog>,
    error: Option<LogError>,
    start: Instant,
    /// Seconds that earlier processes spent on the run.
    spent: f64,
    resume: bool,
}

impl<'a> Logger<'a> {
    pub(super) fn new(out: &'a Path, resume: bool) -> Self {
        Self { out, log: None, error: None, start: Instant::now(), spent: 0.0, resume }
    }

    pub(super) fn on(&mut self, event: &Event) {
        if self.error.is_some() {
            return;
        }
        let result = match event {
            Event::Started { .. } if !self.resume => RunLog::create(self.out).map(|log| self.log = Some(log)),
            Event::Started { .. } => RunLog::resume(self.out, 0).map(|log| self.log = Some(log)),
            Event::Resumed { step, seconds, .. } => {
                self.spent = *seconds;
                RunLog::resume(self.out, *step).map(|log| self.log = Some(log))
            }
            Event::Step { step, epoch, loss, lr, grad_norm, tokens_per_second, peak_memory_bytes, .. } => {
                let memory = peak_memory_bytes.unwrap_or(0) as f64;
                let record = Scalars::new(*step)
                    .with(names::LOSS, *loss)
                    .with(names::LEARNING_RATE, *lr)
                    .with(names::GRAD_NORM, *grad_norm)
                    .with(names::EPOCH, *epoch)
                    .with(names::TOKENS_PER_SECOND, *tokens_per_second)
                    .with(names::MEMORY_BYTES, memory)
                    .with(names::ELAPSED_SECONDS, self.spent + self.start.elapsed().as_secs_f64());
                self.log.as_mut().map_or(Ok(()), |log| log.log(&record))
            }
            Event::Evaluated { step, epoch, metrics, .. } => {
                let start = Scalars::new(*step).with(names::EPOCH, *epoch);
                let record = metrics.iter().fold(start, |record, (name, value)| record.with(&format!("eval_{name}"), *value));
                self.log.as_mut().map_or(Ok(()), |log| log.log(&record))
            }
            Event::Saved { .. } => self.log.as_mut().map_or(Ok(()), |log| log.sync().map_err(Into::into)),
            _ => Ok(()),
        };
        self.error = result.err();
    }

    pub(super) fn finish(self) -> Result<(), LogError> {
        self.error.map_or(Ok(()), Err)
    }
}
