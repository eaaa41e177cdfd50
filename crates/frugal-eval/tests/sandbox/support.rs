//! Sandboxes of every kind that this machine permits.

use std::path::{Path, PathBuf};

use frugal_eval::sandbox::{Execution, Limits, Options, Sandbox};

pub(crate) fn options() -> Options {
    Options {
        launcher: Some(
            std::env::var_os("FRUGAL_TEST_LAUNCHER")
                .unwrap_or_else(|| env!("CARGO_BIN_EXE_frugal-sandbox").into())
                .into(),
        ),
        ..Options::default()
    }
}

pub(crate) fn sandbox() -> Sandbox {
    Sandbox::with(&options()).unwrap()
}

/// With namespaces where they are permitted, and as in a container that does not permit them.
pub(crate) fn kinds() -> Vec<(&'static str, Sandbox)> {
    let mut kinds = Vec::new();
    for (name, namespaces) in [("namespaces", true), ("no namespaces", false)] {
        let found = Sandbox::with(&Options {
            namespaces,
            ..options()
        })
        .unwrap();
        eprintln!(
            "{name}: {}: {}",
            found.python().display(),
            found.isolation().describe()
        );
        if namespaces && !found.isolation().own_processes {
            eprintln!("skipped: namespaces are not permitted here");
            continue;
        }
        kinds.push((name, found));
    }
    kinds
}

pub(crate) fn short() -> Limits {
    Limits {
        wall_seconds: 20.0,
        cpu_seconds: 20,
        ..Limits::default()
    }
}

/// The last version of Landlock that denies what a test tries.
pub(crate) fn has_landlock(sandbox: &Sandbox, version: u8, what: &str) -> bool {
    let here = sandbox.isolation().landlock;
    if here < version {
        eprintln!("skipped: {what} needs Landlock {version}, this kernel has {here}");
    }
    here >= version
}

/// Functions for attacks: each says what became of an attempt.
const PRELUDE: &str = r#"
import ctypes, os, sys, time
def attempt(name, action):
    try:
        print(name, "DONE", action(), flush=True)
    except BaseException as error:
        print(name, "refused", type(error).__name__, getattr(error, "errno", ""), flush=True)
libc = ctypes.CDLL(None, use_errno=True)
def call(*args):
    if libc.syscall(*args) < 0:
        raise OSError(ctypes.get_errno(), "")
    return "called"
"#;

pub(crate) fn attack(sandbox: &Sandbox, program: &str, limits: &Limits) -> Execution {
    sandbox
        .run(&format!("{PRELUDE}\n{program}"), b"", limits)
        .unwrap()
}

/// Every attempt was refused, and there were as many as were made.
pub(crate) fn all_refused(name: &str, run: &Execution, attempts: usize) {
    let lines: Vec<&str> = run.stdout.lines().collect();
    assert_eq!(lines.len(), attempts, "{name}: {run:?}");
    let done: Vec<&&str> = lines.iter().filter(|l| !l.contains(" refused ")).collect();
    assert!(done.is_empty(), "{name}: {done:?}");
}

/// A folder outside of those that a program may have for its own, open to every user.
pub(crate) fn open_folder() -> tempfile::TempDir {
    use std::os::unix::fs::PermissionsExt;
    let base = ["/var/tmp", "/tmp"]
        .into_iter()
        .map(Path::new)
        .find(|p| p.is_dir())
        .map_or_else(std::env::temp_dir, PathBuf::from);
    let folder = tempfile::tempdir_in(base).unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    folder
}
