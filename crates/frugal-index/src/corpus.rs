//! Documents from files: BEIR folders, JSON lines, tables, folders of text and Markdown.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use frugal_core::data::{lines, records};
use serde_json::{Map, Value};

use crate::document::Document;
use crate::error::IndexError;

/// How a corpus is read. The default finds out by itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CorpusOptions {
    /// Our name of a field (`id`, `title`, `text`) to its name in the file.
    pub columns: BTreeMap<String, String>,
}

/// What was read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CorpusReport {
    /// Documents that were handed over.
    pub documents: usize,
    /// Documents without title and text, which were left out: nothing could find them.
    pub empty: Vec<Skipped>,
}

/// A document that was left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// Its identifier.
    pub id: String,
    /// Its file.
    pub path: PathBuf,
    /// Its line, from 1.
    pub line: usize,
}

/// Names under which well-known collections have a field, the usual one first.
const IDS: [&str; 5] = ["_id", "id", "docid", "doc_id", "docno"];
const TITLES: [&str; 1] = ["title"];
const TEXTS: [&str; 7] = [
    "text", "contents", "content", "body", "passage", "abstract", "segment",
];
/// Files of a folder that are texts.
const TEXT_FILES: [&str; 4] = ["txt", "text", "md", "markdown"];
/// How deep folders may lie in each other.
const DEEPEST: usize = 64;

/// Hands the documents of a file or folder to `take`, one after another.
///
/// - a folder with `corpus.jsonl`, perhaps packed: BEIR's;
/// - `.jsonl`, `.json`, `.csv`, `.tsv`, `.parquet`, perhaps packed: one document a record, with an
///   identifier (`_id`, `id`, ...), a text (`text`, `contents`, ...) and perhaps a title; all other
///   fields are metadata;
/// - another folder: its text and Markdown files at any depth, hidden ones left out, each a document
///   with its path in the folder as identifier; a Markdown file's first heading is its title;
/// - one text or Markdown file.
///
/// # Errors
/// Names the file and the line of what is wrong: no or repeated identifiers, fields of other kinds,
/// nothing to read; what `take` returns ends the reading.
pub fn read_corpus<E: From<IndexError>>(
    path: &Path,
    options: &CorpusOptions,
    mut take: impl FnMut(Document) -> Result<(), E>,
) -> Result<CorpusReport, E> {
    let mut reader = Reader::new(options, &mut take)?;
    if path.is_dir() {
        match beir_file(path, "corpus") {
            Some(file) => reader.records(&file)?,
            None => reader.folder(path)?,
        }
    } else if is_text(path) {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        reader.text(path, name.into_owned())?;
    } else {
        reader.records(path)?;
    }
    let report = reader.report;
    if report.documents == 0 {
        let problem = match report.empty.len() {
            0 => "no document in it".to_owned(),
            empty => format!("none of its {empty} documents has a title or a text"),
        };
        return Err(E::from(IndexError::Corpus {
            path: path.into(),
            problem,
        }));
    }
    Ok(report)
}

/// Reads queries, in their order: identifier and text. From a BEIR folder, `queries.jsonl`; from a
/// file, one query a record, with the fields of a document; from `.tsv` without column names,
/// identifier and text.
///
/// # Errors
/// As [`read_corpus`]; an empty query.
pub fn read_queries(path: &Path) -> Result<Vec<(String, String)>, IndexError> {
    let file = match path.is_dir() {
        true => beir_file(path, "queries").ok_or_else(|| IndexError::Corpus {
            path: path.into(),
            problem: "no `queries.jsonl` in this folder".into(),
        })?,
        false => path.to_owned(),
    };
    let mut found: Vec<(String, String)> = Vec::new();
    let mut seen = Seen::default();
    let mut push = |line: usize, id: String, text: String| {
        seen.check(&file, line, &id)?;
        if text.trim().is_empty() {
            let problem = format!("the query `{id}` is empty");
            return Err(IndexError::record(&file, line, problem));
        }
        found.push((id, text));
        Ok(())
    };
    if is_plain_table(&file)? {
        lines(&file, |line, text| match text.split_once('\t') {
            _ if text.trim().is_empty() => Ok(()),
            Some((id, text)) => push(line, id.trim().into(), text.trim().into()),
            None => Err(IndexError::record(
                &file,
                line,
                "expected an identifier, a tab and the query",
            )),
        })?;
    } else {
        let names = [
            ("id", with(&IDS, &["query_id", "qid", "query-id"])),
            ("text", with(&TEXTS, &["query", "question"])),
        ];
        records(&file, |line, mut fields| {
            let [id, text] = names.clone().map(|(field, known)| {
                take_text(&file, line, &mut fields, field, &known, field == "id")
            });
            let id = id?.ok_or_else(|| absent(&file, line, "identifier", &names[0].1, &fields))?;
            let text = text?.ok_or_else(|| absent(&file, line, "text", &names[1].1, &fields))?;
            push(line, id, text)
        })?;
    }
    if found.is_empty() {
        return Err(IndexError::Corpus {
            path: file,
            problem: "no query in it".into(),
        });
    }
    Ok(found)
}

