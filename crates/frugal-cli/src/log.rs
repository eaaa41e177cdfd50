//! What the libraries do and how long it takes, on standard error, where it is asked for.
//!
//! The libraries mark their work as spans of `tracing`; without a subscriber a span is one look at a
//! number in memory.

use std::io::{self, Write};

use anyhow::{Result, anyhow};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::format::FmtSpan;
use tracing_subscriber::fmt::time::uptime;
use tracing_subscriber::prelude::*;

use crate::ui;

/// The variable that asks for it.
pub const VARIABLE: &str = "FRUGAL_LOG";

/// Reads `debug`, or `frugal_train=debug,frugal_decode=info`.
pub fn filter(text: &str) -> Result<Targets, String> {
    let fits = |part: &str| match part.split_once('=') {
        None => !part.is_empty() && part.parse::<LevelFilter>().is_ok(),
        Some((target, level)) => {
            target.starts_with("frugal")
                && !level.is_empty()
                && level.parse::<LevelFilter>().is_ok()
        }
    };
    if let Some(wrong) = text.split(',').find(|part| !fits(part.trim())) {
        return Err(format!(
            "`{wrong}` is no level: write off, error, warn, info, debug or trace, or one for a crate as in `frugal_train=debug`"
        ));
    }
    text.parse::<Targets>().map_err(|e| e.to_string())
}

/// Begins to show what was asked for by the flag, or else by the variable.
pub fn start(flag: Option<&Targets>) -> Result<()> {
    let variable = std::env::var(VARIABLE).unwrap_or_default();
    let targets = match flag {
        Some(targets) => targets.clone(),
        None if variable.is_empty() => return Ok(()),
        None => filter(&variable).map_err(|reason| anyhow!("{VARIABLE}: {reason}"))?,
    };
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(|| Lines)
        .with_ansi(false)
        .with_timer(uptime())
        .with_span_events(FmtSpan::CLOSE)
        .with_filter(targets);
    // There is no other one in this program.
    let _ = tracing_subscriber::registry().with(lines).try_init();
    Ok(())
}

/// Standard error as the rest of the program writes it: a reader that is gone is no error.
struct Lines;

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        ui::say(String::from_utf8_lossy(bytes).trim_end_matches('\n'));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_that_is_no_level_is_refused() {
        for text in [
            "debug",
            "OFF",
            "frugal_train=debug,frugal=info",
            "warn, frugal_nn=trace",
        ] {
            assert!(filter(text).is_ok(), "{text}");
        }
        for text in [
            "verbose",
            "",
            "debug,",
            "frugal_train",
            "frugal_train=loud",
            "other=debug",
        ] {
            assert!(filter(text).unwrap_err().contains("is no level"), "{text}");
        }
    }
}
