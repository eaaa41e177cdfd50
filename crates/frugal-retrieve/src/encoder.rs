//! A model that makes a vector of a text.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::prelude::*;
use frugal_adapt::peft;
use frugal_index::Metric;
use frugal_models::load::{Lookup, ModelFiles};
use frugal_models::{LoadOptions, Quantize};
use frugal_nn::{
    Adapter, Backbone, BuildContext, Input, LoadedAdapter, Mode, NoAdapter, Pass, SequenceLayout,
    to_vec,
};

use sha2::{Digest, Sha256};

use crate::RetrieveError;
use crate::modules::{self, Modules};
use crate::prompt::Prompt;

/// Tokens of a batch, unless one text has more: activations stay in the caches of a processor, which
/// makes a small encoder up to a quarter faster than batches of thousands.
const BATCH_TOKENS: usize = 512;

/// What an encoder is made of.
#[derive(Clone, Debug)]
pub struct EncoderRequest {
    /// Model folder or name.
    pub model: String,
    /// Folder of an adapter.
    pub adapter: Option<PathBuf>,
    /// Most tokens of a text; as the model says where it is absent.
    pub max_length: Option<usize>,
    /// How weights are held.
    pub quantize: Quantize,
}

/// A model that makes a vector of a text: tokens, transformer, pooling, layers, length.
pub struct Encoder {
    name: String,
    files: ModelFiles,
    backbone: Arc<dyn Backbone>,
    adapter: Option<LoadedAdapter>,
    modules: Modules,
    /// Dimensions that the model itself keeps; no part of the modules, by which indexes that are
    /// there know their encoder again.
    truncate_dim: Option<usize>,
    max_length: usize,
    fingerprint: String,
}

/// How vectors are made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EmbedOptions {
    /// What goes before each text.
    pub prompt: Prompt,
    /// Give vectors length 1 whatever the model says.
    pub normalize: bool,
    /// Keep the first so many dimensions, as models trained by Matryoshka losses allow; before
    /// `normalize`. As many as the model says ([`Encoder::truncate_dim`]) where it is absent.
    pub truncate_dim: Option<usize>,
}

/// Vectors of texts.
#[derive(Clone, Debug, PartialEq)]
pub struct Embeddings {
    /// Width of a vector.
    pub dimension: usize,
    /// `[texts, dimension]`, by rows.
    pub values: Vec<f32>,
    /// Texts that were longer than the model reads, and were cut.
    pub truncated: usize,
}

impl Embeddings {
    /// The vectors.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = &[f32]> {
        self.values.chunks_exact(self.dimension.max(1))
    }
}

/// A text in tokens.
struct Ready {
    ids: Vec<u32>,
    type_ids: Vec<u32>,
    /// Tokens of the prompt that do not count.
    skipped: usize,
}

impl Encoder {
    /// Finds and reads model, modules and adapter.
    ///
    /// # Errors
    /// Anything wrong with them; modules that are not computed here, by name.
    pub fn open(
        request: &EncoderRequest,
        lookup: &Lookup,
        device: &Device,
    ) -> Result<Self, RetrieveError> {
        let files = ModelFiles::open(&request.model, lookup)?;
        let tokenizer = files.tokenizer()?;
        let modules = Modules::read(files.path())?;
        let limit = files.config().max_sequence();
        let own = tokenizer.settings().model_max_length;
        let asked = request.max_length.or(modules.max_seq_length).or(own);
        let max_length = asked.unwrap_or(limit).min(limit);
        let special = tokenizer.added_tokens(false);
        if max_length <= special {
            return Err(RetrieveError::NoRoom {
                max_length,
                special,
            });
        }
        let sites = files.sites();
        let mut options = LoadOptions {
            quantize: request.quantize,
            ..LoadOptions::default()
        };
        if let Some(folder) = &request.adapter {
            let adapted = peft::load_options(Some(folder), &sites, options);
            options = peft::made_for(folder, files.name(), adapted)?;
        }
        let backbone = files.load_with(device, options)?;
        let context = BuildContext {
            info: files.info(),
            sites: &sites,
            backbone: Some(backbone.as_ref()),
            device: device.clone(),
            seed: 0,
            tokenize: None,
        };
        let load = |folder: &PathBuf| {
            peft::made_for(folder, files.name(), peft::load(folder, &context, false))
        };
        let adapter = request.adapter.as_ref().map(load).transpose()?;
        let mut width = files.info().hidden_size * modules.pooling.modes.len();
        for dense in &modules.dense {
            if dense.in_features != width {
                return Err(RetrieveError::Module {
                    path: files.path().join("modules.json"),
                    reason: format!(
                        "a Dense module reads vectors of {} features, but is given {width}",
                        dense.in_features
                    ),
                });
            }
            width = dense.out_features;
        }
        let own = modules::truncate_dim(files.path())?.filter(|_| modules.found);
        Ok(Self {
            // A cut beyond the end leaves all, as in the reference.
            truncate_dim: own.filter(|dim| *dim < width),
            fingerprint: fingerprint(&files, &modules, request.adapter.as_deref())?,
            name: files.name().to_owned(),
            max_length,
            modules,
            backbone,
            adapter: adapter.map(|(adapter, _)| adapter),
            files,
        })
    }

