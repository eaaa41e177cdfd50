//! What this crate asks of an architecture. Each is one file under `text/`, listed in `registry`.

use std::fmt::Debug;
use std::sync::Arc;

use frugal_nn::{
    Backbone, BackboneInfo, HeadLayout, ImageInput, ModelError, SiteInfo, SiteTable, UsualTargets,
};
use serde_json::{Value, json};

use crate::activation::Activation;
use crate::fresh::Fresh;
use crate::keys::{self, bad};
use crate::weights::WeightLoader;

/// What is the same for all models of one `model_type`.
pub struct Family {
    /// Hugging Face's `model_type`.
    pub model_type: &'static str,
    /// Hugging Face's class with an output over the vocabulary; for encoders that of the bare
    /// model.
    pub class: &'static str,
    /// Hugging Face's class with a classification head.
    pub classifier_class: &'static str,
    /// The attribute under which Hugging Face's task classes keep the base model, with its dot.
    pub base_prefix: &'static str,
    /// Whether the model reads in both directions and has no language-model head.
    pub is_encoder: bool,
    /// Whether transformers has the architecture; where not, its names are our own.
    pub in_transformers: bool,
    /// Layers of the classification head.
    pub head: HeadLayout,
    /// Default targets of methods that the literature names by architecture.
    pub usual_targets: UsualTargets,
    /// Reads a `config.json`; the second argument names it in errors.
    pub read: fn(&Value, &str) -> Result<ModelConfig, ModelError>,
    /// How new models are made, where they are.
    pub fresh: Option<Fresh>,
    /// The keys of the configuration class that are read.
    pub keys: KeyTable,
}

impl Family {
    /// Whether its models read images in place of text.
    pub fn reads_images(&self) -> bool {
        self.classifier_class.ends_with("ForImageClassification")
    }

    /// All keys that are accounted for: read, refused away from neutral, or without effect.
    pub fn all_keys(&self) -> impl Iterator<Item = String> {
        let refused = self.keys.refused.iter().chain(self.refused_of_all());
        let names = [keys::WITHOUT_EFFECT, keys::ROPE, self.keys.without_effect];
        (self.keys.honored)()
            .into_iter()
            .chain(refused.map(|(key, _)| (*key).to_owned()))
            .chain(names.into_iter().flatten().map(|key| (*key).to_owned()))
    }

    /// Keys of any class that are refused away from neutral.
    fn refused_of_all(&self) -> impl Iterator<Item = &'static (&'static str, &'static str)> {
        let of_decoders = (!self.is_encoder).then_some(keys::REFUSED_OF_DECODERS);
        keys::REFUSED
            .iter()
            .chain(of_decoders.into_iter().flatten())
    }

    /// Refuses keys that the reference reads, that are not supported, and that are not neutral.
    ///
    /// # Errors
    /// [`ModelError::Config`] that names the key.
    pub(crate) fn check_refused(&self, raw: &Value, source: &str) -> Result<(), ModelError> {
        let honored = (self.keys.honored)();
        let of_all = self
            .refused_of_all()
            .filter(|(key, _)| !honored.iter().any(|name| name == key));
        for (key, neutral) in of_all.chain(self.keys.refused) {
            let value = raw.get(*key).unwrap_or(&Value::Null);
            if !value.is_null() && !keys::is_neutral(value, neutral) {
                let reason = format!(
                    "{value} is not supported for `{}` models, only {neutral}",
                    self.model_type
                );
                return Err(bad(source, key, reason));
            }
        }
        Ok(())
    }
}

/// Every key of an architecture's configuration class is in one of these, or in the lists for all
/// classes in `keys`.
pub struct KeyTable {
    /// Keys that have their say.
    pub honored: fn() -> Vec<String>,
    /// Keys that would change results and are not supported, with the value (as JSON) at which they
    /// do nothing. `null` does nothing either.
    pub refused: &'static [(&'static str, &'static str)],
    /// Keys that change no result here: probabilities of dropout (methods have their own), what
    /// fresh weights are drawn from, what calls return.
    pub without_effect: &'static [&'static str],
}

