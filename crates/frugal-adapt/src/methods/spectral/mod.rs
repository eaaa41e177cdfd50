//! Coefficients in another basis: singular vectors, frequencies, circulants.

pub mod adamss;
pub mod c3a;
pub mod fourierft;
pub mod frod;
pub mod lora_xs;
pub mod osf;
pub mod svfit;
pub mod svft;
pub mod waveft;