    /// What was asked for as the model.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A sum over weights, modules and adapter, by which an index knows its encoder again.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// What comes behind the transformer.
    pub fn modules(&self) -> &Modules {
        &self.modules
    }

    /// Most tokens of a text.
    pub fn max_length(&self) -> usize {
        self.max_length
    }

    /// Width of the vectors, before `truncate_dim`.
    pub fn dimension(&self) -> usize {
        self.modules.dimension(self.files.info().hidden_size)
    }

    /// Dimensions that vectors are cut to unless others are asked for: `truncate_dim` of
    /// `config_sentence_transformers.json`.
    pub fn truncate_dim(&self) -> Option<usize> {
        self.truncate_dim
    }

    /// How its vectors are compared: `similarity_fn_name` of `config_sentence_transformers.json`, which
    /// counts, as the other settings there, only beside modules.
    ///
    /// # Errors
    /// A function by which no index compares, by name.
    pub fn metric(&self) -> Result<Metric, RetrieveError> {
        match self.modules.found {
            true => modules::similarity(self.files.path()),
            false => Ok(Metric::Cosine),
        }
    }

    /// The text that goes before each text.
    ///
    /// # Errors
    /// [`RetrieveError::UnknownPrompt`].
    pub fn prompt<'a>(&'a self, prompt: &'a Prompt) -> Result<&'a str, RetrieveError> {
        self.modules.prompt(prompt)
    }

    /// Vectors `[texts, dimension]` in the order of the texts; texts of like length share a batch.
    /// `progress` is told how many more texts are done, and ends the work by answering false.
    ///
    /// # Errors
    /// Texts that the tokenizer cannot spell, numbers that are not finite.
    pub fn embed(
        &self,
        texts: &[&str],
        options: &EmbedOptions,
        progress: &mut dyn FnMut(usize) -> bool,
    ) -> Result<Embeddings, RetrieveError> {
        let full = self.dimension();
        let asked = options.truncate_dim.or(self.truncate_dim);
        let dimension = asked.unwrap_or(full);
        if dimension == 0 || dimension > full {
            return Err(RetrieveError::TruncateDim {
                asked: dimension,
                dimension: full,
            });
        }
        let (ready, truncated) = self.tokenize(texts, options)?;
        let mut order: Vec<usize> = (0..ready.len()).collect();
        order.sort_by_key(|&i| (ready[i].ids.len(), i));
        let mut values = vec![0.0; texts.len() * dimension];
        let mut rest = order.as_slice();
        while !rest.is_empty() {
            let mut tokens = 0;
            let fits = rest
                .iter()
                .take_while(|&&i| (tokens += ready[i].ids.len(), tokens <= BATCH_TOKENS).1)
                .count()
                .max(1);
            let (batch, later) = rest.split_at(fits);
            let vectors = frugal_kernels::on_pool(|| self.vectors(&ready, batch))?;
            for (&i, vector) in batch.iter().zip(vectors.chunks_exact(full)) {
                let row = &mut values[i * dimension..(i + 1) * dimension];
                row.copy_from_slice(&vector[..dimension]);
                if options.normalize {
                    normalize(row);
                }
            }
            rest = later;
            if !progress(fits) {
                return Err(RetrieveError::Interrupted);
            }
        }
        Ok(Embeddings {
            dimension,
            values,
            truncated,
        })
    }

