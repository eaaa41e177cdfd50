//! Parameters shared between places.

pub mod lily;
pub mod mos;
pub mod pvera;
pub mod randlora;
pub mod tinylora;
pub mod unilora;
pub mod vblora;
pub mod vera;
