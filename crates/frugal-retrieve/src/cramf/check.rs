//! Is a piece of code right?

use super::error::CramfError;
use super::identifier::{identifiers, name_key};
use super::knowledge::KnowledgeBase;

/// What a checker says; `None` where it cannot tell.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CheckReport {
    /// Whether the code parses.
    pub parses: Option<bool>,
    /// Whether all names are known.
    pub resolves: Option<bool>,
    /// Whether it says what the statement says.
    pub semantically_ok: Option<bool>,
    /// Names of the library that the code uses, or means to.
    pub names: usize,
    /// Those of them that there are.
    pub valid: usize,
}

impl CheckReport {
    /// The share of names that there are; `None` without names.
    #[must_use]
    pub fn validity(&self) -> Option<f64> {
        (self.names > 0).then(|| self.valid as f64 / self.names as f64)
    }
}

/// Checks code: a compiler, a proof assistant, or a list of names.
pub trait Checker {
    /// The version of the library that it knows.
    fn library_version(&self) -> &str;

    /// Checks a piece of code.
    ///
    /// # Errors
    /// Whatever the checker meets.
    fn check(&self, code: &str) -> Result<CheckReport, CramfError>;
}

/// Looks names up in a knowledge base: what is left of compiling without a compiler.
pub struct NameChecker<'a> {
    base: &'a KnowledgeBase,
    version: String,
    /// Words of the language, which are no names of the library.
    pub keywords: &'a [&'a str],
}

impl<'a> NameChecker<'a> {
    /// A checker for code against this version of the library.
    ///
    /// # Errors
    /// A knowledge base of another version.
    pub fn new(
        base: &'a KnowledgeBase,
        version: &str,
        keywords: &'a [&'a str],
    ) -> Result<Self, CramfError> {
        base.check_version(version)?;
        Ok(Self {
            base,
            version: version.to_owned(),
            keywords,
        })
    }

    /// Whether the library has the name, or a definition whose last parts it is.
    fn known(&self, name: &str) -> bool {
        let key = format!(".{}", name_key(name));
        !self.base.named(name).is_empty()
            || self
                .base
                .definitions()
                .iter()
                .any(|definition| name_key(&definition.name).ends_with(&key))
    }
}

impl Checker for NameChecker<'_> {
    fn library_version(&self) -> &str {
        &self.version
    }

    /// Names of at most two characters are taken for variables.
    fn check(&self, code: &str) -> Result<CheckReport, CramfError> {
        let names: Vec<&str> = identifiers(code)
            .into_iter()
            .filter(|name| name.chars().count() > 2 && !self.keywords.contains(name))
            .collect();
        let valid = names.iter().filter(|name| self.known(name)).count();
        Ok(CheckReport {
            resolves: Some(valid == names.len()),
            names: names.len(),
            valid,
            ..CheckReport::default()
        })
    }
}

/// The share of statements of which any sample is right, and the mean share of right samples; `None`
/// without statements.
#[must_use]
pub fn any_and_share(samples: &[Vec<bool>]) -> Option<(f64, f64)> {
    let n = samples.len() as f64;
    if samples.is_empty() {
        return None;
    }
    let any = samples.iter().filter(|s| s.contains(&true)).count() as f64;
    let share = |s: &Vec<bool>| s.iter().filter(|ok| **ok).count() as f64 / s.len().max(1) as f64;
    Some((any / n, samples.iter().map(share).sum::<f64>() / n))
}
