//! The file of a graph.
//!
//! ```text
//! 0   8 bytes  magic
//! 8   u32      version
//! 12  u32      links of a vector
//! 16  u64      rows
//! 24  u32      checksum of the table of checksums of the vectors
//! 28  u32      CRC-32C of the links
//! 32  u64      bytes of the links
//! 60  u32      CRC-32C of the bytes before
//! 64           entry, level of each row, links: u32
//! ```

use std::io::Read;
use std::path::Path;

use frugal_core::fs::{FileError, write_atomic_with};

use super::super::error::VectorError;
use super::super::layout::u32_at;
use super::options::MAX_M;

const MAGIC: &[u8; 8] = b"FRGLHNSW";
const VERSION: u32 = 1;
const HEADER: usize = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) rows: usize,
    pub(super) m: usize,
    /// What tells the vectors from others.
    pub(super) vectors: u32,
    pub(super) check: u32,
    pub(super) length: usize,
}

pub(super) fn damaged(path: &Path, problem: impl Into<String>) -> VectorError {
    VectorError::Damaged {
        path: path.into(),
        problem: problem.into(),
    }
}

pub(super) fn write(path: &Path, header: &Header, body: &[u8]) -> Result<(), VectorError> {
    let mut bytes = [0; HEADER];
    bytes[..8].copy_from_slice(MAGIC);
    bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
    bytes[12..16].copy_from_slice(&(header.m as u32).to_le_bytes());
    bytes[16..24].copy_from_slice(&(header.rows as u64).to_le_bytes());
    bytes[24..28].copy_from_slice(&header.vectors.to_le_bytes());
    bytes[28..32].copy_from_slice(&header.check.to_le_bytes());
    bytes[32..40].copy_from_slice(&(header.length as u64).to_le_bytes());
    let check = crc32c::crc32c(&bytes[..60]);
    bytes[60..].copy_from_slice(&check.to_le_bytes());
    Ok(write_atomic_with(path, |file| {
        file.write_all(&bytes)?;
        file.write_all(body)
    })?)
}

pub(super) fn read_header(path: &Path) -> Result<Header, VectorError> {
    let failed = || FileError::at(path, "cannot read");
    let mut file = frugal_core::fs::open(path)?;
    let length = file.metadata().map_err(failed())?.len();
    let mut bytes = [0; HEADER];
    if file.read_exact(&mut bytes).is_err() {
        return Err(damaged(path, "too short for a header"));
    }
    if &bytes[..8] != MAGIC {
        return Err(damaged(path, "not a graph of vectors"));
    }
    if u32_at(&bytes, 60) != crc32c::crc32c(&bytes[..60]) {
        return Err(damaged(path, "the header does not match its checksum"));
    }
    let version = u32_at(&bytes, 8);
    if version != VERSION {
        let problem = format!("format version {version}, but this program reads version {VERSION}");
        return Err(damaged(path, problem));
    }
    let wide = |at| u64::from(u32_at(&bytes, at)) | u64::from(u32_at(&bytes, at + 4)) << 32;
    let header = Header {
        rows: u32::try_from(wide(16)).map_err(|_| damaged(path, "too many rows"))? as usize,
        m: u32_at(&bytes, 12) as usize,
        vectors: u32_at(&bytes, 24),
        check: u32_at(&bytes, 28),
        length: usize::try_from(wide(32)).map_err(|_| damaged(path, "too long"))?,
    };
    if wide(32).checked_add(HEADER as u64) != Some(length) {
        return Err(damaged(path, "it has not the length that its header says"));
    }
    Ok(header)
}

/// The links as bytes.
pub(super) fn read_body(path: &Path, header: &Header) -> Result<Vec<u8>, VectorError> {
    let mut bytes = std::fs::read(path).map_err(FileError::at(path, "cannot read"))?;
    let body = bytes.get(HEADER..).unwrap_or_default();
    if body.len() != header.length || crc32c::crc32c(body) != header.check {
        return Err(damaged(path, "the links do not match their checksum"));
    }
    if !(2..=MAX_M).contains(&header.m) {
        return Err(damaged(path, "the links hold impossible sizes"));
    }
    bytes.drain(..HEADER);
    Ok(bytes)
}
