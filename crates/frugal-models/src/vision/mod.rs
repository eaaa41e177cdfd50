//! Architectures that read images, one file each.

pub mod efficientvmamba;
pub mod pixels;
pub mod vit;
pub mod vmamba;