/// Whether a `.tsv` file has no row of column names: its first row names no field of a query.
fn is_plain_table(file: &Path) -> Result<bool, IndexError> {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    if !(name.ends_with(".tsv") || name.contains(".tsv.")) {
        return Ok(false);
    }
    let mut first = None;
    lines::<IndexError>(file, |_, line| {
        first.get_or_insert_with(|| line.to_lowercase());
        Ok(())
    })?;
    let first = first.unwrap_or_default();
    let mut cells = first.split('\t').map(str::trim);
    Ok(!cells.any(|cell| TEXTS.contains(&cell) || ["query", "question"].contains(&cell)))
}

fn with(names: &[&'static str], more: &[&'static str]) -> Vec<&'static str> {
    names.iter().chain(more).copied().collect()
}

fn beir_file(folder: &Path, stem: &str) -> Option<PathBuf> {
    let names = ["jsonl", "jsonl.gz", "jsonl.zst"].map(|end| format!("{stem}.{end}"));
    let mut files = names.iter().map(|name| folder.join(name));
    files.find(|file| file.is_file())
}

fn is_text(path: &Path) -> bool {
    let extension = path.extension().unwrap_or_default().to_string_lossy();
    TEXT_FILES.contains(&extension.to_lowercase().as_str())
}

fn is_markdown(path: &Path) -> bool {
    let extension = path.extension().unwrap_or_default().to_string_lossy();
    ["md", "markdown"].contains(&extension.to_lowercase().as_str())
}

/// Identifiers that were used, with their places.
#[derive(Default)]
struct Seen {
    files: Vec<PathBuf>,
    ids: HashMap<String, (usize, usize)>,
}

impl Seen {
    fn check(&mut self, path: &Path, line: usize, id: &str) -> Result<(), IndexError> {
        if id.is_empty() {
            return Err(IndexError::record(path, line, "the identifier is empty"));
        }
        if self.files.last().is_none_or(|last| last != path) {
            self.files.push(path.into());
        }
        match self.ids.get(id) {
            Some((file, first)) => Err(IndexError::DuplicateId {
                path: path.into(),
                line,
                id: id.into(),
                first: format!("{}:{first}", self.files[*file].display()),
            }),
            None => {
                self.ids.insert(id.into(), (self.files.len() - 1, line));
                Ok(())
            }
        }
    }
}

struct Reader<'a, E> {
    take: &'a mut dyn FnMut(Document) -> Result<(), E>,
    /// Names of each field that are looked for.
    names: [(&'static str, Vec<String>); 3],
    seen: Seen,
    report: CorpusReport,
}

impl<'a, E: From<IndexError>> Reader<'a, E> {
    fn new(
        options: &CorpusOptions,
        take: &'a mut dyn FnMut(Document) -> Result<(), E>,
    ) -> Result<Self, IndexError> {
        let known = ["id", "title", "text"];
        if let Some(other) = options
            .columns
            .keys()
            .find(|k| !known.contains(&k.as_str()))
        {
            return Err(IndexError::Name {
                kind: "field of a document",
                name: other.clone(),
                known: "`id`, `title` and `text`; every other column is metadata".into(),
            });
        }
        let names = |field: &'static str, usual: &[&str]| match options.columns.get(field) {
            Some(column) => (field, vec![column.clone()]),
            None => (field, usual.iter().map(|name| (*name).to_owned()).collect()),
        };
        Ok(Self {
            take,
            names: [
                names("id", &IDS),
                names("title", &TITLES),
                names("text", &TEXTS),
            ],
            seen: Seen::default(),
            report: CorpusReport::default(),
        })
    }

    fn records(&mut self, path: &Path) -> Result<(), E> {
        let mut outer = None;
        let read = records(path, |line, fields| {
            let document = self.document(path, line, fields)?;
            self.push(path, line, document).map_err(|error| {
                outer = Some(error);
                // Ends the reading; the error beside it is the one that is returned.
                IndexError::EmptyId
            })
        });
        match outer {
            Some(error) => Err(error),
            None => Ok(read?),
        }
    }

    fn document(
        &self,
        path: &Path,
        line: usize,
        mut fields: Map<String, Value>,
    ) -> Result<Document, IndexError> {
        let [(_, ids), (_, titles), (_, texts)] = &self.names;
        let id = take_text(path, line, &mut fields, "id", &slices(ids), true)?;
        let title = take_text(path, line, &mut fields, "title", &slices(titles), false)?;
        let text = take_text(path, line, &mut fields, "text", &slices(texts), false)?;
        let id = id.ok_or_else(|| absent(path, line, "identifier", &slices(ids), &fields))?;
        let text = text.ok_or_else(|| absent(path, line, "text", &slices(texts), &fields))?;
        // BEIR keeps further fields in an object of this name, which is often empty.
        if let Some(Value::Object(inner)) = fields.get("metadata") {
            let inner = inner.clone();
            fields.shift_remove("metadata");
            for (name, value) in inner {
                fields.entry(name).or_insert(value);
            }
        }
        fields.retain(|_, value| !value.is_null());
        Ok(Document {
            id,
            title: title.unwrap_or_default(),
            text,
            metadata: fields,
        })
    }

    fn push(&mut self, path: &Path, line: usize, document: Document) -> Result<(), E> {
        self.seen.check(path, line, &document.id)?;
        if document.is_blank() {
            self.report.empty.push(Skipped {
                id: document.id,
                path: path.into(),
                line,
            });
            return Ok(());
        }
        self.report.documents += 1;
        (self.take)(document)
    }

    fn folder(&mut self, folder: &Path) -> Result<(), E> {
        let mut files = Vec::new();
        text_files(folder, 0, &mut files)?;
        files.sort();
        for file in files {
            let inside = file.strip_prefix(folder).unwrap_or(&file);
            let parts: Vec<_> = inside.iter().map(|p| p.to_string_lossy()).collect();
            self.text(&file, parts.join("/"))?;
        }
        Ok(())
    }

    fn text(&mut self, path: &Path, id: String) -> Result<(), E> {
        let mut text = String::new();
        lines::<IndexError>(path, |_, line| {
            text.push_str(line);
            text.push('\n');
            Ok(())
        })?;
        let text = text.trim_end().to_owned();
        let title = match is_markdown(path) {
            true => heading(&text),
            false => String::new(),
        };
        let document = Document {
            id,
            title,
            text,
            metadata: Map::new(),
        };
        self.push(path, 1, document)
    }
}

