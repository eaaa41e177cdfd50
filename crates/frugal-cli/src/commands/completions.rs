//! `frugal completions`: completion of commands and flags in a shell.

use anyhow::Result;
use clap_complete::Shell;

use crate::outcome::Outcome;
use crate::ui;

const EXAMPLES: &str = "\
Examples:
  frugal completions bash > ~/.local/share/bash-completion/completions/frugal
  frugal completions zsh > ~/.zfunc/_frugal
  frugal completions fish > ~/.config/fish/completions/frugal.fish";

/// A flag for other programs, as lists of flags have it.
const HIDDEN: [&str; 2] = [" --end-with-stdin", " end-with-stdin"];
/// What a line of its own says of it.
const HIDDEN_LINE: &str = "End when standard input is closed";

/// Print the script that completes commands and flags in a shell
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The shell
    shell: Shell,
}

/// Prints the script of the program's command line.
pub fn run(args: &Args, mut program: clap::Command) -> Result<Outcome> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut program, "frugal", &mut script);
    // Some shells' scripts name hidden flags too.
    let script = String::from_utf8(script)?
        .lines()
        .filter(|line| !line.contains(HIDDEN_LINE))
        .map(|line| {
            HIDDEN
                .iter()
                .fold(line.to_owned(), |l, flag| l.replace(flag, ""))
                + "\n"
        })
        .collect::<String>();
    ui::write(&script);
    Ok(Outcome::Done)
}
