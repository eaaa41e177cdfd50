//! The methods: one file each, one folder for each family.

pub mod bottleneck;
pub mod compression;
pub mod full;
pub mod hybrid;
pub mod low_rank;
pub mod orthogonal;
pub mod prompt;
pub mod scaling;
pub mod shared;
pub mod sparse;
pub mod spectral;
