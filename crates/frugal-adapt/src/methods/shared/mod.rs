//! Parameters shared between places.

pub mod mos;
pub mod vblora;
pub mod vera;