impl Debug for Family {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.model_type)
    }
}

/// What the sizes of memory and work are computed from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cost {
    /// Numbers that a block remembers of each token while it generates.
    pub cache_width: usize,
    /// Width of a row of keys or values that a method may put in front of a sequence; 0 where
    /// attention has no such rows.
    pub key_value_width: usize,
    /// Norms of a block over the residual stream beyond the usual two.
    pub extra_norms: usize,
    /// Whether single heads of queries and keys are normalised.
    pub normalizes_heads: bool,
    /// Whether the feed-forward layer has a gate beside its way up.
    pub gated: bool,
    /// Feed-forward layers of a block.
    pub experts: usize,
    /// Those that each token goes through.
    pub active_experts: usize,
    /// Sizes of latent attention, where blocks have it.
    pub latent: Option<LatentCost>,
    /// Sizes of the recurrence, where blocks have one in place of attention.
    pub recurrence: Option<RecurrenceCost>,
    /// Numbers of learnt tokens, where projections are attention to such; those of the feed-forward
    /// layer are its width.
    pub param_tokens: Option<TokenCost>,
    /// Whether routers decide by the text how many tokens go through a block.
    pub routes_tokens: bool,
}

/// Learnt tokens that layers around attention attend to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenCost {
    /// Of each of queries, keys and values.
    pub qkv: usize,
    /// Of what the heads give.
    pub proj: usize,
}

/// Sizes that the memory of a recurrence follows from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecurrenceCost {
    /// Channels.
    pub channels: usize,
    /// Width of what is projected from the channels: the narrow steps, and what goes into the state
    /// and comes out of it.
    pub projected: usize,
    /// Numbers that each channel remembers.
    pub state: usize,
    /// Width of the feed-forward layer behind it; 0 where the recurrence is the whole block.
    pub feed_forward: usize,
}

/// Sizes that the operations of latent attention follow from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LatentCost {
    /// Width of the queries' narrow vector, if they have one.
    pub query_rank: Option<usize>,
    /// Width of the keys' and values' narrow vector.
    pub rank: usize,
    /// Part of a query or key head without position.
    pub plain: usize,
    /// Part of a query or key head that is rotated.
    pub rotated: usize,
    /// Width of a value head.
    pub value: usize,
}

impl Cost {
    /// Grouped attention and one gated feed-forward layer in every block.
    pub fn of_decoder(config: &ModelConfig) -> Self {
        let width = config.num_key_value_heads * config.head_dim;
        Self {
            cache_width: 2 * width,
            key_value_width: width,
            extra_norms: 0,
            normalizes_heads: false,
            gated: true,
            experts: 1,
            active_experts: 1,
            latent: None,
            recurrence: None,
            param_tokens: None,
            routes_tokens: false,
        }
    }
}

/// Which tensor of a site is to be filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FirstValues {
    /// Its weight.
    Weight,
    /// Its bias.
    Bias,
}

/// A model of an architecture, as its own configuration describes it; the sizes that all have are
/// in [`ModelConfig`].
pub trait Architecture: Debug + Send + Sync {
    /// Everything that changes a number, beyond the sizes in [`ModelConfig`]; equal for two
    /// configurations that describe the same computation. Keys are those of `config.json`.
    fn arithmetic(&self, config: &ModelConfig) -> Value;

    /// The places that methods can act on, in the order of the forward pass.
    fn sites(&self, config: &ModelConfig) -> Vec<SiteInfo>;

    /// What memory and work are computed from.
    fn cost(&self, config: &ModelConfig) -> Cost;

    /// Cap on the logits of the head: `cap * tanh(x / cap)`.
    fn final_logit_softcapping(&self) -> Option<f64> {
        None
    }