    fn tokenize(
        &self,
        texts: &[&str],
        options: &EmbedOptions,
    ) -> Result<(Vec<Ready>, usize), RetrieveError> {
        let tokenizer = self.files.tokenizer()?;
        let prompt = self.prompt(&options.prompt)?;
        // As in sentence-transformers: all of the prompt alone but the token that ends a text.
        let skipped = if self.modules.pooling.include_prompt || prompt.is_empty() {
            0
        } else {
            let alone = tokenizer.encode_cut(prompt, None, self.max_length)?;
            let ends = alone.ids.last().is_some_and(|id| tokenizer.is_special(*id));
            alone.ids.len() - usize::from(ends)
        };
        let (mut ready, mut truncated) = (Vec::with_capacity(texts.len()), 0);
        for (index, text) in texts.iter().enumerate() {
            let text = &format!("{prompt}{text}");
            let lower = self.modules.do_lower_case.then(|| text.to_lowercase());
            let text = lower.as_deref().unwrap_or(text.as_str());
            let cut = tokenizer.encode_cut(text, None, self.max_length)?;
            if cut.ids.is_empty() {
                return Err(RetrieveError::NoTokens { index });
            }
            if cut.ids.len() <= skipped {
                return Err(RetrieveError::OnlyPrompt {
                    index,
                    tokens: skipped,
                });
            }
            truncated += usize::from(cut.length > self.max_length);
            ready.push(Ready {
                ids: cut.ids,
                type_ids: cut.type_ids,
                skipped,
            });
        }
        Ok((ready, truncated))
    }

    /// Vectors `[batch, dimension]`, by rows.
    fn vectors(&self, ready: &[Ready], batch: &[usize]) -> Result<Vec<f32>, RetrieveError> {
        let of = |i: &usize| &ready[*i];
        let ids: Vec<u32> = batch.iter().flat_map(|i| &of(i).ids).copied().collect();
        let types: Vec<u32> = batch
            .iter()
            .flat_map(|i| &of(i).type_ids)
            .copied()
            .collect();
        let lengths: Vec<usize> = batch.iter().map(|i| of(i).ids.len()).collect();
        let skipped: Vec<usize> = batch.iter().map(|i| of(i).skipped).collect();
        let layout = SequenceLayout::new(&lengths);
        let input = Input {
            // A model of one segment takes none.
            token_type_ids: if types.iter().all(|t| *t == 0) {
                &[]
            } else {
                &types
            },
            ..Input::tokens(&ids, layout.clone())
        };
        let adapter: Option<&dyn Adapter> = self.adapter.as_ref().map(|a| a.adapter.as_ref());
        let mut pass: Box<dyn Pass + '_> = match adapter {
            Some(adapter) => adapter.pass(Mode::Eval),
            None => Box::new(NoAdapter),
        };
        let hidden_states = self.backbone.forward(&input, pass.as_mut(), None)?;
        let vectors = self.modules.pooled(hidden_states, &layout, &skipped);
        let mut values = to_vec(vectors);
        self.backbone.info().check_finite("embeddings", &values)?;
        if self.modules.normalize {
            values
                .chunks_exact_mut(self.dimension())
                .for_each(normalize);
        }
        Ok(values)
    }
}

fn fingerprint(
    files: &ModelFiles,
    modules: &Modules,
    adapter: Option<&Path>,
) -> Result<String, RetrieveError> {
    let mut sum = Sha256::new();
    sum.update(files.fingerprint());
    sum.update(format!("{modules:?}"));
    if let Some(folder) = adapter {
        for name in ["adapter_config.json", "adapter_model.safetensors"] {
            let path = folder.join(name);
            let bytes = frugal_core::fs::read_data(&path)?;
            sum.update(bytes);
        }
    }
    let bytes = sum.finalize();
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Gives a vector length 1; one of zeros stays.
fn normalize(vector: &mut [f32]) {
    let length = vector.iter().map(|v| v * v).sum::<f32>().sqrt().max(1e-12);
    vector.iter_mut().for_each(|v| *v /= length);
}
