//! Merging an adapter into the weights of its backbone, and taking it out again.

use burn::prelude::*;
use frugal_nn::{
    AdaptError, Adapter, Backbone, Frozen, Linear, MergedLinear, ModelError, Norm, Operation,
    SiteId, SiteKind, Weight, to_vec,
};

use serde_json::json;

use crate::architecture::ModelConfig;
use crate::names::factor_names;
use crate::registry::FACTORED_METHOD;
use crate::source::MemorySource;

/// The weights of a model under their Hugging Face names, with the configuration that fits them.
pub struct Weights {
    /// Configuration; its `raw` value is what belongs into `config.json`.
    pub config: ModelConfig,
    /// Tensors.
    pub tensors: MemorySource,
}

/// How layers are written that are held as two thin matrices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Form {
    /// As one matrix each, which every program reads.
    #[default]
    Whole,
    /// As they are held, which makes a smaller model for this program.
    Factored,
}

/// All weights of a backbone, with `adapter` merged into them if one is given, as whole matrices.
///
/// An adapter that makes a tied output head differ from the token table unties them. One that adds
/// biases to a model without turns on the settings of its architecture that give it such.
///
/// # Errors
/// [`AdaptError::Unsupported`] for methods that no weight can express, [`AdaptError::NotFinite`]
/// when a merged weight is infinite or not a number.
pub fn weights(
    backbone: &dyn Backbone,
    adapter: Option<&dyn Adapter>,
) -> Result<Weights, AdaptError> {
    weights_as(Form::Whole, backbone, adapter)
}

/// [`weights`] in one form or the other.
///
/// # Errors
/// Those of [`weights`].
pub fn weights_as(
    form: Form,
    backbone: &dyn Backbone,
    adapter: Option<&dyn Adapter>,
) -> Result<Weights, AdaptError> {
    if let Some(adapter) = adapter {
        adapter.allow(Operation::Merge)?;
    }
    let mut out = Writer {
        backbone,
        tensors: MemorySource::default(),
        table: None,
        untied: false,
        with_new_bias: Vec::new(),
        form,
        factored: false,
    };
    let mut failure = None;
    backbone.visit_weights(&mut |part| {
        if failure.is_none() {
            failure = out.part(&part, adapter).err();
        }
    });
    if let Some(error) = failure {
        return Err(error);
    }
    let info = backbone.info();
    let mut config = ModelConfig::from_json(info.raw.clone(), &info.source)?;
    if out.untied {
        config.tie_word_embeddings = false;
        if let Some(raw) = config.raw.as_object_mut() {
            raw.insert("tie_word_embeddings".into(), false.into());
        }
    }
    let (key, method) = (
        "quantization_config",
        json!({"quant_method": FACTORED_METHOD}),
    );
    if let Some(raw) = config.raw.as_object_mut() {
        if out.factored {
            raw.insert(key.into(), method);
        } else if raw.get(key) == Some(&method) {
            // A factored model that is written whole.
            raw.remove(key);
        }
    }
    if !out.with_new_bias.is_empty() {
        config = out.add_biases(config, adapter)?;
    }
    Ok(Weights {
        config,
        tensors: out.tensors,
    })
}

impl Weights {
    /// Whether layers are written as two thin matrices.
    pub fn is_factored(&self) -> bool {
        let method = self.config.raw.pointer("/quantization_config/quant_method");
        method.and_then(serde_json::Value::as_str) == Some(FACTORED_METHOD)
    }

    /// A backbone of these weights, which it shares.
    ///
    /// # Errors
    /// When the tensors do not fit the configuration.
    pub fn build(&self, device: &Device) -> Result<std::sync::Arc<dyn Backbone>, ModelError> {
        crate::build::build(self.config.clone(), &self.tensors, device)
    }
}

/// A linear layer of a merged model without the adapter again.
///
/// # Errors
/// [`AdaptError::Unsupported`] for methods whose merge loses the base.
pub fn unmerge(merged: &Linear, adapter: &dyn Adapter) -> Result<Linear, AdaptError> {
    let base = adapter.unmerged_linear(merged)?;
    Ok(base.map_or_else(
        || merged.clone(),
        |m| Linear {
            site: merged.site,
            weight: Weight::Dense(m.weight),
            bias: m.bias,
        },
    ))
}

