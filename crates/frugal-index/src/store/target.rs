//! Addresses of stores.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use super::error::StoreError;

/// Which program keeps the vectors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreKind {
    /// A folder.
    Embedded(PathBuf),
    /// PostgreSQL, by its connection string.
    Postgres(String),
    /// Chroma, by the address of its server.
    Chroma(String),
    /// Qdrant, by the address of its server.
    Qdrant(String),
}

/// A store and the name of a collection in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreTarget {
    /// The program.
    pub kind: StoreKind,
    /// Name of the table or collection: letters, digits and `_`, 3 to 48 of them.
    pub collection: String,
}

/// The name where none is given.
const DEFAULT: &str = "frugal";

impl FromStr for StoreTarget {
    type Err = StoreError;

    fn from_str(text: &str) -> Result<Self, StoreError> {
        let wrong = |problem: &str| StoreError::Address {
            text: redacted(text),
            problem: problem.into(),
        };
        let Some((scheme, _)) = text.split_once("://") else {
            return match text.is_empty() {
                true => Err(wrong("an address is missing")),
                false => Ok(Self {
                    kind: StoreKind::Embedded(text.into()),
                    collection: String::new(),
                }),
            };
        };
        let (address, collection) = match text.split_once('#') {
            Some((address, name)) => (address, name),
            None => (text, DEFAULT),
        };
        let letter = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let named = (3..=48).contains(&collection.len())
            && collection.chars().all(letter)
            && collection.starts_with(|c: char| c.is_ascii_alphabetic());
        if !named {
            return Err(wrong(
                "the name behind `#` must have 3 to 48 letters, digits or `_`, a letter first",
            ));
        }
        let server = || {
            let (_, server) = address.split_once('+').unwrap_or_default();
            match server
                .split_once("://")
                .is_some_and(|(_, host)| !host.is_empty())
            {
                true => Ok(server.trim_end_matches('/').to_owned()),
                false => Err(wrong("the host is missing")),
            }
        };
        let kind = match scheme {
            "postgres" | "postgresql" => StoreKind::Postgres(address.to_owned()),
            "chroma+http" | "chroma+https" => StoreKind::Chroma(server()?),
            "qdrant+http" | "qdrant+https" => StoreKind::Qdrant(server()?),
            _ => {
                let problem = format!(
                    "there is no store behind `{scheme}://`; there is `postgres://`, `chroma+http://`, `chroma+https://`, `qdrant+http://` and `qdrant+https://`"
                );
                return Err(wrong(&problem));
            }
        };
        Ok(Self {
            kind,
            collection: collection.to_owned(),
        })
    }
}

impl fmt::Display for StoreTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = &self.collection;
        match &self.kind {
            StoreKind::Embedded(folder) => write!(f, "{}", folder.display()),
            StoreKind::Postgres(address) => write!(f, "{}#{name}", redacted(address)),
            StoreKind::Chroma(server) => write!(f, "chroma+{}#{name}", redacted(server)),
            StoreKind::Qdrant(server) => write!(f, "qdrant+{}#{name}", redacted(server)),
        }
    }
}

/// An address without its password.
pub(super) fn redacted(address: &str) -> String {
    let Some((scheme, rest)) = address.split_once("://") else {
        return address.to_owned();
    };
    let rest = match rest.split_once('@') {
        Some((user, host)) => match user.split_once(':') {
            Some((user, _)) => format!("{user}:***@{host}"),
            None => rest.to_owned(),
        },
        None => rest.to_owned(),
    };
    let shown = match rest.split_once("password=") {
        Some((before, after)) => {
            let end = after.find('&').unwrap_or(after.len());
            format!("{before}password=***{}", &after[end..])
        }
        None => rest,
    };
    format!("{scheme}://{shown}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_shown_without_passwords() {
        let read = |text: &str| text.parse::<StoreTarget>().unwrap();
        let found = read("postgres://me:secret@host:5432/db?password=x&a=b#papers");
        assert_eq!(found.collection, "papers");
        assert_eq!(
            found.kind,
            StoreKind::Postgres("postgres://me:secret@host:5432/db?password=x&a=b".into())
        );
        assert_eq!(
            found.to_string(),
            "postgres://me:***@host:5432/db?password=***&a=b#papers"
        );
        let found = read("chroma+http://localhost:8000/");
        assert_eq!(
            found.kind,
            StoreKind::Chroma("http://localhost:8000".into())
        );
        assert_eq!(found.to_string(), "chroma+http://localhost:8000#frugal");
        let found = read("qdrant+https://q.example#a_1");
        assert_eq!(found.kind, StoreKind::Qdrant("https://q.example".into()));
        assert_eq!(
            read("some/folder").kind,
            StoreKind::Embedded("some/folder".into())
        );
        for text in [
            "",
            "mysql://host",
            "chroma+http://",
            "postgres://h/d#a b",
            "postgres://h/d#\"; DROP",
            "postgres://h/d#1ab",
            "postgres://h/d#",
        ] {
            assert!(text.parse::<StoreTarget>().is_err(), "{text}");
        }
        let error = "x://me:secret@host".parse::<StoreTarget>().unwrap_err();
        assert!(!error.to_string().contains("secret"), "{error}");
    }
}
