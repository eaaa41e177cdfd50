//! Writing a file of vectors.

use std::path::Path;

use frugal_core::fs::write_atomic_with;
use half::f16;
use half::slice::HalfFloatSliceExt;

use super::error::VectorError;
use super::kind::{Encoding, Metric, check_kind, prepared};
use super::layout::{BLOCK, Section, Shape};
use super::open::VectorIndex;

/// Collects vectors, each under a key, in the form in which they are stored.
///
/// ```
/// use frugal_index::{Encoding, Metric, VectorBuilder, VectorIndex};
/// let folder = tempfile::tempdir()?;
/// let path = folder.path().join("a.vectors");
/// let mut builder = VectorBuilder::new(2, Metric::Cosine, Encoding::F32)?;
/// builder.push(7, &[1.0, 0.0])?;
/// builder.push(8, &[0.0, 2.0])?;
/// builder.write(&path)?;
/// let found = VectorIndex::open(&path)?.search(&[0.1, 0.9], 1)?;
/// assert_eq!(found[0][0].key, 8);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct VectorBuilder {
    shape: Shape,
    /// Content of each section.
    sections: [Vec<u8>; 5],
    last: Option<u64>,
}

impl VectorBuilder {
    /// Begins with nothing.
    ///
    /// # Errors
    /// A dimension of 0 or above 65,536; `binary` with `l2`.
    pub fn new(dimension: usize, metric: Metric, encoding: Encoding) -> Result<Self, VectorError> {
        check_kind(dimension, metric, encoding)?;
        Ok(Self {
            shape: Shape {
                dimension,
                rows: 0,
                metric,
                encoding,
            },
            sections: Default::default(),
            last: None,
        })
    }

    /// Number of vectors.
    pub fn len(&self) -> usize {
        self.shape.rows
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.shape.rows == 0
    }

    /// Adds a vector under a key above all before it.
    ///
    /// # Errors
    /// Another length, numbers that are not finite or too large, zeros where the cosine is compared,
    /// keys that do not ascend.
    pub fn push(&mut self, key: u64, vector: &[f32]) -> Result<(), VectorError> {
        let what = || format!("the vector {key}");
        let Shape {
            dimension,
            metric,
            encoding,
            ..
        } = self.shape;
        let vector = prepared(vector, dimension, metric, &what)?;
        self.check_key(key)?;
        let mut square = |numbers: &mut dyn Iterator<Item = f32>| {
            if metric == Metric::L2 {
                let square: f64 = numbers.map(|v| f64::from(v) * f64::from(v)).sum();
                self.sections[Section::Squares as usize]
                    .extend_from_slice(&(square as f32).to_le_bytes());
            }
        };
        match encoding {
            Encoding::F32 => {
                square(&mut vector.iter().copied());
                self.numbers(bytemuck::cast_slice(&vector));
            }
            Encoding::F16 => {
                let mut halves = vec![f16::ZERO; dimension];
                halves.convert_from_f32_slice(&vector);
                if halves.iter().any(|half| half.is_infinite()) {
                    let kind = "16 bits";
                    return Err(VectorError::TooLarge { what: what(), kind });
                }
                square(&mut halves.iter().map(|half| half.to_f32()));
                self.numbers(bytemuck::cast_slice(&halves));
            }
            Encoding::Int8 | Encoding::Binary => {
                let (scale, codes) = quantized(&vector);
                square(&mut codes.iter().map(|code| f32::from(*code) * scale));
                self.sections[Section::Scales as usize].extend_from_slice(&scale.to_le_bytes());
                self.numbers(bytemuck::cast_slice(&codes));
            }
        }
        if encoding == Encoding::Binary {
            for word in signs(&vector) {
                self.sections[Section::Signs as usize].extend_from_slice(&word.to_le_bytes());
            }
        }
        self.keep_key(key);
        Ok(())
    }

