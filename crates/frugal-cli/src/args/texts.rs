//! Texts that a command reads: from its flags, or from a file.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;
use frugal_core::data::{self, Documents, LoadOptions, TextRecord};

/// Texts by flags or in a file.
#[derive(Clone, Debug, Args)]
pub struct Texts {
    /// Text to read; repeatable
    #[arg(
        long = "text",
        short,
        value_name = "TEXT",
        help_heading = "Data",
        required_unless_present = "data",
        conflicts_with = "data"
    )]
    pub texts: Vec<String>,
    /// File of texts (JSONL, JSON, CSV, TSV, text or Parquet, perhaps .gz or .zst), or - for
    /// standard input
    #[arg(long, short, value_name = "FILE", help_heading = "Data")]
    pub data: Option<PathBuf>,
    /// Which column plays which role, for example text=sentence; repeatable
    #[arg(long = "column", value_name = "ROLE=NAME", value_parser = super::pair, conflicts_with = "texts", help_heading = "Data")]
    pub column: Vec<(String, String)>,
}

impl Texts {
    /// The columns of the file by their roles.
    ///
    /// # Errors
    /// A role that is given twice.
    pub fn columns(&self) -> Result<BTreeMap<String, String>> {
        super::columns(&self.column)
    }

    /// Those of the flags, as records of one line each.
    pub fn given(&self) -> impl Iterator<Item = TextRecord> + '_ {
        self.texts.iter().enumerate().map(|(i, text)| TextRecord {
            line: i + 1,
            text: text.clone(),
            text_pair: None,
            tokens: text.split_whitespace().map(str::to_owned).collect(),
            label: None,
        })
    }

    /// All of them. Each line of a text file is a text of its own, as it comes.
    ///
    /// # Errors
    /// A file that cannot be read, or that has no text.
    pub fn read(&self) -> Result<Vec<TextRecord>> {
        let Some(file) = &self.data else {
            return Ok(self.given().collect());
        };
        let options = LoadOptions {
            columns: self.columns()?,
            documents: Some(Documents::Lines),
            ..LoadOptions::default()
        };
        let mut found = Vec::new();
        data::texts(file, &options, &mut |record| {
            found.push(record);
            true
        })?;
        if found.is_empty() {
            bail!("{}: no texts", file.display());
        }
        Ok(found)
    }
}
