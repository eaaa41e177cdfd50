//! A program that runs in the sandbox, seen from outside.

use std::io::{self, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::outcome::{Ending, Execution, Isolation, SandboxError};
use super::protocol::{Exit, Frame, InForce, Order, Seen, VARIABLE};

/// A launcher that says nothing for so long is broken.
const STARTS_WITHIN: Duration = Duration::from_secs(60);
/// The supervisor ends a program by itself; this much later we end the supervisor.
const GRACE: Duration = Duration::from_secs(10);

/// What came of waiting for a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// A line of standard output, without its end.
    Line(String),
    /// None in time.
    Late,
    /// The program has ended.
    Ended,
}

/// A running program. Dropping it ends the program and all that it started.
#[derive(Debug)]
pub struct Session {
    outer: Child,
    /// Deleted with the session.
    scratch: TempDir,
    stdin: Option<ChildStdin>,
    frames: Receiver<Frame>,
    facts: InForce,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    /// Bytes of `stdout` that are lines which were read.
    taken: usize,
    exit: Option<Exit>,
    start: Instant,
    last: Instant,
    keep: usize,
    /// The program's number, where it was looked for.
    program: Option<i32>,
}

impl Session {
    pub(super) fn start(
        launcher: &Path,
        order: &Order,
        scratch: TempDir,
    ) -> Result<Self, SandboxError> {
        let text = serde_json::to_string(order).map_err(io::Error::from)?;
        let mut command = Command::new(launcher);
        command
            .env_clear()
            .env(VARIABLE, text)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let mut outer = command.spawn()?;
        let (sender, frames) = channel();
        let stdin = outer.stdin.take();
        if let Some(pipe) = outer.stdout.take() {
            let mut pipe = BufReader::new(pipe);
            std::thread::spawn(move || {
                while let Ok(frame) = Frame::read(&mut pipe) {
                    if sender.send(frame).is_err() {
                        return;
                    }
                }
            });
        }
        let wall = Duration::try_from_secs_f64(order.limits.wall_seconds)
            .unwrap_or(Duration::MAX / 4)
            .min(Duration::from_secs(1 << 30));
        let mut session = Self {
            outer,
            scratch,
            stdin,
            frames,
            facts: InForce::default(),
            stdout: Vec::new(),
            stderr: Vec::new(),
            taken: 0,
            exit: None,
            start: Instant::now(),
            last: Instant::now() + wall + GRACE,
            keep: usize::try_from(order.limits.output_bytes).unwrap_or(usize::MAX),
            program: None,
        };
        match session.frames.recv_timeout(STARTS_WITHIN) {
            Ok(Frame::Ready(facts)) => {
                session.facts = facts;
                session.start = Instant::now();
                session.last = session.start + wall + GRACE;
                Ok(session)
            }
            Ok(Frame::Refused(why)) => Err(SandboxError::Refused(why)),
            _ => Err(SandboxError::Refused("its launcher did not answer".into())),
        }
    }

    /// What holds the program in.
    pub fn isolation(&self) -> Isolation {
        Isolation::new(self.facts)
    }

    /// The folder that it may write to, as seen from here; where it has namespaces this one stays
    /// empty.
    pub fn scratch(&self) -> &Path {
        self.scratch.path()
    }

    /// Writes a line to standard input. A program that does not read it holds this up until its
    /// time is over; one that has ended does not matter here.
    pub fn write_line(&mut self, line: &str) {
        if let Some(pipe) = &mut self.stdin {
            let _ = pipe
                .write_all(line.as_bytes())
                .and_then(|()| pipe.write_all(b"\n"))
                .and_then(|()| pipe.flush());
        }
    }

    /// Writes standard input while other things go on, then closes it.
    pub(super) fn write_all_beside(&mut self, bytes: Vec<u8>) {
        if let Some(mut pipe) = self.stdin.take() {
            std::thread::spawn(move || pipe.write_all(&bytes));
        }
    }

    /// Closes standard input.
    pub fn close(&mut self) {
        self.stdin = None;
    }

    /// The next line of standard output.
    pub fn read_line(&mut self, deadline: Instant) -> Reply {
        let mut searched = self.taken;
        loop {
            if let Some(end) = self.stdout[searched..].iter().position(|b| *b == b'\n') {
                let end = searched + end;
                let line = String::from_utf8_lossy(&self.stdout[self.taken..end]).into_owned();
                // What was read needs not be kept.
                self.stdout.drain(..=end);
                self.taken = 0;
                return Reply::Line(line);
            }
            searched = self.stdout.len();
            if self.exit.is_some() {
                return Reply::Ended;
            }
            let left = deadline
                .min(self.last)
                .saturating_duration_since(Instant::now());
            match self.frames.recv_timeout(left) {
                Ok(frame) => self.take(frame),
                Err(RecvTimeoutError::Timeout) if Instant::now() < self.last => {
                    return Reply::Late;
                }
                Err(RecvTimeoutError::Timeout) => self.lost(Seen::Timeout),
                Err(RecvTimeoutError::Disconnected) => self.lost(Seen::Signal(9)),
            }
        }
    }

