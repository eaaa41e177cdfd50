//! What a program may use.

use serde::{Deserialize, Serialize};

/// What a program may use, with everything that it starts.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    /// Seconds by the clock on the wall.
    pub wall_seconds: f64,
    /// Seconds of processor time of each process.
    pub cpu_seconds: u64,
    /// Bytes of memory of all processes, and of address space of each.
    pub memory: u64,
    /// Processes and threads, itself included; with 1 it can start no process.
    pub processes: u64,
    /// Bytes of each file that it writes.
    pub file_bytes: u64,
    /// Bytes of all files in the scratch folder, and in each other folder that is its own.
    pub scratch_bytes: u64,
    /// Bytes of output that are kept; more ends the program.
    pub output_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            wall_seconds: 10.0,
            cpu_seconds: 10,
            memory: 1 << 30,
            processes: 16,
            file_bytes: 16 << 20,
            scratch_bytes: 64 << 20,
            output_bytes: 1 << 20,
        }
    }
}
