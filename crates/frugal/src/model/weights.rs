//! From files to a backbone's frozen tensors.

use std::collections::HashMap;

use burn::prelude::*;

use super::ModelError;
use super::linear::{Embedding, Linear, Norm, Weight};
use super::site::{SiteKind, SiteTable};
use crate::adapt::to_vec;

/// Where a backbone's tensors come from, by Hugging Face name (`model.layers.0.self_attn.q_proj.weight`).
pub trait WeightSource {
    /// What errors call it: a path.
    fn describe(&self) -> String;
    /// Shape of a tensor as the file stores it; `None` if there is no such tensor.
    fn shape(&self, name: &str) -> Option<Vec<usize>>;
    /// All names.
    fn names(&self) -> Vec<String>;
    /// The elements in row-major order, or a tensor that is in memory already.
    ///
    /// # Errors
    /// When the tensor cannot be read.
    fn load(&self, name: &str) -> Result<Loaded, ModelError>;
}

/// A tensor from a source.
pub enum Loaded {
    /// Elements in row-major order.
    Data(TensorData),
    /// A matrix that is shared with another backbone.
    Matrix(Tensor<2>),
    /// A vector that is shared with another backbone.
    Vector(Tensor<1>),
}

/// The elements of a tensor that must be there with this shape.
///
/// # Errors
/// When it is missing, mis-shaped or unreadable.
pub fn read_values(source: &dyn WeightSource, name: &str, shape: &[usize]) -> Result<Vec<f32>, ModelError> {
    let mut report = frugal_core::safetensors::LoadReport { expected: vec![name.into()], ..Default::default() };
    match source.shape(name) {
        Some(found) if found == shape => {}
        Some(found) => report.mis_shaped.push((name.into(), shape.to_vec(), found)),
        None => report.missing.push(name.into()),
    }
    if !report.is_exact() {
        return Err(ModelError::Load { source_name: source.describe(), report: Box::new(report) });
    }
    Ok(match source.load(name)? {
        Loaded::Data(data) => data.iter::<f32>().collect(),
        Loaded::Matrix(tensor) => to_vec(tensor),
        Loaded::Vector(tensor) => to_vec(tensor),
    })
}

/// Tensors in memory, for merged and freshly initialised models.
#[derive(Default)]
pub struct MemorySource {
    matrices: HashMap<String, Tensor<2>>,
    vectors: HashMap<String, Tensor<1>>,
}

impl MemorySource {
    /// Adds a matrix.
    pub fn insert_matrix(&mut self, name: String, tensor: Tensor<2>) {
        self.matrices.insert(name, tensor);
    }

    /// Adds a vector.
    pub fn insert_vector(&mut self, name: String, tensor: Tensor<1>) {
        self.vectors.insert(name, tensor);
    }

    /// Takes a tensor out, if it is there.
    pub fn remove(&mut self, name: &str) {
        self.matrices.remove(name);
        self.vectors.remove(name);
    }

