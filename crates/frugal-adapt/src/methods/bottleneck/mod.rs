//! Small networks beside or behind the sub-layers.

pub mod adapter_drop;
pub mod adapter_fusion;
pub mod compacter;
pub mod houlsby;
pub mod iaa;
pub mod parallel_adapter;
pub mod pfeiffer;
