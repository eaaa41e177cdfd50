//! Merging an adapter into the weights of its backbone, and taking it out again.

use burn::prelude::*;
use frugal_nn::{
    AdaptError, Adapter, Backbone, Frozen, Linear, MergedLinear, ModelError, Norm, Operation,
    SiteId, SiteKind, Weight, to_vec,
};

use crate::architecture::ModelConfig;
use crate::source::MemorySource;

/// The weights of a model under their Hugging Face names, with the configuration that fits them.
pub struct Weights {
    /// Configuration; its `raw` value is what belongs into `config.json`.
    pub config: ModelConfig,
    /// Tensors.
    pub tensors: MemorySource,
}

/// All weights of a backbone, with `adapter` merged into them if one is given.
///
/// An adapter that makes a tied output head differ from the token table unties them.
///
/// # Errors
/// [`AdaptError::Unsupported`] for methods that no weight can express, [`AdaptError::NotFinite`]
/// when a merged weight is infinite or not a number.
pub fn weights(
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
    Ok(Weights {
        config,
        tensors: out.tensors,
    })
}

impl Weights {
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
}

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
        }
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
        let MergedLinear { weight, bias } = merged.unwrap_or_else(|| MergedLinear {
            weight: linear.weight.dense(),
            bias: linear.bias.clone(),
        });
        check_finite(&info.path, &weight)?;
        if bias.is_some() && !info.has_bias {
            let reason = format!(
                "`{}` has no bias in this architecture, so the adapter's has no place in a model file; use it unmerged",
                info.path
            );
            return Err(AdaptError::Unsupported {
                method: adapter.map_or("", |a| a.method()),
                action: "be merged",
                reason,
            });
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
        let stored = if info.kind == SiteKind::Conv1d {
            weight.transpose()
        } else {
            weight
        };
        self.tensors
            .insert_matrix(format!("{}.weight", info.path), stored);
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

fn check_finite(path: &str, weight: &Tensor<2>) -> Result<(), AdaptError> {
    let total: f32 = weight.clone().abs().sum().into_scalar();
    if total.is_finite() {
        Ok(())
    } else {
        Err(AdaptError::NotFinite { path: path.into() })
    }
}
