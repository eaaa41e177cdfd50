//! What decides a model's answers, as one text: the content of every file that it is read from.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use frugal_formats::gguf::files_of;
use sha2::{Digest, Sha256};

/// Endings of files that a model or an adapter is read from.
const ENDINGS: [&str; 8] = [
    "safetensors",
    "gguf",
    "json",
    "jinja",
    "model",
    "txt",
    "toml",
    "bin",
];

/// Identifies model and adapter by the content of their files, with what else says how they are
/// read.
pub(super) fn fingerprint(model: &Path, adapter: Option<&Path>, how: &[&str]) -> Result<String> {
    let mut all = Sha256::new();
    for part in how.iter().chain(&[env!("CARGO_PKG_VERSION")]) {
        all.update(part.as_bytes());
        all.update([0]);
    }
    for place in [Some(model), adapter] {
        all.update([1]);
        for file in place.map(files).transpose()?.unwrap_or_default() {
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            all.update(name.as_bytes());
            all.update(
                content(&file).with_context(|| format!("{}: cannot be read", file.display()))?,
            );
        }
    }
    let hexadecimal: String = all.finalize().iter().map(|b| format!("{b:02x}")).collect();
    Ok(format!("{}; {hexadecimal}", how.join("; ")))
}

/// Files of a folder, or the only one with its other parts; a model that is part of the program has
/// none.
fn files(place: &Path) -> Result<Vec<PathBuf>> {
    if place.is_file() {
        return Ok(files_of(place));
    }
    if !place.is_dir() {
        return Ok(Vec::new());
    }
    let entries =
        std::fs::read_dir(place).with_context(|| format!("{}: cannot be read", place.display()))?;
    let decides = |path: &PathBuf| {
        let ending = path
            .extension()
            .and_then(|e| e.to_str())
            .unwrap_or_default();
        path.is_file() && ENDINGS.contains(&ending)
    };
    let mut files: Vec<PathBuf> = entries
        .flatten()
        .map(|e| e.path())
        .filter(decides)
        .collect();
    files.sort();
    Ok(files)
}

/// SHA-256 of a file, read in pieces.
fn content(file: &Path) -> std::io::Result<[u8; 32]> {
    let (mut file, mut digest) = (File::open(file)?, Sha256::new());
    let mut piece = vec![0; 1 << 20];
    loop {
        match file.read(&mut piece)? {
            0 => return Ok(digest.finalize().into()),
            read => digest.update(&piece[..read]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_second_part_is_another_model() {
        let folder = tempfile::tempdir().unwrap();
        let part = |n: usize| folder.path().join(format!("m-{n:05}-of-00002.gguf"));
        for number in [1, 2] {
            std::fs::write(part(number), "weights").unwrap();
        }
        let of = |n| fingerprint(&part(n), None, &["m"]).unwrap();
        let before = of(1);
        assert_eq!(before, of(2));
        std::fs::write(part(2), "others!").unwrap();
        assert_ne!(before, of(1));
    }

    #[test]
    fn an_adapter_with_another_scale_is_another_model() {
        let folder = tempfile::tempdir().unwrap();
        let (model, adapter) = (folder.path().join("model"), folder.path().join("adapter"));
        for place in [&model, &adapter] {
            std::fs::create_dir(place).unwrap();
            std::fs::write(place.join("a.safetensors"), "weights").unwrap();
        }
        let settings = adapter.join("adapter_config.json");
        let write = |text: &str| {
            let time = std::time::SystemTime::UNIX_EPOCH;
            std::fs::write(&settings, text).unwrap();
            File::options()
                .write(true)
                .open(&settings)
                .unwrap()
                .set_modified(time)
                .unwrap();
        };
        let of = || fingerprint(&model, Some(&adapter), &["m", "none"]).unwrap();
        write("{\"lora_alpha\": 160}");
        let before = of();
        assert_eq!(before, of());
        // Neither size nor time tells the two apart.
        write("{\"lora_alpha\": 300}");
        let after = of();
        assert_ne!(before, after);
        std::fs::write(model.join("chat_template.jinja"), "x").unwrap();
        assert_ne!(after, of());
        assert_ne!(of(), fingerprint(&model, None, &["m", "none"]).unwrap());
        assert_ne!(
            of(),
            fingerprint(&model, Some(&adapter), &["m", "int8"]).unwrap()
        );
        let built_in = fingerprint(Path::new("no such folder"), None, &["builtin"]).unwrap();
        assert!(built_in.starts_with("builtin; "));
    }
}
