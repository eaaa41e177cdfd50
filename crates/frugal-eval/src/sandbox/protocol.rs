//! What the program and its launcher say to each other: the order of a run, handed over in the
//! environment, and frames that come back on the launcher's standard output.

use std::io::{self, Read, Write};
use std::path::PathBuf;
#[cfg(target_os = "linux")]
use std::process::Command;

use serde::{Deserialize, Serialize};

use super::limits::Limits;

/// Variable that makes a program that calls [`enter`](super::enter) a launcher.
pub(super) const VARIABLE: &str = "FRUGAL_SANDBOX_ORDER";

/// Variable with the folders that are the program's own, where it has namespaces.
#[cfg(target_os = "linux")]
pub(super) const OWN: &str = "FRUGAL_SANDBOX_OWN";

/// Which step of a launch a process takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Role {
    /// Makes namespaces where they are wanted and starts the supervisor in them.
    Outer,
    /// Starts the program, counts what it uses and ends it with all that it left behind.
    Supervisor,
    /// Gives up every right that the program shall not have, then becomes the interpreter.
    Program,
}

/// What a launcher is to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Order {
    pub role: Role,
    pub python: PathBuf,
    pub scratch: PathBuf,
    pub limits: Limits,
    /// Files and folders of the interpreter.
    pub readable: Vec<PathBuf>,
    pub namespaces: bool,
    /// User that the program becomes, where root starts it.
    pub user: Option<u32>,
    /// Whether a program that could read files or open sockets is not to be started.
    pub require_isolation: bool,
}

/// This file once more, as another step.
#[cfg(target_os = "linux")]
pub(super) fn step(order: &Order, role: Role) -> Command {
    let mut command = Command::new("/proc/self/exe");
    let order = Order {
        role,
        ..order.clone()
    };
    command
        .env_clear()
        .env(VARIABLE, serde_json::to_string(&order).unwrap_or_default());
    command
}

/// What the last step found in force just before the interpreter started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct InForce {
    /// Version of Landlock's interface, 0 without Landlock.
    pub landlock: u8,
    pub system_calls: bool,
    pub private: bool,
    pub other_user: bool,
}

/// How the supervisor saw the program end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Seen {
    Code(i32),
    Signal(i32),
    Timeout,
    Memory,
    Output,
    Processes,
    Files,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Exit {
    pub seen: Seen,
    pub seconds: f64,
}

/// A message of the launcher.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Frame {
    /// The interpreter starts, held by this.
    Ready(InForce),
    Stdout(Vec<u8>),
    Stderr(Vec<u8>),
    Exit(Exit),
    /// The program was not started.
    Refused(String),
}

/// More than a reading of a pipe ever has.
const LARGEST: u32 = 1 << 20;

impl Frame {
    pub(super) fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let (kind, payload) = match self {
            Self::Ready(facts) => (b'R', serde_json::to_vec(facts)?),
            Self::Stdout(bytes) => (b'O', bytes.clone()),
            Self::Stderr(bytes) => (b'E', bytes.clone()),
            Self::Exit(exit) => (b'X', serde_json::to_vec(exit)?),
            Self::Refused(why) => (b'F', why.clone().into_bytes()),
        };
        let mut bytes = vec![kind];
        bytes.extend_from_slice(&(payload.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&payload);
        out.write_all(&bytes)?;
        out.flush()
    }

    pub(super) fn read(input: &mut impl Read) -> io::Result<Self> {
        let mut head = [0; 5];
        input.read_exact(&mut head)?;
        let length = u32::from_le_bytes([head[1], head[2], head[3], head[4]]);
        if length > LARGEST {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut payload = vec![0; length as usize];
        input.read_exact(&mut payload)?;
        Ok(match head[0] {
            b'R' => Self::Ready(serde_json::from_slice(&payload)?),
            b'O' => Self::Stdout(payload),
            b'E' => Self::Stderr(payload),
            b'X' => Self::Exit(serde_json::from_slice(&payload)?),
            b'F' => Self::Refused(String::from_utf8_lossy(&payload).into_owned()),
            _ => return Err(io::ErrorKind::InvalidData.into()),
        })
    }
}
