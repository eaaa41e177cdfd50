//! Bringing an index up to date with a corpus.

use std::collections::HashSet;
use std::fmt;
use std::path::Path;

use frugal_core::fs::write_atomic;
use frugal_index::{Document, Index, IndexError, Settings, Writer, read_corpus};

use crate::chunk::{chunks, document_of};
use crate::collection::{Ann, BuildOptions, BuildReport, ENCODER_FILE, StoredEncoder, identity};
use crate::{Encoder, EncoderRequest, RetrieveError};

/// Texts that are embedded together.
const BATCH: usize = 256;
/// Documents between two commits: what an interrupted run may have to do again.
const COMMIT: usize = 4096;

/// Refuses what is asked for otherwise than an index has it.
fn check_settings(
    folder: &Path,
    made: &Settings,
    options: &BuildOptions,
    encoders: Option<(&StoredEncoder, &StoredEncoder)>,
) -> Result<(), RetrieveError> {
    let differs = |setting, made: &dyn fmt::Display, asked: &dyn fmt::Display| {
        let (made, asked) = (made.to_string(), asked.to_string());
        match made == asked {
            true => Ok(()),
            false => Err(RetrieveError::OtherSetting {
                folder: folder.into(),
                setting,
                made,
                asked,
            }),
        }
    };
    if let Some(analyzer) = options.analyzer {
        differs("the analyzer", &made.analyzer, &analyzer)?;
    }
    if let (Some(encoding), Some(encoder)) = (options.encoding, &made.encoder) {
        differs("vectors stored as", &encoder.encoding, &encoding)?;
    }
    if let Some(ann) = options.ann {
        differs("the search of vectors", &Ann::of(made.hnsw), &ann)?;
    }
    let Some((a, b)) = encoders else {
        return Ok(());
    };
    let all = || "all".to_owned();
    let dim = |of: &StoredEncoder| of.truncate_dim.map_or_else(all, |dim| dim.to_string());
    let text = |text: &str| format!("{text:?}");
    let prompts = [&a.document_prompt, &b.document_prompt].map(|prompt| text(prompt));
    differs("the document prompt", &prompts[0], &prompts[1])?;
    let prompts = [&a.query_prompt, &b.query_prompt].map(|prompt| text(prompt));
    differs("the query prompt", &prompts[0], &prompts[1])?;
    differs("a number of dimensions of", &dim(a), &dim(b))?;
    differs("a longest text in tokens of", &a.max_length, &b.max_length)
}

/// Brings an index up to date with a corpus: what is new is added, what has changed replaced, what
/// is there left alone, so that an interrupted run is continued by running it again. The index is
/// made if there is none. `progress` is told how many more documents are done, and ends the work
/// after the next commit by answering false.
///
/// # Errors
/// Anything wrong with the corpus, the index or the encoder; another encoder than the index was made
/// with.
pub fn build(
    folder: &Path,
    corpus: &Path,
    encoder: Option<(&Encoder, &EncoderRequest)>,
    options: &BuildOptions,
    progress: &mut dyn FnMut(usize) -> bool,
) -> Result<BuildReport, RetrieveError> {
    // What is not said of an index that is there is as it was; without the file, which can be written
    // again, the model says it.
    let kept = StoredEncoder::read(folder).unwrap_or_default();
    let options = &options.over(kept.as_ref());
    let stored = encoder.map(|(encoder, request)| StoredEncoder::of(encoder, request, options));
    let known = encoder
        .zip(stored.as_ref())
        .map(|((encoder, _), stored)| {
            identity(encoder, stored, options.encoding.unwrap_or_default())
        })
        .transpose()?;
    let open = match Index::open(folder) {
        Ok(index) => {
            if index.settings().encoder.is_some() || known.is_some() {
                let asked = known.as_ref().ok_or_else(|| RetrieveError::NeedsEncoder {
                    folder: folder.into(),
                })?;
                let made = index.settings().encoder.as_ref();
                // Other weights are another model; another prompt or length is a setting.
                let own = |e: &frugal_index::Encoder| {
                    e.fingerprint.split('\u{1f}').next().map(str::to_owned)
                };
                if made.is_some_and(|made| own(made) == own(asked)) {
                    let encoders = kept.as_ref().zip(stored.as_ref());
                    check_settings(folder, index.settings(), options, encoders)?;
                }
                index.check_encoder(asked)?;
            }
            check_settings(folder, index.settings(), options, None)?;
            let writer = index.writer()?;
            Some(Open { index, writer })
        }
        Err(IndexError::NotAnIndex { .. }) => {
            Index::check_free(folder)?;
            None
        }
        Err(error) => return Err(error.into()),
    };
    let is_new = open.is_none();
    let had_folder = folder.exists();
    let mut work = Work {
        folder,
        settings: Settings {
            analyzer: options.analyzer.unwrap_or_default(),
            encoder: known,
            hnsw: options.ann.and_then(Ann::hnsw),
        },
        open,
        encoder: encoder.map(|(encoder, _)| encoder).zip(stored),
        waiting: Vec::new(),
        seen: HashSet::new(),
        report: BuildReport::default(),
        since_commit: 0,
        progress,
    };
    if !is_new {
        work.keep_encoder()?;
    }
    let done = work.run(corpus, options);
    if is_new && work.open.take().is_some() {
        // What failed or was ended before its first commit leaves nothing.
        if matches!(Index::discard_empty(folder), Ok(true)) {
            let _ = std::fs::remove_file(folder.join(ENCODER_FILE));
            if !had_folder {
                let _ = std::fs::remove_dir(folder);
            }
        }
    }
    done.map(|()| work.report)
}

