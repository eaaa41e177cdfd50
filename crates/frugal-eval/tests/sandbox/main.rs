//! Programs that attack the sandbox, and what is built on it. Here rather than beside the code: the
//! sandbox starts a launcher, which is a program of its own.

#![allow(clippy::print_stderr, reason = "tests say what they skip")]
#![cfg(target_os = "linux")]

mod attacks;
mod enamel;
mod humaneval;
mod limits;
mod ordinary_user;
mod programs;
mod support;
mod tasks;
