//! The log of a run: what the trainer tells, in `log.jsonl` and for TensorBoard.

use std::path::Path;
use std::time::Instant;

use frugal_core::events::{LogError, RunLog, Scalars, names};
use frugal_train::Event;

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
        Self {
            out,
            log: None,
            error: None,
            start: Instant::now(),
            spent: 0.0,
            resume,
        }
    }

    pub(super) fn on(&mut self, event: &Event) {
        if self.error.is_some() {
            return;
        }
        let result = match event {
            // A resumed run's log is cut where its checkpoint is, which is told later, if there is
            // one.
            Event::Started { .. } if !self.resume => {
                RunLog::create(self.out).map(|log| self.log = Some(log))
            }
            Event::Resumed { step, seconds, .. } => {
                self.spent = *seconds;
                RunLog::resume(self.out, *step).map(|log| self.log = Some(log))
            }
            Event::Step {
                step,
                epoch,
                loss,
                lr,
                grad_norm,
                tokens_per_second,
                peak_memory_bytes,
                ..
            } => {
                let memory = peak_memory_bytes.unwrap_or(0) as f64;
                let record = Scalars::new(*step)
                    .with(names::LOSS, *loss)
                    .with(names::LEARNING_RATE, *lr)
                    .with(names::GRAD_NORM, *grad_norm)
                    .with(names::EPOCH, *epoch)
                    .with(names::TOKENS_PER_SECOND, *tokens_per_second)
                    .with(names::MEMORY_BYTES, memory)
                    .with(
                        names::ELAPSED_SECONDS,
                        self.spent + self.start.elapsed().as_secs_f64(),
                    );
                self.log(&record)
            }
            Event::Evaluated {
                step,
                epoch,
                metrics,
                ..
            } => {
                let start = Scalars::new(*step).with(names::EPOCH, *epoch);
                let record = metrics.iter().fold(start, |record, (name, value)| {
                    record.with(&format!("eval_{name}"), *value)
                });
                self.log(&record)
            }
            Event::Measured {
                step,
                epoch,
                metrics,
            } => {
                let start = Scalars::new(*step).with(names::EPOCH, *epoch);
                let record = metrics
                    .iter()
                    .fold(start, |record, (name, value)| record.with(name, *value));
                self.log(&record)
            }
            Event::Saved { .. } => self
                .log
                .as_mut()
                .map_or(Ok(()), |log| log.sync().map_err(Into::into)),
            _ => Ok(()),
        };
        self.error = result.err();
    }

    fn log(&mut self, record: &Scalars) -> Result<(), LogError> {
        self.opened()?.log(record)
    }

    /// The log; that of a resumed run without a checkpoint begins anew.
    fn opened(&mut self) -> Result<&mut RunLog, LogError> {
        let log = match self.log.take() {
            Some(log) => log,
            None => RunLog::resume(self.out, 0)?,
        };
        Ok(self.log.insert(log))
    }

    pub(super) fn finish(mut self) -> Result<(), LogError> {
        match self.error.take() {
            Some(error) => Err(error),
            // A run that was stopped before its first step has a log too.
            None => self.opened().map(|_| ()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use frugal_core::events::{LOG_FILE, read_jsonl};

    use super::*;

    const STARTED: Event = Event::Started {
        total_steps: 9,
        examples: 9,
        skipped: 0,
        trainable_parameters: 1,
    };

    fn step(step: u64) -> Event {
        let loss = 1.0 / step as f64;
        Event::Step {
            step,
            total_steps: 9,
            epoch: 0.5,
            loss,
            lr: 1e-3,
            grad_norm: 1.0,
            tokens: 8 * step,
            tokens_per_second: 1.0,
            peak_memory_bytes: None,
        }
    }

    /// A process that takes these steps, and evaluates after the last one.
    fn process(out: &Path, resume: bool, from: Option<u64>, steps: std::ops::RangeInclusive<u64>) {
        let mut logger = Logger::new(out, resume);
        logger.on(&STARTED);
        if let Some(step) = from {
            logger.on(&Event::Resumed {
                step,
                epoch: 0.5,
                path: out.into(),
                seconds: 1.0,
            });
        }
        let last = *steps.end();
        steps.for_each(|n| logger.on(&step(n)));
        logger.on(&Event::Evaluated {
            step: last,
            epoch: 0.5,
            metrics: BTreeMap::from([("loss".into(), 1.0)]),
            seconds: 0.1,
        });
        logger.finish().unwrap();
    }

    /// Step, loss and validation loss of every line.
    fn lines(out: &Path) -> Vec<(u64, Option<f64>, Option<f64>)> {
        let log: Vec<Scalars> = read_jsonl(&out.join(LOG_FILE)).unwrap();
        log.iter()
            .map(|s| (s.step, s.get(names::LOSS), s.get(names::EVAL_LOSS)))
            .collect()
    }

    #[test]
    fn a_resumed_run_goes_on_with_the_log() {
        let (whole, part) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        process(whole.path(), false, None, 1..=4);
        process(whole.path(), true, Some(4), 5..=9);
        process(part.path(), false, None, 1..=4);
        process(part.path(), true, Some(4), 5..=7);
        // The checkpoint is older than the log.
        process(part.path(), true, Some(6), 7..=9);
        let steps = |out: &Path| {
            lines(out)
                .into_iter()
                .filter(|line| line.1.is_some())
                .collect::<Vec<_>>()
        };
        assert_eq!(steps(part.path()), steps(whole.path()));
        assert_eq!(
            steps(whole.path())
                .iter()
                .map(|line| line.0)
                .collect::<Vec<_>>(),
            (1..=9).collect::<Vec<_>>()
        );
        assert_eq!(
            lines(whole.path())
                .iter()
                .filter(|line| line.2.is_some())
                .map(|line| line.0)
                .collect::<Vec<_>>(),
            [4, 9]
        );
    }

    #[test]
    fn without_a_checkpoint_the_log_begins_anew() {
        let out = tempfile::tempdir().unwrap();
        process(out.path(), false, None, 1..=3);
        process(out.path(), true, None, 1..=2);
        assert_eq!(
            lines(out.path())
                .iter()
                .map(|line| line.0)
                .collect::<Vec<_>>(),
            [1, 2, 2]
        );
        let mut stopped = Logger::new(out.path(), true);
        stopped.on(&STARTED);
        stopped.finish().unwrap();
        assert!(lines(out.path()).is_empty());
    }
}
