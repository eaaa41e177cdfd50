//! Tar files of images, read without unpacking.

use std::path::Path;
use std::sync::Arc;

use frugal_core::fs::FileError;

use super::folder::stray_part;
use super::set::{Content, ImageSet, Part, is_image};
use crate::error::MediaError;

/// Most entries that an archive may have.
const ENTRIES: usize = 50_000_000;

/// Entries `PART/CLASS/IMAGE`, or `CLASS/IMAGE`, perhaps below one folder that all have in common, in
/// the order of their names. What unpacking would make an image of otherwise is refused by name: links,
/// images that are there twice, names with `..`.
pub(super) fn open(path: &Path) -> Result<ImageSet, MediaError> {
    let error = || FileError::at(path, "cannot read the archive");
    let file = std::fs::File::open(path).map_err(FileError::at(path, "cannot open"))?;
    let size = file.metadata().map_err(error())?.len();
    let mut archive = tar::Archive::new(std::io::BufReader::new(file));
    let mut found: Vec<(Vec<String>, u64, u64)> = Vec::new();
    for (i, entry) in archive.entries_with_seek().map_err(error())?.enumerate() {
        let entry = entry.map_err(error())?;
        let kind = entry.header().entry_type();
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let parts = name
            .split('/')
            .filter(|part| !part.is_empty() && *part != ".");
        let parts: Vec<String> = parts.map(str::to_owned).collect();
        let is_hidden = |part: &String| part.starts_with('.') && part != "..";
        if kind.is_dir() || parts.iter().any(is_hidden) {
            continue;
        }
        let is_link = kind.is_symlink() || kind.is_hard_link();
        let reason = if i >= ENTRIES {
            format!("there are more than {ENTRIES} entries in it")
        } else if is_link {
            format!(
                "`{name}` is a link, which is not followed in an archive: pack what it leads to (`tar --dereference --hard-dereference`), or leave it out"
            )
        } else if parts.len() < 2 || !is_image(&name) {
            continue;
        } else if parts.iter().any(|part| part == "..") {
            format!("`{name}` leads up with `..`: pack it by its place")
        } else if !kind.is_file() {
            format!("`{name}` is stored as no plain file, as sparse ones are: pack it as one")
        } else {
            String::new()
        };
        if !reason.is_empty() {
            return Err(MediaError::set(path, reason));
        }
        let (offset, len) = (entry.raw_file_position(), entry.size());
        if offset.checked_add(len).is_none_or(|end| end > size) {
            return Err(MediaError::set(
                path,
                format!("the archive is cut off: `{name}` ends behind its end"),
            ));
        }
        found.push((parts, offset, len));
    }
    found.sort();
    if let Some(twice) = found.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        let name = twice[0].0.join("/");
        let reason = format!(
            "`{name}` is in it twice, of which unpacking keeps the last: pack it anew, each image once"
        );
        return Err(MediaError::set(path, reason));
    }
    // What all have in common above the parts says nothing.
    let common = |at: usize| {
        let first = found.first().and_then(|(parts, ..)| parts.get(at));
        let same =
            |(parts, ..): &(Vec<String>, u64, u64)| parts.len() > at + 2 && parts.get(at) == first;
        first.is_some_and(|name| Part::of_folder(name).is_none()) && found.iter().all(same)
    };
    let skip = (0..).take_while(|at| common(*at)).count();
    let by_part = found
        .iter()
        .all(|(parts, ..)| parts.len() > skip + 2 && Part::of_folder(&parts[skip]).is_some());
    let first = |parts: &[String]| parts.get(skip).and_then(|name| Part::of_folder(name));
    if !by_part
        && found
            .iter()
            .any(|(parts, ..)| first(parts) == Some(Part::Train))
    {
        let stray = found.iter().find(|(parts, ..)| first(parts).is_none());
        let name = stray.and_then(|(parts, ..)| parts.get(skip).cloned());
        return Err(MediaError::set(path, stray_part(&name.unwrap_or_default())));
    }
    let archive: Arc<Path> = path.into();
    let mut set = ImageSet::default();
    for (parts, offset, len) in found {
        let (part, label) = match by_part {
            true => (Part::of_folder(&parts[skip]), parts.get(skip + 1)),
            false => (Some(Part::Train), parts.get(skip)),
        };
        let content = Content::Entry {
            archive: archive.clone(),
            name: parts.join("/"),
            offset,
            len,
        };
        let label = label.cloned();
        set.add(part.unwrap_or(Part::Train), content, label.as_deref());
    }
    Ok(set)
}
