//! What came of a program, and of setting up a sandbox for it.

use serde::Serialize;
use thiserror::Error;

use super::protocol::InForce;

/// A sandbox that cannot be had.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SandboxError {
    /// No interpreter that works inside.
    #[error(
        "no Python that runs in the sandbox (tried {tried}): install python3, or name one with `--python`"
    )]
    NoPython {
        /// What was tried.
        tried: String,
    },
    /// A kernel that cannot hold programs in.
    #[error(
        "generated code cannot be isolated here ({missing}): run on a Linux kernel with Landlock (5.13 or newer) and seccomp, or give `--no-isolation` to let it read your files and use your network"
    )]
    NotIsolated {
        /// What there is not.
        missing: String,
    },
    /// No way to start a program with fewer rights.
    #[error(
        "no launcher for sandboxed programs: call `frugal_eval::sandbox::enter()` first in `main`, or name a launcher"
    )]
    NoLauncher,
    /// A program that was not started.
    #[error("the sandboxed program was not started: {0}")]
    Refused(String),
    /// Another operating system.
    #[error("generated code runs on Linux only")]
    Unsupported,
    /// The system refuses.
    #[error("the sandbox cannot be set up: {0}")]
    System(#[from] std::io::Error),
}

/// What holds on this machine beside the limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Isolation {
    /// There is no network, and no socket of another program.
    pub no_network: bool,
    /// Other processes cannot be seen.
    pub own_processes: bool,
    /// It runs as a user that owns nothing.
    pub other_user: bool,
    /// Files outside of the scratch folder cannot be written, those that are not the interpreter's
    /// cannot be read.
    pub files: bool,
    /// Version of Landlock's interface, 0 without Landlock.
    pub landlock: u8,
    /// System calls are filtered.
    pub system_calls: bool,
}

impl Isolation {
    pub(super) fn new(facts: InForce) -> Self {
        Self {
            no_network: facts.private || facts.system_calls,
            own_processes: facts.private,
            other_user: facts.other_user,
            files: facts.landlock > 0,
            landlock: facts.landlock,
            system_calls: facts.system_calls,
        }
    }

    /// Whether files, network and other processes are out of reach.
    pub fn is_complete(&self) -> bool {
        self.files && self.system_calls
    }

    /// One sentence for people.
    pub fn describe(&self) -> String {
        let files = if self.files {
            format!(
                "files by Landlock {}{}",
                self.landlock,
                // Truncation is the third version's.
                if self.landlock < 3 {
                    " (files may be truncated)"
                } else {
                    ""
                }
            )
        } else {
            "your FILES are open to it (no Landlock)".into()
        };
        let held = |holds: bool, yes: &str, no: &str| if holds { yes } else { no }.to_owned();
        [
            files,
            held(
                self.no_network,
                "no network",
                "your NETWORK is open to it (no seccomp)",
            ),
            held(
                self.own_processes,
                "own process space",
                "no process space of its own (namespaces are not permitted here)",
            ),
            held(self.other_user, "another user", "the same user"),
        ]
        .join(", ")
    }
}

/// How a program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Ending {
    /// By itself, with success: its exit status is 0, which proves nothing about what it did.
    Success,
    /// By itself, with an error.
    Failure,
    /// It ran out of time and was ended.
    Timeout,
    /// It asked for more memory than it may have.
    Memory,
    /// It wrote more than is kept and was ended.
    Output,
    /// It had more processes than it may have and was ended.
    Processes,
    /// It filled the scratch folder and was ended.
    Files,
    /// By a signal.
    Killed,
}

/// What a program did.
#[derive(Clone, Debug, Serialize)]
pub struct Execution {
    /// How it ended.
    pub ending: Ending,
    /// Standard output, as much as is kept.
    pub stdout: String,
    /// Standard error, likewise.
    pub stderr: String,
    /// Seconds by the clock on the wall.
    pub seconds: f64,
}