    /// Adds those vectors of an index whose key `keep` wants, as they are stored.
    ///
    /// # Errors
    /// An index of another kind, a damaged one, keys that do not ascend.
    pub fn append(
        &mut self,
        index: &VectorIndex,
        keep: impl Fn(u64) -> bool,
    ) -> Result<(), VectorError> {
        let shape = index.shape();
        if (Shape { rows: 0, ..shape })
            != (Shape {
                rows: 0,
                ..self.shape
            })
        {
            let name = |s: Shape| format!("{} numbers, {}, {}", s.dimension, s.metric, s.encoding);
            return Err(VectorError::OtherKind {
                found: name(shape),
                expected: name(self.shape),
            });
        }
        for block in 0..shape.blocks() {
            index.check_block(block)?;
            for row in block * BLOCK..((block + 1) * BLOCK).min(shape.rows) {
                let key = index.key(row);
                if !keep(key) {
                    continue;
                }
                self.check_key(key)?;
                for section in Section::ALL.into_iter().filter(|s| *s != Section::Keys) {
                    self.sections[section as usize].extend_from_slice(index.row(section, row));
                }
                self.keep_key(key);
            }
        }
        Ok(())
    }

    /// Adds those vectors of another builder whose key `keep` wants.
    pub(crate) fn extend(
        &mut self,
        other: &Self,
        keep: impl Fn(u64) -> bool,
    ) -> Result<(), VectorError> {
        for row in 0..other.shape.rows {
            let bytes = |section| {
                let size = other.shape.row_bytes(section);
                &other.sections[section as usize][row * size..(row + 1) * size]
            };
            let mut key = [0; 8];
            key.copy_from_slice(bytes(Section::Keys));
            let key = u64::from_le_bytes(key);
            if !keep(key) {
                continue;
            }
            self.check_key(key)?;
            for section in Section::ALL.into_iter().filter(|s| *s != Section::Keys) {
                self.sections[section as usize].extend_from_slice(bytes(section));
            }
            self.keep_key(key);
        }
        Ok(())
    }

    /// Writes the file, which appears whole or not at all.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), VectorError> {
        let mut table = Vec::new();
        for block in 0..self.shape.blocks() {
            let mut check = 0;
            for section in Section::ALL {
                let row = self.shape.row_bytes(section);
                let content = &self.sections[section as usize];
                let rows = block * BLOCK..((block + 1) * BLOCK).min(self.shape.rows);
                check = crc32c::crc32c_append(check, &content[rows.start * row..rows.end * row]);
            }
            table.extend_from_slice(&check.to_le_bytes());
        }
        let header = self.shape.header(&table);
        Ok(write_atomic_with(path, |file| {
            let mut written = header.len();
            file.write_all(&header)?;
            let sections = Section::ALL.map(|s| self.sections[s as usize].as_slice());
            for content in sections.into_iter().chain([table.as_slice()]) {
                let start = written.next_multiple_of(64);
                file.write_all(&[0; 64][..start - written])?;
                file.write_all(content)?;
                written = start + content.len();
            }
            Ok(())
        })?)
    }

    fn check_key(&self, key: u64) -> Result<(), VectorError> {
        match self.last {
            Some(before) if before >= key => Err(VectorError::KeyOrder { before, found: key }),
            _ => Ok(()),
        }
    }

    fn keep_key(&mut self, key: u64) {
        self.sections[Section::Keys as usize].extend_from_slice(&key.to_le_bytes());
        self.last = Some(key);
        self.shape.rows += 1;
    }

    fn numbers(&mut self, bytes: &[u8]) {
        self.sections[Section::Numbers as usize].extend_from_slice(bytes);
    }
}

/// Eight-bit numbers and what one of them is worth.
fn quantized(vector: &[f32]) -> (f32, Vec<i8>) {
    let largest = vector.iter().fold(0.0f32, |most, v| most.max(v.abs()));
    let scale = largest / 127.0;
    // The smallest numbers there are have no scale.
    let code = |v: &f32| match scale > 0.0 {
        true => (v / scale).round().clamp(-127.0, 127.0) as i8,
        false => 0,
    };
    (scale, vector.iter().map(code).collect())
}

/// One bit for each number, set where it is above 0.
pub(super) fn signs(vector: &[f32]) -> impl Iterator<Item = u64> {
    vector.chunks(64).map(|numbers| {
        let bits = numbers.iter().enumerate();
        bits.fold(0, |word, (i, v)| word | u64::from(*v > 0.0) << i)
    })
}
