//! Tests that need processes, damaged folders and real collections.

mod collections;
#[cfg(unix)]
mod crash;
mod damage;
mod stores;
