//! The steps of a launch, each a process that the one before it starts from the same file: the
//! outer one makes namespaces, the supervisor watches, the last one gives up its rights and becomes
//! the interpreter.

use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::personality::{self, Persona};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::geteuid;

use super::protocol::{Frame, InForce, OWN, Order, Role, VARIABLE, step};
use super::{confine, namespaces, supervise};

/// Whether this program asked to be one that launches.
static ENTERED: AtomicBool = AtomicBool::new(false);

/// Lets this program launch sandboxed ones by starting itself again. The first line of `main`,
/// before threads: where the program was started for that, this does not return.
pub fn enter() {
    if let Some(order) = std::env::var_os(VARIABLE) {
        let order = order.to_str().and_then(|o| serde_json::from_str(o).ok());
        std::process::exit(order.map_or(2, |order| take(&order)));
    }
    ENTERED.store(true, Ordering::Relaxed);
}

pub(super) fn entered() -> bool {
    ENTERED.load(Ordering::Relaxed)
}

/// Neither the user's own packages nor files of compiled code. The environment is ours, so that it
/// may be heard: `-I` would draw the seed of hashes.
const PYTHON_FLAGS: [&str; 2] = ["-s", "-B"];
/// The program's file in its scratch folder.
pub(super) const PROGRAM: &str = "program.py";

fn take(order: &Order) -> i32 {
    // Nothing outlives what started it.
    let _ = set_pdeathsig(Signal::SIGKILL);
    match order.role {
        Role::Outer => outer(order),
        Role::Supervisor => supervise::run(order, true),
        Role::Program => {
            let why = program(order);
            // Nothing but this line is on the pipe: the interpreter was not started.
            let _ = writeln!(io::stdout(), "{}", refusal(&why));
            1
        }
    }
}

/// The line of a program that was not started.
fn refusal(why: &str) -> String {
    format!("!{}", why.replace('\n', " "))
}

fn outer(order: &Order) -> i32 {
    if !order.namespaces {
        return supervise::run(order, false);
    }
    let refused = |why: String| {
        let _ = Frame::Refused(why).write(&mut io::stdout());
        1
    };
    if let Err(why) = namespaces::enter(order.user.is_none()) {
        return refused(why);
    }
    match step(order, Role::Supervisor).status() {
        Ok(status) => status.code().unwrap_or(1),
        Err(why) => refused(format!("the supervisor: {why}")),
    }
}

/// Becomes the interpreter, or says why not.
fn program(order: &Order) -> String {
    match restrict(order) {
        Err(why) => why,
        Ok(facts) => {
            let line = serde_json::to_string(&facts).unwrap_or_default();
            if let Err(why) = writeln!(io::stdout(), "{line}") {
                return why.to_string();
            }
            let why = interpreter(order).exec();
            format!("{}: {why}", order.python.display())
        }
    }
}

/// Folders that the program may write to; those that are its own come in a variable.
fn writable(order: &Order) -> Vec<PathBuf> {
    let own = std::env::var_os(OWN).unwrap_or_default();
    std::env::split_paths(&own)
        .filter(|path| !path.as_os_str().is_empty())
        .chain([order.scratch.clone()])
        .collect()
}

/// Threads that other programs of the user may start while one runs without a process space.
const OTHER_PROGRAMS: u64 = 256;

fn restrict(order: &Order) -> Result<InForce, String> {
    let private = std::env::var_os(OWN).is_some();
    std::env::set_current_dir(&order.scratch)
        .map_err(|e| format!("{}: {e}", order.scratch.display()))?;
    // Times of two runs differ less where both lie alike in memory.
    let _ = personality::get().and_then(|p| personality::set(p | Persona::ADDR_NO_RANDOMIZE));
    let limits = &order.limits;
    let processes = if order.user.is_some() {
        limits.processes
    } else {
        // The kernel counts everything that the user runs; in a space of its own that is the
        // supervisor's threads and, out of sight, the step before it. Elsewhere the user's other
        // programs start threads meanwhile, which must not cost this one its own: the supervisor
        // counts those, and the kernel's limit only bounds what is done between two looks.
        let others = if private { 1 } else { OTHER_PROGRAMS };
        confine::threads_of(geteuid().as_raw()) + limits.processes - 1 + others
    };
    confine::give_up_rights(order.user)?;
    // A change of user forgets this.
    let _ = set_pdeathsig(Signal::SIGKILL);
    let mut facts = InForce {
        private,
        other_user: order.user.is_some(),
        ..InForce::default()
    };
    let files = confine::restrict_files(&order.readable, &writable(order));
    let mut missing = Vec::new();
    match files {
        Ok(version) => facts.landlock = version,
        Err(why) => missing.push(format!("Landlock: {why}")),
    }
    if facts.landlock == 0 {
        missing.push("Landlock is not enabled in this kernel".into());
    }
    confine::limit_amounts(limits, Some(processes)).map_err(|e| format!("setrlimit: {e}"))?;
    match confine::restrict_system_calls(private, limits.processes == 1) {
        Ok(()) => facts.system_calls = true,
        Err(why) => missing.push(format!("seccomp: {why}")),
    }
    if order.require_isolation && !missing.is_empty() {
        return Err(missing.join("; "));
    }
    Ok(facts)
}

fn interpreter(order: &Order) -> Command {
    let mut command = Command::new(&order.python);
    command
        .args(PYTHON_FLAGS)
        .arg(PROGRAM)
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("HOME", &order.scratch)
        .env("TMPDIR", &order.scratch)
        .env("LC_ALL", "C.UTF-8")
        .env("PYTHONHASHSEED", "0")
        .env("PYTHONSAFEPATH", "1")
        .env("OMP_NUM_THREADS", "1")
        .env("OPENBLAS_NUM_THREADS", "1");
    command
}
