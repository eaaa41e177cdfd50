//! GGUF files as a source of weights under Hugging Face names, in Hugging Face layout.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use burn::tensor::TensorData;
use bytes::Bytes;
use frugal_core::tokenizer::{TextTokenizer, TokenizerSettings};
use frugal_formats::gguf::{self, Gguf, Layout, NameMap, Parts, rotary_to_hf, rows_to_hf};
use frugal_kernels::Packed;
use frugal_nn::{LoadError, ModelError};
use serde_json::Value;

use crate::source::{Loaded, WeightSource};

/// A mapped GGUF file, or all parts of a split model.
pub struct GgufSource {
    path: PathBuf,
    parts: Parts<Bytes>,
    file: Gguf,
    config: Value,
    /// Hugging Face name to GGUF name and layout.
    names: HashMap<String, (String, Layout)>,
}

impl GgufSource {
    /// The bytes of the file, or of each part.
    pub(super) fn contents(&self) -> impl Iterator<Item = &[u8]> {
        self.parts.0.iter().map(AsRef::as_ref)
    }

    /// Maps a file and reads its header; where it is a part of a model in several files, all of
    /// them.
    ///
    /// # Errors
    /// Unreadable or damaged files, parts that are missing or contradict each other, unsupported
    /// architectures.
    pub fn open(path: &Path) -> Result<Self, LoadError> {
        let (bytes, named) = header(path)?;
        let (parts, file) = match gguf::part_paths(&named, path)? {
            None => (vec![bytes], named),
            Some(paths) => {
                let parts = paths
                    .iter()
                    .map(|part| match part == path {
                        true => Ok((bytes.clone(), named.clone())),
                        false => header(part),
                    })
                    .collect::<Result<Vec<_>, LoadError>>()?;
                let (parts, headers) = parts.into_iter().unzip();
                (parts, Gguf::join(headers)?)
            }
        };
        let parts = Parts(parts);
        let source_name = file.source().to_owned();
        let config = gguf::hf_config(&file, &parts)?;
        let map = NameMap::from_config(&config).map_err(|problem| problem.in_file(&source_name))?;
        // A tensor without a name there keeps its own, so that it is seen to be left over.
        let names = file.tensors().iter().map(|tensor| {
            let own = || (tensor.name.clone(), Layout::Same);
            let (name, layout) = map
                .to_hf(&tensor.name)
                .map_or_else(own, |mapped| (mapped.name, mapped.layout));
            (name, (tensor.name.clone(), layout))
        });
        Ok(Self {
            names: names.collect(),
            path: path.into(),
            parts,
            file,
            config,
        })
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
        self.file
            .metadata()
            .iter()
            .filter(|(key, _)| key.starts_with("tokenizer."))
            .cloned()
            .collect()
    }

    /// Bytes of the file, or of all parts.
    pub fn bytes(&self) -> u64 {
        self.contents().map(|part| part.len() as u64).sum()
    }

    /// Whether matrices are quantised.
    pub fn is_packed(&self) -> bool {
        self.file
            .tensors()
            .iter()
            .any(|tensor| tensor.ggml_type.code_layout().is_some())
    }

    /// Number formats with how many tensors have them.
    pub fn stored_types(&self) -> Vec<(String, usize)> {
        crate::load::count(
            self.file
                .tensors()
                .iter()
                .map(|t| format!("{:?}", t.ggml_type)),
        )
    }
}

/// A mapped file with its header.
fn header(path: &Path) -> Result<(Bytes, Gguf), LoadError> {
    let bytes = frugal_kernels::map_file(path).map_err(|source| LoadError::Read {
        path: path.into(),
        source,
    })?;
    if bytes.starts_with(super::safetensors::LFS_POINTER) {
        return Err(LoadError::Json {
            path: path.into(),
            reason: "it is a git-lfs pointer, not the model: run `git lfs pull` in the repository, or fetch the file itself".into(),
        });
    }
    let file = Gguf::parse(&bytes, &path.display().to_string())?;
    Ok((bytes, file))
}