fn slices(names: &[String]) -> Vec<&str> {
    names.iter().map(String::as_str).collect()
}

/// Text of the first Markdown heading outside code.
fn heading(text: &str) -> String {
    let mut code = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            code = !code;
        }
        let title = line.trim_start_matches('#');
        let marks = line.len() - title.len();
        if !code && (1..=6).contains(&marks) && title.starts_with(' ') {
            return title.trim().trim_end_matches('#').trim().to_owned();
        }
    }
    String::new()
}

fn text_files(folder: &Path, depth: usize, files: &mut Vec<PathBuf>) -> Result<(), IndexError> {
    let failed = |source| {
        IndexError::File(frugal_core::fs::FileError {
            path: folder.into(),
            action: "cannot read the folder",
            source,
        })
    };
    if depth > DEEPEST {
        return Err(IndexError::Corpus {
            path: folder.into(),
            problem: format!("folders lie more than {DEEPEST} deep in each other"),
        });
    }
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let kind = entry.file_type().map_err(failed)?;
        if entry.file_name().to_string_lossy().starts_with('.') {
            continue;
        }
        let path = entry.path();
        // A link to a folder may lead back to where it came from.
        if kind.is_dir() {
            text_files(&path, depth + 1, files)?;
        } else if is_text(&path) && path.is_file() {
            files.push(path);
        }
    }
    Ok(())
}

/// Takes the first of these fields out of a record as text.
fn take_text(
    path: &Path,
    line: usize,
    fields: &mut Map<String, Value>,
    field: &str,
    names: &[&str],
    numbers: bool,
) -> Result<Option<String>, IndexError> {
    let Some(name) = names.iter().find(|name| fields.contains_key(**name)) else {
        return Ok(None);
    };
    match fields.shift_remove(*name) {
        Some(Value::String(text)) => Ok(Some(text)),
        Some(Value::Number(number)) if numbers => Ok(Some(number.to_string())),
        Some(Value::Null) if field == "title" => Ok(None),
        Some(Value::Array(parts)) if field == "text" => {
            let parts: Option<Vec<&str>> = parts.iter().map(Value::as_str).collect();
            parts.map(|parts| Some(parts.join(" "))).ok_or_else(|| {
                IndexError::record(
                    path,
                    line,
                    format!("`{name}` must be a text or a list of texts"),
                )
            })
        }
        _ => Err(IndexError::record(
            path,
            line,
            format!("`{name}` must be a text"),
        )),
    }
}

fn absent(
    path: &Path,
    line: usize,
    what: &str,
    names: &[&str],
    fields: &Map<String, Value>,
) -> IndexError {
    let known = names.join("`, `");
    let found: Vec<&str> = fields.keys().map(String::as_str).take(12).collect();
    let role = if what == "identifier" { "id" } else { "text" };
    let separator = match found.as_slice() {
        [only] => [';', '|', '\t', ',']
            .into_iter()
            .find(|c| only.contains(*c)),
        _ => None,
    };
    let hint = match separator {
        Some(c) => format!(
            "its columns seem to be separated by {c:?}: separate them by commas in a .csv file, by tabs in a .tsv file, or map a field, as in `{role}=FIELD`"
        ),
        None => format!("map one, as in `{role}=FIELD`"),
    };
    let found = found.join("`, `");
    IndexError::record(
        path,
        line,
        format!("no {what}: expected a field `{known}`, found `{found}`; {hint}"),
    )
}

#[cfg(test)]
mod tests;
