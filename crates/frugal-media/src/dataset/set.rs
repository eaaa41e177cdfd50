//! What a set of images is.

use std::collections::BTreeMap;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use frugal_core::fs::FileError;

use super::planes;
use crate::decode::{Limits, decode, decode_file};
use crate::error::MediaError;
use crate::picture::Picture;

/// Where the bytes of an image are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// A file.
    File(PathBuf),
    /// A part of an archive.
    Entry {
        /// The archive.
        archive: Arc<Path>,
        /// The entry's name.
        name: String,
        /// Where its bytes begin.
        offset: u64,
        /// How many there are.
        len: u64,
    },
    /// 3072 bytes of a CIFAR file: the red channel of 32 x 32 pixels, the green and the blue one.
    Planes {
        /// The file.
        file: Arc<Path>,
        /// Where the bytes begin.
        offset: u64,
    },
}

impl Content {
    /// How errors call it.
    pub fn place(&self) -> String {
        match self {
            Self::File(path) => path.display().to_string(),
            Self::Entry { archive, name, .. } => format!("{}: {name}", archive.display()),
            Self::Planes { file, offset } => format!("{} at byte {offset}", file.display()),
        }
    }

    /// Decodes the image.
    ///
    /// # Errors
    /// As [`decode`], and what the file system says.
    pub fn read(&self, limits: Limits) -> Result<Picture, MediaError> {
        match self {
            Self::File(path) => decode_file(path, limits),
            Self::Entry {
                archive,
                offset,
                len,
                ..
            } => {
                if *len > limits.bytes {
                    let reason = format!("the file is larger than {} MiB", limits.bytes >> 20);
                    return Err(MediaError::image(&self.place(), reason));
                }
                decode(&self.place(), &part(archive, *offset, *len)?, limits)
            }
            Self::Planes { file, offset } => {
                let bytes = part(file, *offset, planes::BYTES)?;
                planes::picture(&bytes)
                    .ok_or_else(|| MediaError::image(&self.place(), "it is no CIFAR image"))
            }
        }
    }
}

fn part(path: &Path, offset: u64, len: u64) -> Result<Vec<u8>, MediaError> {
    let mut file = std::fs::File::open(path).map_err(FileError::at(path, "cannot open"))?;
    let mut bytes = vec![0; len as usize];
    file.seek(SeekFrom::Start(offset))
        .and_then(|_| file.read_exact(&mut bytes))
        .map_err(FileError::at(path, "cannot read"))?;
    Ok(bytes)
}

/// An image and its class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageExample {
    /// The image.
    pub content: Content,
    /// The class; `None` where there is none.
    pub label: Option<String>,
}

/// A part of a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// To learn from; also what a set without parts is.
    Train,
    /// To choose by.
    Validation,
    /// To report on.
    Test,
}

impl Part {
    /// The part that a folder of this name holds.
    pub fn of_folder(name: &str) -> Option<Self> {
        Some(match name {
            "train" | "training" => Self::Train,
            "validation" | "valid" | "val" | "dev" => Self::Validation,
            "test" | "testing" => Self::Test,
            _ => return None,
        })
    }
}

/// Images with their classes, by part. Nothing is decoded yet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageSet {
    /// The parts that there are, each with images.
    pub parts: BTreeMap<Part, Vec<ImageExample>>,
}

impl ImageSet {
    /// The classes of all parts, in the order of their names.
    pub fn labels(&self) -> Vec<String> {
        let all = self.parts.values().flatten();
        let mut labels: Vec<String> = all.filter_map(|e| e.label.clone()).collect();
        labels.sort();
        labels.dedup();
        labels
    }

    pub(super) fn add(&mut self, part: Part, content: Content, label: Option<&str>) {
        let label = label.map(str::to_owned);
        let images = self.parts.entry(part).or_default();
        images.push(ImageExample { content, label });
    }
}

/// Whether a file is called as an image is.
pub(super) fn is_image(name: &str) -> bool {
    let end = name
        .rsplit_once('.')
        .map(|(_, end)| end.to_ascii_lowercase());
    let known = ["jpg", "jpeg", "jpe", "png", "webp", "gif", "bmp"];
    end.is_some_and(|end| known.contains(&end.as_str()))
}
