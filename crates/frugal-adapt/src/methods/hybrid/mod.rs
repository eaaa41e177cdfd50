//! Several kinds at once.

pub mod mam;
pub mod unipelt;
