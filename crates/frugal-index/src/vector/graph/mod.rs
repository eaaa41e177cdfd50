//! A graph over a file of vectors (HNSW) that finds most of the nearest ones without looking at all.
//!
//! The graph is a file beside that of the vectors and holds links alone; numbers are read from the
//! mapped file, in whatever encoding it has. What the graph finds is scored again in double
//! precision, as in an exact search.
//!
//! Source: Malkov, Yashunin, "Efficient and robust approximate nearest neighbor search using
//! Hierarchical Navigable Small World graphs", 2018, arXiv 1603.09320. It is written here because the
//! crates that have it keep vectors of their own in memory, write files that do not survive a crash,
//! or need a compiler that is not stable.

mod build;
mod file;
mod links;
mod options;
mod rows;
mod walk;

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rayon::prelude::*;

use super::error::VectorError;
use super::exact;
use super::neighbor::Neighbor;
use super::open::VectorIndex;
use file::Header;
use links::Links;
pub use options::HnswOptions;
use options::MAX_EF;
use rows::Rows;

/// The graph of one file of vectors. It is read when it is first searched.
pub struct VectorGraph {
    path: PathBuf,
    index: VectorIndex,
    header: Header,
    links: OnceLock<Links>,
}

impl VectorGraph {
    /// Links the vectors of a file, one after another so that the same vectors give the same graph,
    /// and writes the links to a file that appears whole or not at all.
    ///
    /// # Errors
    /// Options outside their range, damaged vectors, a file that cannot be written.
    pub fn write(
        index: &VectorIndex,
        path: &Path,
        options: HnswOptions,
    ) -> Result<(), VectorError> {
        options.check()?;
        index.check()?;
        if index.is_empty() {
            return Err(VectorError::Graph("there are no vectors to link".into()));
        }
        let body = build::linked(index, options)?.bytes();
        let header = Header {
            rows: index.len(),
            m: options.m,
            vectors: index.identity(),
            check: crc32c::crc32c(&body),
            length: body.len(),
        };
        file::write(path, &header, &body)
    }

    /// Opens the graph of a file of vectors. Only its header is read.
    ///
    /// # Errors
    /// A file that cannot be read, or that belongs to other vectors.
    pub fn open(path: &Path, index: &VectorIndex) -> Result<Self, VectorError> {
        let header = file::read_header(path)?;
        if header.rows != index.len() || header.vectors != index.identity() {
            return Err(file::damaged(path, "it links other vectors"));
        }
        Ok(Self {
            path: path.into(),
            index: index.clone(),
            header,
            links: OnceLock::new(),
        })
    }

    /// The vectors.
    pub fn index(&self) -> &VectorIndex {
        &self.index
    }

    /// Reads the links and compares them with their checksum.
    ///
    /// # Errors
    /// A file that is not as it was written.
    pub fn check(&self) -> Result<(), VectorError> {
        self.links().map(|_| ())
    }

    /// About the `k` nearest vectors of each query, the nearest first, among the rows that `allowed`
    /// says. `ef` candidates are kept on the way, at least somewhat more than `k`: more find more and
    /// take longer. Fewer than `k` come back where the graph reaches no more.
    ///
    /// # Errors
    /// As [`VectorIndex::search`]; a damaged graph.
    pub fn search_where(
        &self,
        queries: &[f32],
        k: usize,
        ef: usize,
        allowed: impl Fn(usize) -> bool + Sync,
    ) -> Result<Vec<Vec<Neighbor>>, VectorError> {
        let queries = exact::queries(&self.index, queries)?;
        let k = k.min(self.index.len());
        let links = self.links()?;
        let keep = k.saturating_add(k / 2).saturating_add(16);
        let ef = ef.clamp(1, MAX_EF).max(keep).min(self.index.len());
        let queries = queries.par_chunks_exact(self.index.dimension());
        let found = queries.map(|query| {
            if k == 0 {
                return Ok(Vec::new());
            }
            let allowed = |row: u32| allowed(row as usize);
            let mut rows = Rows::new(&self.index);
            let target = rows.target(query);
            let start = [walk::descend(links, &mut rows, &target, 0)?];
            let near = walk::around(links, &mut rows, &target, &start, 0, ef, &allowed)?;
            let rows = near.into_iter().map(|near| near.row);
            Ok(exact::settled(&self.index, rows, query, k))
        });
        found.collect()
    }

    fn links(&self) -> Result<&Links, VectorError> {
        if let Some(links) = self.links.get() {
            return Ok(links);
        }
        let body = file::read_body(&self.path, &self.header)?;
        let links = Links::read(&body, self.header.rows, self.header.m);
        let links = links.map_err(|problem| file::damaged(&self.path, problem))?;
        Ok(self.links.get_or_init(|| links))
    }
}

impl std::fmt::Debug for VectorGraph {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VectorGraph")
            .field("path", &self.path)
            .field("header", &self.header)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
