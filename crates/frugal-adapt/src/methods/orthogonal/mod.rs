//! Rotations of weights.

pub mod boft;
pub mod hra;
pub mod oft;
pub mod psoft;
pub mod road;