/// An index and the right to write to it.
struct Open {
    index: Index,
    writer: Writer,
}

/// Indexing in progress.
struct Work<'a> {
    folder: &'a Path,
    /// Of the index, where it is to be made.
    settings: Settings,
    /// Nothing before the first documents of a new index are there, so that a corpus that cannot be
    /// read leaves no folder.
    open: Option<Open>,
    encoder: Option<(&'a Encoder, StoredEncoder)>,
    waiting: Vec<Document>,
    seen: HashSet<String>,
    report: BuildReport,
    since_commit: usize,
    progress: &'a mut dyn FnMut(usize) -> bool,
}

impl Work<'_> {
    fn run(&mut self, corpus: &Path, options: &BuildOptions) -> Result<(), RetrieveError> {
        let read = read_corpus(corpus, &options.corpus, |document| {
            let pieces = match options.chunk {
                Some(chunk) => chunks(&document, chunk),
                None => vec![document],
            };
            pieces.into_iter().try_for_each(|piece| self.take(piece))
        });
        match read {
            Ok(read) => {
                self.report.empty = read.empty.into_iter().map(|skipped| skipped.id).collect();
            }
            Err(RetrieveError::Interrupted) => self.report.interrupted = true,
            Err(error) => return Err(error),
        }
        self.finish(options.prune)
    }

    /// The encoder beside the index, to be found again.
    fn keep_encoder(&self) -> Result<(), RetrieveError> {
        if let Some((_, stored)) = &self.encoder {
            let text = serde_json::to_string_pretty(stored).unwrap_or_default();
            let path = self.folder.join(ENCODER_FILE);
            write_atomic(&path, format!("{text}\n").as_bytes())?;
        }
        Ok(())
    }

    /// The index, made if there is none.
    fn opened(&mut self) -> Result<&mut Open, RetrieveError> {
        if self.open.is_none() {
            let index = Index::create(self.folder, self.settings.clone())?;
            let writer = index.writer()?;
            self.open = Some(Open { index, writer });
            self.keep_encoder()?;
        }
        match &mut self.open {
            Some(open) => Ok(open),
            None => Err(RetrieveError::NothingCommitted {
                folder: self.folder.into(),
            }),
        }
    }

    fn there(&self, id: &str) -> Result<Option<Document>, RetrieveError> {
        match &self.open {
            Some(open) => Ok(open.index.document(id)?),
            None => Ok(None),
        }
    }

    fn take(&mut self, document: Document) -> Result<(), RetrieveError> {
        self.seen.insert(document.id.clone());
        let there = self.there(&document.id)?;
        if there.as_ref() == Some(&document) {
            self.report.unchanged += 1;
            return self.done(1);
        }
        match there {
            Some(_) => self.report.updated += 1,
            None => self.report.added += 1,
        }
        self.waiting.push(document);
        if self.waiting.len() < BATCH {
            return Ok(());
        }
        self.flush()
    }

    fn done(&mut self, count: usize) -> Result<(), RetrieveError> {
        match (self.progress)(count) {
            true => Ok(()),
            false => Err(RetrieveError::Interrupted),
        }
    }

    fn flush(&mut self) -> Result<(), RetrieveError> {
        let documents = std::mem::take(&mut self.waiting);
        if documents.is_empty() {
            return Ok(());
        }
        let vectors = match &self.encoder {
            None => None,
            Some((encoder, stored)) => {
                let texts: Vec<String> = documents.iter().map(Document::title_and_text).collect();
                let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
                let options = stored.options(encoder, &stored.document_prompt);
                let found = encoder.embed(&texts, &options, &mut |_| true)?;
                self.report.truncated += found.truncated;
                Some(found)
            }
        };
        // From here on there is something to keep, also where the work is to end.
        let _ = (self.progress)(0);
        let open = self.opened()?;
        for (i, document) in documents.iter().enumerate() {
            let vector = vectors.as_ref().and_then(|found| found.rows().nth(i));
            open.writer.update(document, vector)?;
        }
        self.since_commit += documents.len();
        if self.since_commit >= COMMIT {
            self.since_commit = 0;
            self.opened()?.writer.commit()?;
        }
        self.done(documents.len())
    }

    /// Whether what is there is a document, or a piece of one, that now is in other pieces.
    fn was_cut_otherwise(&self, id: &str) -> Result<bool, RetrieveError> {
        let Some(there) = self.there(id)? else {
            return Ok(false);
        };
        let whole = document_of(&there);
        let first = format!("{whole}#0");
        Ok(self.seen.contains(&first) || (whole != id && self.seen.contains(whole)))
    }

    fn finish(&mut self, prune: bool) -> Result<(), RetrieveError> {
        if !self.report.interrupted {
            match self.flush() {
                Err(RetrieveError::Interrupted) => self.report.interrupted = true,
                other => other?,
            }
        }
        let ids = match &self.open {
            Some(open) if !self.report.interrupted => open.index.document_ids()?,
            _ => Vec::new(),
        };
        for id in ids {
            if !self.seen.contains(&id) && (prune || self.was_cut_otherwise(&id)?) {
                let deleted = self.opened()?.writer.delete(&id)?;
                self.report.deleted += usize::from(deleted);
            }
        }
        match &mut self.open {
            Some(open) => Ok(open.writer.commit()?),
            None => Ok(()),
        }
    }
}
