//! Several adapters on one backbone: loaded, switched, disabled, combined, chosen per sequence.

use std::ops::Range;

use burn::prelude::*;
use frugal_kernels::LowRankRows;

use crate::heads::Head;
use crate::layers::{Embedding, Linear, Norm};
use crate::layout::SequenceLayout;
use crate::seam::adapter::Adapter;
use crate::seam::error::AdaptError;
use crate::seam::hooks::{LowRankChange, Pass, Plain, SubLayer};
use crate::seam::kept::Kept;
use crate::seam::parameter::Mode;

/// Which adapters act in a forward pass.
#[derive(Clone, Debug, PartialEq)]
pub enum Choice {
    /// None: the backbone as it is.
    Base,
    /// One.
    One(String),
    /// The weighted sum of several adapters' changes.
    Combined(Vec<(String, f32)>),
    /// One per sequence of the batch, `None` for the backbone as it is.
    PerSequence(Vec<Option<String>>),
}

/// An adapter with the head that was trained with it.
pub struct Entry {
    /// The method.
    pub adapter: Box<dyn Adapter>,
    /// Classification head.
    pub head: Option<Head>,
}

/// Adapters by name, on one backbone. Whole weights that a method forms ([`Adapter::forms_weight`])
/// are kept from one pass without gradients to the next, as long as the adapter is in the set.
#[derive(Default)]
pub struct AdapterSet {
    loaded: Vec<Loaded>,
}

struct Loaded {
    name: String,
    entry: Entry,
    kept: Kept,
}

impl Loaded {
    fn pass(&self, mode: Mode) -> Box<dyn Pass + '_> {
        let adapter = self.entry.adapter.as_ref();
        match mode {
            Mode::Eval => self.kept.pass(adapter),
            Mode::Train { .. } => adapter.pass(mode),
        }
    }
}

impl AdapterSet {
    /// Adds an adapter, or replaces the one of the same name.
    pub fn insert(&mut self, name: impl Into<String>, entry: Entry) {
        let name = name.into();
        self.loaded.retain(|loaded| loaded.name != name);
        self.loaded.push(Loaded {
            name,
            entry,
            kept: Kept::default(),
        });
    }

    /// Removes an adapter.
    pub fn remove(&mut self, name: &str) -> Option<Entry> {
        let index = self.loaded.iter().position(|loaded| loaded.name == name)?;
        Some(self.loaded.remove(index).entry)
    }

    /// Names in the order of insertion.
    pub fn names(&self) -> Vec<&str> {
        self.loaded
            .iter()
            .map(|loaded| loaded.name.as_str())
            .collect()
    }

    /// The adapter of this name.
    ///
    /// # Errors
    /// [`AdaptError::UnknownAdapter`] with the names that there are.
    pub fn get(&self, name: &str) -> Result<&Entry, AdaptError> {
        Ok(&self.find(name)?.entry)
    }

    fn find(&self, name: &str) -> Result<&Loaded, AdaptError> {
        let found = self.loaded.iter().find(|loaded| loaded.name == name);
        found.ok_or_else(|| AdaptError::UnknownAdapter {
            name: name.into(),
            loaded: self.names().join(", "),
        })
    }

    /// Hooks for a pass over a batch of this layout.
    ///
    /// # Errors
    /// Unknown names, a number of choices that differs from the number of sequences, a method that
    /// cannot be mixed.
    pub fn pass(
        &self,
        choice: &Choice,
        layout: &SequenceLayout,
        mode: Mode,
    ) -> Result<Box<dyn Pass + '_>, AdaptError> {
        match choice {
            Choice::Base => Ok(Box::new(Plain)),
            Choice::One(name) => Ok(self.find(name)?.pass(mode)),
            Choice::Combined(parts) => {
                let parts = parts
                    .iter()
                    .map(|(name, weight)| Ok((self.mixable(name)?.pass(mode), *weight)));
                Ok(Box::new(CombinedPass {
                    parts: parts.collect::<Result<_, AdaptError>>()?,
                }))
            }
            Choice::PerSequence(names) => {
                if names.len() != layout.sequences() {
                    return Err(AdaptError::Choices {
                        given: names.len(),
                        sequences: layout.sequences(),
                    });
                }
                let mut parts: Vec<Part<'_>> = Vec::new();
                for (i, (name, range)) in names
                    .iter()
                    .map(Option::as_deref)
                    .zip(layout.cu_seqlens.windows(2))
                    .enumerate()
                {
                    match parts.last_mut() {
                        Some(part) if part.name.as_deref() == name => {
                            (part.tokens.end, part.sequences.end) = (range[1], i + 1)
                        }
                        _ => {
                            let pass: Box<dyn Pass + '_> = match name {
                                Some(name) => self.mixable(name)?.pass(mode),
                                None => Box::new(Plain),
                            };
                            parts.push(Part {
                                name: name.map(str::to_owned),
                                pass,
                                tokens: range[0]..range[1],
                                sequences: i..i + 1,
                            });
                        }
                    }
                }
                Ok(Box::new(PerSequencePass { parts }))
            }
        }
    }

    fn mixable(&self, name: &str) -> Result<&Loaded, AdaptError> {
        let loaded = self.find(name)?;
        let adapter = loaded.entry.adapter.as_ref();
        if adapter.supports_mixed_batch() {
            return Ok(loaded);
        }
        Err(AdaptError::Unsupported {
            method: adapter.method(),
            action: "share a batch with other adapters",
            reason:
                "it changes the positions of a batch; run its sequences in a batch of their own"
                    .into(),
        })
    }
}

