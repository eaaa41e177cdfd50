//! Sets of images, each with a class.
//!
//! | what is given | how it is read |
//! |---|---|
//! | a folder with a folder for each class | images in `FOLDER/CLASS/`, or in `FOLDER/train/CLASS/` and so on |
//! | a tar file of such folders | the same, without unpacking |
//! | a folder with `data_batch_1.bin` | CIFAR-10's binary version |
//! | a table: CSV, TSV, JSON lines, JSON, Parquet | a column with paths relative to the table, one with classes |

mod archive;
mod cifar;
mod folder;
mod planes;
mod set;
mod table;

use std::path::Path;

use crate::error::MediaError;

pub use set::{Content, ImageExample, ImageSet, Part};

impl ImageSet {
    /// Finds the images of a folder, an archive or a table.
    ///
    /// # Errors
    /// [`MediaError::Set`] for what is none of these or has no image; what the file system says.
    pub fn open(path: &Path) -> Result<Self, MediaError> {
        let set = if path.is_dir() {
            match cifar::is_cifar(path) {
                true => cifar::open(path)?,
                false => folder::open(path)?,
            }
        } else if is_tar(path) {
            archive::open(path)?
        } else {
            table::open(path)?
        };
        if set.parts.values().all(Vec::is_empty) {
            return Err(MediaError::set(path, "there is no image in it"));
        }
        Ok(set)
    }
}

fn is_tar(path: &Path) -> bool {
    path.extension()
        .is_some_and(|end| end.eq_ignore_ascii_case("tar"))
}

#[cfg(test)]
mod tests;
