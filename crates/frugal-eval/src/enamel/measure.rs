//! Measuring: a process for the inputs and answers, and for each solution one of its own beside one
//! for the reference, whose runs take turns.

use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::json;

use super::subject::{Run, Stop, Subject};
use super::{EnamelError, Measured, Problem, References, Settings, Verdict, hodges_lehmann};
use crate::sandbox::{Limits, Reply, Sandbox, Session};

const JUDGE: &str = concat!(
    include_str!("../programs/values.py"),
    include_str!("driver.py")
);
/// Loading a program with its input, and handing its output over, may each take this many times as
/// long as the reference's; what is above counts as running time, so that nothing is computed before
/// the clock or after it. Both are the median of the runs of a test: of single runs the noise of a
/// busy machine would be added to the solution's time and never to the reference's.
const BESIDE_THE_CLOCK: f64 = 1.5;
/// Seconds of each that are noise.
const NOISE: f64 = 5e-5;
/// Seconds of a solution's run with its loading, above which it has fewer calls.
const SHORT_ENOUGH: f64 = 0.05;
/// What is no run may take this many times as long as the reference's longest answer, and no less
/// than [`PATIENCE`]: a program that never ends loading is no longer waited for.
const TIMES_AS_PATIENT: u32 = 20;
/// See [`TIMES_AS_PATIENT`].
const PATIENCE: Duration = Duration::from_secs(5);
/// A first call this many times as long as later ones, beside what the reference's first takes, is
/// that of a program which may remember its answers.
const FIRST_CALL: f64 = 1.3;
/// Seconds of it that are noise.
const FIRST_NOISE: f64 = 1e-4;
/// Seconds of a call that cannot be told apart: references whose calls take a tenth of a microsecond
/// differ by as much from themselves.
const RESOLUTION: f64 = 4e-7;

/// Measures solutions of one problem, number `index` of the benchmark.
///
/// # Errors
/// When the sandbox or the problem's own reference fails; what solutions do is in the result.
pub fn measure(
    sandbox: &Sandbox,
    index: usize,
    problem: &Problem,
    samples: &[&str],
    settings: &Settings,
) -> Result<Vec<Measured>, EnamelError> {
    settings.check()?;
    let sizes: Vec<u64> = problem
        .input_levels
        .split_whitespace()
        .filter_map(|s| s.parse().ok())
        .collect();
    if sizes.len() != settings.hardness.len() {
        let reason = format!(
            "{} levels, but there are weights for {}",
            sizes.len(),
            settings.hardness.len()
        );
        return Err(EnamelError::Reference {
            problem: index,
            reason,
        });
    }
    let mut bench = Bench::new(sandbox, index, problem, &sizes, samples.len(), settings)?;
    samples.iter().map(|code| bench.solution(code)).collect()
}

#[derive(Deserialize)]
struct Judged {
    failure: Option<String>,
    #[serde(default)]
    right: bool,
}

/// The process with the inputs and the answers.
struct Judge {
    session: Session,
    end: Instant,
    problem: usize,
}

impl Judge {
    fn failed(&self, reason: impl Into<String>) -> EnamelError {
        EnamelError::Reference {
            problem: self.problem,
            reason: reason.into(),
        }
    }

    fn say(&mut self, lines: &[&str]) -> Result<String, EnamelError> {
        for line in lines {
            self.session.write_line(line);
        }
        match self.session.read_line(self.end) {
            Reply::Line(line) => Ok(line),
            _ => Err(self.failed("the process with its inputs ended")),
        }
    }

    fn said(&mut self, lines: &[&str]) -> Result<Judged, EnamelError> {
        let line = self.say(lines)?;
        let judged: Judged =
            serde_json::from_str(&line).map_err(|_| self.failed("its checker writes"))?;
        match judged.failure {
            Some(failure) => Err(self.failed(failure)),
            None => Ok(judged),
        }
    }

    fn input(&mut self, (level, case): Case) -> Result<String, EnamelError> {
        self.say(&[&format!("[{level},{case},\"input\"]")])
    }

    fn keep_answer(&mut self, (level, case): Case, output: &str) -> Result<(), EnamelError> {
        self.said(&[&format!("[{level},{case},\"answer\"]"), output])
            .map(|_| ())
    }

