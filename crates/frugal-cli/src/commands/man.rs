//! `frugal man`: the manual.

use std::path::PathBuf;

use anyhow::Result;
use clap_mangen::Man;
use frugal_core::fs::{FileError, create_dir};

use crate::outcome::Outcome;
use crate::ui;

const EXAMPLES: &str = "\
Examples:
  frugal man | man -l -
  frugal man --out ~/.local/share/man/man1";

/// Print the manual page, or write those of all commands
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Folder to write a page into for the program and for each command
    #[arg(long, short, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// Prints or writes the pages of the program's command line.
pub fn run(args: &Args, program: clap::Command) -> Result<Outcome> {
    match &args.out {
        Some(out) => {
            create_dir(out)?;
            clap_mangen::generate_to(program, out).map_err(FileError::at(out, "cannot write"))?;
            ui::print(&format!("written: {}", out.display()));
        }
        None => {
            let mut page = Vec::new();
            Man::new(program).render(&mut page)?;
            ui::write(&String::from_utf8(page)?);
        }
    }
    Ok(Outcome::Done)
}
