//! The binary version of CIFAR-10 (Krizhevsky, Learning Multiple Layers of Features from Tiny Images,
//! 2009): records of one byte for the class and 3072 for 32 x 32 pixels, channel by channel.

use std::path::Path;
use std::sync::Arc;

use frugal_core::fs::{FileError, read};

use super::planes::BYTES;
use super::set::{Content, ImageSet, Part};
use crate::error::MediaError;

const NAMES: &str = "batches.meta.txt";

/// Whether a folder holds the binary version.
pub(super) fn is_cifar(folder: &Path) -> bool {
    folder.join("data_batch_1.bin").is_file()
}

/// `data_batch_1.bin` and so on to learn from, `test_batch.bin` to report on, names of the classes in
/// `batches.meta.txt`.
pub(super) fn open(folder: &Path) -> Result<ImageSet, MediaError> {
    let names = String::from_utf8_lossy(&read(&folder.join(NAMES))?).into_owned();
    let names: Vec<&str> = names
        .lines()
        .map(str::trim)
        .filter(|n| !n.is_empty())
        .collect();
    let mut set = ImageSet::default();
    let batches = (1..).map(|i| folder.join(format!("data_batch_{i}.bin")));
    let batches = batches.take_while(|path| path.is_file());
    let mut files: Vec<_> = batches.map(|path| (Part::Train, path)).collect();
    let test = folder.join("test_batch.bin");
    if test.is_file() {
        files.push((Part::Test, test));
    }
    for (part, path) in files {
        let size = std::fs::metadata(&path)
            .map_err(FileError::at(&path, "cannot read"))?
            .len();
        if size % (BYTES + 1) != 0 {
            let reason = format!(
                "{size} bytes are no whole number of records of {} bytes",
                BYTES + 1
            );
            return Err(MediaError::set(&path, reason));
        }
        let bytes = read(&path)?;
        let file: Arc<Path> = path.as_path().into();
        for (i, record) in bytes.chunks_exact(BYTES as usize + 1).enumerate() {
            let Some(name) = names.get(usize::from(record[0])) else {
                let reason = format!(
                    "record {i} is of class {}, but `{NAMES}` names {}",
                    record[0],
                    names.len()
                );
                return Err(MediaError::set(&path, reason));
            };
            let offset = i as u64 * (BYTES + 1) + 1;
            let file = file.clone();
            set.add(part, Content::Planes { file, offset }, Some(name));
        }
    }
    Ok(set)
}
