//! Folders of images, one for each class.

use std::path::{Path, PathBuf};

use frugal_core::fs::FileError;

use super::set::{Content, ImageSet, Part, is_image};
use crate::error::MediaError;

/// `FOLDER/CLASS/IMAGE`, or `FOLDER/PART/CLASS/IMAGE` where all folders are called like parts.
pub(super) fn open(path: &Path) -> Result<ImageSet, MediaError> {
    let mut set = ImageSet::default();
    let folders = children(path)?.0;
    let part = |folder: &PathBuf| Part::of_folder(&name_of(folder));
    if !folders.is_empty() && folders.iter().all(|folder| part(folder).is_some()) {
        for folder in &folders {
            for class in children(folder)?.0 {
                read(&mut set, part(folder).unwrap_or(Part::Train), &class)?;
            }
        }
    } else if folders.iter().any(|f| part(f) == Some(Part::Train)) {
        let stray = folders.iter().find(|folder| part(folder).is_none());
        return Err(MediaError::set(
            path,
            stray_part(&stray.map_or_else(String::new, |f| name_of(f))),
        ));
    } else {
        for class in &folders {
            read(&mut set, Part::Train, class)?;
        }
    }
    if set.parts.is_empty() {
        return Err(MediaError::set(
            path,
            "there are no images by class in it: it needs a folder for each class, as in `FOLDER/train/CLASS/IMAGE.jpg`",
        ));
    }
    Ok(set)
}

/// What is wrong where one name is that of no part, and another is `train`.
pub(super) fn stray_part(name: &str) -> String {
    format!(
        "`{name}` stands beside the folder of a part, `train`, and is none (train, validation, test): move it away, or all classes into one folder"
    )
}

/// The images of one class, in folders below it too.
fn read(set: &mut ImageSet, part: Part, class: &Path) -> Result<(), MediaError> {
    let label = name_of(class);
    let mut open = vec![class.to_owned()];
    while let Some(folder) = open.pop() {
        let (folders, files) = children(&folder)?;
        for file in files {
            if is_image(&name_of(&file)) {
                set.add(part, Content::File(file), Some(&label));
            }
        }
        open.extend(folders.into_iter().rev());
    }
    Ok(())
}

fn name_of(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

/// Folders and files in a folder in the order of their names; hidden ones and links that lead back up
/// are left out.
fn children(folder: &Path) -> Result<(Vec<PathBuf>, Vec<PathBuf>), MediaError> {
    let error = || FileError::at(folder, "cannot read the folder");
    let (mut folders, mut files) = (Vec::new(), Vec::new());
    for entry in std::fs::read_dir(folder).map_err(error())? {
        let path = entry.map_err(error())?.path();
        if name_of(&path).starts_with('.') {
            continue;
        }
        let is_link = path.is_symlink();
        match path.is_dir() {
            true if is_link && leads_up(&path, folder) => {}
            true => folders.push(path),
            false => files.push(path),
        }
    }
    folders.sort();
    files.sort();
    Ok((folders, files))
}

fn leads_up(link: &Path, folder: &Path) -> bool {
    let real = |path: &Path| path.canonicalize().ok();
    match (real(link), real(folder)) {
        (Some(target), Some(folder)) => folder.starts_with(target),
        _ => true,
    }
}
