//! Running Python programs that a model wrote, held in by the operating system.
//!
//! Each program runs in a process of its own with limits on processor time, memory, processes, open
//! files and the size of files (`setrlimit`), a wall clock outside of it, a cap on its output, an
//! empty environment, and a scratch folder that is deleted afterwards. Where `unshare` is permitted
//! it also has no network, sees no other processes, and everything it started ends with it; a
//! program started by root runs as another user. [`Isolation`] says what holds on this machine.
//!
//! This protects the machine from mistakes and from the usual mischief. It is no defence against
//! someone who attacks the kernel, and files that everyone may read can be read.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;
use thiserror::Error;

/// A sandbox that cannot be had.
#[derive(Debug, Error)]
pub enum SandboxError {
    /// No interpreter that works inside.
    #[error(
        "no Python that runs in the sandbox (tried {tried}): install python3, or name one with `--python`"
    )]
    NoPython {
        /// What was tried.
        tried: String,
    },
    /// The system refuses.
    #[error("the sandbox cannot be set up: {0}")]
    System(#[from] std::io::Error),
}

/// What a program may use.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Limits {
    /// Seconds by the clock on the wall.
    pub wall_seconds: f64,
    /// Seconds of processor time.
    pub cpu_seconds: u64,
    /// Bytes of address space.
    pub memory: u64,
    /// Processes and threads, itself included.
    pub processes: u64,
    /// Bytes of each file that it writes.
    pub file_bytes: u64,
    /// Bytes of output that are kept; more ends the program.
    pub output_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            wall_seconds: 10.0,
            cpu_seconds: 10,
            memory: 1 << 30,
            processes: 16,
            file_bytes: 16 << 20,
            output_bytes: 1 << 20,
        }
    }
}

/// What holds on this machine beside the limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Isolation {
    /// There is no network.
    pub no_network: bool,
    /// Other processes cannot be seen, and everything that was started ends with the program.
    pub own_processes: bool,
    /// It runs as a user that owns nothing.
    pub other_user: bool,
}

impl Isolation {
    /// One sentence for people.
    pub fn describe(&self) -> String {
        let held =
            |holds: bool, yes: &str, no: &str| if holds { yes.to_owned() } else { no.to_owned() };
        [
            held(
                self.no_network,
                "no network",
                "the network is NOT cut off (unshare is not permitted here)",
            ),
            held(
                self.own_processes,
                "own process space",
                "processes that leave their group may outlive it",
            ),
            held(self.other_user, "another user", "the same user"),
        ]
        .join(", ")
    }
}

/// How a program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// By itself, with success.
    Success,
    /// By itself, with an error.
    Failure,
    /// It ran out of time and was ended.
    Timeout,
    /// It asked for more memory than it may have.
    Memory,
    /// It wrote more than is kept and was ended.
    Output,
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

/// A way of running programs.
#[derive(Clone, Debug)]
pub struct Sandbox {
    /// Words in front of the interpreter.
    wrapper: Vec<String>,
    python: PathBuf,
    isolation: Isolation,
    /// Owner of the scratch folder.
    user: Option<u32>,
}

/// Sets the limits, then runs the program that follows on standard input as `__main__`.
const PROLOGUE: &str = r#"
import resource, sys
def limit(kind, value):
    try:
        resource.setrlimit(kind, (value, value))
    except (ValueError, OSError):
        pass
cpu, memory, processes, size = map(int, sys.argv[1:5])
limit(resource.RLIMIT_CORE, 0)
limit(resource.RLIMIT_CPU, cpu)
limit(resource.RLIMIT_FSIZE, size)
limit(resource.RLIMIT_NOFILE, 64)
limit(resource.RLIMIT_NPROC, processes)
limit(resource.RLIMIT_AS, memory)
sys.argv[1:] = []
with open("program.py", "rb") as file:
    program = compile(file.read(), "program.py", "exec")
exec(program, {"__name__": "__main__", "__builtins__": __builtins__})
"#;

