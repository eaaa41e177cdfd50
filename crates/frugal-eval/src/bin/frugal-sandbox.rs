//! A launcher of sandboxed programs, for those that do not call `frugal_eval::sandbox::enter`
//! themselves.

use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
    frugal_eval::sandbox::enter();
    let reason = b"frugal-sandbox is started by the library `frugal-eval`, not by hand\n";
    // Nobody reads it where standard error is gone.
    let _ = std::io::stderr().write_all(reason);
    ExitCode::from(2)
}
