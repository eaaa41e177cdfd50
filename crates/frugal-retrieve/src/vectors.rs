//! Vectors in fewer bits, and their files.

use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::path::Path;

use frugal_core::fs::{FileError, write_atomic_with};
use npyz::WriterBuilder;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde::{Deserialize, Serialize};

use crate::Embeddings;

/// What the elements of vectors are, in the words of sentence-transformers' `quantize_embeddings`
/// (`sentence_transformers/util/quantization.py`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// Single precision.
    #[default]
    Float32,
    /// Signed bytes: 255 steps between the smallest and the largest value of each dimension.
    Int8,
    /// The same in unsigned bytes.
    Uint8,
    /// A bit for each dimension, 1 where it is above 0: eight to a byte, the first dimension in its
    /// highest bit, minus 128 to be a signed byte.
    Binary,
    /// The same in unsigned bytes.
    Ubinary,
}

/// Vectors, perhaps in fewer bits.
#[derive(Clone, Debug, PartialEq)]
pub struct Vectors {
    /// Number of vectors.
    pub count: usize,
    /// Elements of a vector as it is held: with bits, an eighth of its dimensions, rounded up.
    pub width: usize,
    /// The elements.
    pub elements: Elements,
    /// Smallest and largest value of each dimension, `[2, dimension]`, where steps lie between them.
    pub ranges: Option<Vec<f32>>,
}

/// The elements of vectors, by rows.
#[derive(Clone, Debug, PartialEq)]
pub enum Elements {
    /// Single precision.
    Float32(Vec<f32>),
    /// Signed bytes.
    Int8(Vec<i8>),
    /// Unsigned bytes.
    Uint8(Vec<u8>),
}

impl Embeddings {
    /// The vectors in this precision. Ranges of bytes are those of these vectors.
    pub fn quantize(&self, precision: Precision) -> Vectors {
        let count = self.rows().len();
        let bytes = || self.steps();
        let (width, elements, ranges) = match precision {
            Precision::Float32 => (self.dimension, Elements::Float32(self.values.clone()), None),
            Precision::Int8 => {
                let (steps, ranges) = bytes();
                let signed = steps.iter().map(|s| (i16::from(*s) - 128) as i8).collect();
                (self.dimension, Elements::Int8(signed), Some(ranges))
            }
            Precision::Uint8 => {
                let (steps, ranges) = bytes();
                (self.dimension, Elements::Uint8(steps), Some(ranges))
            }
            Precision::Binary => {
                let bits = self.bits();
                let signed = bits.iter().map(|b| (i16::from(*b) - 128) as i8).collect();
                (self.dimension.div_ceil(8), Elements::Int8(signed), None)
            }
            Precision::Ubinary => (
                self.dimension.div_ceil(8),
                Elements::Uint8(self.bits()),
                None,
            ),
        };
        Vectors {
            count,
            width,
            elements,
            ranges,
        }
    }

    /// Steps of each dimension from its smallest value up, and the ranges `[2, dimension]`.
    fn steps(&self) -> (Vec<u8>, Vec<f32>) {
        let mut low = vec![f32::INFINITY; self.dimension];
        let mut high = vec![f32::NEG_INFINITY; self.dimension];
        for row in self.rows() {
            for ((low, high), v) in low.iter_mut().zip(&mut high).zip(row) {
                *low = low.min(*v);
                *high = high.max(*v);
            }
        }
        let step: Vec<f32> = low
            .iter()
            .zip(&high)
            .map(|(l, h)| (h - l) / 255.0)
            .collect();
        let steps = self.rows().flat_map(|row| {
            row.iter().zip(&low).zip(&step).map(|((v, low), step)| {
                // A dimension of one value has no steps; casts saturate.
                if *step > 0.0 {
                    ((v - low) / step) as u8
                } else {
                    0
                }
            })
        });
        let steps = steps.collect();
        low.extend(high);
        (steps, low)
    }

    fn bits(&self) -> Vec<u8> {
        let byte = |values: &[f32]| {
            let bits = values.iter().enumerate();
            bits.fold(0, |byte, (i, v)| byte | (u8::from(*v > 0.0) << (7 - i)))
        };
        self.rows()
            .flat_map(|row| row.chunks(8).map(byte))
            .collect()
    }
}

