//! Folders that results go into.

pub use frugal::run::{RESULTS_FILE, claim_results as claim};
