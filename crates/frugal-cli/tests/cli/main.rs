//! The program as its users meet it: output, messages, exit codes.

#![allow(clippy::print_stderr, reason = "tests say what they skip")]

mod adapters;
mod ask_flags;
mod bad_input;
mod bare_models;
mod bench;
mod birdie;
mod data;
mod disks;
mod earlier_runs;
mod ended;
mod eval_tasks;
mod grow;
mod help;
mod images;
mod inspect;
mod journey;
mod json;
mod log;
mod measure;
mod measurements;
mod minicpm;
mod mor;
mod parallel;
mod parametrize;
mod parametrize_again;
mod perk;
mod pretraining;
mod problems;
mod recipes;
mod retrieval_flags;
mod retrieve;
mod routed;
mod runs;
mod shell;
mod silent;
mod split_gguf;
mod start;
mod strange;
mod support;
mod tags;
mod tune;
mod untracked;