    /// Waits for the end.
    pub fn finish(mut self) -> Execution {
        while self.exit.is_none() {
            let left = self.last.saturating_duration_since(Instant::now());
            match self.frames.recv_timeout(left) {
                Ok(frame) => self.take(frame),
                Err(RecvTimeoutError::Timeout) => self.lost(Seen::Timeout),
                // A launcher that was ended from elsewhere.
                Err(RecvTimeoutError::Disconnected) => self.lost(Seen::Signal(9)),
            }
        }
        let text = |bytes: &[u8], keep: usize| {
            String::from_utf8_lossy(&bytes[..bytes.len().min(keep)]).into_owned()
        };
        let stdout = text(&self.stdout[self.taken..], self.keep);
        let stderr = text(&self.stderr, self.keep);
        let (seen, seconds) = self
            .exit
            .map_or((Seen::Signal(9), 0.0), |e| (e.seen, e.seconds));
        let memory = || {
            let last = stderr.trim_end().lines().last().unwrap_or_default();
            last.starts_with("MemoryError")
        };
        let ending = match seen {
            Seen::Code(0) => Ending::Success,
            Seen::Code(_) if memory() => Ending::Memory,
            Seen::Code(_) => Ending::Failure,
            Seen::Signal(_) => Ending::Killed,
            Seen::Timeout => Ending::Timeout,
            Seen::Memory => Ending::Memory,
            Seen::Output => Ending::Output,
            Seen::Processes => Ending::Processes,
            Seen::Files => Ending::Files,
        };
        Execution {
            ending,
            stdout,
            stderr,
            seconds,
        }
    }

    fn take(&mut self, frame: Frame) {
        match frame {
            Frame::Stdout(bytes) => self.stdout.extend_from_slice(&bytes),
            Frame::Stderr(bytes) if self.stderr.len() < self.keep => {
                self.stderr.extend_from_slice(&bytes);
            }
            Frame::Exit(exit) => self.exit = Some(exit),
            Frame::Refused(_) => self.lost(Seen::Signal(9)),
            Frame::Stderr(_) | Frame::Ready(_) => {}
        }
    }

    fn lost(&mut self, seen: Seen) {
        let seconds = self.start.elapsed().as_secs_f64();
        self.exit = Some(Exit { seen, seconds });
    }
}

#[cfg(target_os = "linux")]
impl Session {
    /// Seconds of processor time that the program, without its children, has used so far. `None`
    /// once it has ended.
    pub fn processor_seconds(&mut self) -> Option<f64> {
        let pid = nix::unistd::Pid::from_raw(self.number()?);
        let clock = nix::time::ClockId::pid_cpu_clock_id(pid).ok()?;
        Some(Duration::from(clock.now().ok()?).as_secs_f64())
    }

    /// The program's number on this machine: the launcher's only child, or that one's.
    fn number(&mut self) -> Option<i32> {
        if self.program.is_none() {
            let mut pid = self.outer.id() as i32;
            for _ in 0..if self.facts.private { 2 } else { 1 } {
                pid = *super::processes::children(pid).first()?;
            }
            self.program = Some(pid);
        }
        self.program
    }
}

#[cfg(not(target_os = "linux"))]
impl Session {
    /// Seconds of processor time that the program has used so far.
    pub fn processor_seconds(&mut self) -> Option<f64> {
        let _ = (self.program, &self.outer);
        None
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // Closing its input lets a program that listens end by itself; the launcher's end takes
        // the rest with it.
        self.stdin = None;
        #[cfg(target_os = "linux")]
        if !matches!(self.outer.try_wait(), Ok(Some(_))) && self.exit.is_none() {
            self.end();
        }
        let _ = self.outer.wait();
    }
}

#[cfg(target_os = "linux")]
impl Session {
    fn end(&mut self) {
        use nix::sys::signal::{Signal, kill, killpg};
        use nix::unistd::Pid;
        let outer = self.outer.id() as i32;
        // Without a process space of its own the program's family must be found first.
        let family = if self.facts.private {
            Vec::new()
        } else {
            super::processes::family(outer)
        };
        let _ = killpg(Pid::from_raw(outer), Signal::SIGKILL);
        for pid in family {
            let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}
