//! Adapts, trains, runs and measures transformer models with few parameters, little memory and
//! little compute.
#![recursion_limit = "256"]

pub mod adapt;
pub mod decode;
pub mod device;
pub mod measure;
pub mod model;
pub mod run;
pub mod train;