impl GgufSource {
    /// Rows that cannot be put in Hugging Face order.
    fn uneven(&self, tensor: &str, shape: &[usize], heads: usize) -> LoadError {
        let rows = shape.first().copied().unwrap_or(1);
        let reason = format!("`{tensor}`: {rows} rows are not {heads} heads of an even width");
        LoadError::Json {
            path: self.path.clone(),
            reason,
        }
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
        let missing = || ModelError::MissingTensor {
            source_name: self.describe(),
            name: name.into(),
        };
        let (gguf_name, layout) = self.names.get(name).ok_or_else(missing)?;
        let info = self.file.tensor(gguf_name).ok_or_else(missing)?;
        let (rows, columns) = (info.rows(), info.cols());
        let mut values = self
            .file
            .tensor_f32(&self.parts, gguf_name)
            .map_err(LoadError::from)?;
        match layout {
            Layout::Same => {}
            Layout::PlusOne => values.iter_mut().for_each(|v| *v -= 1.0),
            Layout::RotaryRows { heads } => {
                let shape = info.shape();
                values = rotary_to_hf(&values, &shape, *heads)
                    .ok_or_else(|| self.uneven(gguf_name, &shape, *heads))?;
            }
            Layout::Transposed => {
                values = (0..columns)
                    .flat_map(|c| (0..rows).map(move |r| (r, c)))
                    .map(|(r, c)| values[r * columns + c])
                    .collect()
            }
        }
        let shape = self.shape(name).ok_or_else(missing)?;
        Ok(Loaded::Data(TensorData::new(values, shape)))
    }

    fn load_packed(&self, name: &str) -> Result<Option<Packed>, ModelError> {
        let missing = || ModelError::MissingTensor {
            source_name: self.describe(),
            name: name.into(),
        };
        let (gguf_name, layout) = self.names.get(name).ok_or_else(missing)?;
        let info = self.file.tensor(gguf_name).ok_or_else(missing)?;
        let order = match layout {
            // A layout that is transposed is so in the Hugging Face file: here rows are outputs.
            Layout::Same | Layout::Transposed => None,
            Layout::PlusOne => return Ok(None),
            // The elements of a vector move one by one, which blocks cannot.
            Layout::RotaryRows { .. } if info.dims.len() < 2 => return Ok(None),
            Layout::RotaryRows { heads } => Some(
                rows_to_hf(info.rows(), *heads)
                    .ok_or_else(|| self.uneven(gguf_name, &info.shape(), *heads))?,
            ),
        };
        let bytes = self
            .file
            .tensor_bytes(&self.parts, gguf_name)
            .map_err(LoadError::from)?;
        Ok(Packed::from_ggml(
            info.ggml_type,
            bytes,
            info.cols(),
            order.as_deref(),
        ))
    }
}

#[cfg(test)]
mod tests {
    use frugal_formats::gguf::{GgmlType, TensorSpec};
    use serde_json::json;

    use super::*;

    #[test]
    fn the_bias_of_a_rotated_projection_comes_back_in_its_own_order() {
        let config = json!({
            "model_type": "llama", "attention_bias": true, "hidden_size": 6, "num_attention_heads": 1, "num_hidden_layers": 1,
            "intermediate_size": 6, "max_position_embeddings": 8, "rms_norm_eps": 1e-5, "vocab_size": 2,
        });
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tiny.gguf");
        let spec = |name: &str, shape: &[usize]| TensorSpec {
            name: name.into(),
            shape: shape.to_vec(),
            ggml_type: GgmlType::F32,
        };
        let tensors = [
            spec("blk.0.attn_q.bias", &[6]),
            spec("token_embd.weight", &[2, 6]),
        ];
        let metadata = gguf::gguf_metadata(&config, "tiny", GgmlType::F32).unwrap();
        let bias = [0.0, 3.0, 1.0, 4.0, 2.0, 5.0];
        gguf::write(&path, &metadata, &tensors, |i| {
            Ok(if i == 0 { bias.to_vec() } else { vec![0.0; 12] })
        })
        .unwrap();
        let source = GgufSource::open(&path).unwrap();
        let name = "model.layers.0.self_attn.q_proj.bias";
        let Ok(Loaded::Data(data)) = source.load(name) else {
            panic!("the bias cannot be read")
        };
        assert_eq!(
            data.try_to_vec::<f32>().unwrap(),
            [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
        );
        assert_eq!(source.shape(name), Some(vec![6]));
    }
}
