//! The process that runs one function, a solution's or the reference's, and the clock outside of it.

use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::json;

use super::{Clock, EnamelError, Settings, Verdict};
use crate::sandbox::{Ending, Limits, Reply, Sandbox, Session};

const SUBJECT: &str = concat!(
    include_str!("../programs/values.py"),
    include_str!("subject.py")
);
/// Between two looks at the clock of a run.
const LOOK: Duration = Duration::from_millis(5);
/// Calls of an empty function, the fastest of which is what a call costs without the function.
const EMPTY_CALLS: usize = 25;
/// A run has as many calls as take the reference this many seconds, and at most [`MOST_CALLS`]: what
/// takes a few microseconds is otherwise lost in what waking a process takes.
const LONG_ENOUGH: f64 = 3e-4;
/// Most calls of a run, each of which loads the program and copies the input.
const MOST_CALLS: usize = 400;

/// Why a run was not completed.
#[derive(Clone, Debug)]
pub(super) struct Stop {
    pub(super) verdict: Verdict,
    pub(super) detail: Option<String>,
}

impl Stop {
    pub(super) fn error(detail: &str) -> Self {
        Self {
            verdict: Verdict::Error,
            detail: Some(detail.into()),
        }
    }
}

/// What a subject says beside outputs.
#[derive(Deserialize)]
struct Said {
    verdict: Option<Verdict>,
    detail: Option<String>,
}

/// Seconds of one run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    /// Of one call.
    pub(super) seconds: f64,
    /// Seconds of processor time in which the program was loaded and its input copied, for one call.
    pub(super) loading: f64,
    /// Seconds of processor time until the output was handed over.
    pub(super) handing_over: f64,
}

/// A process that runs one function.
pub(super) struct Subject {
    session: Session,
    clock: Clock,
    end: Instant,
    /// How long an answer may take that is no run.
    patience: Duration,
    /// The longest that one took.
    longest: Duration,
    /// What a call costs without a function.
    empty: f64,
}

impl Subject {
    pub(super) fn start(
        sandbox: &Sandbox,
        limits: &Limits,
        settings: &Settings,
    ) -> Result<Self, EnamelError> {
        let session = sandbox.start(SUBJECT, limits)?;
        let mut subject = Self {
            session,
            clock: settings.clock,
            end: Instant::now() + Duration::from_secs_f64(limits.wall_seconds),
            patience: Duration::from_secs_f64(limits.wall_seconds),
            longest: Duration::ZERO,
            empty: 0.0,
        };
        let calls = (0..EMPTY_CALLS)
            .map(|_| Ok(subject.run(None, 1)?.seconds))
            .collect::<Result<Vec<f64>, Stop>>()
            .map_err(|stop| {
                EnamelError::Settings(format!(
                    "an empty function cannot be timed here: {}",
                    stop.detail.unwrap_or_default()
                ))
            })?;
        subject.empty = calls.into_iter().fold(f64::INFINITY, f64::min);
        Ok(subject)
    }

    /// The longest that an answer took which is no run.
    pub(super) fn longest(&self) -> Duration {
        self.longest
    }

    /// Waits no longer than this for what is no run: loading, copying, handing over.
    pub(super) fn wait_at_most(&mut self, patience: Duration) {
        self.patience = patience;
    }

    pub(super) fn load(&mut self, prompt: &str, code: &str, entry_point: &str) -> Result<(), Stop> {
        let work = json!({ "prompt": prompt, "code": code, "entry_point": entry_point });
        self.say(&work.to_string())
    }

    pub(super) fn input(&mut self, input: &str) -> Result<(), Stop> {
        self.say(&format!("{{\"input\":{input}}}"))
    }

    /// Says something that is answered with nothing but a verdict.
    pub(super) fn say(&mut self, line: &str) -> Result<(), Stop> {
        self.session.write_line(line);
        let answer = self.listen()?;
        self.verdict(&answer)
    }

