//! Adaptation methods: one file each, met with a frozen backbone through the seam of `frugal-nn`.
#![forbid(unsafe_code)]
#![recursion_limit = "256"]

pub mod combine;
mod images;
pub mod method;
pub mod methods;
mod overlay;
mod pattern;
pub mod peft;
mod peft_fused;
pub mod peft_keys;
mod peft_read;
pub mod peft_support;
pub mod pretraining;
pub mod registry;
pub mod reparameterize;
mod settings;
mod sizes;
mod support;
mod target;

pub use images::ON_IMAGES;
pub use method::{Capabilities, Family, Method};
pub use pattern::Patterns;
pub use settings::Settings;
pub use target::{Layers, Names, Targets, for_tokens};