impl Sandbox {
    /// Finds the strongest isolation that works here, with the Python named or the first one that
    /// runs.
    ///
    /// # Errors
    /// When no interpreter runs.
    pub fn new(python: Option<&Path>) -> Result<Self, SandboxError> {
        let candidates: Vec<PathBuf> = match python {
            Some(path) => vec![path.to_owned()],
            None => ["python3", "/usr/bin/python3", "/usr/local/bin/python3"]
                .map(PathBuf::from)
                .to_vec(),
        };
        let candidates: Vec<PathBuf> = candidates.iter().filter_map(|p| executable(p)).collect();
        // A number of its own keeps the processes of two sandboxes from being counted together.
        let user = 200_000 + std::process::id() % 50_000;
        let root = [
            "unshare",
            "--net",
            "--pid",
            "--ipc",
            "--fork",
            "--kill-child",
        ]
        .map(str::to_owned)
        .to_vec();
        let id = |flag: &str| format!("--{flag}={user}");
        let other = vec![
            "setpriv".into(),
            id("reuid"),
            id("regid"),
            "--clear-groups".into(),
            "--no-new-privs".into(),
            "--bounding-set=-all".into(),
        ];
        let own = [
            "unshare",
            "--user",
            "--map-current-user",
            "--net",
            "--pid",
            "--ipc",
            "--fork",
            "--kill-child",
        ]
        .map(str::to_owned);
        let ladder = [
            ([root.clone(), other.clone()].concat(), true, true),
            (own.to_vec(), true, false),
            (other, false, true),
            (root, true, false),
            (Vec::new(), false, false),
        ];
        for (wrapper, apart, other_user) in ladder {
            for python in &candidates {
                let isolation = Isolation {
                    no_network: apart,
                    own_processes: apart,
                    other_user,
                };
                let sandbox = Self {
                    wrapper: wrapper.clone(),
                    python: python.clone(),
                    isolation,
                    user: other_user.then_some(user),
                };
                let probe = sandbox.run(
                    "import json, random\nprint(json.dumps(6 * 7))",
                    b"",
                    &Limits::default(),
                );
                if probe.is_ok_and(|p| p.ending == Ending::Success && p.stdout == "42\n") {
                    return Ok(sandbox);
                }
            }
        }
        let tried = candidates
            .iter()
            .map(|p| p.display().to_string())
            .collect::<Vec<_>>();
        Err(SandboxError::NoPython {
            tried: if tried.is_empty() {
                "python3".into()
            } else {
                tried.join(", ")
            },
        })
    }

    /// What holds on this machine.
    pub fn isolation(&self) -> Isolation {
        self.isolation
    }

    /// The interpreter.
    pub fn python(&self) -> &Path {
        &self.python
    }

    /// Runs a program.
    ///
    /// # Errors
    /// When it cannot be started; whatever it does itself is an [`Execution`].
    pub fn run(
        &self,
        program: &str,
        stdin: &[u8],
        limits: &Limits,
    ) -> Result<Execution, SandboxError> {
        let scratch = tempfile::tempdir()?;
        std::fs::write(scratch.path().join("program.py"), program)?;
        #[cfg(unix)]
        if let Some(user) = self.user {
            std::os::unix::fs::chown(scratch.path(), Some(user), Some(user))?;
        }
        let mut words = self
            .wrapper
            .iter()
            .cloned()
            .chain([self.python.display().to_string()]);
        let mut command = Command::new(words.next().unwrap_or_default());
        command.args(words).args(["-I", "-B", "-c", PROLOGUE]);
        command.args(
            [
                limits.cpu_seconds,
                limits.memory,
                limits.processes,
                limits.file_bytes,
            ]
            .map(|n| n.to_string()),
        );
        command
            .env_clear()
            .env("PATH", "/usr/bin:/bin:/usr/sbin:/sbin")
            .env("HOME", scratch.path())
            .env("TMPDIR", scratch.path());
        command
            .env("PYTHONHASHSEED", "0")
            .env("OMP_NUM_THREADS", "1")
            .env("OPENBLAS_NUM_THREADS", "1")
            .current_dir(scratch.path());
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let start = Instant::now();
        let child = command.spawn()?;
        Ok(watch(child, stdin, limits, start))
    }
}

/// The interpreter behind what may be a wrapper script.
fn executable(python: &Path) -> Option<PathBuf> {
    let asked = Command::new(python)
        .args(["-I", "-c", "import sys; print(sys.executable)"])
        .stdin(Stdio::null())
        .output()
        .ok()?;
    let path = String::from_utf8(asked.stdout).ok()?;
    (asked.status.success() && !path.trim().is_empty()).then(|| PathBuf::from(path.trim()))
}

