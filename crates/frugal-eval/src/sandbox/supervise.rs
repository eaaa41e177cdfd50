//! The process that stands between the program and us: it alone holds our pipe, counts what the
//! program and its children use together, and ends them.

use std::collections::BTreeSet;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{ChildStderr, ChildStdout, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use nix::sys::prctl::{set_child_subreaper, set_dumpable};
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, getpid};

use super::limits::Limits;
use super::protocol::{Exit, Frame, InForce, OWN, Order, Role, Seen, step};
use super::{namespaces, processes};

/// Between two countings.
const TICK: Duration = Duration::from_millis(10);
/// That long the pipes may stay open after everything was ended.
const DRAIN: Duration = Duration::from_secs(2);

/// Starts the program and watches it; `private` if this is the first process of its own space.
pub(super) fn run(order: &Order, private: bool) -> i32 {
    let mut out = io::stdout();
    match watch(order, private, &mut out) {
        Ok(()) => 0,
        Err(why) => {
            let _ = Frame::Refused(why).write(&mut out);
            1
        }
    }
}

fn watch(order: &Order, private: bool, out: &mut io::Stdout) -> Result<(), String> {
    let text = |e: &dyn std::fmt::Display| e.to_string();
    // The program must not look into this process, nor take its pipe from it.
    set_dumpable(false).map_err(|e| text(&e))?;
    let mut own = Vec::new();
    if private {
        let needed: Vec<PathBuf> = order
            .readable
            .iter()
            .cloned()
            .chain([order.python.clone()])
            .collect();
        let bytes = order.limits.scratch_bytes;
        own = namespaces::mount_own(&order.scratch, &needed, bytes, order.user)?;
    } else {
        set_child_subreaper(true).map_err(|e| text(&e))?;
        namespaces::give(&order.scratch, order.user).map_err(|e| text(&e))?;
    }
    let mut command = step(order, Role::Program);
    if private {
        command.env(OWN, std::env::join_paths(&own).map_err(|e| text(&e))?);
    }
    let mut child = command
        .stdin(Stdio::inherit())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .map_err(|e| text(&e))?;
    let mut stdout = BufReader::new(child.stdout.take().ok_or("no pipe")?);
    let stderr = child.stderr.take().ok_or("no pipe")?;
    let mut line = String::new();
    stdout.read_line(&mut line).map_err(|e| text(&e))?;
    let facts: InForce = serde_json::from_str(&line)
        .map_err(|_| line.trim_start_matches('!').trim_end().to_owned())?;
    Frame::Ready(facts).write(out).map_err(|e| text(&e))?;
    let program = Pid::from_raw(child.id() as i32);
    let mut watch = Watch {
        limits: order.limits,
        scratch: (!private).then(|| order.scratch.clone()),
        private,
        program,
        start: Instant::now(),
        written: 0,
    };
    let exit = watch.attend(stdout, stderr, out).map_err(|e| text(&e))?;
    Frame::Exit(exit).write(out).map_err(|e| text(&e))
}

struct Watch {
    limits: Limits,
    /// The scratch folder, where its size must be counted.
    scratch: Option<PathBuf>,
    private: bool,
    program: Pid,
    start: Instant,
    written: u64,
}

impl Watch {
    /// Passes on what the program writes until it ends or must end.
    fn attend(
        &mut self,
        stdout: BufReader<ChildStdout>,
        stderr: ChildStderr,
        out: &mut io::Stdout,
    ) -> io::Result<Exit> {
        let (sender, frames) = sync_channel(64);
        relay(stdout, sender.clone(), Frame::Stdout);
        relay(stderr, sender, Frame::Stderr);
        let mut counted = Instant::now();
        let seen = loop {
            let closed = match frames.recv_timeout(TICK) {
                Ok(frame) => {
                    self.pass_on(frame, out)?;
                    false
                }
                Err(RecvTimeoutError::Timeout) => false,
                Err(RecvTimeoutError::Disconnected) => true,
            };
            if let Some(seen) = self.ended() {
                break seen;
            }
            if self.written > self.limits.output_bytes {
                break Seen::Output;
            }
            if self.start.elapsed().as_secs_f64() > self.limits.wall_seconds {
                break Seen::Timeout;
            }
            if counted.elapsed() >= TICK {
                counted = Instant::now();
                if let Some(over) = self.over_the_limit() {
                    break over;
                }
            }
            if closed {
                std::thread::sleep(TICK);
            }
        };
        let seconds = self.start.elapsed().as_secs_f64();
        self.end_all();
        self.drain(&frames, out)?;
        let over = self.written > self.limits.output_bytes;
        let seen = if over { Seen::Output } else { seen };
        Ok(Exit { seen, seconds })
    }

