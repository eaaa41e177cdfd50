//! Which layers of the unrolled model have the same weights.

use std::ops::Range;

use serde::{Deserialize, Serialize};

/// How weights are shared (the paper's figure 2 and its four schemes).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sharing {
    /// All layers: (0, 1, 2), (0, 1, 2), ...
    Cycle,
    /// All layers: (0, 0), (1, 1), (2, 2), ...
    Sequence,
    /// As `cycle`, but for the first and the last layer, which have their own weights.
    #[default]
    MiddleCycle,
    /// As `sequence`, but for the first and the last layer.
    MiddleSequence,
}

impl Sharing {
    /// Whether the first and the last layer have their own weights.
    pub fn keeps_ends(self) -> bool {
        matches!(self, Self::MiddleCycle | Self::MiddleSequence)
    }

    /// Whether the shared layers are passed through as a whole, again and again.
    pub fn is_cycle(self) -> bool {
        matches!(self, Self::Cycle | Self::MiddleCycle)
    }
}

/// What becomes of a number of layers that the recursions do not divide.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rounding {
    /// Layers are added, as the paper has it.
    #[default]
    Ceil,
    /// Layers are left out, as the official code has it.
    Floor,
}

/// Which layers share weights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    sharing: Sharing,
    recursions: usize,
    /// Layers that are shared, each once.
    base: usize,
}

impl Plan {
    /// Of `layers` unrolled layers and so many recursions; none if too few layers are left to share.
    pub fn new(
        sharing: Sharing,
        recursions: usize,
        layers: usize,
        rounding: Rounding,
    ) -> Option<Self> {
        let own = if sharing.keeps_ends() { 2 } else { 0 };
        let shared = layers.checked_sub(own)?;
        let base = match rounding {
            Rounding::Ceil => shared.div_ceil(recursions),
            Rounding::Floor => shared / recursions,
        };
        (base > 0).then_some(Self {
            sharing,
            recursions,
            base,
        })
    }

    /// The layers that recursions pass through.
    pub fn shared(&self) -> Range<usize> {
        self.ends()..self.ends() + self.base * self.recursions
    }

    fn ends(&self) -> usize {
        usize::from(self.sharing.keeps_ends())
    }

    /// Unrolled layers.
    pub fn layers(&self) -> usize {
        2 * self.ends() + self.base * self.recursions
    }

    /// Times that the shared layers are passed through.
    pub fn recursions(&self) -> usize {
        self.recursions
    }

    /// The first layer with the weights of this one.
    pub fn first(&self, layer: usize) -> usize {
        let ends = self.ends();
        if !self.shared().contains(&layer) {
            return layer;
        }
        let at = layer - ends;
        ends + if self.sharing.is_cycle() {
            at % self.base
        } else {
            at / self.recursions * self.recursions
        }
    }

    /// Layers with weights of their own, in order.
    pub fn unique(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.layers()).filter(|&layer| self.first(layer) == layer)
    }

    /// Layers that have the weights of this one, in order.
    pub fn tied(&self, first: usize) -> impl Iterator<Item = usize> + '_ {
        (0..self.layers()).filter(move |&layer| self.first(layer) == first)
    }

    /// The layers of each recursion, of schemes that pass through the shared layers as a whole.
    pub fn steps(&self) -> Vec<Range<usize>> {
        let start = self.ends();
        (0..self.recursions)
            .map(|step| start + step * self.base..start + (step + 1) * self.base)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn firsts(sharing: Sharing, recursions: usize, layers: usize) -> Vec<usize> {
        let plan = Plan::new(sharing, recursions, layers, Rounding::Ceil).unwrap();
        (0..plan.layers()).map(|layer| plan.first(layer)).collect()
    }

    /// The examples of the paper's section 2.1.
    #[test]
    fn the_four_schemes_share_what_the_paper_says() {
        assert_eq!(firsts(Sharing::Cycle, 2, 6), [0, 1, 2, 0, 1, 2]);
        assert_eq!(firsts(Sharing::Sequence, 3, 6), [0, 0, 0, 3, 3, 3]);
        assert_eq!(firsts(Sharing::MiddleCycle, 2, 8), [0, 1, 2, 3, 1, 2, 3, 7]);
        assert_eq!(
            firsts(Sharing::MiddleSequence, 2, 8),
            [0, 1, 1, 3, 3, 5, 5, 7]
        );
    }

    #[test]
    fn layers_are_added_or_left_out_where_recursions_do_not_divide_them() {
        let plan = |rounding| Plan::new(Sharing::MiddleCycle, 3, 30, rounding).unwrap();
        let (ceil, floor) = (plan(Rounding::Ceil), plan(Rounding::Floor));
        assert_eq!((ceil.layers(), ceil.unique().count()), (32, 12));
        assert_eq!((floor.layers(), floor.unique().count()), (29, 11));
        assert_eq!(ceil.steps(), [1..11, 11..21, 21..31]);
        assert_eq!(ceil.tied(3).collect::<Vec<_>>(), [3, 13, 23]);
        assert_eq!(Plan::new(Sharing::MiddleCycle, 3, 2, Rounding::Ceil), None);
        assert_eq!(Plan::new(Sharing::Cycle, 3, 2, Rounding::Floor), None);
    }
}
