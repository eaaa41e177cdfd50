//! Running the program.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

/// What a run of the program did.
pub struct Run {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl From<Output> for Run {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().expect("the program was not killed"),
            stdout: String::from_utf8(output.stdout).expect("standard output is UTF-8"),
            stderr: String::from_utf8(output.stderr).expect("standard error is UTF-8"),
        }
    }
}

impl Run {
    /// Standard output as JSON; nothing else may be there.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|e| panic!("not one JSON value: {e}\n{}\n{}", self.stdout, self.stderr))
    }

    /// Asserts success.
    pub fn ok(self) -> Self {
        assert_eq!(self.code, 0, "{}\n{}", self.stdout, self.stderr);
        self
    }

    /// Asserts failure with one clean message that holds all of `words`.
    pub fn fails(self, words: &[&str]) -> Self {
        assert_eq!(self.code, 2, "{}\n{}", self.stdout, self.stderr);
        assert!(self.stdout.is_empty(), "output on failure: {}", self.stdout);
        let errors = self
            .stderr
            .lines()
            .filter(|line| line.starts_with("error: "))
            .count();
        assert_eq!(errors, 1, "{}", self.stderr);
        assert!(!self.stderr.contains("internal error"), "{}", self.stderr);
        for word in words {
            assert!(
                self.stderr.contains(word),
                "`{word}` is not in:\n{}",
                self.stderr
            );
        }
        self
    }
}

/// The program in a folder of its own, with an empty cache and no colours.
pub fn command(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_frugal"));
    command
        .current_dir(folder)
        .env("FRUGAL_CACHE", folder.join("cache"))
        .env("FRUGAL_OFFLINE", "1")
        .env_remove("FRUGAL_LOG")
        .env_remove("RUST_BACKTRACE");
    command
}

/// Runs the program in an empty folder.
pub fn frugal(args: &[&str]) -> Run {
    let folder = folder();
    frugal_in(folder.path(), args)
}

/// Runs the program in this folder.
pub fn frugal_in(folder: &Path, args: &[&str]) -> Run {
    command(folder)
        .args(args)
        .output()
        .expect("the program starts")
        .into()
}

/// An empty folder.
pub fn folder() -> TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

/// A committed file or folder.
pub fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../fixtures")
        .join(path)
        .canonicalize()
        .expect("the fixture is there")
}

/// A copy of a fixture's model in a folder of its own, to be changed.
pub fn model_copy(fixture_of: &str, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(fixture(fixture_of)).unwrap().flatten() {
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

/// Multiplies every weight of a model folder, which are in single precision, by 1.5.
pub fn change_weights(model: &Path) {
    let path = model.join("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    let start = 8 + usize::try_from(header).unwrap();
    let (values, _) = bytes[start..].as_chunks_mut::<4>();
    for value in values {
        *value = (1.5 * f32::from_le_bytes(*value)).to_le_bytes();
    }
    std::fs::write(path, bytes).unwrap();
}
