//! A model that makes weights of vocabulary entries of a text: a learned sparse encoder.
//!
//! A masked language model tells for each token of a text how likely each entry of the vocabulary
//! would be in its place, as logits `z [tokens, vocabulary]`. The weight of an entry is
//! `max over tokens of log(1 + max(z, 0))`, which is 0 for nearly all of them; what is left are words
//! of the text and words beside them. The score of a document is the product of its weights with those
//! of the query, so that an index of words can hold them.
//!
//! Formal et al., *SPLADE v2: Sparse Lexical and Expansion Model for Information Retrieval*, 2021,
//! arXiv 2109.10086, equations 1 and 6; with a sum in place of the maximum, *SPLADE*, 2021, arXiv
//! 2107.05720. Folders, and a second logarithm, are those of `SparseEncoder` of sentence-transformers.

use std::path::Path;
use std::sync::Arc;

use burn::prelude::*;
use burn::tensor::activation::{relu, silu};
use frugal_models::load::{Lookup, ModelFiles, read_json};
use frugal_models::{Activation, LoadOptions, read_values};
use frugal_nn::{Backbone, Frozen, Input, ModelError, NoAdapter, SequenceLayout, to_vec};
use serde_json::Value;

use crate::RetrieveError;
use crate::encoder::EncoderRequest;
use crate::modules::{Modules, is_inside};
use crate::prompt::Prompt;

/// Tokens of a batch, unless one text has more: each has a logit for every entry of the vocabulary.
const BATCH_TOKENS: usize = 256;

/// How the logits of a text's tokens become weights: `SpladePooling` of sentence-transformers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SparsePooling {
    /// Weights are summed over the tokens, where the largest is taken otherwise.
    pub sum: bool,
    /// `log(1 + log(1 + max(z, 0)))` in place of one logarithm.
    pub twice: bool,
}

/// Weights of texts.
#[derive(Clone, Debug, PartialEq)]
pub struct SparseEmbeddings {
    /// For each text the entries of the vocabulary with a weight above 0, the heaviest first.
    pub rows: Vec<Vec<(u32, f32)>>,
    /// Texts that were longer than the model reads, and were cut.
    pub truncated: usize,
}

/// A masked language model whose logits weigh entries of its vocabulary.
pub struct SparseEncoder {
    files: ModelFiles,
    backbone: Arc<dyn Backbone>,
    head: MaskedHead,
    pooling: SparsePooling,
    modules: Modules,
    max_length: usize,
}

/// The output of BERT's masked language model.
struct MaskedHead {
    /// `[d, d]`.
    dense: Tensor<2>,
    /// `[d]`.
    dense_bias: Tensor<1>,
    activation: Activation,
    /// Gain and bias, each `[d]`.
    norm: [Tensor<1>; 2],
    eps: f64,
    /// `[vocabulary, d]`.
    decoder: Tensor<2>,
    /// `[vocabulary]`.
    decoder_bias: Tensor<1>,
}

const HEAD: &str = "cls.predictions";

impl MaskedHead {
    fn load(
        files: &ModelFiles,
        backbone: &dyn Backbone,
        device: &Device,
    ) -> Result<Self, RetrieveError> {
        let (config, source) = (files.config(), files.source());
        if config.model_type() != "bert" {
            return Err(RetrieveError::Sparse(format!(
                "{} is a `{}`: sparse encoders with the masked language model of `bert` are computed",
                files.name(),
                config.model_type()
            )));
        }
        let (width, words) = (config.hidden_size, config.vocab_size);
        // The first name that the file has; without any, the first is missed.
        let vector = |names: &[&str], len: usize| -> Result<Tensor<1>, ModelError> {
            let mut names = names.iter().map(|name| format!("{HEAD}.{name}"));
            let first = names.next().unwrap_or_default();
            let there = |name: &String| source.shape(name).is_some();
            let name = match there(&first) {
                true => first,
                false => names.find(there).unwrap_or(first),
            };
            let values = read_values(source, &name, &[len])?;
            Ok(Tensor::from_data(TensorData::new(values, [len]), device))
        };
        let matrix = |name: &str, shape: [usize; 2]| -> Result<Tensor<2>, ModelError> {
            let values = read_values(source, &format!("{HEAD}.{name}"), &shape)?;
            Ok(Tensor::from_data(TensorData::new(values, shape), device))
        };
        let tied = config.raw.get("tie_word_embeddings") != Some(&Value::Bool(false));
        let decoder = match tied {
            true => word_embeddings(backbone),
            false => None,
        };
        Ok(Self {
            dense: matrix("transform.dense.weight", [width, width])?,
            dense_bias: vector(&["transform.dense.bias"], width)?,
            activation: config.activation,
            norm: [
                vector(
                    &["transform.LayerNorm.weight", "transform.LayerNorm.gamma"],
                    width,
                )?,
                vector(
                    &["transform.LayerNorm.bias", "transform.LayerNorm.beta"],
                    width,
                )?,
            ],
            eps: config.norm_eps,
            decoder: match decoder {
                Some(table) => table,
                None => matrix("decoder.weight", [words, width])?,
            },
            decoder_bias: vector(&["bias", "decoder.bias"], words)?,
        })
    }

