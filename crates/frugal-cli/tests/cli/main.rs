//! The program as its users meet it: output, messages, exit codes.

mod bad_input;
mod help;
mod inspect;
mod journey;
mod json;
mod support;
