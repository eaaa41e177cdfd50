//! One file per command: its flags, and what it does with them.

pub mod adapters;
pub mod ask;
pub mod bench;
pub mod chat;
pub mod completions;
pub mod doctor;
pub mod embed;
pub mod eval;
pub mod export;
pub mod generate;
pub mod grow;
pub mod index;
pub mod man;
pub mod measure;
pub mod merge;
pub mod meta_train;
pub mod methods;
pub mod mine;
pub mod models;
pub mod parallel;
pub mod parametrize;
pub mod plan;
pub mod predict;
pub mod pretrain;
pub mod report;
pub mod rerank;
mod sandbox;
pub mod search;
pub mod select;
pub mod tune;
pub mod validate;

use anyhow::Result;
use clap::CommandFactory;

use crate::cli::{Cli, Command};
use crate::outcome::Outcome;

/// Runs a command.
pub fn run(command: Command) -> Result<Outcome> {
    match command {
        Command::Tune(args) => tune::run(&args),
        Command::Plan(args) => plan::run(&args),
        Command::Validate(args) => validate::run(&args),
        Command::Eval(args) => eval::run(&args),
        Command::Measure(args) => measure::run(&args),
        Command::Select(args) => select::run(&args),
        Command::Predict(args) => predict::run(&args),
        Command::Embed(args) => embed::run(&args),
        Command::Rerank(args) => rerank::run(&args),
        Command::Index(args) => index::run(&args),
        Command::Search(args) => search::run(&args),
        Command::Ask(args) => ask::run(&args),
        Command::Parametrize(args) => parametrize::run(&args),
        Command::Mine(args) => mine::run(&args),
        Command::MetaTrain(args) => meta_train::run(&args),
        Command::Generate(args) => generate::run(&args),
        Command::Chat(args) => chat::run(&args),
        Command::Merge(args) => merge::run(&args),
        Command::Export(args) => export::run(&args),
        Command::Adapters(args) => adapters::run(&args),
        Command::Pretrain(args) => pretrain::run(&args),
        Command::Grow(args) => grow::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Report(args) => report::run(&args),
        Command::Methods(args) => methods::run(&args),
        Command::Models(args) => models::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Completions(args) => completions::run(&args, Cli::command()),
        Command::Man(args) => man::run(&args, Cli::command()),
    }
}
