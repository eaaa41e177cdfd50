//! Strided matrices and their products.

mod memory;
mod narrow;
mod product;
mod threads;
mod view;
mod view_mut;

pub(crate) use memory::{build, build_matrix, zeros};
pub(crate) use product::product;
pub(crate) use threads::Threads;
pub(crate) use view::Matrix;
pub(crate) use view_mut::{MatrixMut, Shared, SharedMatrix};