impl Vectors {
    /// Writes a safetensors file with the tensor `embeddings` `[count, width]`, with `ranges` where
    /// there are any, and these texts in its header.
    ///
    /// # Errors
    /// [`FileError`] naming the path.
    pub fn save_safetensors(
        &self,
        path: &Path,
        metadata: HashMap<String, String>,
    ) -> Result<(), FileError> {
        let shape = vec![self.count, self.width];
        let floats =
            |values: &[f32]| -> Vec<u8> { values.iter().flat_map(|v| v.to_le_bytes()).collect() };
        let (dtype, bytes) = match &self.elements {
            Elements::Float32(values) => (Dtype::F32, floats(values)),
            Elements::Int8(values) => (Dtype::I8, values.iter().map(|v| *v as u8).collect()),
            Elements::Uint8(values) => (Dtype::U8, values.clone()),
        };
        let ranges = self.ranges.as_deref().map(floats);
        let other = |e: safetensors::SafeTensorError| std::io::Error::other(e.to_string());
        write_atomic_with(path, |file| {
            let mut tensors = BTreeMap::new();
            let view = TensorView::new(dtype, shape, &bytes).map_err(other)?;
            tensors.insert("embeddings", view);
            if let Some(ranges) = &ranges {
                let shape = vec![2, self.width];
                let view = TensorView::new(Dtype::F32, shape, ranges).map_err(other)?;
                tensors.insert("ranges", view);
            }
            let metadata = (!metadata.is_empty()).then_some(metadata);
            file.write_all(&safetensors::serialize(tensors, metadata).map_err(other)?)
        })
    }

    /// Writes NumPy's `.npy` file of an array `[count, width]`.
    ///
    /// # Errors
    /// [`FileError`] naming the path.
    pub fn save_npy(&self, path: &Path) -> Result<(), FileError> {
        let shape = [self.count as u64, self.width as u64];
        fn write<T: npyz::AutoSerialize + Copy>(
            file: &mut dyn Write,
            shape: &[u64; 2],
            values: &[T],
        ) -> std::io::Result<()> {
            let options = npyz::WriteOptions::new().default_dtype().shape(shape);
            let mut writer = options.writer(file).begin_nd()?;
            writer.extend(values.iter().copied())?;
            writer.finish()
        }
        write_atomic_with(path, |file| match &self.elements {
            Elements::Float32(values) => write(file, &shape, values),
            Elements::Int8(values) => write(file, &shape, values),
            Elements::Uint8(values) => write(file, &shape, values),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Embeddings {
        Embeddings {
            dimension: 3,
            values: vec![0.0, -1.0, 127.5, 255.0, -1.0, -127.5, 63.75, -1.0, 0.0],
            truncated: 0,
        }
    }

    #[test]
    fn bytes_are_steps_between_the_ends_of_each_dimension() {
        let found = example().quantize(Precision::Uint8);
        // 63.75 of 0..255 is cut; 0 of -127.5..127.5 is step 127.5.
        let right = vec![0, 0, 255, 255, 0, 0, 63, 0, 127];
        assert_eq!(found.elements, Elements::Uint8(right));
        let ranges = vec![0.0, -1.0, -127.5, 255.0, -1.0, 127.5];
        assert_eq!(found.ranges, Some(ranges));
        let signed = example().quantize(Precision::Int8).elements;
        let right = vec![-128, -128, 127, 127, -128, -128, -65, -128, -1];
        assert_eq!(signed, Elements::Int8(right));
    }

    #[test]
    fn bits_are_packed_from_the_highest_down() {
        let found = example().quantize(Precision::Ubinary);
        assert_eq!((found.count, found.width), (3, 1));
        let right = vec![0b0010_0000, 0b1000_0000, 0b1000_0000];
        assert_eq!(found.elements, Elements::Uint8(right));
        let signed = example().quantize(Precision::Binary).elements;
        assert_eq!(signed, Elements::Int8(vec![-96, 0, 0]));
    }

    #[test]
    fn files_hold_what_was_made() {
        let folder = tempfile::tempdir().unwrap();
        let vectors = example().quantize(Precision::Float32);
        let path = folder.path().join("v.safetensors");
        let model = HashMap::from([("model".to_owned(), "m".to_owned())]);
        vectors.save_safetensors(&path, model).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let read = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let tensor = read.tensor("embeddings").unwrap();
        assert_eq!(tensor.shape(), [3, 3]);
        assert_eq!(&tensor.data()[4..8], (-1.0f32).to_le_bytes());
        let path = folder.path().join("v.npy");
        vectors.save_npy(&path).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        // The format's magic number and version, and its values at the end.
        assert_eq!(&bytes[..8], b"\x93NUMPY\x01\x00");
        assert!(String::from_utf8_lossy(&bytes).contains("'shape': (3, 3"));
        assert_eq!(
            &bytes[bytes.len() - 12..bytes.len() - 8],
            63.75f32.to_le_bytes()
        );
    }
}