/// Waits within the limits and collects what was written.
fn watch(mut child: Child, stdin: &[u8], limits: &Limits, start: Instant) -> Execution {
    let total = Arc::new(AtomicU64::new(0));
    let readers = [
        child
            .stdout
            .take()
            .map(|s| reader(Box::new(s), &total, limits.output_bytes)),
        child
            .stderr
            .take()
            .map(|s| reader(Box::new(s), &total, limits.output_bytes)),
    ];
    if let Some(mut pipe) = child.stdin.take() {
        let bytes = stdin.to_vec();
        // A program that does not read its input must not hold this up; it ends with the pipe.
        std::thread::spawn(move || pipe.write_all(&bytes));
    }
    let mut ending = None;
    let mut pause = Duration::from_micros(500);
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break Some(status),
            Ok(None) if ending.is_some() => {}
            Ok(None) => {
                let over = start.elapsed().as_secs_f64() > limits.wall_seconds;
                let much = total.load(Ordering::Relaxed) > limits.output_bytes;
                if over || much {
                    ending = Some(if much {
                        Ending::Output
                    } else {
                        Ending::Timeout
                    });
                    end(&mut child);
                }
            }
            Err(_) => break None,
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    };
    let seconds = start.elapsed().as_secs_f64();
    if ending.is_none() {
        // What a program left behind in its group must not keep the pipes open.
        end_group(child.id());
    }
    let [stdout, stderr] = readers.map(|r| r.and_then(|r| r.join().ok()).unwrap_or_default());
    if total.load(Ordering::Relaxed) > limits.output_bytes {
        ending = Some(Ending::Output);
    }
    let ending = ending.unwrap_or_else(|| match status.and_then(|s| s.code()) {
        Some(0) => Ending::Success,
        Some(_)
            if stderr
                .trim_end()
                .lines()
                .last()
                .is_some_and(|l| l.starts_with("MemoryError")) =>
        {
            Ending::Memory
        }
        // 128 + SIGKILL or SIGXCPU: out of processor time, as the wrapper passes it on.
        Some(137 | 152) => Ending::Timeout,
        Some(_) => Ending::Failure,
        None => Ending::Killed,
    });
    Execution {
        ending,
        stdout,
        stderr,
        seconds,
    }
}

fn reader(
    mut pipe: Box<dyn Read + Send>,
    total: &Arc<AtomicU64>,
    keep: u64,
) -> std::thread::JoinHandle<String> {
    let total = total.clone();
    std::thread::spawn(move || {
        let mut kept = Vec::new();
        let mut buffer = [0; 1 << 14];
        while let Ok(n @ 1..) = pipe.read(&mut buffer) {
            let before = total.fetch_add(n as u64, Ordering::Relaxed);
            let room = usize::try_from(keep.saturating_sub(before))
                .unwrap_or(usize::MAX)
                .min(n);
            kept.extend_from_slice(&buffer[..room]);
            if before > keep {
                // It is being ended; what it still writes is thrown away.
                continue;
            }
        }
        String::from_utf8_lossy(&kept).into_owned()
    })
}

fn end(child: &mut Child) {
    end_group(child.id());
    // The wrapper's own end takes the process space with it.
    let _ = child.kill();
}

