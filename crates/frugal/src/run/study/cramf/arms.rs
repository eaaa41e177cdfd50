//! The system whole and with parts left out.

use std::cell::RefCell;
use std::collections::HashMap;

use frugal_index::{Analyzer, Bm25, Bm25Index};
use frugal_retrieve::cramf::{
    Channels, ConceptAlone, ContextAugmenter, CosineReranker, Cramf, CramfError, CramfOptions,
    DictionaryExtractor, KnowledgeBase, SymbolChannel, TextEncoder, VectorChannel,
};

use super::{StudyError, StudyRequest};

/// What an arm has.
#[derive(Clone, Copy)]
pub(super) struct Arm {
    pub name: &'static str,
    /// Words alone.
    words: bool,
    concepts: bool,
    augmented: bool,
    channels: Channels,
    reranked: bool,
}

/// The whole system.
pub(super) const FULL: &str = "both channels, second look";

const WHOLE: Arm = Arm {
    name: FULL,
    words: false,
    concepts: true,
    augmented: true,
    channels: Channels::Both,
    reranked: true,
};

/// All arms; the whole system is the first.
pub(super) const ARMS: [Arm; 7] = [
    WHOLE,
    Arm {
        name: "BM25",
        words: true,
        ..WHOLE
    },
    Arm {
        name: "names",
        channels: Channels::Symbols,
        reranked: false,
        ..WHOLE
    },
    Arm {
        name: "descriptions",
        channels: Channels::Semantic,
        reranked: false,
        ..WHOLE
    },
    Arm {
        name: "both channels",
        reranked: false,
        ..WHOLE
    },
    Arm {
        name: "no augmentation",
        augmented: false,
        ..WHOLE
    },
    Arm {
        name: "no concepts",
        concepts: false,
        ..WHOLE
    },
];

/// An encoder that keeps the vectors of the texts that it has seen.
pub(super) struct Remembering<'a> {
    inner: &'a dyn TextEncoder,
    seen: RefCell<HashMap<String, Vec<f32>>>,
}

impl<'a> Remembering<'a> {
    pub fn new(inner: &'a dyn TextEncoder) -> Self {
        Self {
            inner,
            seen: RefCell::default(),
        }
    }
}

impl TextEncoder for Remembering<'_> {
    fn vectors(&self, texts: &[&str]) -> Result<(Vec<f32>, usize), CramfError> {
        let mut seen = self.seen.borrow_mut();
        let mut new: Vec<&str> = texts
            .iter()
            .copied()
            .filter(|text| !seen.contains_key(*text))
            .collect();
        new.sort_unstable();
        new.dedup();
        if !new.is_empty() {
            let (found, width) = self.inner.vectors(&new)?;
            for (text, row) in new.iter().zip(found.chunks_exact(width.max(1))) {
                seen.insert((*text).to_owned(), row.to_vec());
            }
        }
        let rows = texts.iter().filter_map(|text| seen.get(*text));
        let all: Vec<f32> = rows.flatten().copied().collect();
        let width = all.len() / texts.len().max(1);
        Ok((all, width))
    }
}

/// Everything that the arms search with.
pub(super) struct Searcher<'a> {
    base: &'a KnowledgeBase,
    extractor: DictionaryExtractor<'a>,
    context: ContextAugmenter<'a>,
    symbols: SymbolChannel,
    semantic: VectorChannel<'a>,
    reranker: CosineReranker<'a>,
    words: Bm25Index,
}

impl<'a> Searcher<'a> {
    /// Indexes a knowledge base.
    pub fn new(
        base: &'a KnowledgeBase,
        encoder: &'a dyn TextEncoder,
        request: &StudyRequest<'_>,
    ) -> Result<Self, StudyError> {
        let semantic = VectorChannel::new(base, encoder, &mut |_| request.check().is_ok());
        let semantic = semantic.map_err(|error| match request.check() {
            Ok(()) => StudyError::arm("descriptions", error),
            Err(stopped) => stopped,
        })?;
        let mut words = Bm25Index::new(Analyzer::English);
        base.definitions().iter().for_each(|d| words.add(&d.text()));
        Ok(Self {
            base,
            extractor: DictionaryExtractor::new(base),
            context: ContextAugmenter::new(base),
            symbols: SymbolChannel::new(base),
            semantic,
            reranker: CosineReranker(encoder),
            words,
        })
    }

    /// Definitions for a text, the best first.
    pub fn find(&self, arm: Arm, text: &str) -> Result<Vec<u32>, CramfError> {
        let options = CramfOptions {
            channels: arm.channels,
            ..CramfOptions::default()
        };
        if arm.words {
            let found = self
                .words
                .search(text, options.per_statement, Bm25::default())?;
            return Ok(found.into_iter().map(|(id, _)| id as u32).collect());
        }
        let cramf = Cramf {
            base: self.base,
            extractor: arm.concepts.then_some(&self.extractor as _),
            augmenter: match arm.augmented {
                true => &self.context,
                false => &ConceptAlone,
            },
            symbols: &self.symbols,
            semantic: &self.semantic,
            reranker: arm.reranked.then_some(&self.reranker as _),
            options,
        };
        let found = cramf.retrieve(text)?;
        Ok(found.definitions.iter().map(|(id, _)| *id).collect())
    }
}
