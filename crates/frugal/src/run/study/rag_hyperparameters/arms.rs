//! Ways to cut documents.

/// Tokens of all passages of a prompt together, so that larger chunks do not simply bring more text.
pub(super) const CONTEXT: usize = 512;
/// Most tokens of a semantic chunk: what the encoder reads.
pub(super) const SEMANTIC_SIZE: usize = 256;

/// Questions of a seed: for rankings, and for answers.
pub(super) const RANKED: usize = 100;
pub(super) const ANSWERED: usize = 10;

/// Where documents are cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cutter {
    Fixed,
    Recursive,
    /// Above this percentile of the distances of sentences.
    Semantic(u8),
}

/// A chunker with its size in tokens and its overlap as a share of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Arm {
    pub(super) cutter: Cutter,
    pub(super) size: usize,
    pub(super) overlap: f64,
}

impl Arm {
    pub(super) fn name(&self) -> String {
        match self.cutter {
            Cutter::Fixed => format!("fixed {} overlap {:.0} %", self.size, 100.0 * self.overlap),
            Cutter::Recursive => {
                format!(
                    "recursive {} overlap {:.0} %",
                    self.size,
                    100.0 * self.overlap
                )
            }
            Cutter::Semantic(q) => format!("semantic {q} up to {}", self.size),
        }
    }

    pub(super) fn overlap_tokens(&self) -> usize {
        (self.overlap * self.size as f64).round() as usize
    }
}

/// All arms, or the least number that has each chunker.
pub(super) fn arms(smoke: bool) -> Vec<Arm> {
    let arm = |cutter, size, overlap| Arm {
        cutter,
        size,
        overlap,
    };
    let semantic = [95, 80].map(|q| arm(Cutter::Semantic(q), SEMANTIC_SIZE, 0.0));
    if smoke {
        let few = [Cutter::Fixed, Cutter::Recursive].map(|cutter| arm(cutter, 128, 0.0));
        return few
            .into_iter()
            .chain(semantic.into_iter().take(1))
            .collect();
    }
    let mut all = Vec::new();
    for cutter in [Cutter::Fixed, Cutter::Recursive] {
        for size in [64, 128, 256, 512] {
            all.extend([0.0, 0.1, 0.25].map(|overlap| arm(cutter, size, overlap)));
        }
    }
    all.extend(semantic);
    all
}
