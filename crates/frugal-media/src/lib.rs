//! Images without tensors: decoding them within bounds, preparing them as the image processors of
//! Hugging Face do, and reading sets of them.
//!
//! An image is 8-bit RGB ([`Picture`]). What a model reads of it is a [`Processor`]'s affair, which
//! is a `preprocessor_config.json`; where images come from is an [`ImageSet`]'s.
#![forbid(unsafe_code)]

mod dataset;
mod decode;
mod error;
mod picture;
mod processor;
mod resize;

pub use dataset::{Content, ImageExample, ImageSet, Part};
pub use decode::{Limits, decode, decode_file};
pub use error::MediaError;
pub use picture::Picture;
pub use processor::{PROCESSOR_FILE, Processor, Size};
pub use resize::{Resample, resize};
