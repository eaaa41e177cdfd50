//! From what a user calls a model to its files.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::prelude::*;
use frugal_core::tokenizer::TextTokenizer;
use frugal_formats::fetch;
use frugal_media::PROCESSOR_FILE;
use frugal_nn::{Backbone, BackboneInfo, Head, LoadError, ModelError, SiteTable};

use crate::architecture::{Family, ModelConfig};
use crate::build::build_with;
use crate::load::fingerprint::fingerprint;
use crate::load::gguf::GgufSource;
use crate::load::{SafetensorsSource, builtin, read_json};
use crate::names::unexpected;
use crate::source::WeightSource;
use crate::vision::pixels::PREPROCESSOR;
use crate::weights::LoadOptions;

/// Metadata of a GGUF file.
const CHAT_TEMPLATE: &str = "tokenizer.chat_template";

/// How models are looked up.
#[derive(Clone, Debug)]
pub struct Lookup {
    /// Where registered models are kept.
    pub cache: PathBuf,
    /// Never use the network.
    pub offline: bool,
}

impl Default for Lookup {
    /// The user's cache; offline if `HF_HUB_OFFLINE` or `FRUGAL_OFFLINE` is set to something other
    /// than 0.
    fn default() -> Self {
        let set = |name: &str| std::env::var(name).is_ok_and(|v| !v.is_empty() && v != "0");
        Self {
            cache: fetch::cache_dir(),
            offline: set("HF_HUB_OFFLINE") || set("FRUGAL_OFFLINE"),
        }
    }
}

enum Weights {
    Folder(SafetensorsSource),
    Gguf(GgufSource),
}

/// The files of a model: its configuration and tokenizer are read, its weights only mapped.
pub struct ModelFiles {
    name: String,
    path: PathBuf,
    info: BackboneInfo,
    config: ModelConfig,
    tokenizer: Option<TextTokenizer>,
    weights: Weights,
    bytes: u64,
}

impl ModelFiles {
    /// Finds a model: `builtin`, a registered name, a folder, a GGUF file, or `org/name` on the
    /// hub.
    ///
    /// # Errors
    /// When there is no such model, or its files are damaged or of an unsupported architecture.
    pub fn open(model: &str, lookup: &Lookup) -> Result<Self, ModelError> {
        if model == builtin::NAME {
            let (config, tokenizer, weights) = builtin::open()?;
            return Ok(Self::in_memory(model, config, tokenizer, weights));
        }
        let path = Path::new(model);
        if path.is_dir() {
            return Self::folder(model, path);
        }
        if path.is_file() {
            return Self::gguf(model, path);
        }
        if fetch::model(model).is_ok() {
            let found = fetch::resolve(model, &lookup.cache);
            let path = found.ok_or_else(|| LoadError::NotFetched { name: model.into() })?;
            return if path.is_dir() {
                Self::folder(model, &path)
            } else {
                Self::gguf(model, &path)
            };
        }
        if is_repository(model) {
            return Self::folder(model, &hub(model, lookup)?);
        }
        let suggestion = frugal_core::suggest::did_you_mean(model, names()).map(str::to_owned);
        Err(LoadError::NotFound {
            model: model.into(),
            suggestion,
            known: names().collect::<Vec<_>>().join(", "),
        }
        .into())
    }

    fn folder(name: &str, folder: &Path) -> Result<Self, ModelError> {
        let config_path = folder.join("config.json");
        if !config_path.exists() {
            if folder.join("adapter_config.json").exists() {
                return Err(LoadError::AdapterFolder {
                    folder: folder.into(),
                }
                .into());
            }
            if let Some(file) = only_gguf(folder) {
                return Self::gguf(name, &file);
            }
            if let Some(error) = LoadError::full_run(folder) {
                return Err(error.into());
            }
        }
        let mut raw = read_json(&config_path)?;
        let processor = folder.join(PROCESSOR_FILE);
        if let Some(keys) = raw.as_object_mut()
            && keys
                .get("model_type")
                .and_then(serde_json::Value::as_str)
                .and_then(crate::registry::find)
                .is_some_and(Family::reads_images)
            && processor.exists()
        {
            keys.insert(PREPROCESSOR.into(), read_json(&processor)?);
        }
        let mut config = ModelConfig::from_json(raw, &config_path.display().to_string())?;
        let weights = SafetensorsSource::open(folder)?;
        config.follow_head(weights.shape("lm_head.weight").is_some());
        let tokenizer = if folder.join("tokenizer.json").exists() {
            Some(TextTokenizer::from_folder(folder).map_err(LoadError::from)?)
        } else {
            None
        };
        let bytes = weights.bytes();
        Ok(Self {
            name: name.into(),
            path: folder.into(),
            info: config.info(),
            config,
            tokenizer,
            bytes,
            weights: Weights::Folder(weights),
        })
    }