    fn is_right(&mut self, (level, case): Case, output: &str) -> Result<bool, EnamelError> {
        Ok(self
            .said(&[&format!("[{level},{case},\"check\"]"), output])?
            .right)
    }
}

/// Level and number of a test in it.
type Case = (usize, usize);
/// Seconds by level, test and run.
type Times = Vec<Vec<Vec<f64>>>;

/// One problem at work.
struct Bench<'a> {
    sandbox: &'a Sandbox,
    problem: &'a Problem,
    settings: &'a Settings,
    limits: Limits,
    judge: Judge,
    /// The reference's times when it was alone.
    alone: Times,
    /// Calls of a run, by level and test.
    calls: Vec<Vec<usize>>,
    /// Seconds that a call may take.
    allowed: f64,
    /// What a solution may take for all else.
    patience: Duration,
}

/// Runs of a solution and of the reference on one test, or why there are none.
type Turns = Result<(Vec<Run>, Vec<Run>), Stop>;

impl<'a> Bench<'a> {
    /// Makes the inputs and measures the reference.
    fn new(
        sandbox: &'a Sandbox,
        index: usize,
        problem: &'a Problem,
        sizes: &[u64],
        solutions: usize,
        settings: &'a Settings,
    ) -> Result<Self, EnamelError> {
        let limits = Limits {
            wall_seconds: settings.wall_seconds,
            cpu_seconds: settings.wall_seconds.ceil() as u64,
            memory: settings.memory,
            processes: 1,
            output_bytes: 4 << 30,
            ..Limits::default()
        };
        // It waits while the solutions run.
        let waits = limits.wall_seconds * (solutions + 2) as f64;
        let session = sandbox.start(
            JUDGE,
            &Limits {
                wall_seconds: waits,
                ..limits
            },
        )?;
        let mut judge = Judge {
            session,
            end: Instant::now() + Duration::from_secs_f64(waits),
            problem: index,
        };
        let work = json!({
            "problem": index, "prompt": problem.prompt, "generator": problem.input_generator,
            "sizes": sizes, "tests": settings.tests, "checker": problem.checker,
            "seed": settings.seed,
        });
        judge.said(&[&work.to_string()])?;
        let mut bench = Self {
            sandbox,
            problem,
            settings,
            limits,
            judge,
            alone: settings
                .tests
                .iter()
                .map(|n| vec![Vec::new(); *n])
                .collect(),
            calls: settings.tests.iter().map(|n| vec![1; *n]).collect(),
            allowed: 0.0,
            patience: PATIENCE,
        };
        bench.measure_reference()?;
        Ok(bench)
    }

    fn cases(&self) -> Vec<Case> {
        let levels = self.settings.tests.iter().enumerate();
        levels
            .flat_map(|(level, count)| (0..*count).map(move |case| (level, case)))
            .collect()
    }

    fn repeats(&self, level: usize) -> usize {
        if self.settings.hardness[level] > 0.0 {
            self.settings.repeats
        } else {
            1
        }
    }

    fn reference(&self) -> Result<Subject, EnamelError> {
        let mut subject = Subject::start(self.sandbox, &self.limits, self.settings)?;
        let (prompt, name) = (&self.problem.prompt, &self.problem.entry_point);
        let loaded = subject.load(prompt, &self.problem.reference_solution, name);
        match loaded {
            Ok(()) => Ok(subject),
            Err(stop) => Err(self.reference_stopped(&subject.why(stop))),
        }
    }

    fn reference_stopped(&self, stop: &Stop) -> EnamelError {
        let detail = stop.detail.clone();
        self.judge
            .failed(detail.unwrap_or_else(|| format!("it ended by {:?}", stop.verdict)))
    }

    /// Answers to all tests, and how long a solution may take.
    fn measure_reference(&mut self) -> Result<(), EnamelError> {
        let mut reference = self.reference()?;
        for (level, case) in self.cases() {
            let input = self.judge.input((level, case))?;
            let found = reference
                .input(&input)
                .and_then(|()| {
                    let calls = reference.calls()?;
                    self.calls[level][case] = calls;
                    (0..self.repeats(level))
                        .map(|_| reference.run_and_give(None, calls))
                        .collect::<Result<Vec<_>, _>>()
                })
                .map_err(|stop| self.reference_stopped(&stop))?;
            if let Some((_, output)) = found.last() {
                self.judge.keep_answer((level, case), output)?;
            }
            self.alone[level][case] = found.iter().map(|(run, _)| run.seconds).collect();
        }
        let settings = self.settings;
        let limit = references(&self.alone, settings).limit(settings.timeout_factor);
        self.allowed = limit + settings.tolerance;
        self.patience = PATIENCE.max(reference.longest() * TIMES_AS_PATIENT);
        Ok(())
    }

