//! The seam: how an adapter meets a frozen backbone.

pub mod adapter;
pub mod cached;
pub mod derived_cache;
pub mod error;
pub mod gradients;
pub mod hooks;
pub mod parameter;
pub mod set;
