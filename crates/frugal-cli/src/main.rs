//! The `frugal` program: parses the command line, runs one command, answers with an exit code.
//!
//! 0 is success, 1 a negative result (a check that found something), 2 wrong usage or failure, 130
//! interrupted.
#![forbid(unsafe_code)]

mod args;
mod cli;
mod commands;
mod failure;
mod folder;
mod loaded;
mod log;
mod measured;
mod outcome;
mod ui;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use cli::Cli;

fn main() -> ExitCode {
    // Before any thread: where the program was started to hold generated code in, it ends here.
    frugal_eval::sandbox::enter();
    frugal::device::keep_freed_memory();
    failure::install_panic_hook();
    ui::interrupt::fail_at_file_limits();
    let cli = Cli::parse();
    if cli.end_with_stdin {
        ui::interrupt::end_with_parent();
    }
    let Some(command) = cli.command else {
        // A reader of the help that has gone away does not matter.
        let _ = Cli::command().print_help();
        return ExitCode::SUCCESS;
    };
    if let Err(error) = log::start(cli.log.as_ref()).and_then(|()| failure::check_threads()) {
        failure::report(&error);
        return ExitCode::from(2);
    }
    let ran = match frugal::device::InstructionSet::in_use() {
        Ok(_) => frugal::device::on_pool(|| commands::run(command)),
        Err(error) => Err(error.into()),
    };
    match ran {
        Ok(outcome) => outcome.into(),
        Err(error) => {
            failure::report(&error);
            ExitCode::from(2)
        }
    }
}