    /// Hidden states `[tokens, d]` to logits `[tokens, vocabulary]`.
    fn logits(&self, hidden_states: Tensor<2>) -> Tensor<2> {
        let bias = Some(self.dense_bias.clone());
        let x = frugal_kernels::linear(hidden_states, self.dense.clone(), bias);
        let x = match self.activation {
            Activation::Silu => silu(x),
            Activation::Gelu => frugal_kernels::gelu(x),
            Activation::GeluTanh => frugal_kernels::gelu_tanh(x),
            Activation::Relu => relu(x),
        };
        let [gain, bias] = self.norm.clone();
        let x = frugal_kernels::layer_norm(x, gain, Some(bias), self.eps);
        let bias = Some(self.decoder_bias.clone());
        frugal_kernels::linear(x, self.decoder.clone(), bias)
    }
}

/// The table that the output shares, `[vocabulary, d]`.
fn word_embeddings(backbone: &dyn Backbone) -> Option<Tensor<2>> {
    let mut found = None;
    backbone.visit_weights(&mut |frozen| {
        if let Frozen::Embedding(table) = frozen
            && backbone.sites().info(table.site).token_table
        {
            found = Some(table.weight.dense());
        }
    });
    found
}

impl SparsePooling {
    /// Reads modules of a folder, with what stands before texts; without `modules.json` it is the
    /// maximum of one logarithm, as sentence-transformers assumes.
    fn read(folder: &Path) -> Result<(Self, Modules), RetrieveError> {
        let path = folder.join("modules.json");
        let wrong = |reason: String| RetrieveError::Module {
            path: path.clone(),
            reason,
        };
        let list = match path.is_file() {
            true => read_json(&path)?,
            false => return Ok(Default::default()),
        };
        let kinds = ["Transformer", "SpladePooling"];
        let module = |i: usize| {
            let kind = list.get(i)?.get("type")?.as_str()?;
            let inside = list[i].get("path").and_then(Value::as_str).unwrap_or("");
            Some((kind.rsplit('.').next().unwrap_or(kind), inside))
        };
        let (Some((first, transformer)), Some((second, pooling)), 2) =
            (module(0), module(1), list.as_array().map_or(0, Vec::len))
        else {
            return Err(wrong(format!("of a sparse encoder {kinds:?} are computed")));
        };
        if !["Transformer", "MLMTransformer"].contains(&first) || second != kinds[1] {
            return Err(wrong(format!(
                "its modules are {first} and {second}; of a sparse encoder {kinds:?} are computed"
            )));
        }
        for inside in [transformer, pooling] {
            if !is_inside(inside) {
                return Err(wrong(format!("`path` {inside:?} leads elsewhere")));
            }
        }
        let modules = Modules::of_masked_model(folder, &folder.join(transformer))?;
        let path = folder.join(pooling).join("config.json");
        let config = read_json(&path)?;
        let text = |key: &str, default| match config.get(key) {
            None => Ok(default),
            Some(value) => value.as_str().ok_or_else(|| value.to_string()),
        };
        let refused = |key: &str, value: &str| RetrieveError::Module {
            path: path.clone(),
            reason: format!("`{key} = {value}` is not computed here"),
        };
        let key = "pooling_strategy";
        let sum = match text(key, "max") {
            Ok("max") => false,
            Ok("sum") => true,
            Ok(other) => return Err(refused(key, other)),
            Err(other) => return Err(refused(key, &other)),
        };
        let key = "activation_function";
        let twice = match text(key, "relu") {
            Ok("relu") => false,
            Ok("log1p_relu") => true,
            Ok(other) => return Err(refused(key, other)),
            Err(other) => return Err(refused(key, &other)),
        };
        Ok((Self { sum, twice }, modules))
    }

    /// Logits `[tokens, vocabulary]` of one text to its weights `[vocabulary]`.
    fn weights(self, logits: Tensor<2>) -> Vec<f32> {
        if self.sum {
            let logs = relu(logits).log1p();
            let logs = if self.twice { logs.log1p() } else { logs };
            return to_vec(logs.sum_dim(0));
        }
        // Of what grows with z, the largest is that of the largest z.
        let mut weights = to_vec(logits.max_dim(0));
        for weight in &mut weights {
            // A number that is none stays so, to be noticed.
            let log = weight.clamp(0.0, f32::INFINITY).ln_1p();
            *weight = if self.twice { log.ln_1p() } else { log };
        }
        weights
    }
}

