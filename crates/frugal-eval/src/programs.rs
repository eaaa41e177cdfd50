//! Whether a program that a model wrote passes a test.
//!
//! Program and test run in two interpreters, each in a sandbox of its own, and we carry values
//! between them. A program can therefore end its process, change what Python means in it or write
//! what it likes: the verdict is said by the process of the test, after the last line of the test,
//! on a pipe that the program has no way to. What the test takes from the program comes as plain
//! values; an object that stays in the program never equals a value of the test.

use std::time::{Duration, Instant};

use serde_json::json;
use thiserror::Error;

use super::sandbox::{Limits, Reply, Sandbox, SandboxError};

/// A test that cannot be run.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ProgramError {
    /// The sandbox.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// A test that program and test would have to share a process for.
    #[error("the test cannot be run apart from the program: {0}")]
    Unfit(String),
}

/// A test of a program.
#[derive(Clone, Copy, Debug)]
pub struct Test<'a> {
    /// Python that raises where the program is wrong.
    pub code: &'a str,
    /// What the program had to begin with: functions that it defines beside its last one are those
    /// of the test, whatever the program makes of them. May be empty, or no Python.
    pub prompt: &'a str,
    /// Names that the test takes from the program even where Python has the same, beside the last
    /// function of the prompt.
    pub wanted: &'a [String],
}

/// What came of a test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The test ran to its end.
    Pass,
    /// It did not, for this reason.
    Fail(String),
}

const CANDIDATE: &str = concat!(
    include_str!("programs/values.py"),
    include_str!("programs/candidate.py")
);
const JUDGE: &str = concat!(
    include_str!("programs/values.py"),
    include_str!("programs/judge.py")
);
/// All that program and test may say to each other.
const MAX_SAID: u64 = 64 << 20;

/// Runs a test on a program.
///
/// # Errors
/// When nothing could be started, or the test itself is not fit for it; what the program does is
/// in the verdict.
pub fn check(
    sandbox: &Sandbox,
    program: &str,
    test: &Test<'_>,
    limits: &Limits,
) -> Result<Verdict, ProgramError> {
    let limits = Limits {
        output_bytes: limits.output_bytes.max(MAX_SAID),
        ..*limits
    };
    let deadline = Instant::now()
        + Duration::try_from_secs_f64(limits.wall_seconds).unwrap_or(Duration::from_secs(3600));
    let mut judge = sandbox.start(JUDGE, &limits)?;
    let mut candidate = sandbox.start(CANDIDATE, &limits)?;
    let work = json!({ "test": test.code, "prompt": test.prompt, "wanted": test.wanted });
    judge.write_line(&work.to_string());
    candidate.write_line(&json!({ "program": program }).to_string());
    // The program speaks first, then each asks the other until the test is over.
    loop {
        match candidate.read_line(deadline) {
            Reply::Line(line) => judge.write_line(&line),
            Reply::Late => return Ok(Verdict::Fail("out of time".into())),
            Reply::Ended => judge.close(),
        }
        let said = match judge.read_line(deadline) {
            Reply::Line(line) => line,
            Reply::Late => return Ok(Verdict::Fail("out of time".into())),
            Reply::Ended => return Ok(Verdict::Fail("the test ended without a verdict".into())),
        };
        if let Some(request) = said.strip_prefix('>') {
            candidate.write_line(request);
            continue;
        }
        return match said
            .strip_prefix('=')
            .map(|v| v.split_once(' ').unwrap_or((v, "")))
        {
            Some(("pass", "")) => Ok(Verdict::Pass),
            Some(("unfit", why)) => Err(ProgramError::Unfit(why.into())),
            Some(("fail", why)) => Ok(Verdict::Fail(why.into())),
            _ => Ok(Verdict::Fail("the test said something else".into())),
        };
    }
}

/// Names that functions of a reference solution have, for [`Test::wanted`].
pub fn defined_functions(code: &str) -> Vec<String> {
    code.lines()
        .filter_map(|line| {
            let name = line.strip_prefix("def ")?.split('(').next()?.trim();
            Some(name.to_owned())
        })
        .collect()
}
