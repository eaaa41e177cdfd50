//! Lines to standard output and standard error.

use std::borrow::Cow;
use std::io::{self, ErrorKind, IsTerminal, Write};

use serde::Serialize;

use super::stop::{hang_up, is_gone};
use crate::args::Output;

/// Writes a line to standard output.
pub fn print(line: &str) {
    write(&format!("{line}\n"));
}

/// Writes to standard output at once. A reader that has gone away (`frugal ... | head`) ends the
/// program quietly.
pub fn write(text: &str) {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::BrokenPipe => std::process::exit(0),
        // The terminal was closed, which asked the work to stop.
        Err(_) if is_gone() => std::process::exit(130),
        Err(error) => {
            say(&format!("error: cannot write to standard output: {error}"));
            std::process::exit(2);
        }
    }
}

/// Writes a line to standard error.
pub fn say(line: &str) {
    let mut err = io::stderr().lock();
    if err.write_all(format!("{line}\n").as_bytes()).is_err() {
        hang_up();
    }
}

/// Text of data, prompts or models as a terminal may show it: control characters, with which a text
/// could move the cursor or change the screen, are spelled out. Output to a file or another program
/// is left as it is.
pub fn shown(text: &str) -> Cow<'_, str> {
    if stdout_is_terminal() {
        without_control(text)
    } else {
        Cow::Borrowed(text)
    }
}

/// Control characters spelled out, except line breaks and tabs.
pub fn without_control(text: &str) -> Cow<'_, str> {
    let acts = |c: char| c.is_control() && !matches!(c, '\n' | '\t');
    if !text.contains(acts) {
        return Cow::Borrowed(text);
    }
    let spelled = |c: char| {
        if acts(c) {
            c.escape_default().to_string()
        } else {
            c.to_string()
        }
    };
    Cow::Owned(text.chars().map(spelled).collect())
}

/// Prints the one JSON value of `--json`.
pub fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    print(&serde_json::to_string_pretty(value)?);
    Ok(())
}

/// Something worth knowing that is neither result nor error.
pub fn note(output: Output, text: &str) {
    if !output.quiet {
        say(text);
    }
}

/// Something that may be a mistake.
pub fn warn(output: Output, text: &str) {
    if !output.quiet {
        let label = console::style("warning:").yellow().bold().for_stderr();
        say(&format!("{label} {text}"));
    }
}

/// Whether a person reads standard output.
pub fn stdout_is_terminal() -> bool {
    io::stdout().is_terminal()
}

/// Whether a person reads standard error.
pub fn stderr_is_terminal() -> bool {
    io::stderr().is_terminal()
}

/// Columns to wrap text at: the terminal's, within reason.
pub fn width() -> usize {
    match console::Term::stdout().size_checked() {
        Some((_, columns)) => usize::from(columns).clamp(40, 110),
        None => 100,
    }
}

/// Columns of the terminal that standard error goes to.
pub fn stderr_width() -> usize {
    console::Term::stderr()
        .size_checked()
        .map_or(80, |(_, columns)| usize::from(columns))
}
