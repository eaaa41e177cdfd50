//! From what a run names to a task: one that is built in, or a file.

use std::path::{Path, PathBuf};

use super::EvalError;
use super::task::Task;
use super::yaml;
use frugal_core::suggest;

/// The tasks that need no file.
const BUILTIN: [(&str, &str); 7] = [
    ("gsm8k", include_str!("builtin/gsm8k.toml")),
    ("humaneval", include_str!("builtin/humaneval.toml")),
    ("humaneval_64", include_str!("builtin/humaneval_64.toml")),
    (
        "humaneval_instruct",
        include_str!("builtin/humaneval_instruct.toml"),
    ),
    (
        "multiple-choice",
        include_str!("builtin/multiple-choice.toml"),
    ),
    ("perplexity", include_str!("builtin/perplexity.toml")),
    ("sst2", include_str!("builtin/sst2.toml")),
];

impl Task {
    /// A built-in task.
    pub fn builtin(name: &str) -> Option<Result<Self, EvalError>> {
        BUILTIN
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(name, text)| Self::from_toml(text, name))
    }

    /// Names of the built-in tasks.
    pub fn names() -> impl Iterator<Item = &'static str> {
        BUILTIN.iter().map(|(name, _)| *name)
    }

    /// The task that `text` names: `NAME`, the path of a `.toml` file or of a `.yaml` of
    /// lm-evaluation-harness, each with `:FILE` behind it for data of one's own. Also says in which
    /// folder its data may be.
    ///
    /// # Errors
    /// Unknown names, files that are no tasks.
    pub fn find(text: &str) -> Result<(Self, Option<PathBuf>), EvalError> {
        let (name, file) = text
            .split_once(':')
            .map_or((text, None), |(name, file)| (name, Some(file)));
        let path = Path::new(name);
        let (mut task, folder) = match path.extension().and_then(|e| e.to_str()) {
            Some("toml") => {
                let bytes = frugal_core::fs::read_data(path)?;
                let toml = String::from_utf8(bytes).map_err(|_| EvalError::Task {
                    task: name.into(),
                    reason: "not UTF-8 text".into(),
                })?;
                (
                    Self::from_toml(&toml, name)?,
                    path.parent().map(Path::to_owned),
                )
            }
            Some("yaml" | "yml") => (yaml::read(path)?, path.parent().map(Path::to_owned)),
            _ => {
                let builtin = Self::builtin(name).ok_or_else(|| EvalError::UnknownTask {
                    name: name.into(),
                    suggestion: suggest::did_you_mean(name, Self::names()).map(str::to_owned),
                    known: Self::names().collect::<Vec<_>>().join(", "),
                })??;
                (builtin, None)
            }
        };
        if let Some(file) = file {
            task.source.test = file.into();
            if task.source.hub.path.is_empty() {
                task.source.fewshot.clear();
            }
        }
        if task.source.test.is_empty() && task.source.hub.path.is_empty() {
            return Err(EvalError::Task {
                task: name.into(),
                reason: format!("needs data: write `{name}:FILE`"),
            });
        }
        Ok((task, folder))
    }
}