    /// Factor on the final hidden states before the output head reads them.
    fn logit_scale(&self, _config: &ModelConfig) -> Option<f64> {
        None
    }

    /// Factor on the learning rate of a matrix while a model is pre-trained, where the width decides
    /// it.
    fn lr_scale(&self, _config: &ModelConfig, _site: &SiteInfo) -> f64 {
        1.0
    }

    /// What files subtract from the gains of norms.
    fn norm_offset(&self) -> f32 {
        0.0
    }

    /// Whether a block is one sub-layer that mixes tokens, without a feed-forward layer behind it.
    fn is_attention_only(&self) -> bool {
        false
    }

    /// The first values of a tensor that are not drawn as those of other architectures: row-major,
    /// in the shape that files have; `None` for all others.
    fn first_values(
        &self,
        _config: &ModelConfig,
        _site: &SiteInfo,
        _tensor: FirstValues,
        _seed: u64,
    ) -> Option<Vec<f32>> {
        None
    }

    /// The images that it reads in place of text.
    fn image(&self) -> Option<ImageInput> {
        None
    }

    /// Position of a sequence's first token in a table of positions.
    fn first_position(&self, _config: &ModelConfig) -> u32 {
        0
    }

    /// Longest sequence in tokens that the positions cover.
    fn max_sequence(&self, config: &ModelConfig) -> usize {
        config
            .max_position_embeddings
            .saturating_sub(self.first_position(config) as usize)
    }

    /// Length beyond which the reference computes again what it kept of a sequence, as all its
    /// positions are rotated otherwise.
    fn rotates_anew_beyond(&self) -> Option<usize> {
        None
    }

    /// The backbone with the weights of `loader`.
    ///
    /// # Errors
    /// Whatever reading a tensor gives.
    fn build(
        &self,
        config: &ModelConfig,
        sites: Arc<SiteTable>,
        loader: &mut WeightLoader<'_>,
    ) -> Result<Arc<dyn Backbone>, ModelError>;
}

/// Settings that define a backbone's shape and arithmetic.
#[derive(Clone, Debug)]
pub struct ModelConfig {
    /// What all models of this `model_type` share.
    pub family: &'static Family,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward layer.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads.
    pub num_key_value_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Rows of the token table.
    pub vocab_size: usize,
    /// Longest sequence that the positions cover.
    pub max_position_embeddings: usize,
    /// Epsilon of the norms.
    pub norm_eps: f64,
    /// Feed-forward non-linearity.
    pub activation: Activation,
    /// Whether the output head shares the token table.
    pub tie_word_embeddings: bool,
    /// Padding id, which RoBERTa's positions start from and decoder heads look for.
    pub pad_token_id: Option<u32>,
    /// What the architecture adds.
    pub architecture: Arc<dyn Architecture>,
    /// The file as read, so that what is not used here is written back unchanged.
    pub raw: Value,
    /// What errors call it: the path of the file.
    pub source: String,
}

