//! Bytes of a data file as they are read: compressed or not, hashed as they pass, never more than a
//! line at a time, and bounded.

use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::Value;
use sha2::{Digest, Sha256};

use super::error::DataError;
use super::record::Record;
use crate::fs::{self, FileError};

/// Longest line of a file.
const LINE: usize = 512 << 20;
/// Longest line, and longest text of a record, of a compressed file: a small one can hold any.
const PACKED_LINE: usize = 32 << 20;
/// Most that is unpacked of a file that has to be held as a whole.
const PACKED: u64 = 1 << 30;
/// Most bytes that one byte of a compressed file may become; text becomes 3 to 30.
const EXPANSION: u64 = 250;
/// What any compressed file may become, however small.
const EXPANDED: u64 = 64 << 20;
/// Standard input in place of a file.
pub(super) const STDIN: &str = "-";

/// A file that is being read.
pub(super) struct Source {
    path: PathBuf,
    reader: Box<dyn BufRead>,
    packed: bool,
    hash: Arc<Mutex<Sha256>>,
}

/// How the bytes are packed, told by the first of them.
enum Packing {
    Plain,
    Gzip,
    Zstd,
}

/// What is wrong with a file that begins like this and is neither text nor packed in a way that is
/// read.
fn unreadable(first: &[u8]) -> Option<&'static str> {
    const KINDS: [(&[u8], &str); 7] = [
        (
            b"BZh",
            "is packed with bzip2: unpack it first; gzip and Zstandard are read as they are",
        ),
        (
            b"\xfd7zXZ\0",
            "is packed with xz: unpack it first; gzip and Zstandard are read as they are",
        ),
        (
            b"7z\xbc\xaf\x27\x1c",
            "is packed with 7-Zip: unpack it first; gzip and Zstandard are read as they are",
        ),
        (
            b"PK\x03\x04",
            "is a zip file or a spreadsheet: unpack it, or save it as CSV",
        ),
        (b"\xd0\xcf\x11\xe0", "is a spreadsheet: save it as CSV"),
        (b"\xff\xfe", "is UTF-16 text: convert the file to UTF-8"),
        (b"\xfe\xff", "is UTF-16 text: convert the file to UTF-8"),
    ];
    let kind = KINDS.iter().find(|(mark, _)| first.starts_with(mark));
    kind.map(|(_, problem)| *problem)
}

impl Source {
    /// Opens a file, or standard input for `-`.
    pub(super) fn open(path: &Path) -> Result<Self, DataError> {
        if path == Path::new(STDIN) {
            return Self::new(path, Box::new(io::stdin()));
        }
        Self::new(path, Box::new(fs::open_data(path)?))
    }

    /// Reads what any reader gives; the path is for errors.
    pub(super) fn new(path: &Path, raw: Box<dyn Read>) -> Result<Self, DataError> {
        let hash = Arc::new(Mutex::new(Sha256::new()));
        let counted = Counted {
            inner: raw,
            hash: Arc::clone(&hash),
            bytes: Arc::default(),
        };
        let bytes = Arc::clone(&counted.bytes);
        let mut reader = BufReader::with_capacity(1 << 16, counted);
        let fail = |e| DataError::from(FileError::at(path, "cannot read")(e));
        let first = reader.fill_buf().map_err(fail)?;
        if let Some(problem) = unreadable(first) {
            return Err(DataError::options(path, problem));
        }
        let limited = |inner: Box<dyn Read>| -> Box<dyn BufRead> {
            Box::new(BufReader::new(Bounded {
                inner,
                packed: bytes,
                unpacked: 0,
            }))
        };
        let packing = packing(first);
        let packed = !matches!(packing, Packing::Plain);
        let reader: Box<dyn BufRead> = match packing {
            Packing::Plain => Box::new(reader),
            Packing::Gzip => limited(Box::new(flate2::bufread::MultiGzDecoder::new(reader))),
            Packing::Zstd => {
                let decoder = zstd::stream::read::Decoder::with_buffer(reader).map_err(fail)?;
                limited(Box::new(decoder))
            }
        };
        Ok(Self {
            path: path.to_owned(),
            reader,
            packed,
            hash,
        })
    }

