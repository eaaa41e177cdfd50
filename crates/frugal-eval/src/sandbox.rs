//! Running Python programs that a model wrote, held in by the operating system.
//!
//! A program starts in a launcher that first gives up what the program shall not have, by itself
//! and for everything that it starts:
//!
//! - *Files*: Landlock leaves the interpreter and its libraries for reading and the scratch folder
//!   for writing. Where namespaces can be made, `/tmp` and `/dev/shm` are its own.
//! - *System calls*: seccomp refuses sockets of every kind, namespaces, mounts, `ptrace`, keys,
//!   metadata of files and leaving the process group. Where namespaces can be made there is no
//!   network to begin with, and no other process in `/proc`.
//! - *Amounts*: `setrlimit` for each process, and a supervisor that counts memory, processes,
//!   output and time of all of them together.
//!
//! The supervisor alone holds our pipe; it ends the program with all that it left behind, so that
//! nothing which keeps a pipe open lengthens a run. A program that root starts runs as another
//! user. What the kernel lacks is found out by trying; without Landlock or seccomp nothing runs
//! unless [`Options::require_isolation`] is off.
//!
//! This protects the machine from mistakes and from mischief. It is no defence against someone who
//! attacks the kernel itself.
//!
//! Namespaces, Landlock and seccomp apply to a process and what it becomes, so the launcher is this
//! program itself, started again: call [`enter`] first in `main`, or name a program that does
//! (`frugal-sandbox` is one) in [`Options::launcher`].

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

#[cfg(target_os = "linux")]
mod confine;
#[cfg(target_os = "linux")]
mod launch;
mod limits;
#[cfg(target_os = "linux")]
mod namespaces;
mod outcome;
#[cfg(target_os = "linux")]
mod processes;
mod protocol;
mod session;
#[cfg(target_os = "linux")]
mod supervise;

#[cfg(target_os = "linux")]
pub use launch::enter;
pub use limits::Limits;
pub use outcome::{Ending, Execution, Isolation, SandboxError};
pub use session::{Reply, Session};

use protocol::{InForce, Order, Role};

/// Lets this program launch sandboxed ones; there are none on this system.
#[cfg(not(target_os = "linux"))]
pub fn enter() {}

/// What a sandbox shall be like.
#[derive(Clone, Debug)]
pub struct Options {
    /// Interpreter; the first one that runs otherwise.
    pub python: Option<PathBuf>,
    /// A program that calls [`enter`]; this program otherwise.
    pub launcher: Option<PathBuf>,
    /// Refuse a machine that cannot keep programs from files and network.
    pub require_isolation: bool,
    /// Use namespaces where they are permitted.
    pub namespaces: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            python: None,
            launcher: None,
            require_isolation: true,
            namespaces: true,
        }
    }
}

/// A way of running programs.
#[derive(Clone, Debug)]
pub struct Sandbox {
    launcher: PathBuf,
    python: PathBuf,
    readable: Vec<PathBuf>,
    isolation: Isolation,
    namespaces: bool,
    other_user: bool,
    require_isolation: bool,
}

impl Sandbox {
    /// Finds the strongest isolation that works here, with the Python named or the first one that
    /// runs.
    ///
    /// # Errors
    /// As [`Sandbox::with`].
    pub fn new(python: Option<&Path>) -> Result<Self, SandboxError> {
        Self::with(&Options {
            python: python.map(Path::to_owned),
            ..Options::default()
        })
    }

    /// Finds the strongest isolation that works here within the options.
    ///
    /// # Errors
    /// When no interpreter runs, the kernel cannot isolate it, or there is no launcher.
    pub fn with(options: &Options) -> Result<Self, SandboxError> {
        let launcher = launcher(options)?;
        let named: Vec<PathBuf> = match &options.python {
            Some(path) => vec![path.clone()],
            None => ["python3", "/usr/bin/python3", "/usr/local/bin/python3"]
                .map(PathBuf::from)
                .to_vec(),
        };
        let mut candidates: Vec<Interpreter> =
            named.iter().filter_map(|p| Interpreter::find(p)).collect();
        candidates.dedup_by(|a, b| a.file == b.file);
        let mut failures = Vec::new();
        for (namespaces, other_user) in ladder(options.namespaces) {
            for python in &candidates {
                let mut sandbox = Self {
                    launcher: launcher.clone(),
                    python: python.file.clone(),
                    readable: python.readable.clone(),
                    isolation: Isolation::new(InForce::default()),
                    namespaces,
                    other_user,
                    require_isolation: options.require_isolation,
                };
                match sandbox.probe() {
                    Ok(isolation) => {
                        sandbox.isolation = isolation;
                        return Ok(sandbox);
                    }
                    Err(why) => failures.push(format!("{}: {why}", python.file.display())),
                }
            }
        }
        if let Some(missing) = failures
            .last()
            .filter(|f| f.contains("Landlock") || f.contains("seccomp"))
        {
            let missing = missing.clone();
            return Err(SandboxError::NotIsolated { missing });
        }
        failures.dedup();
        Err(SandboxError::NoPython {
            tried: if failures.is_empty() {
                let named = named.iter().map(|p| p.display().to_string());
                named.collect::<Vec<_>>().join(", ")
            } else {
                failures.join("; ")
            },
        })
    }