    fn gguf(name: &str, file: &Path) -> Result<Self, ModelError> {
        let source = GgufSource::open(file)?;
        let config = ModelConfig::from_json(source.config().clone(), &file.display().to_string())?;
        let tokenizer = Some(source.tokenizer()?);
        Ok(Self {
            name: name.into(),
            path: file.into(),
            info: config.info(),
            config,
            tokenizer,
            bytes: source.bytes(),
            weights: Weights::Gguf(source),
        })
    }

    fn in_memory(
        name: &str,
        config: ModelConfig,
        tokenizer: TextTokenizer,
        weights: SafetensorsSource,
    ) -> Self {
        let bytes = weights.bytes();
        Self {
            name: name.into(),
            path: PathBuf::from(name),
            info: config.info(),
            config,
            tokenizer: Some(tokenizer),
            bytes,
            weights: Weights::Folder(weights),
        }
    }

    /// What the user called it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Folder or file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Sizes and settings.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// What adapters may know of the model.
    pub fn info(&self) -> &BackboneInfo {
        &self.info
    }

    /// The sites that methods can act on.
    pub fn sites(&self) -> SiteTable {
        self.config.sites()
    }

    /// Bytes of the weights as stored.
    pub fn stored_bytes(&self) -> u64 {
        self.bytes
    }

    /// What tells these weights from others: a hash of all bytes of their files.
    pub fn fingerprint(&self) -> String {
        match &self.weights {
            Weights::Folder(source) => fingerprint(source.contents()),
            Weights::Gguf(source) => fingerprint(source.contents()),
        }
    }

    /// Whether the weights are used where the file maps them, without a copy.
    pub fn is_mapped(&self) -> bool {
        matches!(&self.weights, Weights::Folder(source) if source.is_f32())
    }

    /// Whether the file holds matrices in few bits, which can stay so.
    pub fn is_packed(&self) -> bool {
        matches!(&self.weights, Weights::Gguf(source) if source.is_packed())
    }

    /// The tokenizer.
    ///
    /// # Errors
    /// [`LoadError::NoTokenizer`] if the folder has none.
    pub fn tokenizer(&self) -> Result<&TextTokenizer, LoadError> {
        self.tokenizer
            .as_ref()
            .ok_or_else(|| LoadError::NoTokenizer {
                folder: self.path.clone(),
            })
    }

    /// Gives the tokenizer another chat template; what it writes after an answer then ends a
    /// generation.
    ///
    /// # Errors
    /// No tokenizer, or a template that does not compile.
    pub fn set_chat_template(&mut self, source: &str) -> Result<(), LoadError> {
        let folder = self.path.clone();
        let tokenizer = self.tokenizer.as_mut();
        let tokenizer = tokenizer.ok_or(LoadError::NoTokenizer { folder })?;
        Ok(tokenizer
            .set_chat_template(source)
            .map_err(frugal_core::tokenizer::TokenizerError::from)?)
    }

    /// Takes over what stands beside an adapter about text: the chat template that it was trained
    /// with, and the ids that end a generation.
    ///
    /// # Errors
    /// Files that are damaged.
    pub fn use_text_settings_of(&mut self, adapter: &Path) -> Result<(), LoadError> {
        let Some(tokenizer) = &mut self.tokenizer else {
            return Ok(());
        };
        Ok(tokenizer.use_settings_of(adapter)?)
    }

    /// Tensors of the file that the model leaves out, other than heads of known tasks.
    pub fn unused_tensors(&self) -> Vec<String> {
        let mut found = unexpected(self.source(), &self.info, &self.sites()).ignored;
        let known = ["cls.", "classifier.", "score.", "lm_head.", "qa_outputs."];
        found.retain(|name| {
            !known.iter().any(|head| name.starts_with(head)) && !name.contains("pooler.")
        });
        found
    }

    /// What lies in the model's files and is not used with these adapters, said in full.
    pub fn warnings(&self, adapters: &[&Path]) -> Vec<String> {
        let path = self.path.display();
        let unused = self.unused_tensors();
        let tensors = unused.first().map(|first| {
            format!(
                "{path}: the model has no place for {} of the file's tensors, which are left out: `{first}`{}",
                unused.len(),
                if unused.len() > 1 { ", ..." } else { "" }
            )
        });
        // Python's classes put such an adapter on the model.
        let has_adapter = self.path.join("adapter_config.json").exists();
        let adapter = (has_adapter && !adapters.contains(&self.path.as_path())).then(|| {
            format!(
                "{path}: the adapter beside the weights (`adapter_config.json`) is not used: give `--adapter {path}`"
            )
        });
        tensors.into_iter().chain(adapter).collect()
    }

    /// What its `generation_config.json` says of writing texts and is not followed, in one line.
    pub fn generation_warning(&self) -> Option<String> {
        super::generation::not_followed(&self.path)
    }