    /// The first bytes, which stay to be read.
    pub(super) fn peek(&mut self) -> Result<&[u8], DataError> {
        let path = &self.path;
        let fail = |e| FileError::at(path, "cannot read")(e).into();
        self.reader.fill_buf().map_err(fail)
    }

    /// Reads one line with its end; false at the end of the file.
    pub(super) fn line(&mut self, line: &mut Vec<u8>, number: usize) -> Result<bool, DataError> {
        line.clear();
        let most = match self.packed {
            true => PACKED_LINE,
            false => LINE,
        };
        let mut limited = (&mut self.reader).take(most as u64 + 1);
        let read = limited.read_until(b'\n', line);
        let read = read.map_err(FileError::at(&self.path, "cannot read"))?;
        if read > most {
            let hint = match self.packed {
                true => {
                    "that is the most for a line of a compressed file: unpack the file first if it is wanted"
                }
                false => "if the file is compressed or of another format, its name should say so",
            };
            let problem = format!("the line has more than {} MiB; {hint}", most >> 20);
            return Err(DataError::line(&self.path, number, problem));
        }
        Ok(read > 0)
    }

    /// Everything that is left.
    pub(super) fn rest(&mut self) -> Result<Vec<u8>, DataError> {
        let mut bytes = Vec::new();
        let most = match self.packed {
            true => PACKED,
            false => u64::MAX - 1,
        };
        let read = (&mut self.reader).take(most + 1).read_to_end(&mut bytes);
        let read = read.map_err(FileError::at(&self.path, "cannot read"))?;
        if read as u64 > most {
            let problem = format!(
                "it unpacks to more than {} MiB, which is the most for a compressed file of this format: unpack the file first, or write one record per line (.jsonl)",
                most >> 20
            );
            return Err(DataError::options(&self.path, problem));
        }
        Ok(bytes)
    }

    /// Refuses a record of a compressed file with a text that is longer than a line may be.
    pub(super) fn check(&self, record: &Record) -> Result<(), DataError> {
        if !self.packed {
            return Ok(());
        }
        let too_long = |value: &Value| value.as_str().is_some_and(|t| t.len() > PACKED_LINE);
        match record.fields.iter().find(|(_, value)| too_long(value)) {
            None => Ok(()),
            Some((key, _)) => Err(DataError::line(
                &self.path,
                record.line,
                format!(
                    "`{key}` has more than {} MiB, which is the most for a text of a compressed file: unpack the file first if that is wanted",
                    PACKED_LINE >> 20
                ),
            )),
        }
    }

    /// SHA-256 of the file as it is stored, in hexadecimal; reads it to its end.
    pub(super) fn sha256(mut self) -> Result<String, DataError> {
        let end = io::copy(&mut self.reader, &mut io::sink());
        end.map_err(FileError::at(&self.path, "cannot read"))?;
        let hash = self.hash.lock().map(|hash| hash.clone());
        Ok(hex(&hash.unwrap_or_default().finalize()))
    }
}

/// Bytes in hexadecimal.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn packing(first: &[u8]) -> Packing {
    match first {
        [0x1f, 0x8b, ..] => Packing::Gzip,
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Packing::Zstd,
        _ => Packing::Plain,
    }
}

/// Hashes and counts what passes.
struct Counted {
    inner: Box<dyn Read>,
    hash: Arc<Mutex<Sha256>>,
    bytes: Arc<AtomicU64>,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        if let Ok(mut hash) = self.hash.lock() {
            hash.update(&buffer[..read]);
        }
        self.bytes.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}

/// Stops where a compressed file becomes far larger than text can be.
struct Bounded {
    inner: Box<dyn Read>,
    packed: Arc<AtomicU64>,
    unpacked: u64,
}

impl Read for Bounded {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.unpacked += read as u64;
        let packed = self.packed.load(Ordering::Relaxed);
        if self.unpacked > EXPANDED.max(packed.saturating_mul(EXPANSION)) {
            return Err(io::Error::other(format!(
                "{packed} compressed bytes became more than {} MiB, {EXPANSION} times as many: unpack the file first if that is wanted",
                self.unpacked >> 20
            )));
        }
        Ok(read)
    }
}
