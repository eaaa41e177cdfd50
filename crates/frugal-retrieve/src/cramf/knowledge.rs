//! The definitions of a library, and the concepts that mean them.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::sync::LazyLock;

use frugal_core::fs::{FileError, write_atomic};
use frugal_index::Analyzer;
use regex::Regex;
use serde::{Deserialize, Serialize};

use super::error::CramfError;
use super::identifier::{name_key, words_of_name};

/// A definition with its description; each has one of both.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Definition {
    /// Full name.
    pub name: String,
    /// What it is: `def`, `class`, `function`.
    #[serde(default)]
    pub kind: String,
    /// File or module.
    #[serde(default, alias = "file")]
    pub module: String,
    /// Its code: statement, or names and kinds of its arguments.
    #[serde(alias = "statement")]
    pub signature: String,
    /// What it is, in words.
    #[serde(default)]
    pub doc: String,
}

impl Definition {
    /// The last part of its name.
    #[must_use]
    pub fn last_name(&self) -> &str {
        self.name.rsplit('.').next().unwrap_or(&self.name)
    }

    /// Its domain: the first folder of its module.
    #[must_use]
    pub fn domain(&self) -> &str {
        let module = self.module.trim_end_matches(".lean");
        let mut parts = module.split(['/', '.']).filter(|part| !part.is_empty());
        let first = parts.next().unwrap_or_default();
        // All of a Python library stands under its own name.
        match module.contains('/') {
            true => first,
            false => parts.next().unwrap_or(first),
        }
    }

    /// What the semantic channel reads.
    #[must_use]
    pub fn text(&self) -> String {
        format!("{}: {}", words_of_name(&self.name).join(" "), self.doc)
    }
}

/// A name that stood in the same module before; the first one counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repeated {
    /// The name.
    pub name: String,
    /// The module.
    pub module: String,
}

/// Definitions and concepts of one version of a library.
#[derive(Clone, Debug, PartialEq)]
pub struct KnowledgeBase {
    version: String,
    definitions: Vec<Definition>,
    /// Terms of a concept, joined by spaces, and the definitions that it may mean.
    concepts: BTreeMap<String, Vec<u32>>,
    by_key: HashMap<String, Vec<u32>>,
}

/// The first line of a file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    library_version: String,
}

impl KnowledgeBase {
    /// The knowledge base of these definitions. A definition without a description is described by the
    /// words of its name.
    ///
    /// # Errors
    /// No definitions, or some without a name or code.
    pub fn new(
        version: impl Into<String>,
        definitions: Vec<Definition>,
    ) -> Result<(Self, Vec<Repeated>), CramfError> {
        let (mut kept, mut repeated) = (Vec::with_capacity(definitions.len()), Vec::new());
        let mut seen = HashSet::new();
        for (index, mut definition) in definitions.into_iter().enumerate() {
            let lacks = |field| CramfError::Incomplete {
                index,
                name: definition.name.clone(),
                field,
            };
            if words_of_name(&definition.name).is_empty() {
                return Err(lacks("name"));
            }
            if definition.signature.trim().is_empty() {
                return Err(lacks("signature"));
            }
            if !seen.insert((definition.name.clone(), definition.module.clone())) {
                repeated.push(Repeated {
                    name: definition.name,
                    module: definition.module,
                });
                continue;
            }
            if definition.doc.trim().is_empty() {
                definition.doc = words_of_name(&definition.name).join(" ");
            }
            kept.push(definition);
        }
        if kept.is_empty() {
            return Err(CramfError::Empty);
        }
        let mut base = Self {
            version: version.into(),
            definitions: kept,
            concepts: BTreeMap::new(),
            by_key: HashMap::new(),
        };
        base.name_concepts();
        Ok((base, repeated))
    }

