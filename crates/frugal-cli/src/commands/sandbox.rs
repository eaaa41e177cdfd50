//! The sandbox of the commands that run generated code.

use std::path::Path;

use anyhow::Result;
use frugal_eval::sandbox::{Options, Sandbox};

use crate::args::Output;
use crate::ui;

/// Finds it and says what holds on this machine.
pub fn open(python: Option<&Path>, no_isolation: bool, output: Output) -> Result<Sandbox> {
    let sandbox = Sandbox::with(&Options {
        python: python.map(Path::to_owned),
        require_isolation: !no_isolation,
        ..Options::default()
    })?;
    ui::note(
        output,
        &format!(
            "sandbox: {}; {}",
            sandbox.python().display(),
            sandbox.isolation().describe()
        ),
    );
    Ok(sandbox)
}
