//! Which descriptions mean what a query means?

use super::error::CramfError;
use super::knowledge::KnowledgeBase;
use crate::{EmbedOptions, Encoder};

/// Texts to vectors.
pub trait TextEncoder {
    /// Vectors of length 1, by rows, and their width.
    ///
    /// # Errors
    /// Whatever the encoder meets.
    fn vectors(&self, texts: &[&str]) -> Result<(Vec<f32>, usize), CramfError>;
}

impl TextEncoder for Encoder {
    fn vectors(&self, texts: &[&str]) -> Result<(Vec<f32>, usize), CramfError> {
        let options = EmbedOptions {
            normalize: true,
            ..EmbedOptions::default()
        };
        let found = self.embed(texts, &options, &mut |_| true)?;
        Ok((found.values, found.dimension))
    }
}

/// Finds definitions by what they say.
pub trait SemanticChannel {
    /// The `n` best definitions for each query, the best first.
    ///
    /// # Errors
    /// Whatever the channel meets.
    fn search(&self, queries: &[&str], n: usize) -> Result<Vec<Vec<(u32, f64)>>, CramfError>;
}

/// Orders definitions anew by query and description.
pub trait DefinitionReranker {
    /// One score for each description; higher is better.
    ///
    /// # Errors
    /// Whatever the reranker meets.
    fn scores(&self, query: &str, descriptions: &[&str]) -> Result<Vec<f64>, CramfError>;
}

/// Exact search over the vectors of all descriptions.
pub struct VectorChannel<'a> {
    encoder: &'a dyn TextEncoder,
    vectors: Vec<f32>,
    dimension: usize,
}

impl<'a> VectorChannel<'a> {
    /// Embeds the descriptions. `progress` is told how many are done.
    ///
    /// # Errors
    /// Whatever the encoder meets.
    pub fn new(
        base: &KnowledgeBase,
        encoder: &'a dyn TextEncoder,
        progress: &mut dyn FnMut(usize) -> bool,
    ) -> Result<Self, CramfError> {
        let texts: Vec<String> = base.definitions().iter().map(|d| d.text()).collect();
        let (mut vectors, mut dimension, mut done) = (Vec::new(), 0, 0);
        for part in texts.chunks(512) {
            let part: Vec<&str> = part.iter().map(String::as_str).collect();
            let (found, width) = encoder.vectors(&part)?;
            vectors.extend(found);
            dimension = width;
            done += part.len();
            if !progress(done) {
                return Err(crate::RetrieveError::Interrupted.into());
            }
        }
        Self::of(base, encoder, vectors, dimension)
    }

    /// The channel of vectors that were made before, by rows.
    ///
    /// # Errors
    /// Vectors that are not one for each definition.
    pub fn of(
        base: &KnowledgeBase,
        encoder: &'a dyn TextEncoder,
        vectors: Vec<f32>,
        dimension: usize,
    ) -> Result<Self, CramfError> {
        let definitions = base.definitions().len();
        if dimension == 0 || vectors.len() != definitions * dimension {
            return Err(CramfError::Vectors {
                vectors: vectors.len() / dimension.max(1),
                dimension,
                definitions,
            });
        }
        Ok(Self {
            encoder,
            vectors,
            dimension,
        })
    }

    /// The vectors, by rows.
    #[must_use]
    pub fn vectors(&self) -> (&[f32], usize) {
        (&self.vectors, self.dimension)
    }
}

impl SemanticChannel for VectorChannel<'_> {
    fn search(&self, queries: &[&str], n: usize) -> Result<Vec<Vec<(u32, f64)>>, CramfError> {
        let (found, width) = self.encoder.vectors(queries)?;
        if width != self.dimension || found.len() != queries.len() * width {
            return Err(CramfError::Vectors {
                vectors: found.len() / width.max(1),
                dimension: width,
                definitions: queries.len(),
            });
        }
        let best = |query: &[f32]| {
            let rows = self.vectors.chunks_exact(self.dimension);
            let mut all: Vec<(u32, f64)> = (0u32..).zip(rows.map(|row| dot(query, row))).collect();
            let order = |a: &(u32, f64), b: &(u32, f64)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
            if n < all.len() && n > 0 {
                all.select_nth_unstable_by(n - 1, order);
            }
            all.truncate(n);
            all.sort_by(order);
            all
        };
        Ok(found.chunks_exact(width).map(best).collect())
    }
}

/// The cosine of query and description by an encoder: what is left without a cross-encoder.
pub struct CosineReranker<'a>(pub &'a dyn TextEncoder);

impl DefinitionReranker for CosineReranker<'_> {
    fn scores(&self, query: &str, descriptions: &[&str]) -> Result<Vec<f64>, CramfError> {
        let mut texts = vec![query];
        texts.extend(descriptions);
        let (vectors, width) = self.0.vectors(&texts)?;
        let mut rows = vectors.chunks_exact(width.max(1));
        let query = rows.next().unwrap_or_default();
        Ok(rows.map(|row| dot(query, row)).collect())
    }
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    f64::from(a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>())
}