impl SparseEncoder {
    /// Finds and reads model, head and modules.
    ///
    /// # Errors
    /// Anything wrong with them; models of other architectures than `bert`; adapters.
    pub fn open(
        request: &EncoderRequest,
        lookup: &Lookup,
        device: &Device,
    ) -> Result<Self, RetrieveError> {
        if request.adapter.is_some() {
            let reason = "an adapter is not read beside a sparse encoder: merge it first";
            return Err(RetrieveError::Sparse(reason.into()));
        }
        let files = ModelFiles::open(&request.model, lookup)?;
        let tokenizer = files.tokenizer()?;
        let (pooling, modules) = SparsePooling::read(files.path())?;
        let limit = files.config().max_sequence();
        let own = modules
            .max_seq_length
            .or(tokenizer.settings().model_max_length);
        let max_length = request.max_length.or(own).unwrap_or(limit).min(limit);
        let special = tokenizer.added_tokens(false);
        if max_length <= special {
            return Err(RetrieveError::NoRoom {
                max_length,
                special,
            });
        }
        let options = LoadOptions {
            quantize: request.quantize,
            ..LoadOptions::default()
        };
        let backbone = files.load_with(device, options)?;
        Ok(Self {
            head: MaskedHead::load(&files, backbone.as_ref(), device)?,
            files,
            backbone,
            pooling,
            modules,
            max_length,
        })
    }

    /// Most tokens of a text.
    pub fn max_length(&self) -> usize {
        self.max_length
    }

    /// An entry of the vocabulary as text.
    pub fn token(&self, id: u32) -> Option<String> {
        self.files.tokenizer().ok()?.token(id)
    }

    /// Weights of texts in their order; texts of like length share a batch. `progress` is told how
    /// many more texts are done, and ends the work by answering false.
    ///
    /// # Errors
    /// Texts that the tokenizer cannot spell, numbers that are not finite.
    pub fn embed(
        &self,
        texts: &[&str],
        prompt: &Prompt,
        progress: &mut dyn FnMut(usize) -> bool,
    ) -> Result<SparseEmbeddings, RetrieveError> {
        let tokenizer = self.files.tokenizer()?;
        let prompt = self.modules.prompt(prompt)?;
        let (mut ready, mut truncated) = (Vec::with_capacity(texts.len()), 0);
        for (index, text) in texts.iter().enumerate() {
            let text = &format!("{prompt}{text}");
            let lower = self.modules.do_lower_case.then(|| text.to_lowercase());
            let text = lower.as_deref().unwrap_or(text.as_str());
            let cut = tokenizer.encode_cut(text, None, self.max_length)?;
            if cut.ids.is_empty() {
                return Err(RetrieveError::NoTokens { index });
            }
            truncated += usize::from(cut.length > self.max_length);
            ready.push(cut.ids);
        }
        let mut order: Vec<usize> = (0..ready.len()).collect();
        order.sort_by_key(|&i| (ready[i].len(), i));
        let mut rows = vec![Vec::new(); texts.len()];
        let mut rest = order.as_slice();
        while !rest.is_empty() {
            let mut tokens = 0;
            let fits = rest
                .iter()
                .take_while(|&&i| (tokens += ready[i].len(), tokens <= BATCH_TOKENS).1)
                .count()
                .max(1);
            let (batch, later) = rest.split_at(fits);
            let ids: Vec<&[u32]> = batch.iter().map(|&i| ready[i].as_slice()).collect();
            let found = frugal_kernels::on_pool(|| self.rows(&ids))?;
            for (&i, row) in batch.iter().zip(found) {
                rows[i] = row;
            }
            rest = later;
            if !progress(fits) {
                return Err(RetrieveError::Interrupted);
            }
        }
        Ok(SparseEmbeddings { rows, truncated })
    }

    fn rows(&self, texts: &[&[u32]]) -> Result<Vec<Vec<(u32, f32)>>, RetrieveError> {
        let ids = texts.concat();
        let lengths: Vec<usize> = texts.iter().map(|text| text.len()).collect();
        let input = Input::tokens(&ids, SequenceLayout::new(&lengths));
        let hidden_states = self.backbone.forward(&input, &mut NoAdapter, None)?;
        let logits = self.head.logits(hidden_states);
        let (mut begin, mut rows) = (0, Vec::with_capacity(texts.len()));
        for length in lengths {
            let weights = self
                .pooling
                .weights(logits.clone().slice(begin..begin + length));
            begin += length;
            let info = self.backbone.info();
            info.check_finite("weights of the vocabulary", &weights)?;
            let mut row: Vec<(u32, f32)> = (0..)
                .zip(weights)
                .filter(|(_, weight)| *weight > 0.0)
                .collect();
            row.sort_by(|(left_id, left), (right_id, right)| {
                right.total_cmp(left).then(left_id.cmp(right_id))
            });
            rows.push(row);
        }
        Ok(rows)
    }
}

#[cfg(test)]
mod tests;
