//! A low-rank change of linear layers, its starts and its kin.

pub mod adalora;
pub mod bdlora;
pub mod deft;
pub mod delora;
pub mod dora;
pub mod dylora;
pub mod gralora;
pub mod hira;
pub mod increlora;
pub mod kasa;
pub mod loftq;
pub mod loha;
pub mod lokr;
pub mod lora;
pub mod lora_config;
pub mod lora_fa;
pub mod lora_plus;
pub mod mica;
pub mod miss;
pub mod mola;
pub mod olora;
pub mod peanut;
pub mod pissa;
pub mod qa_lora;
pub mod rslora;
pub mod sora;
