//! The program as its users meet it: output, messages, exit codes.

mod adapters;
mod bad_input;
mod bench;
mod data;
mod eval_tasks;
mod help;
mod inspect;
mod journey;
mod json;
mod measure;
mod recipes;
mod support;
mod tune;
