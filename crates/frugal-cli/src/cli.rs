//! The command line as a whole.

use clap::builder::styling::{AnsiColor, Styles};
use clap::{Parser, Subcommand};
use tracing_subscriber::filter::Targets;

use crate::commands::{
    adapters, ask, bench, chat, completions, doctor, embed, eval, export, generate, grow, index,
    man, measure, merge, meta_train, methods, mine, models, parametrize, plan, predict, pretrain,
    report, rerank, search, select, tune, validate,
};

const STYLES: Styles = Styles::styled()
    .header(AnsiColor::Green.on_default().bold())
    .usage(AnsiColor::Green.on_default().bold())
    .literal(AnsiColor::Cyan.on_default().bold())
    .placeholder(AnsiColor::Cyan.on_default());

const EXAMPLES: &str = "\
Start here:
  frugal tune                        adapt the built-in model to the built-in data
  frugal models fetch smollm2-135m   download a real model
  frugal chat --model smollm2-135m   talk to it
  frugal help tune                   everything about one command

Every command takes --log debug (or FRUGAL_LOG=debug): what is done, and how long it takes.

Exit status: 0 success, 1 a check that failed, 2 wrong usage or failure, 130 interrupted.";

/// Adapt, train, run and measure transformer models with few parameters, little memory and little
/// compute.
#[derive(Debug, Parser)]
#[command(name = "frugal", version, styles = STYLES, after_help = EXAMPLES, max_term_width = 110)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Option<Command>,
    /// End when standard input is closed, as the process does that holds its other end
    #[arg(long, hide = true)]
    pub end_with_stdin: bool,
    /// Show what is done and how long it takes on standard error: off, error, warn, info, debug,
    /// trace, or a level for a crate as in frugal_train=debug [default: $FRUGAL_LOG]
    #[arg(long, global = true, hide = true, value_name = "LEVEL", value_parser = crate::log::filter)]
    pub log: Option<Targets>,
}

/// The order here is the order of the help.
#[derive(Debug, Subcommand)]
pub enum Command {
    Tune(tune::Args),
    Plan(plan::Args),
    Validate(validate::Args),
    Eval(eval::Args),
    Measure(measure::Args),
    #[command(visible_alias = "optcs")]
    Select(select::Args),
    Predict(predict::Args),
    Embed(embed::Args),
    Rerank(rerank::Args),
    Index(index::Args),
    Search(search::Args),
    Ask(ask::Args),
    Parametrize(parametrize::Args),
    Mine(mine::Args),
    MetaTrain(meta_train::Args),
    Generate(generate::Args),
    Chat(chat::Args),
    Merge(merge::Args),
    Export(export::Args),
    Adapters(adapters::Args),
    Pretrain(pretrain::Args),
    Grow(grow::Args),
    Bench(bench::Args),
    Report(report::Args),
    Methods(methods::Args),
    Models(models::Args),
    Doctor(doctor::Args),
    Completions(completions::Args),
    Man(man::Args),
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::Cli;

    fn check(command: &clap::Command, wrong: &mut Vec<String>) {
        let text = command.get_after_help().map(ToString::to_string);
        for paragraph in text.unwrap_or_default().split("\n\n") {
            let first = paragraph.lines().next().unwrap_or_default();
            let is_list = first.ends_with(':') || first.starts_with(' ');
            if !is_list && paragraph.lines().count() > 1 {
                wrong.push(format!("{}: {first}", command.get_name()));
            }
        }
        command.get_subcommands().for_each(|of| check(of, wrong));
    }

    /// Where the source ended its lines, a terminal of another width broke them a second time.
    #[test]
    fn paragraphs_of_the_help_ended_their_lines_in_the_source() {
        let mut wrong = Vec::new();
        check(&Cli::command(), &mut wrong);
        assert!(wrong.is_empty(), "{wrong:#?}");
    }
}