    /// A process that runs a solution.
    fn of_solution(&self, code: &str) -> Result<Result<Subject, Stop>, EnamelError> {
        let mut subject = Subject::start(self.sandbox, &self.limits, self.settings)?;
        subject.wait_at_most(self.patience);
        let loaded = subject.load(&self.problem.prompt, code, &self.problem.entry_point);
        Ok(match loaded {
            Ok(()) => Ok(subject),
            Err(stop) => Err(subject.why(stop)),
        })
    }

    /// Measures a solution, in a process of its own, with the reference in another beside it.
    fn solution(&mut self, code: &str) -> Result<Measured, EnamelError> {
        let mut beside = self.alone.clone();
        let mut times: Times = Vec::new();
        let mut solution = match self.of_solution(code)? {
            Ok(solution) => solution,
            Err(stop) => return Ok(self.judge_times(&times, &beside, Some((stop, 0)))),
        };
        let mut reference = self.reference()?;
        let mut stopped = None;
        for (level, case) in self.cases() {
            let input = self.judge.input((level, case))?;
            reference
                .input(&input)
                .map_err(|stop| self.reference_stopped(&stop))?;
            let runs = solution.input(&input).map_or_else(
                |stop| Ok(Err(stop)),
                |()| self.test((level, case), code, &input, &mut solution, &mut reference),
            )?;
            match runs {
                Ok((own, references)) => {
                    let (own, references) = seconds(&own, &references);
                    if times.len() <= level {
                        times.push(Vec::new());
                    }
                    times[level].push(own);
                    beside[level][case] = references;
                }
                Err(stop) => {
                    stopped = Some((stop, level));
                    break;
                }
            }
        }
        if let Some((stop, level)) = stopped {
            let stop = solution.why(stop);
            return Ok(self.judge_times(&times, &beside, Some((stop, level))));
        }
        Ok(self.judge_times(&times, &beside, None))
    }

    /// Runs of one test. Where the solution's first call took longer than a reference's first call
    /// would, it may remember what it was asked before, in places that loading it anew does not
    /// reach: then every run is the first one of a process.
    fn test(
        &mut self,
        test: Case,
        code: &str,
        input: &str,
        solution: &mut Subject,
        reference: &mut Subject,
    ) -> Result<Turns, EnamelError> {
        let first = match solution.run(Some(self.allowed), 1) {
            Ok(run) => run,
            Err(stop) => return Ok(Err(stop)),
        };
        let first_expert = reference
            .run(None, 1)
            .map_err(|stop| self.reference_stopped(&stop))?;
        let turns = self.take_turns(test, first, solution, reference)?;
        let Ok((own, references)) = &turns else {
            return Ok(turns);
        };
        let seconds = |run: &Run| run.seconds;
        let usual = median(references.iter().map(seconds));
        let cold = (first_expert.seconds / usual.max(RESOLUTION)).max(1.0);
        let later = cold * median(own.iter().map(seconds));
        if self.repeats(test.0) == 1 || first.seconds <= FIRST_CALL * later + FIRST_NOISE {
            return Ok(turns);
        }
        let (mut own, mut references) = (Vec::new(), Vec::new());
        for _ in 0..self.repeats(test.0) {
            let mut reference = self.reference()?;
            let mut solution = match self.of_solution(code)? {
                Ok(solution) => solution,
                Err(stop) => return Ok(Err(stop)),
            };
            let expert = reference
                .input(input)
                .and_then(|()| reference.run_and_give(None, 1))
                .map_err(|stop| self.reference_stopped(&stop))?;
            let found = solution
                .input(input)
                .and_then(|()| solution.run_and_give(Some(self.allowed), 1));
            let (run, output) = match found {
                Ok(found) => found,
                Err(stop) => return Ok(Err(solution.why(stop))),
            };
            if let Some(wrong) = self.wrong(test, &output)? {
                return Ok(Err(wrong));
            }
            own.push(run);
            references.push(expert.0);
        }
        Ok(Ok((own, references)))
    }