fn end_group(group: u32) {
    let _ = Command::new("kill")
        .args(["-KILL", "--", &format!("-{group}")])
        .stderr(Stdio::null())
        .status();
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    fn run_once(program: &str, limits: Limits) -> Execution {
        Sandbox::new(None)
            .unwrap()
            .run(program, b"", &limits)
            .unwrap()
    }

    fn short() -> Limits {
        Limits {
            wall_seconds: 2.0,
            cpu_seconds: 2,
            ..Limits::default()
        }
    }

    #[test]
    fn programs_run_and_their_errors_are_seen() {
        let sandbox = Sandbox::new(None).unwrap();
        eprintln!(
            "{}: {}",
            sandbox.python().display(),
            sandbox.isolation().describe()
        );
        let run = sandbox
            .run(
                "import sys\nprint(sys.stdin.read().upper(), __name__)",
                b"abc",
                &short(),
            )
            .unwrap();
        assert_eq!(
            (run.ending, run.stdout.as_str()),
            (Ending::Success, "ABC __main__\n")
        );
        let failed = sandbox.run("assert 1 == 2, 'no'", b"", &short()).unwrap();
        assert!(
            failed.ending == Ending::Failure && failed.stderr.contains("AssertionError: no"),
            "{failed:?}"
        );
    }

    #[test]
    fn an_endless_loop_ends() {
        let run = run_once(
            "while True:\n    try:\n        x = 1\n    except BaseException:\n        pass",
            Limits {
                wall_seconds: 0.7,
                ..short()
            },
        );
        assert!(
            run.ending == Ending::Timeout && run.seconds < 3.0,
            "{run:?}"
        );
        // One that only sleeps uses no processor time.
        let sleeping = run_once(
            "import time\ntime.sleep(60)",
            Limits {
                wall_seconds: 0.7,
                ..short()
            },
        );
        assert!(
            sleeping.ending == Ending::Timeout && sleeping.seconds < 3.0,
            "{sleeping:?}"
        );
    }

    #[test]
    fn a_hog_of_memory_is_refused() {
        let run = run_once(
            "x = []\nwhile True:\n    x.append(bytearray(1 << 24))",
            Limits {
                memory: 256 << 20,
                ..short()
            },
        );
        assert_eq!(run.ending, Ending::Memory, "{run:?}");
    }

    #[test]
    fn huge_output_is_cut() {
        let run = run_once(
            "while True:\n    print('x' * 10000)",
            Limits {
                output_bytes: 100_000,
                ..short()
            },
        );
        assert!(
            run.ending == Ending::Output && run.stdout.len() <= 100_000,
            "{:?} {}",
            run.ending,
            run.stdout.len()
        );
    }

    #[test]
    fn a_fork_bomb_goes_nowhere() {
        let bomb = "import os\ncount = 0\nwhile True:\n    try:\n        if os.fork() == 0:\n            import time\n            time.sleep(30)\n            os._exit(0)\n        count += 1\n        print(count, flush=True)\n    except OSError as e:\n        print('refused', e.errno, flush=True)\n        break";
        let sandbox = Sandbox::new(None).unwrap();
        let run = sandbox
            .run(
                bomb,
                b"",
                &Limits {
                    processes: 8,
                    ..short()
                },
            )
            .unwrap();
        assert!(run.stdout.contains("refused 11"), "{run:?}");
        assert!(
            run.stdout.lines().count() < 20 && run.seconds < 5.0,
            "{run:?}"
        );
    }

    #[test]
    fn files_stay_small_and_in_the_scratch_folder() {
        let program = "import os\nf = open('big', 'wb')\ntry:\n    for _ in range(100):\n        f.write(b'x' * 65536)\n        f.flush()\nexcept OSError as e:\n    print('refused', e.errno)\nprint(os.getcwd(), os.path.getsize('big'), sorted(os.environ))";
        let run = run_once(
            program,
            Limits {
                file_bytes: 1 << 20,
                ..short()
            },
        );
        assert!(
            run.stdout.starts_with("refused 27\n") && run.stdout.contains(" 1048576 "),
            "{run:?}"
        );
        let folder = run
            .stdout
            .lines()
            .nth(1)
            .unwrap()
            .split(' ')
            .next()
            .unwrap()
            .to_owned();
        assert!(!Path::new(&folder).exists(), "{folder}");
        assert!(!run.stdout.contains("CARGO"), "{run:?}");
    }

    #[test]
    fn there_is_no_network_where_the_system_permits_it() {
        let sandbox = Sandbox::new(None).unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let program = format!(
            "import socket\ntry:\n    socket.create_connection(('127.0.0.1', {port}), 1)\n    print('open')\nexcept OSError:\n    print('closed')"
        );
        let found = sandbox.run(&program, b"", &short()).unwrap();
        let expected = if sandbox.isolation().no_network {
            "closed\n"
        } else {
            "open\n"
        };
        assert_eq!(found.stdout, expected, "{found:?}");
    }

    #[test]
    fn a_python_that_is_none_is_named() {
        let error = Sandbox::new(Some(Path::new("/nowhere/python9")))
            .unwrap_err()
            .to_string();
        assert!(error.contains("--python"), "{error}");
    }
}
