//! What the user sees when something goes wrong.

use std::panic::PanicHookInfo;

use console::style;
use frugal_core::config::ConfigErrors;

use crate::ui;

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
    text.trim_end().replace('\n', "\n  ")
}

/// A panic is a mistake in this program; say so in one sentence instead of a stack trace.
pub fn install_panic_hook() {
    if std::env::var_os("RUST_BACKTRACE").is_none() {
        std::panic::set_hook(Box::new(on_panic));
    }
}

fn on_panic(info: &PanicHookInfo<'_>) {
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