    fn name_concepts(&mut self) {
        for (index, definition) in (0u32..).zip(&self.definitions) {
            let key = name_key(&definition.name);
            self.by_key.entry(key).or_default().push(index);
            let mut names: Vec<String> = concept_names(definition)
                .iter()
                .map(|name| Analyzer::English.terms(name).join(" "))
                .filter(|terms| terms.len() > 1)
                .collect();
            if names.is_empty() {
                names.push(words_of_name(&definition.name).join(" "));
            }
            names.sort_unstable();
            names.dedup();
            for name in names {
                self.concepts.entry(name).or_default().push(index);
            }
        }
    }

    /// The version of the library.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.version
    }

    /// All definitions, in their order.
    #[must_use]
    pub fn definitions(&self) -> &[Definition] {
        &self.definitions
    }

    /// Concepts by their terms, and the definitions that each may mean.
    #[must_use]
    pub fn concepts(&self) -> &BTreeMap<String, Vec<u32>> {
        &self.concepts
    }

    /// The definitions of a name, in any spelling.
    #[must_use]
    pub fn named(&self, name: &str) -> &[u32] {
        self.by_key.get(&name_key(name)).map_or(&[], Vec::as_slice)
    }

    /// Refuses a checker of another version.
    ///
    /// # Errors
    /// [`CramfError::Version`].
    pub fn check_version(&self, checker: &str) -> Result<(), CramfError> {
        if self.version == checker {
            return Ok(());
        }
        Err(CramfError::Version {
            knowledge: self.version.clone(),
            checker: checker.to_owned(),
        })
    }

    /// Writes JSON lines: the version, then a definition a line.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), CramfError> {
        let header = Header {
            library_version: self.version.clone(),
        };
        let mut lines = vec![serde_json::to_string(&header)];
        lines.extend(self.definitions.iter().map(serde_json::to_string));
        let lines: Result<Vec<String>, _> = lines.into_iter().collect();
        let lines = lines.map_err(|error| CramfError::Other(error.into()))?;
        write_atomic(path, (lines.join("\n") + "\n").as_bytes())?;
        Ok(())
    }

    /// Reads what [`KnowledgeBase::save`] has written.
    ///
    /// # Errors
    /// A file that cannot be read, and lines that are something else.
    pub fn open(path: &Path) -> Result<(Self, Vec<Repeated>), CramfError> {
        let text = std::fs::read_to_string(path).map_err(FileError::at(path, "cannot read"))?;
        let wrong = |line: usize, reason: String| CramfError::Line {
            path: path.to_owned(),
            line,
            reason,
        };
        let mut lines = text.lines().enumerate();
        let (_, first) = lines
            .next()
            .ok_or_else(|| wrong(1, "the file is empty".into()))?;
        let header: Header = serde_json::from_str(first)
            .map_err(|e| wrong(1, format!("the first line has no `library_version`: {e}")))?;
        let definitions = lines
            .filter(|(_, line)| !line.trim().is_empty())
            .map(|(i, line)| serde_json::from_str(line).map_err(|e| wrong(i + 1, e.to_string())))
            .collect::<Result<Vec<Definition>, _>>()?;
        Self::new(header.library_version, definitions)
    }
}

/// "A foo bar is ...", "The foo bar of ...": what a description says that it describes.
static SUBJECT: LazyLock<Option<Regex>> = LazyLock::new(|| {
    let end = "is|are|of|on|in|between|from|over|for|to|with|which|that";
    Regex::new(&format!(
        r"^(?:A|An|The)\s+([A-Za-z][A-Za-z -]{{2,40}}?)\s+(?:{end})\b"
    ))
    .ok()
});

/// Names of what a definition defines: the last part of its name, that with the part in front of it
/// on either side, and the subject of its description.
fn concept_names(definition: &Definition) -> Vec<String> {
    let parts: Vec<String> = definition
        .name
        .split('.')
        .map(|part| words_of_name(part).join(" "))
        .collect();
    let mut names = Vec::new();
    if let Some((last, front)) = parts.split_last() {
        names.push(last.clone());
        if let Some(before) = front.last() {
            names.push(format!("{last} {before}"));
            names.push(format!("{before} {last}"));
        }
    }
    let subject = SUBJECT.as_ref().and_then(|s| s.captures(&definition.doc));
    names.extend(subject.map(|found| found[1].to_owned()));
    names
}