    pub(super) fn verdict(&self, answer: &str) -> Result<(), Stop> {
        let said: Said = serde_json::from_str(answer)
            .map_err(|_| Stop::error("it wrote to the channel of results"))?;
        said.verdict.map_or(Ok(()), |verdict| {
            Err(Stop {
                verdict,
                detail: said.detail,
            })
        })
    }

    pub(super) fn listen(&mut self) -> Result<String, Stop> {
        let begin = Instant::now();
        match self.session.read_line(self.end.min(begin + self.patience)) {
            Reply::Line(line) => {
                self.longest = self.longest.max(begin.elapsed());
                Ok(line)
            }
            Reply::Late => Err(Stop {
                verdict: Verdict::Timeout,
                detail: None,
            }),
            Reply::Ended => Err(Stop::error("its process ended")),
        }
    }

    pub(super) fn processor(&mut self) -> Result<f64, Stop> {
        self.session
            .processor_seconds()
            .ok_or_else(|| Stop::error("its process ended"))
    }

    /// Loads the program and copies the input for each call, then calls the function, within a time for
    /// a call.
    pub(super) fn run(&mut self, allowed: Option<f64>, calls: usize) -> Result<Run, Stop> {
        let (each, allowed) = (calls as f64, allowed.map(|a| a * calls as f64));
        let before = self.processor()?;
        self.say(&format!("copy {calls}"))?;
        let (used, begin) = (self.processor()?, Instant::now());
        self.session.write_line("go");
        let wall = loop {
            match self.session.read_line(Instant::now() + LOOK) {
                Reply::Line(line) if line == "done" => break begin.elapsed().as_secs_f64(),
                Reply::Line(_) => {
                    return Err(Stop::error("it wrote to the channel of results"));
                }
                Reply::Ended => return Err(Stop::error("its process ended")),
                Reply::Late => {}
            }
            let passed = begin.elapsed().as_secs_f64();
            let over = allowed.is_some_and(|allowed| match self.clock {
                Clock::Wall => passed > allowed,
                // Processor time ends a run that computes, the clock on the wall one that waits.
                Clock::Processor => {
                    passed > 20.0 * allowed + 1.0
                        || self.processor().is_ok_and(|now| now - used > allowed)
                }
            });
            if over || Instant::now() > self.end {
                return Err(Stop {
                    verdict: Verdict::Timeout,
                    detail: None,
                });
            }
        };
        let after = self.processor()?;
        let seconds = match self.clock {
            Clock::Processor => after - used,
            Clock::Wall => wall,
        };
        Ok(Run {
            seconds: (seconds - self.empty).max(0.0) / each,
            loading: (used - before) / each,
            handing_over: after,
        })
    }

    /// As many calls as are long enough together.
    pub(super) fn calls(&mut self) -> Result<usize, Stop> {
        let mut calls = 1;
        loop {
            let one = self.run(None, calls)?.seconds;
            if calls == MOST_CALLS || one * calls as f64 >= LONG_ENOUGH {
                return Ok(calls);
            }
            let wanted = (LONG_ENOUGH / one.max(1e-9)).ceil() as usize;
            calls = wanted.clamp(2 * calls, 8 * calls).min(MOST_CALLS);
        }
    }

    /// A run and the line with its output.
    pub(super) fn run_and_give(
        &mut self,
        allowed: Option<f64>,
        calls: usize,
    ) -> Result<(Run, String), Stop> {
        let run = self.run(allowed, calls)?;
        self.session.write_line("give");
        let output = self.listen()?;
        let handing_over = self.processor()? - run.handing_over;
        self.verdict(&output)?;
        Ok((
            Run {
                handing_over,
                ..run
            },
            output,
        ))
    }

    /// What a run stopped by, where the process ended under it.
    pub(super) fn why(self, stop: Stop) -> Stop {
        if stop.detail.as_deref() != Some("its process ended") {
            return stop;
        }
        let verdict = match self.session.finish().ending {
            Ending::Memory => Verdict::Memory,
            Ending::Timeout => Verdict::Timeout,
            _ => return stop,
        };
        Stop {
            verdict,
            detail: None,
        }
    }
}
