//! `frugal measure`: measures of efficiency.

pub mod capacity;
pub mod code;
pub mod efficiency;
pub mod runtime;
pub mod spectrum;
mod texts;

use anyhow::Result;

use crate::Outcome;

/// Measure efficiency: of generated code, of models and their tokenizers, of the running time
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Capacity(capacity::Args),
    Code(code::Args),
    Efficiency(efficiency::Args),
    Runtime(runtime::Args),
    Spectrum(spectrum::Args),
}

/// Measures what the subcommand says.
pub fn run(args: &Args) -> Result<Outcome> {
    match &args.command {
        Command::Capacity(args) => capacity::run(args),
        Command::Code(args) => code::run(args),
        Command::Efficiency(args) => efficiency::run(args),
        Command::Runtime(args) => runtime::run(args),
        Command::Spectrum(args) => spectrum::run(args),
    }
}
