//! The program as its users meet it: output, messages, exit codes.

mod adapters;
mod bad_input;
mod bench;
mod eval_tasks;
mod help;
mod inspect;
mod journey;
mod json;
mod measure;
mod measurements;
mod recipes;
mod support;
mod tune;
