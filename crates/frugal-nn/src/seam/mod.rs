//! The seam: how an adapter meets a frozen backbone.

pub mod adapter;
pub mod attention;
pub mod cached;
mod combined;
pub mod controlled;
pub mod derived_cache;
pub mod error;
pub mod gradients;
pub mod hooks;
pub mod parameter;
pub mod set;
