//! Measuring the machine and what runs on it.

pub mod language_model;
pub mod machine;
pub mod runtime;

/// Threads that computations are shared among; `RAYON_NUM_THREADS` sets their number.
pub fn threads() -> usize {
    rayon::current_num_threads()
}