    /// What holds for a program that shows that the interpreter and its library work.
    fn probe(&self) -> Result<Isolation, String> {
        let mut session = self
            .start(
                "import json, random\nprint(json.dumps(6 * 7))",
                &Limits::default(),
            )
            .map_err(|e| e.to_string())?;
        let isolation = session.isolation();
        session.close();
        let run = session.finish();
        if run.ending == Ending::Success && run.stdout == "42\n" {
            return Ok(isolation);
        }
        let last = run.stderr.trim_end().lines().last().unwrap_or_default();
        Err(format!("{:?} {last}", run.ending).trim_end().to_owned())
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
        let mut session = self.start(program, limits)?;
        session.write_all_beside(stdin.to_vec());
        Ok(session.finish())
    }

    /// Starts a program to talk to.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(&self, program: &str, limits: &Limits) -> Result<Session, SandboxError> {
        let scratch = tempfile::Builder::new().prefix("frugal-").tempdir()?;
        std::fs::write(scratch.path().join(PROGRAM), program)?;
        let order = Order {
            role: Role::Outer,
            python: self.python.clone(),
            scratch: scratch.path().to_owned(),
            limits: *limits,
            readable: self.readable.clone(),
            namespaces: self.namespaces,
            user: self.other_user.then(unique_user),
            require_isolation: self.require_isolation,
        };
        Session::start(&self.launcher, &order, scratch)
    }
}

/// The program's file in its scratch folder.
const PROGRAM: &str = "program.py";

/// A number of its own keeps the processes of two programs from being counted together.
fn unique_user() -> u32 {
    use std::sync::atomic::{AtomicU32, Ordering};
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let process = std::process::id() % (1 << 20);
    (1 << 30) + process * 256 + COUNT.fetch_add(1, Ordering::Relaxed) % 256
}

/// Namespaces and another user, strongest first.
#[cfg(target_os = "linux")]
fn ladder(namespaces: bool) -> Vec<(bool, bool)> {
    let root = nix::unistd::geteuid().is_root();
    [(true, true), (true, false), (false, true), (false, false)]
        .into_iter()
        .filter(|(apart, other)| (namespaces || !apart) && (root || !other))
        .collect()
}

#[cfg(target_os = "linux")]
fn launcher(options: &Options) -> Result<PathBuf, SandboxError> {
    match &options.launcher {
        Some(launcher) => Ok(launcher.clone()),
        // A program that knows nothing of launching would run as a whole, and again.
        None if launch::entered() => Ok(std::env::current_exe()?),
        None => Err(SandboxError::NoLauncher),
    }
}

#[cfg(not(target_os = "linux"))]
fn ladder(_: bool) -> Vec<(bool, bool)> {
    Vec::new()
}

#[cfg(not(target_os = "linux"))]
fn launcher(_: &Options) -> Result<PathBuf, SandboxError> {
    Err(SandboxError::Unsupported)
}

/// A Python and what it reads.
#[derive(Debug)]
struct Interpreter {
    file: PathBuf,
    readable: Vec<PathBuf>,
}

/// Prints the interpreter behind what may be a wrapper script, and where its files are.
const WHERE: &str = r#"
import json, os, sys, sysconfig
files = [sys.executable, os.path.realpath(sys.executable), *sys.path]
files += [sysconfig.get_path(kind) for kind in ("stdlib", "platstdlib", "purelib", "platlib")]
files += [sysconfig.get_config_var("LIBDIR"), os.path.join(sys.prefix, "pyvenv.cfg")]
print(json.dumps([os.path.abspath(f) for f in files if f and os.path.exists(f)]))
"#;

impl Interpreter {
    fn find(python: &Path) -> Option<Self> {
        let asked = Command::new(python)
            .args(["-I", "-c", WHERE])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .output()
            .ok()?;
        let files: Vec<PathBuf> = serde_json::from_slice(&asked.stdout).ok()?;
        let home = std::env::var_os("HOME").map(PathBuf::from);
        let file = files.first()?.clone();
        let store = ["/nix/store", "/gnu/store"]
            .into_iter()
            .map(PathBuf::from)
            .filter(|s| file.starts_with(s));
        // A folder that holds the home is not the interpreter's alone.
        let too_wide = |f: &Path| {
            f.parent().is_none() || home.as_ref().is_some_and(|home| home.starts_with(f))
        };
        let readable = files
            .iter()
            .filter(|f| !too_wide(f))
            .cloned()
            .chain(store)
            .collect();
        Some(Self { file, readable })
    }
}
