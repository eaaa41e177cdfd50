//! `frugal measure`: measures of efficiency.

pub mod capacity;
pub mod code;
pub mod efficiency;
pub mod runtime;
pub mod spectrum;
mod texts;

use anyhow::Result;

use crate::outcome::Outcome;

/// Measure efficiency: of generated code, of models and their tokenizers, of the running time
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    #[command(visible_alias = "information-capacity")]
    Capacity(capacity::Args),
    #[command(visible_alias = "enamel")]
    Code(code::Args),
    #[command(visible_alias = "efficientllm")]
    Efficiency(efficiency::Args),
    #[command(visible_alias = "idealized-runtime")]
    Runtime(runtime::Args),
    #[command(visible_alias = "matrix-nuclear-norm", alias = "mnn")]
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