    fn wrong(&mut self, test: Case, output: &str) -> Result<Option<Stop>, EnamelError> {
        Ok((!self.judge.is_right(test, output)?).then_some(Stop {
            verdict: Verdict::Wrong,
            detail: None,
        }))
    }

    /// Runs of one test, solution and reference in turn: what slows the machine slows both.
    fn take_turns(
        &mut self,
        test: Case,
        first: Run,
        solution: &mut Subject,
        reference: &mut Subject,
    ) -> Result<Turns, EnamelError> {
        let (mut own, mut references) = (Vec::new(), Vec::new());
        // A solution that is slow to load or to run is not lost in waking its process.
        let most = SHORT_ENOUGH / (first.loading + first.seconds).max(1e-9);
        let calls = self.calls[test.0][test.1].min(most as usize).max(1);
        for turn in 0..self.repeats(test.0) {
            let mut one_reference = |bench: &Self| {
                reference
                    .run_and_give(None, calls)
                    .map_err(|stop| bench.reference_stopped(&stop))
            };
            let before = if turn % 2 == 0 {
                Some(one_reference(self)?.0)
            } else {
                None
            };
            let (run, output) = match solution.run_and_give(Some(self.allowed), calls) {
                Ok(found) => found,
                Err(stop) => return Ok(Err(stop)),
            };
            let expert = match before {
                Some(run) => run,
                None => one_reference(self)?.0,
            };
            if let Some(wrong) = self.wrong(test, &output)? {
                return Ok(Err(wrong));
            }
            own.push(run);
            references.push(expert);
        }
        Ok(Ok((own, references)))
    }

    /// What a solution's times amount to.
    fn judge_times(&self, times: &Times, beside: &Times, stop: Option<(Stop, usize)>) -> Measured {
        let tests = &self.settings.tests;
        let complete = times
            .iter()
            .zip(tests)
            .take_while(|(level, count)| level.len() == **count)
            .count();
        let seconds: Vec<f64> = times[..complete].iter().map(|l| slowest(l)).collect();
        let verdict = stop.as_ref().map(|(stop, _)| stop.verdict);
        let censored = matches!(
            verdict,
            None | Some(Verdict::Timeout | Verdict::Memory | Verdict::Overflow)
        );
        let passed = censored && complete > 0;
        let references = references(beside, self.settings);
        // What cannot be told apart is no difference, and of a larger one it is no part.
        let told: Vec<f64> = seconds
            .iter()
            .zip(&references.slowest)
            .map(|(own, usual)| {
                let apart = own - usual;
                usual + apart.signum() * (apart.abs() - RESOLUTION).max(0.0)
            })
            .collect();
        Measured {
            passed,
            efficiency: if passed {
                references.score(&told, self.settings.timeout_factor)
            } else {
                0.0
            },
            verdict,
            level: stop.as_ref().map(|(_, level)| *level),
            detail: stop.and_then(|(stop, _)| stop.detail),
            seconds,
            reference_seconds: references.slowest,
        }
    }
}

/// Seconds of a solution's runs, with what it did beside the clock, and of the reference's.
fn seconds(own: &[Run], references: &[Run]) -> (Vec<f64>, Vec<f64>) {
    let more = |what: fn(&Run) -> f64| {
        let usual = BESIDE_THE_CLOCK * median(references.iter().map(what)) + NOISE;
        (median(own.iter().map(what)) - usual).max(0.0)
    };
    let beside = more(|run| run.loading) + more(|run| run.handing_over);
    let own = own.iter().map(|run| run.seconds + beside).collect();
    (own, references.iter().map(|run| run.seconds).collect())
}

fn references(times: &Times, settings: &Settings) -> References {
    References {
        slowest: times.iter().map(|level| slowest(level)).collect(),
        hardness: settings.hardness.clone(),
    }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() % 2 {
        _ if values.is_empty() => 0.0,
        0 => f64::midpoint(values[middle - 1], values[middle]),
        _ => values[middle],
    }
}

/// The slowest of a level's tests, each by its robust mean.
fn slowest(level: &[Vec<f64>]) -> f64 {
    level
        .iter()
        .filter_map(|times| hodges_lehmann(times))
        .fold(0.0, f64::max)
}
