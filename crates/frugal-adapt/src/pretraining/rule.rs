//! What a reparameterisation is: settings, and the layers that they make.

use frugal_nn::{AdaptError, BuildContext, Parameter};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::layer::Layer;
use super::targets::{Place, Shared};

/// The settings of one, and the layers that they make.
pub(super) trait Rule: DeserializeOwned + Serialize + Default {
    const NAME: &'static str;

    fn shared(&self) -> Shared<'_>;

    /// Refuses settings that are out of range, beside those that all have.
    fn check(&self) -> Result<(), AdaptError> {
        Ok(())
    }

    /// What stands in the place of a weight; `dense` is what the model begins with.
    fn layer(
        &self,
        place: &Place<'_>,
        dense: Parameter,
        context: &BuildContext<'_>,
    ) -> Result<Box<dyn Layer>, AdaptError>;
}
