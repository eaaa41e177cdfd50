//! What can be wrong with a configuration.

use std::fmt;
use std::path::PathBuf;

use thiserror::Error;

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A configuration file.
    File {
        /// The file.
        path: PathBuf,
        /// Line, from 1, where it is known.
        line: Option<usize>,
        /// Column in characters, from 1; given for syntax errors.
        column: Option<usize>,
    },
    /// A command-line flag.
    Flag,
    /// An override, as typed.
    Override(String),
    /// No source: a key that is absent.
    None,
}

/// One mistake.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub struct ConfigError {
    /// Where it was written.
    pub origin: Origin,
    /// The dotted key, where there is one.
    pub key: Option<String>,
    /// What is wrong and what is accepted.
    pub message: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.origin {
            Origin::File { path, line, column } => {
                write!(f, "{}:", path.display())?;
                [line, column]
                    .into_iter()
                    .flatten()
                    .try_for_each(|n| write!(f, "{n}:"))?;
                write!(f, " ")?;
            }
            Origin::Flag => write!(f, "command line: ")?,
            Origin::Override(text) => write!(f, "override `{text}`: ")?,
            Origin::None => {}
        }
        if let Some(key) = &self.key {
            write!(f, "`{key}`: ")?;
        }
        f.write_str(&self.message)
    }
}

/// Every mistake of a configuration, one a line when displayed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub struct ConfigErrors(pub Vec<ConfigError>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, error) in self.0.iter().enumerate() {
            write!(f, "{}{error}", if i == 0 { "" } else { "\n" })?;
        }
        Ok(())
    }
}
