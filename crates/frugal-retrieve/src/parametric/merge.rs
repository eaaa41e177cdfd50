//! Several documents as one change.

use burn::prelude::*;
use serde::{Deserialize, Serialize};

use super::error::ParametricError;
use super::weights::{DocumentWeights, Factors};

/// How the parameters of several documents become one change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Merge {
    /// The exact sum `Σ B_k A_k`, of rank Σ r_k: factors side by side (PRAG).
    #[default]
    Sum,
    /// The sum divided by the number of documents.
    MeanDelta,
    /// The product of the means of B and of A, of rank r: with terms `B_i A_j` across documents
    /// (DyPRAG's official code).
    MeanFactors,
}

impl Merge {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Sum, Self::MeanDelta, Self::MeanFactors];

    /// Its name in settings.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sum => "sum",
            Self::MeanDelta => "mean_delta",
            Self::MeanFactors => "mean_factors",
        }
    }
}

/// One change of several documents' parameters.
///
/// # Errors
/// No document, documents of different models, ranks that differ where factors are averaged.
pub fn merge(
    documents: &[&DocumentWeights],
    how: Merge,
) -> Result<DocumentWeights, ParametricError> {
    let Some(first) = documents.first() else {
        return Err(ParametricError::Merge("there is no document".into()));
    };
    if documents.len() == 1 {
        return Ok((*first).clone());
    }
    let ranks: Vec<usize> = documents.iter().map(|document| document.rank).collect();
    if how == Merge::MeanFactors && ranks.iter().any(|rank| *rank != first.rank) {
        return Err(ParametricError::Merge(format!(
            "factors of ranks {ranks:?} have no mean"
        )));
    }
    let count = documents.len() as f32;
    let mut factors = Vec::with_capacity(first.factors.len());
    for place in 0..first.factors.len() {
        let mut parts = Vec::with_capacity(documents.len());
        for document in documents {
            let pair = document.factors.get(place).filter(|pair| {
                let (own, other) = (pair, &first.factors[place]);
                own.a.dims()[1] == other.a.dims()[1] && own.b.dims()[0] == other.b.dims()[0]
            });
            parts.push(pair.cloned().ok_or_else(|| {
                ParametricError::Merge(format!("pair {place} is of another model"))
            })?);
        }
        factors.push(match how {
            Merge::Sum => side_by_side(parts, 1.0),
            Merge::MeanDelta => side_by_side(parts, 1.0 / count),
            Merge::MeanFactors => mean(parts, count),
        });
    }
    if documents
        .iter()
        .any(|document| document.factors.len() != factors.len())
    {
        return Err(ParametricError::Merge(
            "the documents were made for different models".into(),
        ));
    }
    Ok(DocumentWeights {
        rank: match how {
            Merge::MeanFactors => first.rank,
            Merge::Sum | Merge::MeanDelta => ranks.iter().sum(),
        },
        factors,
    })
}

fn side_by_side(parts: Vec<Factors>, weight: f32) -> Factors {
    let (a, b): (Vec<Tensor<2>>, Vec<Tensor<2>>) =
        parts.into_iter().map(|pair| (pair.a, pair.b)).unzip();
    let b = Tensor::cat(b, 1);
    Factors {
        a: Tensor::cat(a, 0),
        b: if weight == 1.0 { b } else { b * weight },
    }
}

fn mean(parts: Vec<Factors>, count: f32) -> Factors {
    let sum = parts.into_iter().reduce(|sum, pair| Factors {
        a: sum.a + pair.a,
        b: sum.b + pair.b,
    });
    let Factors { a, b } = sum.expect("there is at least one document");
    Factors {
        a: a / count,
        b: b / count,
    }
}
