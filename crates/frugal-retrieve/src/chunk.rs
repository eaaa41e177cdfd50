//! Long documents in pieces that an encoder reads whole.

use std::ops::Range;

use frugal_index::Document;
use serde_json::json;

use crate::rag::{Chunker, Splitter, Units};

/// Metadata of a piece: the document that it is of.
pub const DOCUMENT: &str = "document";
/// Metadata of a piece: its number, from 0.
pub const CHUNK: &str = "chunk";

/// Where documents are cut.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ChunkMethod {
    /// With a paragraph where that leaves a piece at least half full, else with a sentence, else after
    /// a word.
    #[default]
    Boundary,
    /// As a splitter cuts.
    Split(Splitter),
}

/// How documents are cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkOptions {
    /// Most words of a piece.
    pub words: usize,
    /// Words that a piece repeats of the one before it; less than `words`.
    pub overlap: usize,
    /// Where they are cut.
    pub method: ChunkMethod,
}

/// The pieces of a document, in order: the document itself where it is one piece. Identifiers are the
/// document's with `#` and a number.
pub fn chunks(document: &Document, options: ChunkOptions) -> Vec<Document> {
    let most = options.words.max(1);
    let overlap = options.overlap.min(most - 1);
    let text = &document.text;
    let pieces = match options.method {
        ChunkMethod::Boundary => at_boundaries(text, most, overlap),
        ChunkMethod::Split(splitter) => {
            let chunker = Chunker::new(splitter, most, overlap);
            chunker.map_or_else(|_| Vec::new(), |c| c.cut(text, &Units::words(text)))
        }
    };
    if pieces.len() < 2 {
        return vec![document.clone()];
    }
    let pieces = pieces.into_iter().enumerate();
    pieces
        .map(|(i, bytes)| piece(document, i, &text[bytes]))
        .collect()
}

fn piece(document: &Document, number: usize, text: &str) -> Document {
    let mut metadata = document.metadata.clone();
    metadata.insert(DOCUMENT.into(), json!(document.id));
    metadata.insert(CHUNK.into(), json!(number));
    Document {
        id: format!("{}#{number}", document.id),
        title: document.title.clone(),
        text: text.to_owned(),
        metadata,
    }
}

fn at_boundaries(text: &str, most: usize, overlap: usize) -> Vec<Range<usize>> {
    let words = words(text);
    let mut found = Vec::new();
    let mut start = 0;
    while start < words.len() {
        let end = end(&words, start, most);
        found.push(words[start].start..words[end - 1].end);
        if end == words.len() {
            break;
        }
        // Every piece brings something new.
        start = end.saturating_sub(overlap).max(start + 1);
    }
    found
}

/// The document that a piece is of, or its own identifier.
pub fn document_of(document: &Document) -> &str {
    let whole = document.metadata.get(DOCUMENT).and_then(|id| id.as_str());
    whole.unwrap_or(&document.id)
}

struct Word {
    start: usize,
    end: usize,
    /// What ends with it.
    ends: Ends,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Ends {
    Word,
    Sentence,
    Paragraph,
}

fn words(text: &str) -> Vec<Word> {
    let mut found: Vec<Word> = Vec::new();
    for word in text.split_whitespace() {
        // `word` lies in `text`.
        let start = word.as_ptr() as usize - text.as_ptr() as usize;
        if let Some(last) = found.last_mut()
            && text[last.end..start].matches('\n').count() > 1
        {
            last.ends = Ends::Paragraph;
        }
        let bare = word.trim_end_matches(['"', '\'', ')', ']', '”', '’']);
        let ends = if bare.ends_with(['.', '!', '?', '。', '！', '？']) {
            Ends::Sentence
        } else {
            Ends::Word
        };
        found.push(Word {
            start,
            end: start + word.len(),
            ends,
        });
    }
    found
}

/// One past the last word of the piece that begins at `start`.
fn end(words: &[Word], start: usize, most: usize) -> usize {
    let limit = (start + most).min(words.len());
    if limit == words.len() {
        return limit;
    }
    let least = start + most.div_ceil(2);
    for ends in [Ends::Paragraph, Ends::Sentence] {
        let mut places = (least..=limit).rev();
        if let Some(end) = places.find(|end| words[end - 1].ends >= ends) {
            return end;
        }
    }
    limit
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(text: &str, words: usize, overlap: usize) -> Vec<String> {
        let document = Document::new("d", text);
        let found = chunks(
            &document,
            ChunkOptions {
                words,
                overlap,
                method: ChunkMethod::Boundary,
            },
        );
        found.into_iter().map(|piece| piece.text).collect()
    }

    #[test]
    fn pieces_end_with_paragraphs_then_sentences_then_words() {
        assert_eq!(cut("a b c", 3, 0), ["a b c"]);
        assert_eq!(cut("a b c d e", 2, 0), ["a b", "c d", "e"]);
        assert_eq!(cut("a b. c d e f", 3, 0), ["a b.", "c d e", "f"]);
        assert_eq!(
            cut("a b. c\n\nd e f", 4, 0),
            ["a b. c", "d e f"],
            "a paragraph before a sentence"
        );
        assert_eq!(cut("a b c d e f", 4, 2), ["a b c d", "c d e f"]);
    }

    #[test]
    fn every_word_is_in_a_piece_and_no_piece_is_too_long() {
        let text: String = (0..500)
            .map(|i| match i % 17 {
                0 => format!("w{i}.\n\n"),
                5 => format!("w{i}! "),
                _ => format!("w{i} "),
            })
            .collect();
        for (words, overlap) in [(1, 0), (7, 3), (40, 39), (64, 1000)] {
            let pieces = cut(&text, words, overlap);
            let mut seen: Vec<&str> = pieces.iter().flat_map(|p| p.split_whitespace()).collect();
            assert!(pieces.iter().all(|p| p.split_whitespace().count() <= words));
            seen.dedup();
            let mut next = 0;
            for word in seen {
                let number: usize = word[1..].trim_end_matches(['.', '!']).parse().unwrap();
                assert!(number <= next, "a gap before {number}");
                next = next.max(number + 1);
            }
            assert_eq!(next, 500);
        }
    }

    #[test]
    fn pieces_of_a_splitter_are_numbered_as_all_are() {
        let document = Document::new("d", "# A\none\n# B\ntwo");
        let options = ChunkOptions {
            words: 50,
            overlap: 0,
            method: ChunkMethod::Split(Splitter::Markdown),
        };
        let found = chunks(&document, options);
        let found: Vec<(&str, &str)> = found.iter().map(|p| (&*p.id, &*p.text)).collect();
        assert_eq!(found, [("d#0", "# A\none"), ("d#1", "# B\ntwo")]);
    }

    #[test]
    fn a_piece_knows_its_document() {
        let document = Document {
            title: "T".into(),
            ..Document::new("doc", "one two three")
        };
        let found = chunks(
            &document,
            ChunkOptions {
                words: 2,
                overlap: 0,
                method: ChunkMethod::Boundary,
            },
        );
        assert_eq!(found[1].id, "doc#1");
        assert_eq!(
            (found[1].title.as_str(), document_of(&found[1])),
            ("T", "doc")
        );
        assert_eq!(document_of(&document), "doc");
    }
}
