//! The embedded model: small enough to be part of the program, so that everything works without a
//! download.

use std::path::Path;

use bytes::Bytes;
use frugal_core::tokenizer::TextTokenizer;
use frugal_nn::{LoadError, ModelError};

use crate::architecture::ModelConfig;
use crate::load::{SafetensorsFile, SafetensorsSource};

/// What it is called.
pub const NAME: &str = "builtin";

const CONFIG: &str = include_str!("../../assets/model/config.json");
const TOKENIZER: &str = include_str!("../../assets/model/tokenizer.json");
const TOKENIZER_CONFIG: &str = include_str!("../../assets/model/tokenizer_config.json");
const WEIGHTS: &[u8] = include_bytes!("../../assets/model/model.safetensors");

/// Its configuration, tokenizer and weights.
pub(super) fn open() -> Result<(ModelConfig, TextTokenizer, SafetensorsSource), ModelError> {
    let name = Path::new(NAME);
    let config = serde_json::from_str(CONFIG).map_err(|e| LoadError::Json {
        path: name.into(),
        reason: e.to_string(),
    })?;
    let config = ModelConfig::from_json(config, NAME)?;
    let tokenizer =
        TextTokenizer::from_json(TOKENIZER, TOKENIZER_CONFIG).map_err(LoadError::from)?;
    let file = SafetensorsFile::from_bytes(Bytes::from_static(WEIGHTS), name)?;
    let weights = SafetensorsSource::of_files(name, vec![file]);
    Ok((config, tokenizer, weights))
}