    fn pass_on(&mut self, frame: Frame, out: &mut io::Stdout) -> io::Result<()> {
        if let Frame::Stdout(bytes) | Frame::Stderr(bytes) = &frame {
            let before = self.written;
            self.written += bytes.len() as u64;
            if before > self.limits.output_bytes {
                return Ok(());
            }
        }
        frame.write(out)
    }

    fn drain(&mut self, frames: &Receiver<Frame>, out: &mut io::Stdout) -> io::Result<()> {
        let end = Instant::now() + DRAIN;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match frames.recv_timeout(left) {
                Ok(frame) => self.pass_on(frame, out)?,
                Err(_) => return Ok(()),
            }
        }
    }

    /// Takes note of processes that have ended; how the program itself did.
    fn ended(&self) -> Option<Seen> {
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) if pid == self.program => {
                    return Some(Seen::Code(code));
                }
                Ok(WaitStatus::Signaled(pid, signal, _)) if pid == self.program => {
                    return Some(self.signaled(signal));
                }
                Ok(WaitStatus::StillAlive) | Err(_) => return None,
                Ok(_) => {}
            }
        }
    }

    fn signaled(&self, signal: Signal) -> Seen {
        let long = self.start.elapsed().as_secs_f64() >= self.limits.cpu_seconds as f64;
        match signal {
            Signal::SIGXCPU => Seen::Timeout,
            Signal::SIGKILL if long => Seen::Timeout,
            other => Seen::Signal(other as i32),
        }
    }

    /// Everything that the program started, itself included.
    fn family(&self) -> Vec<i32> {
        let own = getpid().as_raw();
        if self.private {
            processes::all().filter(|pid| *pid != own).collect()
        } else {
            let mut family = processes::family(own);
            family.retain(|pid| *pid != own);
            family
        }
    }

    fn over_the_limit(&self) -> Option<Seen> {
        let family = self.family();
        let (mut bytes, mut threads) = (0, 0);
        for pid in &family {
            let (own, count) = processes::usage(*pid);
            bytes += own;
            threads += count;
        }
        if threads > self.limits.processes {
            return Some(Seen::Processes);
        }
        if bytes > self.limits.memory {
            // Pages that forks share were counted more than once.
            let exact = |pid: &i32| {
                // One that has ended meanwhile holds nothing.
                processes::proportional(*pid).unwrap_or_else(|| processes::usage(*pid).0)
            };
            if family.iter().map(exact).sum::<u64>() > self.limits.memory {
                return Some(Seen::Memory);
            }
        }
        let files = self.scratch.as_deref().map_or(0, folder_bytes);
        (files > self.limits.scratch_bytes).then_some(Seen::Files)
    }

    /// Ends everything that the program started.
    fn end_all(&self) {
        let everyone = Pid::from_raw(-1);
        // What forks while it is being ended is there the next time.
        for _ in 0..200 {
            if self.private {
                let _ = kill(everyone, Signal::SIGKILL);
            } else {
                let _ = killpg(self.program, Signal::SIGKILL);
                for pid in self.family() {
                    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
                }
            }
            while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                if status == WaitStatus::StillAlive {
                    break;
                }
            }
            if self.family().is_empty() {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Bytes of the files in a folder and below it; a file with several names counts once.
fn folder_bytes(folder: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let (mut open, mut seen, mut bytes) = (vec![folder.to_owned()], BTreeSet::new(), 0);
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            match entry.metadata() {
                Ok(data) if data.is_dir() => open.push(entry.path()),
                // A name takes room too.
                Ok(data) if seen.insert(data.ino()) => bytes += data.blocks() * 512 + 256,
                _ => {}
            }
        }
    }
    bytes
}

fn relay(
    mut pipe: impl Read + Send + 'static,
    frames: SyncSender<Frame>,
    kind: fn(Vec<u8>) -> Frame,
) {
    std::thread::spawn(move || {
        let mut buffer = vec![0; 1 << 16];
        while let Ok(n @ 1..) = pipe.read(&mut buffer) {
            if frames.send(kind(buffer[..n].to_vec())).is_err() {
                return;
            }
        }
    });
}
