//! Sources of weights: what files and memory have in common.

use std::collections::HashMap;

use burn::prelude::*;
use frugal_kernels::Packed;
use frugal_nn::{ModelError, to_vec};

/// Where a backbone's tensors come from, by Hugging Face name
/// (`model.layers.0.self_attn.q_proj.weight`).
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
    /// The matrix `[d_out, d_in]` of a linear layer, or the rows of a table, in the codes that it is
    /// stored in; `None` if it is stored as numbers.
    ///
    /// # Errors
    /// When the tensor cannot be read.
    fn load_packed(&self, _name: &str) -> Result<Option<Packed>, ModelError> {
        Ok(None)
    }
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
pub fn read_values(
    source: &dyn WeightSource,
    name: &str,
    shape: &[usize],
) -> Result<Vec<f32>, ModelError> {
    let mut report = frugal_formats::safetensors::LoadReport {
        expected: vec![name.into()],
        ..Default::default()
    };
    match source.shape(name) {
        Some(found) if found == shape => {}
        Some(found) => report.mis_shaped.push((name.into(), shape.to_vec(), found)),
        None => report.missing.push(name.into()),
    }
    if !report.is_exact() {
        return Err(ModelError::Load {
            source_name: source.describe(),
            report: Box::new(report),
        });
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
    /// Shapes of tensors that files have with more dimensions.
    shapes: HashMap<String, Vec<usize>>,
}

impl MemorySource {
    /// Adds a matrix.
    pub fn insert_matrix(&mut self, name: String, tensor: Tensor<2>) {
        self.matrices.insert(name, tensor);
    }

    /// Adds a matrix whose elements files have in another shape.
    pub fn insert_shaped(&mut self, name: String, tensor: Tensor<2>, shape: Vec<usize>) {
        self.shapes.insert(name.clone(), shape);
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
        self.shapes.remove(name);
    }

    /// Name, shape and elements of every tensor; the elements are copied out only when asked for.
    pub fn iter(
        &self,
    ) -> impl Iterator<Item = (String, Vec<usize>, Box<dyn Fn() -> Vec<f32> + '_>)> {
        type Values<'a> = Box<dyn Fn() -> Vec<f32> + 'a>;
        let matrices = self.matrices.iter().map(|(n, t)| {
            (
                n.clone(),
                self.shape_of(n, t),
                Box::new(|| to_vec(t.clone())) as Values<'_>,
            )
        });
        let vectors = self.vectors.iter().map(|(n, t)| {
            (
                n.clone(),
                t.dims().to_vec(),
                Box::new(|| to_vec(t.clone())) as Values<'_>,
            )
        });
        matrices.chain(vectors)
    }

    fn shape_of(&self, name: &str, matrix: &Tensor<2>) -> Vec<usize> {
        let other = self.shapes.get(name).cloned();
        other.unwrap_or_else(|| matrix.dims().to_vec())
    }
}

impl WeightSource for MemorySource {
    fn describe(&self) -> String {
        "memory".into()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.matrices
            .get(name)
            .map(|t| self.shape_of(name, t))
            .or_else(|| self.vectors.get(name).map(|t| t.dims().to_vec()))
    }

    fn names(&self) -> Vec<String> {
        self.matrices
            .keys()
            .chain(self.vectors.keys())
            .cloned()
            .collect()
    }

    fn load(&self, name: &str) -> Result<Loaded, ModelError> {
        let matrix = self.matrices.get(name).cloned().map(Loaded::Matrix);
        let vector = || self.vectors.get(name).cloned().map(Loaded::Vector);
        matrix
            .or_else(vector)
            .ok_or_else(|| ModelError::MissingTensor {
                source_name: self.describe(),
                name: name.into(),
            })
    }
}
