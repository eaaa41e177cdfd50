//! A low-rank change of linear layers, its starts and its kin.

pub mod adalora;
pub mod dora;
pub mod increlora;
pub mod loftq;
pub mod loha;
pub mod lokr;
pub mod lora;
pub mod lora_config;
pub mod lora_fa;
pub mod lora_plus;
pub mod miss;
pub mod mola;
pub mod olora;
pub mod pissa;
pub mod qa_lora;
pub mod rslora;
