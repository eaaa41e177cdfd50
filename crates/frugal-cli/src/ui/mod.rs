//! What the user sees: results on standard output, everything else on standard error.
//!
//! All output goes through here: the macros of the standard library end the program where their
//! reader is gone. A standard output that nobody reads ends it quietly; a standard error that
//! nobody reads asks work that takes long to stop, with a checkpoint where it writes them.

pub mod interrupt;
pub mod markdown;
mod output;
pub mod progress;
mod rate;
pub mod run;
mod stop;
pub mod table;
pub mod text;

pub use output::{
    note, print, print_json, say, shown, stderr_is_terminal, stderr_width, stdout_is_terminal,
    warn, width, without_control, write,
};
