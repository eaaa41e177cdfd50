//! Descriptions and declarations in tokens.

use std::path::Path;

use frugal_core::data::objects;
use frugal_models::load::ModelFiles;
use frugal_nn::named_rng;
use rand::seq::SliceRandom;

use super::StudyError;

/// A description and its declaration.
pub(super) type Pair = [Vec<u32>; 2];

/// All pairs; the last quarter is for training encoders of our own.
pub(super) struct Corpus {
    pairs: Vec<Pair>,
    reserved: usize,
}

/// Pairs to train on, and pairs whose queries are searched among all of their passages.
pub(super) struct Pairs {
    pub training: Vec<Pair>,
    pub queries: usize,
    pub test: Vec<Pair>,
}

impl Corpus {
    /// Declarations with a description of at least five words, each description once.
    pub fn mathlib(path: &Path, files: &ModelFiles, length: usize) -> Result<Self, StudyError> {
        let bad = |reason: String| StudyError::Data {
            path: path.to_owned(),
            reason,
        };
        let bytes = std::fs::read(path).map_err(|e| bad(e.to_string()))?;
        let records = objects(path, &bytes).map_err(|e| bad(e.to_string()))?;
        let tokenizer = files.tokenizer().map_err(|e| bad(e.to_string()))?;
        let (mut seen, mut pairs) = (std::collections::HashSet::new(), Vec::new());
        for record in &records {
            let field = |name: &str| record.get(name).and_then(|v| v.as_str()).unwrap_or("");
            let (name, statement, doc) = (field("name"), field("statement"), field("doc"));
            // The name would give the declaration away.
            let code = statement.replacen(name, "", 1);
            let words = doc.split_whitespace().count();
            if words < 5 || code.trim().is_empty() || !seen.insert(doc.to_owned()) {
                continue;
            }
            let ids = |text: &str| {
                let cut = tokenizer.encode_cut(text, None, length);
                cut.map(|cut| cut.ids).map_err(|e| bad(e.to_string()))
            };
            pairs.push([ids(doc)?, ids(&code)?]);
        }
        let mut rng = named_rng(5, "iaa corpus");
        pairs.shuffle(&mut rng);
        let reserved = pairs.len() - pairs.len() / 4;
        if reserved < 10 {
            return Err(bad(
                "has fewer than ten declarations with a description".into()
            ));
        }
        Ok(Self { pairs, reserved })
    }

    /// Pairs of this seed.
    pub fn draw(
        &self,
        seed: u64,
        training: usize,
        queries: usize,
        passages: usize,
    ) -> Result<Pairs, StudyError> {
        let mut all: Vec<&Pair> = self.pairs[..self.reserved].iter().collect();
        all.shuffle(&mut named_rng(seed, "iaa pairs"));
        if all.len() < training + passages {
            let reason = format!(
                "there are {} pairs, and {} are needed",
                all.len(),
                training + passages
            );
            return Err(StudyError::arm("data", reason));
        }
        let take = |pairs: &[&Pair]| pairs.iter().map(|pair| (*pair).clone()).collect();
        Ok(Pairs {
            training: take(&all[..training]),
            queries,
            test: take(&all[training..training + passages]),
        })
    }

    /// At most so many pairs that no seed draws.
    pub fn reserved(&self, most: usize) -> Pairs {
        let pairs = &self.pairs[self.reserved..];
        Pairs {
            training: pairs[..most.min(pairs.len())].to_vec(),
            queries: 0,
            test: Vec::new(),
        }
    }
}
