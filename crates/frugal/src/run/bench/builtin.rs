//! Suites that are compiled in.

use std::path::Path;

use frugal_eval::suite::Suite;

use super::BenchError;
use super::kind::BenchKind;

/// A suite that is compiled in.
#[derive(Clone, Copy, Debug)]
pub struct BuiltinSuite {
    /// The comparison that takes it.
    pub kind: BenchKind,
    /// Its name.
    pub name: &'static str,
    text: &'static str,
}

impl BuiltinSuite {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self {
            kind: BenchKind::Efficiency,
            name: "efficientllm",
            text: include_str!("../../../../../benchmarks/efficientllm/suite.toml"),
        },
        Self {
            kind: BenchKind::Pretrain,
            name: "step-law",
            text: include_str!("../../../../../benchmarks/step-law/suite.toml"),
        },
        Self {
            kind: BenchKind::Adapt,
            name: "text-decoder",
            text: include_str!("../../../../../benchmarks/suites/text-decoder.toml"),
        },
        Self {
            kind: BenchKind::Adapt,
            name: "text-generation",
            text: include_str!("../../../../../benchmarks/suites/text-generation.toml"),
        },
        Self {
            kind: BenchKind::Adapt,
            name: "text-encoder",
            text: include_str!("../../../../../benchmarks/suites/text-encoder.toml"),
        },
    ];

    /// The suite.
    ///
    /// # Errors
    /// A text that is no suite.
    pub fn open(&self) -> Result<Suite, BenchError> {
        Ok(Suite::parse(Path::new(self.name), self.text)?)
    }
}

/// A built-in suite by its name, or one from a file.
///
/// # Errors
/// A name that is neither, or a file that is no suite.
pub fn open_suite(name: &str) -> Result<Suite, BenchError> {
    if let Some(known) = BuiltinSuite::ALL.iter().find(|known| known.name == name) {
        return known.open();
    }
    let path = Path::new(name);
    if !path.exists() {
        return Err(BenchError::UnknownSuite {
            name: name.to_owned(),
            known: BuiltinSuite::ALL.map(|known| known.name).join(", "),
        });
    }
    Ok(Suite::read(path)?)
}

/// What a suite is called: its name or its file's, or that of the folder of a `suite.toml`.
pub fn suite_title(path: &Path) -> String {
    let name = |path: &Path| path.file_stem().map(|s| s.to_string_lossy().into_owned());
    let own = name(path).unwrap_or_default();
    if own == "suite" {
        path.parent().and_then(name).unwrap_or(own)
    } else {
        own
    }
}

#[cfg(test)]
mod tests {
    use super::super::planned::check;
    use super::*;

    #[test]
    fn suites_are_called_by_file_or_folder() {
        let titles = [
            "text-encoder",
            "a/mine.toml",
            "benchmarks/mos/suite.toml",
            "suite.toml",
        ]
        .map(|p| suite_title(Path::new(p)));
        assert_eq!(titles, ["text-encoder", "mine", "mos", "suite"]);
    }

    #[test]
    fn built_in_suites_can_be_run() {
        for builtin in BuiltinSuite::ALL {
            let name = builtin.name;
            for job in builtin.open().unwrap().jobs(Path::new("nowhere")) {
                check(&job, &[]).unwrap_or_else(|e| panic!("{name}: {}: {e}", job.name));
            }
        }
    }
}
