//! Documents of an index as parameters of a model, and a translator that writes such: what
//! `frugal parametrize` does, for programs.

mod items;
mod run;
mod written;

pub use items::{DocumentItems, ItemSource, read_items};
pub use run::{
    ParametrizeReport, ParametrizeRequest, ParametrizeStep, TranslatorRequest, parametrize,
};