    /// What of a tokenizer has no place in a file of this model, said in full: tokens that end a
    /// text and that the model cannot give.
    pub fn ends_beyond_vocabulary(&self) -> Option<String> {
        let rows = self.config.vocab_size;
        let ends = self.tokenizer.as_ref()?.eos_ids();
        let beyond: Vec<String> = ends
            .iter()
            .filter(|id| **id as usize >= rows)
            .map(u32::to_string)
            .collect();
        (!beyond.is_empty()).then(|| {
            format!(
                "{}: `eos_token_id` {} is beyond the {rows} tokens of the model's vocabulary and was left out",
                self.path.display(),
                beyond.join(", ")
            )
        })
    }

    /// The tensors by their Hugging Face names.
    pub fn source(&self) -> &dyn WeightSource {
        match &self.weights {
            Weights::Folder(source) => source,
            Weights::Gguf(source) => source,
        }
    }

    /// The number format of each tensor as stored, with how many there are of each.
    pub fn stored_types(&self) -> Vec<(String, usize)> {
        match &self.weights {
            Weights::Folder(source) => source.stored_types(),
            Weights::Gguf(source) => source.stored_types(),
        }
    }

    /// The tokenizer as GGUF metadata: what the file itself says, or a BPE tokenizer spelled out.
    ///
    /// # Errors
    /// Tokenizers of other kinds, or none.
    pub fn gguf_tokenizer_metadata(
        &self,
    ) -> Result<Vec<(String, frugal_formats::gguf::Value)>, LoadError> {
        match &self.weights {
            Weights::Gguf(source) => {
                let mut metadata = source.tokenizer_metadata();
                let template = self.tokenizer()?.settings().chat_template.clone();
                if let Some(template) = template {
                    // That of an adapter takes the place of the file's own.
                    metadata.retain(|(key, _)| key != CHAT_TEMPLATE);
                    let template = frugal_formats::gguf::Value::String(template);
                    metadata.push((CHAT_TEMPLATE.to_owned(), template));
                }
                Ok(metadata)
            }
            Weights::Folder(_) => {
                let source = self.path.display().to_string();
                let rows = self.config.vocab_size;
                Ok(
                    frugal_formats::gguf::tokenizer_metadata(self.tokenizer()?, rows)
                        .map_err(|problem| problem.in_file(&source))?,
                )
            }
        }
    }

    /// Reads the weights.
    ///
    /// # Errors
    /// When tensors are missing, mis-shaped or unreadable.
    pub fn load(&self, device: &Device) -> Result<Arc<dyn Backbone>, ModelError> {
        self.load_with(device, LoadOptions::default())
    }

    /// Reads the weights, with a choice of how matrices are held.
    ///
    /// # Errors
    /// As [`ModelFiles::load`].
    pub fn load_with(
        &self,
        device: &Device,
        options: LoadOptions,
    ) -> Result<Arc<dyn Backbone>, ModelError> {
        let _span = tracing::debug_span!("load", model = self.name()).entered();
        build_with(self.config.clone(), self.source(), device, options)
    }
}

impl ModelFiles {
    /// The classification head that the model was saved with, if it was.
    ///
    /// # Errors
    /// When its tensors are missing, mis-shaped or unreadable.
    pub fn head(&self, device: &Device) -> Result<Option<Head>, ModelError> {
        crate::load::head::of_model(&self.config, self.source(), device)
    }
}

/// Names that work without a path.
pub fn names() -> impl Iterator<Item = &'static str> {
    std::iter::once(builtin::NAME).chain(fetch::MODELS.iter().map(|m| m.name))
}

fn is_repository(model: &str) -> bool {
    let part = |p: &str| {
        !p.is_empty()
            && p.chars()
                .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
            && !p.starts_with('.')
    };
    model
        .split_once('/')
        .is_some_and(|(org, name)| part(org) && part(name))
        && !Path::new(model).exists()
}

#[cfg(feature = "hub")]
fn hub(model: &str, lookup: &Lookup) -> Result<PathBuf, LoadError> {
    crate::load::hub::snapshot(model, lookup.offline)
}

#[cfg(not(feature = "hub"))]
fn hub(model: &str, _lookup: &Lookup) -> Result<PathBuf, LoadError> {
    Err(LoadError::Hub {
        repository: model.into(),
        reason: "this build has no hub support (cargo feature `hub`)".into(),
    })
}

/// The GGUF file of a folder that has just one, or the first part of the only model there.
fn only_gguf(folder: &Path) -> Option<PathBuf> {
    let files = std::fs::read_dir(folder).ok()?.flatten().map(|e| e.path());
    let mut found: Vec<PathBuf> = files
        .filter(|p| {
            p.extension()
                .is_some_and(|e| e.eq_ignore_ascii_case("gguf"))
        })
        .collect();
    found.sort();
    let parts = frugal_formats::gguf::files_of(found.first()?);
    (found == parts).then(|| found.swap_remove(0))
}
