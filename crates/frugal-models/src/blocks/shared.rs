//! Parts that several blocks share.

use std::cell::RefCell;
use std::ops::Deref;
use std::sync::Arc;

use burn::prelude::*;
use frugal_nn::state::{DecodeState, LayerState};
use frugal_nn::{Frozen, ModelError, Pass, RotaryTable};

use crate::blocks::attention::{Attend, SelfAttention};

/// A part that other blocks may have too, of which one shows the weights.
pub struct Shared<T: ?Sized> {
    part: Arc<T>,
    shows_weights: bool,
}

impl<T: ?Sized> Shared<T> {
    /// The part where its weights are to be shown here.
    pub fn shown(&self) -> Option<&T> {
        self.shows_weights.then(|| self.part.as_ref())
    }
}

impl<T> From<T> for Shared<T> {
    /// A part of one block alone.
    fn from(part: T) -> Self {
        Self {
            part: Arc::new(part),
            shows_weights: true,
        }
    }
}

impl<T: ?Sized> Deref for Shared<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.part
    }
}

impl<T: SelfAttention> SelfAttention for Shared<T> {
    fn forward(
        &self,
        at: &Attend<'_>,
        rotary: &RotaryTable,
        x: Tensor<2>,
        pass: &mut dyn Pass,
        cache: Option<&mut DecodeState>,
    ) -> Tensor<2> {
        self.part.forward(at, rotary, x, pass, cache)
    }

    fn visit_weights(&self, visit: &mut dyn FnMut(Frozen<'_>)) {
        if let Some(part) = self.shown() {
            part.visit_weights(visit);
        }
    }

    fn new_state(&self, window: Option<usize>) -> LayerState {
        self.part.new_state(window)
    }

    fn check_state(
        &self,
        layer: usize,
        state: &DecodeState,
        pass: &mut dyn Pass,
    ) -> Result<(), ModelError> {
        self.part.check_state(layer, state, pass)
    }

    fn takes_prefix(&self) -> bool {
        self.part.takes_prefix()
    }

    fn takes_control(&self) -> bool {
        self.part.takes_control()
    }

    fn check_control(&self, control: &frugal_nn::AttentionControl) -> Result<(), String> {
        self.part.check_control(control)
    }
}

/// Gives each block its part: all of them the same one, which is loaded for the first, or each one
/// of its own.
pub struct Sharing<T> {
    first: Option<RefCell<Option<Arc<T>>>>,
}

impl<T> Sharing<T> {
    /// Whether the blocks share it.
    pub fn new(shares: bool) -> Self {
        Self {
            first: shares.then(RefCell::default),
        }
    }

    /// The part of the next block.
    ///
    /// # Errors
    /// Those of `load`.
    pub fn part(
        &self,
        load: impl FnOnce() -> Result<T, ModelError>,
    ) -> Result<Shared<T>, ModelError> {
        let Some(first) = &self.first else {
            return load().map(Shared::from);
        };
        let mut first = first.borrow_mut();
        if let Some(part) = first.as_ref() {
            return Ok(Shared {
                part: part.clone(),
                shows_weights: false,
            });
        }
        let part = Shared::from(load()?);
        *first = Some(part.part.clone());
        Ok(part)
    }
}
