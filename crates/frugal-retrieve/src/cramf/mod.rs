//! Concept retrieval (CRAMF): the definitions that a statement's concepts mean, found by their
//! symbols and by what they say.
//!
//! A [`KnowledgeBase`] holds the definitions of a library and the concepts that name them; one
//! concept may mean several. A statement goes through four steps, each behind a trait, so that a
//! language model can take it over: concepts are extracted ([`ConceptExtractor`]), each becomes a
//! query with its context ([`QueryAugmenter`]), symbol names ([`SymbolChannel`]) and descriptions
//! ([`SemanticChannel`]) are searched and joined by reciprocal ranks, and the joined list is ordered
//! anew ([`DefinitionReranker`]). [`prompt()`] puts the definitions in front of the statement, and
//! [`NameChecker`] counts how many names of the answer the library has.
//!
//! Source: Automated Formalization via Conceptual Retrieval-Augmented LLMs, arXiv 2508.06931. The
//! steps without a language model are ours; the paper's are prompts to large ones.

mod augment;
mod check;
mod concepts;
mod error;
mod identifier;
mod knowledge;
mod prompt;
mod retrieve;
mod semantic;
mod symbols;
#[cfg(test)]
mod tests;

pub use augment::{ConceptAlone, ContextAugmenter, QueryAugmenter};
pub use check::{CheckReport, Checker, NameChecker, any_and_share};
pub use concepts::{Concept, ConceptExtractor, DictionaryExtractor, Statement};
pub use error::CramfError;
pub use identifier::{identifiers, leaks, mask, name_key, words_of_name};
pub use knowledge::{Definition, KnowledgeBase, Repeated};
pub use prompt::{PromptOptions, prompt};
pub use retrieve::{Channels, ConceptResult, Cramf, CramfOptions, Retrieved};
pub use semantic::{
    CosineReranker, DefinitionReranker, SemanticChannel, TextEncoder, VectorChannel,
};
pub use symbols::SymbolChannel;
