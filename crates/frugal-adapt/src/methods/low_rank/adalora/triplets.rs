//! The triplets of one map: rows of `A`, entries of `E`, columns of `B`.

use std::collections::BTreeMap;

use burn::prelude::*;
use frugal_nn::{
    AdaptError, BuildContext, Mode, Parameter, SiteId, SiteKind, named_rng, standard_normal,
};

use crate::methods::low_rank::adalora::config::{AdaLoraConfig, NAME};

/// The decomposed change of one layer.
pub(crate) struct Triplets {
    pub path: String,
    /// `[r, d_in]`.
    pub a: Parameter,
    /// `[r, 1]`.
    pub e: Parameter,
    /// `[d_out, r]`.
    pub b: Parameter,
}

impl Triplets {
    pub fn rank(&self) -> usize {
        self.e.len()
    }

    pub fn parameters(&self) -> [&Parameter; 3] {
        [&self.a, &self.e, &self.b]
    }

    pub fn parameters_mut(&mut self) -> [&mut Parameter; 3] {
        [&mut self.a, &mut self.e, &mut self.b]
    }

    /// `E ⊙ A`, `[r, d_in]`.
    pub fn scaled_a(&self, mode: Mode) -> Tensor<2> {
        self.a.get::<2>(mode) * self.e.get::<2>(mode)
    }

    /// Sets the entries of `E` to zero where `alive` is false.
    pub fn mask(&mut self, alive: &[bool]) {
        let values = self
            .e
            .to_vec()
            .into_iter()
            .zip(alive)
            .map(|(e, &alive)| if alive { e } else { 0.0 })
            .collect();
        self.e.set(values);
    }

    /// Only the triplets that are alive.
    pub fn slice(&self, alive: &[bool]) -> Self {
        let keep = |values: Vec<f32>, width: usize, alive: &[bool]| -> Vec<f32> {
            values
                .chunks(width)
                .zip(alive)
                .filter(|(_, alive)| **alive)
                .flat_map(|(row, _)| row.to_vec())
                .collect()
        };
        let (d_in, d_out, rank) = (
            self.a.shape()[1],
            self.b.shape()[0],
            alive.iter().filter(|a| **a).count(),
        );
        let b = self
            .b
            .to_vec()
            .chunks(alive.len())
            .flat_map(|row| keep(row.to_vec(), 1, alive))
            .collect();
        let device = self.a.get::<2>(Mode::Eval).device();
        Self {
            path: self.path.clone(),
            a: parameter(
                self.a.name(),
                &[rank, d_in],
                keep(self.a.to_vec(), d_in, alive),
                &device,
            ),
            e: parameter(
                self.e.name(),
                &[rank, 1],
                keep(self.e.to_vec(), 1, alive),
                &device,
            ),
            b: parameter(self.b.name(), &[d_out, rank], b, &device),
        }
    }
}

/// Nothing is trained where no rank is left.
fn parameter(name: &str, shape: &[usize], values: Vec<f32>, device: &Device) -> Parameter {
    if values.is_empty() {
        Parameter::frozen(name, shape, values, device)
    } else {
        Parameter::new(name, shape, values, device)
    }
}

impl Triplets {
    /// Those of a layer at the start.
    pub fn new(
        config: &AdaLoraConfig,
        context: &BuildContext<'_>,
        id: SiteId,
    ) -> Result<Self, AdaptError> {
        let (info, rank) = (context.sites.info(id), config.init_r);
        let path = info.path.clone();
        if info.kind == SiteKind::Embedding {
            let reason = format!("`{path}` is a table of rows, not a linear layer");
            return Err(AdaptError::Config {
                method: NAME,
                field: "target_modules",
                reason,
            });
        }
        let mut rng = named_rng(context.seed, &path);
        let mut draw = |n: usize| {
            (0..n)
                .map(|_| 0.02 * standard_normal(&mut rng))
                .collect::<Vec<f32>>()
        };
        let (a, b) = (draw(rank * info.d_in), draw(info.d_out * rank));
        Ok(Self {
            a: Parameter::new(
                format!("{path}.lora_A"),
                &[rank, info.d_in],
                a,
                &context.device,
            ),
            e: Parameter::new(
                format!("{path}.lora_E"),
                &[rank, 1],
                vec![0.0; rank],
                &context.device,
            ),
            b: Parameter::new(
                format!("{path}.lora_B"),
                &[info.d_out, rank],
                b,
                &context.device,
            ),
            path,
        })
    }
}

/// The mask of a layer in `rank_pattern`, whose paths may lack the prefix that bare base models leave
/// out.
pub(crate) fn alive_of<'a>(
    pattern: &'a BTreeMap<String, Vec<bool>>,
    triplets: &Triplets,
    init_r: usize,
    context: &BuildContext<'_>,
) -> Result<&'a [bool], AdaptError> {
    let full = triplets.e.name();
    let bare = full.strip_prefix(context.info.base_prefix).unwrap_or(full);
    let bad = |reason: String| AdaptError::Config {
        method: NAME,
        field: "rank_pattern",
        reason,
    };
    let mask = pattern
        .get(full)
        .or_else(|| pattern.get(bare))
        .ok_or_else(|| bad(format!("`{full}` is missing")))?;
    if mask.len() != init_r {
        return Err(bad(format!(
            "`{full}` has {} entries instead of {init_r} (`init_r`)",
            mask.len()
        )));
    }
    Ok(mask)
}
