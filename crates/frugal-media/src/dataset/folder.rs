//! Folders of images, one for each class.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use frugal_core::fs::FileError;

use super::set::{Content, ImageSet, Part, is_image};
use crate::error::MediaError;

/// `FOLDER/CLASS/IMAGE`, or `FOLDER/PART/CLASS/IMAGE` where all folders are called like parts. Links are
/// followed, but no image may be in the set twice by them: in two classes it would contradict itself, in
/// two parts it would be learnt and tested.
pub(super) fn open(path: &Path) -> Result<ImageSet, MediaError> {
    let mut set = ImageSet::default();
    let mut places = Places::of(path)?;
    let folders = children(path)?.0;
    let part = |folder: &PathBuf| Part::of_folder(&name_of(folder));
    if !folders.is_empty() && folders.iter().all(|folder| part(folder).is_some()) {
        for folder in &folders {
            places.enter(folder)?;
            for class in children(folder)?.0 {
                let part = part(folder).unwrap_or(Part::Train);
                read(&mut set, &mut places, part, &class)?;
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
            read(&mut set, &mut places, Part::Train, class)?;
        }
    }
    if set.parts.is_empty() {
        return Err(MediaError::set(
            path,
            "there are no images by class in it: it needs a folder for each class, as in `FOLDER/train/CLASS/IMAGE.jpg`",
        ));
    }
    if places.has_links {
        each_once(path, &set)?;
    }
    Ok(set)
}

/// Where folders of the set truly are.
struct Places {
    root: PathBuf,
    /// True place, and the one by which it was found.
    seen: HashMap<PathBuf, PathBuf>,
    /// Whether an image is a link.
    has_links: bool,
}

impl Places {
    fn of(root: &Path) -> Result<Self, MediaError> {
        let mut places = Self {
            root: root.to_owned(),
            seen: HashMap::new(),
            has_links: false,
        };
        places.enter(root)?;
        Ok(places)
    }

    /// Takes note of a folder that is read.
    ///
    /// # Errors
    /// One that was read already, or that holds the set.
    fn enter(&mut self, folder: &Path) -> Result<(), MediaError> {
        let place = real(folder)?;
        let holds = |(seen, _): (&PathBuf, &PathBuf)| seen != &place && seen.starts_with(&place);
        let reason = match self.seen.get(&place) {
            Some(other) => format!(
                "`{}` and `{}` are one folder, by a link: its images would be in the set twice; remove the link",
                other.display(),
                folder.display()
            ),
            // Else all that lies beside the set would be read before it comes to itself.
            None if folder.is_symlink() && self.seen.iter().any(holds) => format!(
                "`{}` is a link to a folder that holds the set, or a part of it: remove the link",
                folder.display()
            ),
            None => {
                self.seen.insert(place, folder.to_owned());
                return Ok(());
            }
        };
        Err(MediaError::set(&self.root, reason))
    }
}

fn real(path: &Path) -> Result<PathBuf, MediaError> {
    let error = FileError::at(path, "cannot follow");
    Ok(path.canonicalize().map_err(error)?)
}

/// # Errors
/// Two images that are one file by a link.
fn each_once(root: &Path, set: &ImageSet) -> Result<(), MediaError> {
    let mut seen: HashMap<PathBuf, &Path> = HashMap::new();
    for image in set.parts.values().flatten() {
        let Content::File(path) = &image.content else {
            continue;
        };
        // A link that leads nowhere is named where images are read.
        let Ok(place) = path.canonicalize() else {
            continue;
        };
        if let Some(other) = seen.insert(place, path) {
            let reason = format!(
                "`{}` and `{}` are one file, by a link: remove the link",
                other.display(),
                path.display()
            );
            return Err(MediaError::set(root, reason));
        }
    }
    Ok(())
}

/// What is wrong where one name is that of no part, and another is `train`.
pub(super) fn stray_part(name: &str) -> String {
    format!(
        "`{name}` stands beside the folder of a part, `train`, and is none (train, validation, test): move it away, or all classes into one folder"
    )
}

/// The images of one class, in folders below it too.
fn read(
    set: &mut ImageSet,
    places: &mut Places,
    part: Part,
    class: &Path,
) -> Result<(), MediaError> {
    let label = name_of(class);
    let mut open = vec![class.to_owned()];
    while let Some(folder) = open.pop() {
        places.enter(&folder)?;
        let (folders, files) = children(&folder)?;
        for file in files {
            if is_image(&name_of(&file)) {
                places.has_links |= file.is_symlink();
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

/// Folders and files in a folder in the order of their names; hidden ones are left out.
fn children(folder: &Path) -> Result<(Vec<PathBuf>, Vec<PathBuf>), MediaError> {
    let error = || FileError::at(folder, "cannot read the folder");
    let (mut folders, mut files) = (Vec::new(), Vec::new());
    for entry in std::fs::read_dir(folder).map_err(error())? {
        let path = entry.map_err(error())?.path();
        if name_of(&path).starts_with('.') {
            continue;
        }
        match path.is_dir() {
            true => folders.push(path),
            false => files.push(path),
        }
    }
    folders.sort();
    files.sort();
    Ok((folders, files))
}