struct Writer<'a> {
    backbone: &'a dyn Backbone,
    tensors: MemorySource,
    /// The token table as merged.
    table: Option<Tensor<2>>,
    untied: bool,
    /// Paths of layers that have got a bias and had none.
    with_new_bias: Vec<String>,
    form: Form,
    /// Whether a layer was written as two.
    factored: bool,
}

/// Settings that give an architecture biases, and the part of the paths that they are for.
const BIAS_SETTINGS: [(&str, &str); 4] = [
    ("attention_bias", ".self_attn."),
    ("mlp_bias", ".mlp."),
    ("use_bias", ".mixer."),
    ("use_conv_bias", ".conv1d"),
];

impl Writer<'_> {
    fn part(&mut self, part: &Frozen<'_>, adapter: Option<&dyn Adapter>) -> Result<(), AdaptError> {
        match part {
            Frozen::Linear(linear) => {
                self.check_dense(linear.site, &linear.weight, adapter)?;
                let merged = adapter
                    .map(|a| a.merged_linear(linear))
                    .transpose()?
                    .flatten();
                self.linear(linear, merged, adapter)
            }
            Frozen::Embedding(table) => {
                self.check_dense(table.site, &table.weight, adapter)?;
                let merged = adapter
                    .and_then(|a| a.merged_embedding(table))
                    .unwrap_or_else(|| table.weight.dense());
                let info = self.backbone.sites().info(table.site);
                check_finite(&info.path, &merged)?;
                self.table.get_or_insert_with(|| merged.clone());
                self.tensors
                    .insert_matrix(format!("{}.weight", info.path), merged);
                Ok(())
            }
            Frozen::Norm(norm) => {
                let merged = adapter.and_then(|a| a.merged_norm(norm));
                self.norm(norm, merged);
                Ok(())
            }
            Frozen::Conv(conv) => {
                let merged = adapter.and_then(|a| a.merged_conv(conv));
                let (weight, bias) = merged.unwrap_or_else(|| conv.values());
                self.shaped(conv.site, weight)?;
                let info = self.backbone.sites().info(conv.site);
                if bias.is_some() && !info.has_bias {
                    self.with_new_bias.push(info.path.clone());
                }
                if let Some(bias) = bias {
                    let name = format!("{}.bias", info.path);
                    self.tensors.insert_vector(name, bias);
                }
                Ok(())
            }
            Frozen::Param(param) => {
                let merged = adapter.and_then(|a| a.merged_param(param));
                self.shaped(param.site, merged.unwrap_or_else(|| param.value.clone()))
            }
        }
    }

    /// A tensor in the shape that files have it in.
    fn shaped(&mut self, site: SiteId, value: Tensor<2>) -> Result<(), AdaptError> {
        let info = self.backbone.sites().info(site);
        check_finite(&info.path, &value)?;
        let (name, shape) = (info.weight_name(), info.stored_shape());
        self.tensors.insert_shaped(name, value, shape);
        Ok(())
    }

    /// The configuration with biases where an adapter has added them, and zeros for those that come
    /// with them.
    fn add_biases(
        &mut self,
        config: ModelConfig,
        adapter: Option<&dyn Adapter>,
    ) -> Result<ModelConfig, AdaptError> {
        let mut raw = config.raw.clone();
        for (key, part) in BIAS_SETTINGS {
            if self.with_new_bias.iter().any(|path| path.contains(part)) {
                raw[key] = true.into();
            }
        }
        // An architecture that does not know the setting refuses it, or does without.
        let with = ModelConfig::from_json(raw, &self.backbone.info().source).unwrap_or(config);
        let sites = with.sites();
        let has_bias = |path: &str| sites.iter().any(|(_, s)| s.path == path && s.has_bias);
        if let Some(path) = self.with_new_bias.iter().find(|path| !has_bias(path)) {
            let reason = format!(
                "`{path}` has no bias in this architecture, so the adapter's has no place in a model file; use it unmerged"
            );
            return Err(AdaptError::Unsupported {
                method: adapter.map_or("", |a| a.method()),
                action: "be merged",
                reason,
            });
        }
        for (id, site) in self.backbone.sites().iter() {
            let added = sites.info(id).has_bias && !site.has_bias;
            if added && !self.with_new_bias.contains(&site.path) {
                let zeros = Tensor::zeros([site.d_out], self.backbone.device());
                self.tensors
                    .insert_vector(format!("{}.bias", site.path), zeros);
            }
        }
        Ok(with)
    }

    /// What an adapter adds would be rounded away in packed weights.
    fn check_dense(
        &self,
        site: SiteId,
        weight: &Weight,
        adapter: Option<&dyn Adapter>,
    ) -> Result<(), AdaptError> {
        match (weight.format(), adapter) {
            (Some(format), Some(adapter)) => Err(AdaptError::Unsupported {
                method: adapter.method(),
                action: "be merged into packed weights",
                reason: format!(
                    "`{}` is held as {format}: load the model with dense weights (`quantize = \"none\"`) and merge into those; \
                     the result can be written in fewer bits again",
                    self.backbone.sites().info(site).path
                ),
            }),
            _ => Ok(()),
        }
    }

    fn linear(
        &mut self,
        linear: &Linear,
        merged: Option<MergedLinear>,
        adapter: Option<&dyn Adapter>,
    ) -> Result<(), AdaptError> {
        let info = self.backbone.sites().info(linear.site);
        let is_changed = merged.is_some();
        let MergedLinear { weight, bias } = merged.unwrap_or_else(|| MergedLinear {
            weight: linear.weight.dense(),
            bias: linear.bias.clone(),
        });
        check_finite(&info.path, &weight)?;
        let factors = match self.form {
            Form::Whole => None,
            Form::Factored => factors(linear, adapter, is_changed),
        };
        if bias.is_some() && !info.has_bias {
            self.with_new_bias.push(info.path.clone());
        }
        if info.tied {
            let same = self
                .table
                .as_ref()
                .is_some_and(|table| to_vec(table.clone()) == to_vec(weight.clone()));
            if same {
                return Ok(());
            }
            self.untied = true;
        }
        match factors {
            Some(factors) => {
                self.factored = true;
                for (name, factor) in factor_names(&info.path).into_iter().zip(factors) {
                    self.tensors.insert_matrix(name, factor);
                }
            }
            None if info.kind == SiteKind::Conv2d => self.shaped(linear.site, weight)?,
            None => {
                let stored = if info.kind == SiteKind::Conv1d {
                    weight.transpose()
                } else {
                    weight
                };
                self.tensors
                    .insert_matrix(format!("{}.weight", info.path), stored);
            }
        }
        if let Some(bias) = bias {
            self.tensors
                .insert_vector(format!("{}.bias", info.path), bias);
        }
        Ok(())
    }

    fn norm(&mut self, norm: &Norm, merged: Option<(Tensor<1>, Option<Tensor<1>>)>) {
        let path = &self.backbone.sites().info(norm.site).path;
        let (weight, bias) = merged.unwrap_or_else(|| (norm.weight.clone(), norm.bias.clone()));
        self.tensors.insert_vector(
            format!("{path}.weight"),
            if norm.stored_offset == 0.0 {
                weight
            } else {
                weight - norm.stored_offset
            },
        );
        if let Some(bias) = bias {
            self.tensors.insert_vector(format!("{path}.bias"), bias);
        }
    }
}

/// The thin matrices of a layer: the adapter's, or the model's own where it does not change them.
fn factors(
    linear: &Linear,
    adapter: Option<&dyn Adapter>,
    is_changed: bool,
) -> Option<[Tensor<2>; 2]> {
    match (
        &linear.weight,
        adapter.and_then(|a| a.merged_factors(linear)),
    ) {
        (_, Some(factors)) => Some(factors),
        (Weight::Factored(own), None) if !is_changed => Some([own.l.dense(), own.r.dense()]),
        _ => None,
    }
}

fn check_finite(path: &str, weight: &Tensor<2>) -> Result<(), AdaptError> {
    let total: f32 = weight.clone().abs().sum().into_scalar();
    if total.is_finite() {
        Ok(())
    } else {
        Err(AdaptError::NotFinite { path: path.into() })
    }
}