    /// Name, shape and elements of every tensor; the elements are copied out only when asked for.
    pub fn iter(&self) -> impl Iterator<Item = (String, Vec<usize>, Box<dyn Fn() -> Vec<f32> + '_>)> {
        type Values<'a> = Box<dyn Fn() -> Vec<f32> + 'a>;
        let matrices = self.matrices.iter().map(|(n, t)| (n.clone(), t.dims().to_vec(), Box::new(|| to_vec(t.clone())) as Values<'_>));
        let vectors = self.vectors.iter().map(|(n, t)| (n.clone(), t.dims().to_vec(), Box::new(|| to_vec(t.clone())) as Values<'_>));
        matrices.chain(vectors)
    }
}

impl WeightSource for MemorySource {
    fn describe(&self) -> String {
        "memory".into()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.matrices.get(name).map(|t| t.dims().to_vec()).or_else(|| self.vectors.get(name).map(|t| t.dims().to_vec()))
    }

    fn names(&self) -> Vec<String> {
        self.matrices.keys().chain(self.vectors.keys()).cloned().collect()
    }

    fn load(&self, name: &str) -> Result<Loaded, ModelError> {
        let matrix = self.matrices.get(name).cloned().map(Loaded::Matrix);
        let vector = || self.vectors.get(name).cloned().map(Loaded::Vector);
        matrix.or_else(vector).ok_or_else(|| ModelError::MissingTensor { source_name: self.describe(), name: name.into() })
    }
}

/// Builds frozen parts from a source after checking that every expected tensor is there with its shape.
pub struct WeightLoader<'a> {
    source: &'a dyn WeightSource,
    sites: &'a SiteTable,
    device: Device,
    /// Prefix of canonical names that the file leaves out (a bare base model), or has in addition.
    rename: Rename,
    optional_missing: Vec<String>,
}

#[derive(Clone, Debug)]
enum Rename {
    Same,
    Strip(String),
}

impl<'a> WeightLoader<'a> {
    /// Checks the whole file against the sites first, so that nothing is read from a file that does not fit.
    ///
    /// # Errors
    /// [`ModelError::Load`] with the complete list of missing and mis-shaped tensors.
    pub fn new(source: &'a dyn WeightSource, sites: &'a SiteTable, device: &Device, base_prefix: &str) -> Result<Self, ModelError> {
        let first = sites.iter().next().map(|(_, s)| format!("{}.weight", s.path)).unwrap_or_default();
        let stripped = first.strip_prefix(base_prefix).map(str::to_owned);
        let rename = match stripped {
            Some(s) if source.shape(&first).is_none() && source.shape(&s).is_some() => Rename::Strip(base_prefix.into()),
            _ => Rename::Same,
        };
        let mut loader = Self { source, sites, device: device.clone(), rename, optional_missing: Vec::new() };
        loader.check()?;
        Ok(loader)
    }

    /// The plain device that the tensors go to.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Paths of optional sites that the file lacks (a pooler).
    pub fn missing_optional(&self) -> &[String] {
        &self.optional_missing
    }

    fn file_name(&self, name: &str) -> String {
        match &self.rename {
            Rename::Same => name.into(),
            Rename::Strip(prefix) => name.strip_prefix(prefix.as_str()).unwrap_or(name).into(),
        }
    }

    fn expected(&self) -> Vec<(String, Vec<usize>, bool)> {
        let mut all = Vec::new();
        for (_, site) in self.sites.iter().filter(|(_, s)| !s.tied) {
            let shape = match site.kind {
                SiteKind::Norm => vec![site.d_out],
                SiteKind::Conv1d | SiteKind::Embedding => vec![site.d_in, site.d_out],
                SiteKind::Linear | SiteKind::LmHead => vec![site.d_out, site.d_in],
            };
            let optional = site.path.contains("pooler");
            all.push((format!("{}.weight", site.path), shape, optional));
            if site.has_bias {
                all.push((format!("{}.bias", site.path), vec![site.d_out], optional));
            }
        }
        all
    }

    fn check(&mut self) -> Result<(), ModelError> {
        let mut report = frugal_core::safetensors::LoadReport::default();
        for (name, shape, optional) in self.expected() {
            report.expected.push(name.clone());
            match self.source.shape(&self.file_name(&name)) {
                None if optional => self.optional_missing.push(name),
                None => report.missing.push(name),
                Some(found) if found != shape => report.mis_shaped.push((name, shape, found)),
                Some(_) => {}
            }
        }
        if report.missing.is_empty() && report.mis_shaped.is_empty() {
            return Ok(());
        }
        Err(ModelError::Load { source_name: self.source.describe(), report: Box::new(report) })
    }

    fn matrix(&self, path: &str) -> Result<Tensor<2>, ModelError> {
        let name = self.file_name(&format!("{path}.weight"));
        Ok(match self.source.load(&name)? {
            Loaded::Data(data) => Tensor::from_data(data, &self.device),
            Loaded::Matrix(tensor) => tensor,
            Loaded::Vector(_) => return Err(ModelError::MissingTensor { source_name: self.source.describe(), name }),
        })
    }

    fn vector(&self, name: &str) -> Result<Tensor<1>, ModelError> {
        let name = self.file_name(name);
        Ok(match self.source.load(&name)? {
            Loaded::Data(data) => Tensor::from_data(data, &self.device),
            Loaded::Vector(tensor) => tensor,
            Loaded::Matrix(_) => return Err(ModelError::MissingTensor { source_name: self.source.describe(), name }),
        })
    }

    fn site(&self, path: &str) -> super::SiteId {
        self.sites.find(path).expect("backbones ask for paths of their own site table")
    }

    /// A linear map with its bias if the site has one.
    ///
    /// # Errors
    /// When the tensor cannot be read.
    pub fn linear(&mut self, path: &str) -> Result<Linear, ModelError> {
        let site = self.site(path);
        let info = self.sites.info(site);
        let weight = if info.kind == SiteKind::Conv1d { contiguous(self.matrix(path)?.transpose()) } else { self.matrix(path)? };
        let bias = if info.has_bias { Some(self.vector(&format!("{path}.bias"))?) } else { None };
        Ok(Linear { site, weight: Weight::Dense(weight), bias })
    }

    /// A linear map that the file may lack.
    ///
    /// # Errors
    /// When the tensor is there but cannot be read.
    pub fn optional_linear(&mut self, path: &str) -> Result<Option<Linear>, ModelError> {
        if self.optional_missing.iter().any(|name| name.starts_with(path)) { Ok(None) } else { self.linear(path).map(Some) }
    }

    /// A table.
    ///
    /// # Errors
    /// When the tensor cannot be read.
    pub fn embedding(&mut self, path: &str) -> Result<Embedding, ModelError> {
        let site = self.site(path);
        Ok(Embedding { site, weight: self.matrix(path)? })
    }

    /// The output head, which shares the token table when tied.
    ///
    /// # Errors
    /// When the tensor cannot be read.
    pub fn lm_head(&mut self, tokens: &Embedding) -> Result<Linear, ModelError> {
        let site = self.site("lm_head");
        if self.sites.info(site).tied {
            return Ok(Linear { site, weight: Weight::Dense(tokens.weight.clone()), bias: None });
        }
        self.linear("lm_head")
    }

    /// A root-mean-square norm whose file stores `gain - offset`.
    ///
    /// # Errors
    /// When the tensor cannot be read.
    pub fn rms_norm(&mut self, path: &str, eps: f64, offset: f32) -> Result<Norm, ModelError> {
        let stored = self.vector(&format!("{path}.weight"))?;
        let weight = if offset == 0.0 { stored } else { stored + offset };
        Ok(Norm { site: self.site(path), weight, bias: None, eps, center: false, stored_offset: offset })
    }

    /// A layer norm.
    ///
    /// # Errors
    /// When a tensor cannot be read.
    pub fn layer_norm(&mut self, path: &str, eps: f64) -> Result<Norm, ModelError> {
        let weight = self.vector(&format!("{path}.weight"))?;
        let bias = Some(self.vector(&format!("{path}.bias"))?);
        Ok(Norm { site: self.site(path), weight, bias, eps, center: true, stored_offset: 0.0 })
    }
}

/// A transposed view written out once, so that every later product reads it in order.
fn contiguous(view: Tensor<2>) -> Tensor<2> {
    let (dims, device) = (view.dims(), view.device());
    Tensor::from_data(TensorData::new(to_vec(view), dims), &device)
}
