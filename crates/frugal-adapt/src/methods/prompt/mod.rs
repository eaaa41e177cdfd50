//! Positions in front of the input, or keys and values in front of every block.

pub mod adaption_prompt;
pub mod cartridge;
pub mod cpt;
pub mod multitask_prompt_tuning;
pub mod p_tuning;
pub mod prefix_tuning;
pub mod prompt_tuning;