/// `base + Σ wᵢ (adaptedᵢ − base)`.
struct CombinedPass<'a> {
    parts: Vec<(Box<dyn Pass + 'a>, f32)>,
}

impl CombinedPass<'_> {
    fn combine<const D: usize>(
        &mut self,
        plain: Tensor<D>,
        mut adapted: impl FnMut(&mut dyn Pass) -> Tensor<D>,
    ) -> Tensor<D> {
        self.parts
            .iter_mut()
            .fold(plain.clone(), |sum, (pass, weight)| {
                let change = adapted(pass.as_mut()) - plain.clone();
                sum + change * *weight
            })
    }
}

impl Pass for CombinedPass<'_> {
    fn embedding(&mut self, base: &Embedding, ids: &[u32]) -> Tensor<2> {
        self.combine(base.forward(ids), |pass| pass.embedding(base, ids))
    }

    fn linear(&mut self, base: &Linear, x: Tensor<2>) -> Tensor<2> {
        self.combine(base.forward(x.clone()), |pass| pass.linear(base, x.clone()))
    }

    fn norm(&mut self, base: &Norm, x: Tensor<2>) -> Tensor<2> {
        self.combine(Plain.norm(base, x.clone()), |pass| {
            pass.norm(base, x.clone())
        })
    }

    fn plain_norm(&mut self, _base: &Norm) -> Option<(Tensor<1>, Option<Tensor<1>>)> {
        None
    }

    fn around(
        &mut self,
        layer: usize,
        part: SubLayer,
        input: &Tensor<2>,
        output: Tensor<2>,
    ) -> Tensor<2> {
        self.combine(output.clone(), |pass| {
            pass.around(layer, part, input, output.clone())
        })
    }

    fn plain_weight(&mut self, _base: &Linear) -> Option<Tensor<2>> {
        None
    }
}

/// Neighbouring sequences with the same adapter.
struct Part<'a> {
    name: Option<String>,
    pass: Box<dyn Pass + 'a>,
    tokens: Range<usize>,
    sequences: Range<usize>,
}

/// Each run of sequences goes through its own adapter.
struct PerSequencePass<'a> {
    parts: Vec<Part<'a>>,
}

impl PerSequencePass<'_> {
    /// The parts with their share of `rows` rows: one per sequence (heads), or one or several per
    /// token.
    fn shares(&mut self, rows: usize) -> impl Iterator<Item = (&mut dyn Pass, Range<usize>)> {
        let (sequences, tokens) = self
            .parts
            .last()
            .map_or((0, 0), |p| (p.sequences.end, p.tokens.end));
        self.parts.iter_mut().map(move |part| {
            let range = if rows == sequences {
                part.sequences.clone()
            } else {
                let per_token = rows / tokens;
                part.tokens.start * per_token..part.tokens.end * per_token
            };
            (part.pass.as_mut() as &mut dyn Pass, range)
        })
    }

    fn split(
        &mut self,
        rows: usize,
        mut each: impl FnMut(&mut dyn Pass, Range<usize>) -> Tensor<2>,
    ) -> Tensor<2> {
        Tensor::cat(
            self.shares(rows)
                .map(|(pass, range)| each(pass, range))
                .collect(),
            0,
        )
    }

    /// What the parts add to a map's own product, if none of them does more.
    fn low_rank_rows(&mut self, base: &Linear, rows: usize) -> Option<Vec<LowRankRows>> {
        let mut pairs = Vec::new();
        for (pass, rows) in self.shares(rows) {
            if !pass.leaves_alone(base) {
                let LowRankChange { a, b, scale } = pass.low_rank(base)?;
                pairs.push(LowRankRows { rows, a, b, scale });
            }
        }
        Some(pairs)
    }
}

impl Pass for PerSequencePass<'_> {
    fn rows_are_tokens(&self) -> bool {
        true
    }

    fn embedding(&mut self, base: &Embedding, ids: &[u32]) -> Tensor<2> {
        self.split(ids.len(), |pass, range| pass.embedding(base, &ids[range]))
    }

    fn linear(&mut self, base: &Linear, x: Tensor<2>) -> Tensor<2> {
        let rows = x.dims()[0];
        match self.low_rank_rows(base, rows) {
            Some(pairs) => base.forward_low_rank_rows(x, &pairs),
            None => self.split(rows, |pass, range| {
                pass.linear(base, x.clone().slice(range))
            }),
        }
    }

    fn norm(&mut self, base: &Norm, x: Tensor<2>) -> Tensor<2> {
        self.split(x.dims()[0], |pass, range| {
            pass.norm(base, x.clone().slice(range))
        })
    }

    fn plain_norm(&mut self, _base: &Norm) -> Option<(Tensor<1>, Option<Tensor<1>>)> {
        None
    }

    fn around(
        &mut self,
        layer: usize,
        part: SubLayer,
        input: &Tensor<2>,
        output: Tensor<2>,
    ) -> Tensor<2> {
        self.split(input.dims()[0], |pass, range| {
            pass.around(
                layer,
                part,
                &input.clone().slice(range.clone()),
                output.clone().slice(range),
            )
        })
    }

    fn plain_weight(&mut self, _base: &Linear) -> Option<Tensor<2>> {
        None
    }
}
