//! GGUF files as a source of weights under Hugging Face names, in Hugging Face layout.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use burn::tensor::TensorData;
use bytes::Bytes;
use frugal_core::gguf::{self, Gguf, Layout, NameMap, rows_to_hf};
use frugal_core::tokenizer::{TextTokenizer, TokenizerSettings};
use frugal_kernels::Packed;
use serde_json::Value;

use super::LoadError;
use crate::model::{Loaded, ModelError, WeightSource};

/// A mapped GGUF file.
pub struct GgufSource {
    path: PathBuf,
    bytes: Bytes,
    file: Gguf,
    config: Value,
    /// Hugging Face name to GGUF name and layout.
    names: HashMap<String, (String, Layout)>,
}

impl GgufSource {
    /// Maps a file and reads its header.
    ///
    /// # Errors
    /// Unreadable or damaged files, unsupported architectures.
    pub fn open(path: &Path) -> Result<Self, LoadError> {
        let bytes = frugal_kernels::map_file(path).map_err(|source| LoadError::Read { path: path.into(), source })?;
        let source_name = path.display().to_string();
        let file = Gguf::parse(&bytes, &source_name)?;
        let config = gguf::hf_config(&file, &bytes)?;
        let map = NameMap::from_config(&config).map_err(|problem| problem.in_file(&source_name))?;
        let names = file.tensors().iter().filter_map(|tensor| {
            let mapped = map.to_hf(&tensor.name)?;
            Some((mapped.name, (tensor.name.clone(), mapped.layout)))
        });
        Ok(Self { names: names.collect(), path: path.into(), bytes, file, config })
    }

    /// The model's `config.json`.
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// The tokenizer that the file carries.
    ///
    /// # Errors
    /// Missing or inconsistent metadata.
    pub fn tokenizer(&self) -> Result<TextTokenizer, LoadError> {
        let parts = gguf::tokenizer(&self.file)?;
        let token = |id: Option<u32>| id.and_then(|id| parts.tokenizer.id_to_token(id));
        let ends = [parts.eos_token_id, parts.eot_token_id];
        let settings = TokenizerSettings {
            bos_token: token(parts.bos_token_id),
            eos_token: token(parts.eos_token_id),
            pad_token: token(parts.pad_token_id),
            unk_token: token(parts.unk_token_id),
            eos_token_ids: ends.into_iter().flatten().collect(),
            add_bos_token: parts.add_bos_token,
            add_eos_token: parts.add_eos_token,
            chat_template: parts.chat_template.clone(),
            ..TokenizerSettings::default()
        };
        Ok(TextTokenizer::new(parts.tokenizer, settings)?)
    }

    /// The metadata that describes the tokenizer.
    pub fn tokenizer_metadata(&self) -> Vec<(String, gguf::Value)> {
        self.file.metadata().iter().filter(|(key, _)| key.starts_with("tokenizer.")).cloned().collect()
    }

    /// Bytes of the file.
    pub fn bytes(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// Whether matrices are quantised.
    pub fn is_packed(&self) -> bool {
        self.file.tensors().iter().any(|tensor| tensor.ggml_type.code_layout().is_some())
    }

    /// Number formats with how many tensors have them.
    pub fn stored_types(&self) -> Vec<(String, usize)> {
        super::count(self.file.tensors().iter().map(|t| format!("{:?}", t.ggml_type)))
    }
}

impl GgufSource {
    /// The file's row for each row in Hugging Face order.
    fn rotary_order(&self, tensor: &str, rows: usize, heads: usize) -> Result<Vec<usize>, LoadError> {
        rows_to_hf(rows, heads).ok_or_else(|| LoadError::Json {
            path: self.path.clone(),
            reason: format!("`{tensor}`: {rows} rows are not {heads} heads of an even width"),
        })
    }
}

impl WeightSource for GgufSource {
    fn describe(&self) -> String {
        self.path.display().to_string()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        let (gguf_name, layout) = self.names.get(name)?;
        let mut shape = self.file.tensor(gguf_name)?.shape();
        if *layout == Layout::Transposed {
            shape.reverse();
        }
        Some(shape)
    }

    fn names(&self) -> Vec<String> {
        self.names.keys().cloned().collect()
    }

    fn load(&self, name: &str) -> Result<Loaded, ModelError> {
        let missing = || ModelError::MissingTensor { source_name: self.describe(), name: name.into() };
        let (gguf_name, layout) = self.names.get(name).ok_or_else(missing)?;
        let info = self.file.tensor(gguf_name).ok_or_else(missing)?;
        let (rows, columns) = (info.rows(), info.cols());
        let mut values = self.file.tensor_f32(&self.bytes, gguf_name).map_err(LoadError::from)?;
        match layout {
            Layout::Same => {}
            Layout::PlusOne => values.iter_mut().for_each(|v| *v -= 1.0),
            Layout::RotaryRows { heads } => {
                let order = self.rotary_order(gguf_name, rows, *heads)?;
                values = order.into_iter().flat_map(|row| values[row * columns..(row + 1) * columns].iter().copied()).collect();
            }
            Layout::Transposed => {
                values = (0..columns).flat_map(|c| (0..rows).map(move |r| (r, c))).map(|(r, c)| values[r * columns + c]).collect()
            }
        }
        let shape = self.shape(name).ok_or_else(missing)?;
        Ok(Loaded::Data(TensorData::new(values, shape)))
    }

    fn load_packed(&self, name: &str) -> Result<Option<Packed>, ModelError> {
        let missing = || ModelError::MissingTensor { source_name: self.describe(), name: name.into() };
        let (gguf_name, layout) = self.names.get(name).ok_or_else(missing)?;
        let info = self.file.tensor(gguf_name).ok_or_else(missing)?;
        let order = match layout {
            // A layout that is transposed is so in the Hugging Face file: here rows are outputs.
            Layout::Same | Layout::Transposed => None,
            Layout::PlusOne => return Ok(None),
            Layout::RotaryRows { heads } => Some(self.rotary_order(gguf_name, info.rows(), *heads)?),
        };
        let bytes = self.file.tensor_bytes(&self.bytes, gguf_name).map_err(LoadError::from)?;
        Ok(Packed::from_ggml(info.ggml_type, bytes, info.cols(), order.as_deref()))
    }
}
