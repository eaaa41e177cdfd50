//! The change of a tensor of candidates.

use burn::prelude::*;
use burn::tensor::IndexingUpdateOp;
use frugal_nn::{GradientSum, Mode, Parameter, to_vec};

use crate::methods::sparse::id3::config::{Criterion, Id3Config, Schedule};
use crate::methods::sparse::id3::select::{random, score, smallest_first};
use crate::support::by_site::HasParameters;

/// How the change of a layer is held.
pub(crate) enum Change {
    /// While weights are chosen: all of them, and which were released.
    Dense {
        delta: Parameter,
        released: Vec<bool>,
    },
    /// From a file: row and column `[n, 2]` and value `[n]` of each released weight.
    Sparse {
        places: Parameter,
        values: Parameter,
    },
}

/// A tensor of candidates; a vector is a matrix of one row.
pub(crate) struct Site {
    pub(crate) path: String,
    pub(crate) d_in: usize,
    pub(crate) d_out: usize,
    /// The frozen weight `[d_out, d_in]`; absent when planning.
    pub(crate) base: Option<Tensor<2>>,
    pub(crate) change: Change,
}

impl Site {
    pub(crate) fn len(&self) -> usize {
        self.d_in * self.d_out
    }

    /// `[d_out, d_in]`.
    pub(crate) fn delta(&self, mode: Mode) -> Tensor<2> {
        match &self.change {
            Change::Dense { delta, .. } => delta.get::<2>(mode),
            Change::Sparse { places, values } => {
                let values = values.get::<1>(mode);
                // A damaged file must not reach outside the matrix.
                let (d_in, last) = (self.d_in, self.len() - 1);
                let at = |row: f32, column: f32| {
                    (row as usize)
                        .saturating_mul(d_in)
                        .saturating_add(column as usize)
                        .min(last)
                };
                let flat: Vec<i64> = places
                    .to_vec()
                    .chunks_exact(2)
                    .map(|p| at(p[0], p[1]) as i64)
                    .collect();
                let device = values.device().inner();
                let indices =
                    Tensor::<1, Int>::from_data(TensorData::from(flat.as_slice()), &device);
                let zeros = Tensor::<1>::zeros([self.len()], &device);
                zeros
                    .select_assign(0, indices, values, IndexingUpdateOp::Add)
                    .reshape([self.d_out, self.d_in])
            }
        }
    }

    /// Score of every element that is still frozen, not a number for the others; empty where the
    /// score needs a gradient and there is none.
    pub(crate) fn scores(
        &self,
        gradients: &GradientSum,
        config: &Id3Config,
        seed: u64,
    ) -> Vec<f32> {
        let Change::Dense { delta, released } = &self.change else {
            return Vec::new();
        };
        let Some(base) = &self.base else {
            return Vec::new();
        };
        // Frozen elements are those of the base.
        let weights = || to_vec(base.clone());
        let mut scores: Vec<f32> = match (config.criterion, gradients.get(delta.name())) {
            (Criterion::Pafi, _) => weights().into_iter().map(smallest_first).collect(),
            (Criterion::Random, _) => random(seed, &self.path, self.len()),
            (Criterion::D3, None) => Vec::new(),
            (Criterion::D3, Some(gradient)) => gradient
                .iter()
                .zip(weights())
                .map(|(&g, w)| score(g, w, config.exp, config.eps))
                .collect(),
        };
        for (score, _) in scores.iter_mut().zip(released).filter(|(_, taken)| **taken) {
            *score = f32::NAN;
        }
        scores
    }

    /// The same with the released weights alone; `None` where there is none.
    pub(crate) fn released_only(&self, schedule: Schedule, device: &Device) -> Option<Self> {
        let Change::Dense { delta, released } = &self.change else {
            return None;
        };
        let (mut places, mut values) = (Vec::new(), Vec::new());
        let kept = |(_, (value, released)): &(usize, (f32, &bool))| match schedule {
            // Those of earlier steps have their change too.
            Schedule::Repeat => *value != 0.0,
            _ => **released,
        };
        for (index, (value, _)) in delta
            .to_vec()
            .into_iter()
            .zip(released)
            .enumerate()
            .filter(kept)
        {
            places.extend([(index / self.d_in) as f32, (index % self.d_in) as f32]);
            values.push(value);
        }
        if values.is_empty() {
            return None;
        }
        let (places, values) = sparse(&self.path, [self.d_out, self.d_in], places, values, device);
        let (path, base) = (self.path.clone(), self.base.clone());
        Some(Self {
            path,
            d_in: self.d_in,
            d_out: self.d_out,
            base,
            change: Change::Sparse { places, values },
        })
    }

    pub(crate) fn released(&self) -> usize {
        match &self.change {
            Change::Dense { released, .. } => released.iter().filter(|r| **r).count(),
            Change::Sparse { values, .. } => values.len(),
        }
    }
}

impl HasParameters for Site {
    fn parameters(&self) -> Vec<&Parameter> {
        match &self.change {
            Change::Dense { delta, .. } => vec![delta],
            Change::Sparse { places, values } => vec![places, values],
        }
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        match &mut self.change {
            Change::Dense { delta, .. } => vec![delta],
            Change::Sparse { places, values } => vec![places, values],
        }
    }
}

/// Places and values of a layer's released weights.
pub(crate) fn sparse(
    path: &str,
    sides: [usize; 2],
    places: Vec<f32>,
    values: Vec<f32>,
    device: &Device,
) -> (Parameter, Parameter) {
    let n = values.len();
    let places = Parameter::frozen(format!("{path}.id3_indices"), &[n, 2], places, device);
    (
        places.columns_below(&sides),
        Parameter::new(format!("{path}.id3_values"), &[n], values, device),
    )
}
