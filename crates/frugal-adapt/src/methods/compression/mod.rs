//! A smaller model in place of the large one.

pub mod pela;
pub mod peqa;
pub mod stable_rps;
