//! A launcher of sandboxed programs, for those that do not call `frugal_eval::sandbox::enter`
//! themselves.

use std::process::ExitCode;

fn main() -> ExitCode {
    frugal_eval::sandbox::enter();
    eprintln!("frugal-sandbox is started by the library `frugal-eval`, not by hand");
    ExitCode::from(2)
}