impl ModelConfig {
    /// Hugging Face's `model_type`.
    pub fn model_type(&self) -> &'static str {
        self.family.model_type
    }

    fn class(&self) -> Option<&str> {
        self.raw.get("architectures")?.get(0)?.as_str()
    }

    /// Whether the model was saved with a head that tells classes, of a sequence, an image or of every
    /// token.
    pub fn is_classifier(&self) -> bool {
        let sequences = |class: &str| {
            class.ends_with("ForSequenceClassification")
                || class.ends_with("ForImageClassification")
        };
        self.labels_tokens() || self.class().is_some_and(sequences)
    }

    /// Whether the model was saved with a head that labels every token.
    pub fn labels_tokens(&self) -> bool {
        self.class()
            .is_some_and(|class| class.ends_with("ForTokenClassification"))
    }

    /// Whether the model is a decoder that was saved without an output over the vocabulary and has
    /// no token table to share, as embedding models and classifiers are.
    pub fn is_headless(&self) -> bool {
        let bare = |class: &str| class.ends_with("Model") && !class.ends_with("HeadModel");
        !self.family.is_encoder
            && !self.tie_word_embeddings
            && (self.is_classifier() || self.class().is_some_and(bare))
    }

    /// Follows the file where its tensors say otherwise than the class of the configuration:
    /// `has_head` is whether there is an `lm_head.weight`. A configuration keeps the class that it
    /// was made with when a bare model is saved from it, and the other way round.
    pub fn follow_head(&mut self, has_head: bool) {
        let decided = self.family.is_encoder || self.tie_word_embeddings || self.is_classifier();
        if decided || has_head != self.is_headless() {
            return;
        }
        let class = self.family.class;
        let bare = || {
            let model = ["ForCausalLM", "LMHeadModel"]
                .iter()
                .find_map(|ending| class.strip_suffix(ending));
            format!("{}Model", model.unwrap_or(class))
        };
        if let Some(raw) = self.raw.as_object_mut() {
            let class = if has_head { class.to_owned() } else { bare() };
            raw.insert("architectures".into(), json!([class]));
        }
    }

    /// The sites of a model with this configuration; reads no weights.
    pub fn sites(&self) -> SiteTable {
        let mut sites = self.architecture.sites(self);
        if self.is_headless() {
            sites.retain(|site| site.kind != frugal_nn::SiteKind::LmHead);
        }
        SiteTable::of(sites)
    }

    /// What memory and work are computed from.
    pub fn cost(&self) -> Cost {
        self.architecture.cost(self)
    }

    /// Numbers that a block remembers of each token while it generates.
    pub fn cache_width(&self) -> usize {
        self.cost().cache_width
    }

    /// Width of a row of keys or values that a method may put in front of a sequence; 0 where
    /// attention has no such rows.
    pub fn key_value_width(&self) -> usize {
        self.cost().key_value_width
    }

    /// Longest sequence in tokens that the positions cover.
    pub fn max_sequence(&self) -> usize {
        self.architecture.max_sequence(self)
    }

    /// Position of a sequence's first token.
    pub fn first_position(&self) -> u32 {
        self.architecture.first_position(self)
    }

    /// Everything that changes a number: equal for two configurations of the same computation,
    /// whatever their files spell it like.
    pub fn arithmetic(&self) -> Value {
        let mut all = json!({
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.vocab_size,
            "max_position_embeddings": self.max_position_embeddings,
            "rms_norm_eps": self.norm_eps,
            "hidden_act": self.activation,
            "tie_word_embeddings": self.tie_word_embeddings,
        });
        if let (Some(all), Value::Object(own)) =
            (all.as_object_mut(), self.architecture.arithmetic(self))
        {
            all.extend(own);
        }
        all
    }

    /// What adapters, training and decoding may know of a model of this configuration.
    pub fn info(&self) -> BackboneInfo {
        let f = self.family;
        BackboneInfo {
            model_type: f.model_type,
            hidden_size: self.hidden_size,
            num_hidden_layers: self.num_hidden_layers,
            num_attention_heads: self.num_attention_heads,
            num_key_value_heads: self.num_key_value_heads,
            head_dim: self.head_dim,
            key_value_width: self.key_value_width(),
            is_attention_only: self.architecture.is_attention_only(),
            vocab_size: self.vocab_size,
            max_sequence: self.max_sequence(),
            rotates_anew_beyond: self.architecture.rotates_anew_beyond(),
            is_encoder: f.is_encoder,
            pad_token_id: self.pad_token_id,
            in_transformers: f.in_transformers,
            image: self.architecture.image(),
            final_logit_softcapping: self.architecture.final_logit_softcapping(),
            logit_scale: self.architecture.logit_scale(self),
            base_prefix: f.base_prefix,
            classifier_class: f.classifier_class,
            head: f.head,
            usual_targets: f.usual_targets,
            raw: self.raw.clone(),
            source: self.source.clone(),
        }
    }
}
