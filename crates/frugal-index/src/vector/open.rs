//! A file of vectors, mapped into memory.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tantivy::directory::OwnedBytes;

use super::error::VectorError;
use super::kind::{Encoding, Metric};
use super::layout::{BLOCK, Section, Shape, u32_at};
use crate::mapped::map_file;

/// Vectors of one file. Cloning it shares them.
#[derive(Clone, Debug)]
pub struct VectorIndex {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    bytes: OwnedBytes,
    shape: Shape,
    /// Where each section is.
    sections: [std::ops::Range<usize>; 5],
    table: std::ops::Range<usize>,
    /// Blocks that matched their checksums.
    checked: Vec<AtomicBool>,
}

impl VectorIndex {
    /// Opens a file that a [`super::VectorBuilder`] wrote. Only its header is read.
    ///
    /// # Errors
    /// A file that cannot be read, or that is not as it was written.
    pub fn open(path: &Path) -> Result<Self, VectorError> {
        let bytes = map_file(path)?;
        let damaged = |problem: String| VectorError::Damaged {
            path: path.into(),
            problem,
        };
        let shape = Shape::read(&bytes).map_err(damaged)?;
        let absent = || damaged("the header holds impossible sizes".into());
        let [keys, scales, squares, numbers, signs] = Section::ALL.map(|s| shape.section(s));
        let sections = [
            keys.ok_or_else(absent)?,
            scales.ok_or_else(absent)?,
            squares.ok_or_else(absent)?,
            numbers.ok_or_else(absent)?,
            signs.ok_or_else(absent)?,
        ];
        let index = Inner {
            path: path.into(),
            table: shape.table().ok_or_else(absent)?,
            checked: (0..shape.blocks())
                .map(|_| AtomicBool::new(false))
                .collect(),
            bytes,
            shape,
            sections,
        };
        // Sections start at multiples of 64 bytes, and mappings at pages.
        match bytemuck::try_cast_slice::<u8, u64>(&index.bytes[..64]) {
            Ok(_) => Ok(Self {
                inner: Arc::new(index),
            }),
            Err(_) => Err(damaged("mapped at an odd address".into())),
        }
    }

    /// Number of vectors.
    pub fn len(&self) -> usize {
        self.inner.shape.rows
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Numbers of a vector.
    pub fn dimension(&self) -> usize {
        self.inner.shape.dimension
    }

    /// What is compared.
    pub fn metric(&self) -> Metric {
        self.inner.shape.metric
    }

    /// How numbers are stored.
    pub fn encoding(&self) -> Encoding {
        self.inner.shape.encoding
    }

    /// Key of the vector of a row.
    pub(crate) fn key(&self, row: usize) -> u64 {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(self.row(Section::Keys, row));
        u64::from_le_bytes(bytes)
    }

    /// Checks every block.
    ///
    /// # Errors
    /// A file that is not as it was written.
    pub fn check(&self) -> Result<(), VectorError> {
        (0..self.inner.shape.blocks()).try_for_each(|block| self.check_block(block))
    }

    /// What tells the file from others of its size: the checksum of its checksums.
    pub(super) fn identity(&self) -> u32 {
        u32_at(&self.inner.bytes, 32)
    }

    pub(super) fn shape(&self) -> Shape {
        self.inner.shape
    }

    /// Bytes of some rows in a section.
    pub(super) fn rows(&self, section: Section, rows: std::ops::Range<usize>) -> &[u8] {
        let size = self.inner.shape.row_bytes(section);
        let start = self.inner.sections[section as usize].start;
        &self.inner.bytes[start + rows.start * size..start + rows.end * size]
    }

    pub(super) fn row(&self, section: Section, row: usize) -> &[u8] {
        self.rows(section, row..row + 1)
    }

    pub(super) fn block_rows(&self, block: usize) -> std::ops::Range<usize> {
        block * BLOCK..((block + 1) * BLOCK).min(self.len())
    }

    /// Compares a block with its checksum, once.
    pub(super) fn check_block(&self, block: usize) -> Result<(), VectorError> {
        let inner = &self.inner;
        if inner.checked[block].load(Ordering::Relaxed) {
            return Ok(());
        }
        let rows = self.block_rows(block);
        let check = Section::ALL.into_iter().fold(0, |check, section| {
            crc32c::crc32c_append(check, self.rows(section, rows.clone()))
        });
        if check != u32_at(&inner.bytes, inner.table.start + block * 4) {
            let last = rows.end - 1;
            return Err(VectorError::Damaged {
                path: inner.path.clone(),
                problem: format!(
                    "the vectors {} to {last} do not match their checksum",
                    rows.start
                ),
            });
        }
        inner.checked[block].store(true, Ordering::Relaxed);
        Ok(())
    }
}
