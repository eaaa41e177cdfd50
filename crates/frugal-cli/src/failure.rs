//! What the user sees when something goes wrong.

use std::panic::PanicHookInfo;

use console::style;
use frugal_core::config::ConfigErrors;

use crate::ui::{self, without_control};

/// Prints `error: SENTENCE` with its causes, or all mistakes of a configuration together.
pub fn report(error: &anyhow::Error) {
    let label = style("error:").red().bold().for_stderr();
    if let Some(ConfigErrors(mistakes)) = error.downcast_ref::<ConfigErrors>()
        && mistakes.len() > 1
    {
        ui::say(&format!(
            "{label} the configuration has {} mistakes",
            mistakes.len()
        ));
        mistakes
            .iter()
            .for_each(|mistake| ui::say(&indent(&format!("  {mistake}"))));
        return;
    }
    ui::say(&format!("{label} {}", indent(&error.to_string())));
    for cause in causes(error) {
        ui::say(&format!("  caused by: {}", indent(&cause)));
    }
}

/// The chain below the error, without what an outer message says already.
fn causes(error: &anyhow::Error) -> Vec<String> {
    let mut said = error.to_string();
    let mut causes = Vec::new();
    for cause in error.chain().skip(1) {
        let text = cause.to_string();
        if !said.contains(&text) {
            said = text.clone();
            causes.push(text);
        }
    }
    causes
}

/// Further lines of a message stand under its first.
fn indent(text: &str) -> String {
    // Labels and names of files come from outside.
    without_control(text.trim_end()).replace('\n', "\n  ")
}

/// Variable that says how many threads compute.
const THREADS: &str = "RAYON_NUM_THREADS";

/// Refuses a number of threads that no machine can start: the pool would take minutes and gigabytes
/// before it failed.
pub fn check_threads() -> anyhow::Result<()> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let most = 256.max(4 * cores);
    let asked = std::env::var(THREADS).unwrap_or_default();
    if !asked.is_empty()
        && asked
            .parse::<usize>()
            .map_or(asked.bytes().all(|b| b.is_ascii_digit()), |n| n > most)
    {
        anyhow::bail!(
            "{THREADS} is {asked}: at most {most} threads are started, and this machine has {cores} cores"
        );
    }
    Ok(())
}

/// A panic is a mistake in this program; say so in one sentence, or with a stack trace where one is
/// asked for. One that is expected, of a library that reads a damaged file, becomes an error.
pub fn install_panic_hook() {
    if std::env::var_os("RUST_BACKTRACE").is_none() {
        return std::panic::set_hook(Box::new(on_panic));
    }
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if !frugal_core::caught::is_expected() {
            usual(info);
        }
    }));
}

fn on_panic(info: &PanicHookInfo<'_>) {
    if frugal_core::caught::is_expected() {
        return;
    }
    let place = info
        .location()
        .map_or(String::new(), |l| format!(" ({}:{})", l.file(), l.line()));
    let text = info
        .payload()
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| info.payload().downcast_ref::<String>().map(String::as_str));
    ui::say(&format!(
        "{} internal error: {}{place}",
        style("error:").red().bold().for_stderr(),
        text.unwrap_or("no message")
    ));
    ui::say(&format!(
        "  This is a bug. Please report it with the command line: {}/issues",
        env!("CARGO_PKG_REPOSITORY")
    ));
    std::process::exit(2);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_said_once() {
        let io = anyhow::anyhow!("No such file");
        let outer = io
            .context("a.txt: cannot read: No such file")
            .context("no data");
        assert_eq!(causes(&outer), ["a.txt: cannot read: No such file"]);
    }
}
