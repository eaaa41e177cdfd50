//! The decomposition: from scores with anchors to scores with everything.

use faer::Mat;

use super::error::AnncurError;
use super::pseudo_inverse::{Regularization, pseudo_inverse};
use super::scores::ScoreTable;

/// Embeddings of all items, whose inner product with the anchor scores of a query estimates its
/// scores. They are computed in double precision and kept in single.
#[derive(Clone, Debug)]
pub struct CurIndex {
    anchors: Vec<usize>,
    /// `U: [anchors (+ 1), anchor queries]`
    inverse: Mat<f64>,
    /// What stands for the anchor score of an item that all queries like the same; 0 without one.
    intercept: f64,
    /// One row for each item.
    embeddings: Vec<f32>,
}

impl CurIndex {
    /// Decomposes the scores of the anchor queries. With `intercept` a constant column is added to
    /// those of the anchor items, which catches an offset that some queries have.
    ///
    /// # Errors
    /// No anchors, anchors twice or beyond the table, a regularization outside its range.
    pub fn new(
        table: &ScoreTable,
        anchors: &[usize],
        regularization: Regularization,
        intercept: bool,
    ) -> Result<Self, AnncurError> {
        check_anchors(anchors, table)?;
        let (inverse, intercept) = inverse(table, anchors, regularization, intercept)?;
        let mut index = Self {
            anchors: anchors.to_vec(),
            embeddings: Vec::with_capacity(table.columns() * inverse.nrows()),
            inverse,
            intercept,
        };
        let rows = Mat::from_fn(table.rows(), table.columns(), |i, j| table.row(i)[j]);
        let embeddings = &index.inverse * rows;
        for item in embeddings.col_iter() {
            index.embeddings.extend(item.iter().map(|v| *v as f32));
        }
        Ok(index)
    }

    /// The anchor items, in the order in which their scores are wanted.
    pub fn anchors(&self) -> &[usize] {
        &self.anchors
    }

    /// Number of items.
    pub fn len(&self) -> usize {
        self.embeddings.len() / self.dimension()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.embeddings.is_empty()
    }

    /// Numbers of an embedding.
    pub fn dimension(&self) -> usize {
        self.inverse.nrows()
    }

    /// Embedding of an item that there is: to be compared by inner product.
    pub fn embedding(&self, item: usize) -> &[f32] {
        let dimension = self.dimension();
        &self.embeddings[item * dimension..(item + 1) * dimension]
    }

    /// The vector of a query, for a search by inner product.
    ///
    /// # Errors
    /// Another number of scores than there are anchors.
    pub fn query_vector(&self, anchor_scores: &[f64]) -> Result<Vec<f32>, AnncurError> {
        self.check(anchor_scores)?;
        let mut vector: Vec<f32> = anchor_scores.iter().map(|score| *score as f32).collect();
        if self.intercept != 0.0 {
            vector.push(self.intercept as f32);
        }
        Ok(vector)
    }

    /// Estimated scores of all items.
    ///
    /// # Errors
    /// Another number of scores than there are anchors.
    pub fn approximate(&self, anchor_scores: &[f64]) -> Result<Vec<f64>, AnncurError> {
        let query = self.query_vector(anchor_scores)?;
        let items = self.embeddings.chunks_exact(self.dimension());
        Ok(items
            .map(|item| {
                let pairs = item.iter().zip(&query);
                pairs.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
            })
            .collect())
    }

    /// Adds an item that was scored with the anchor queries; it gets the next number.
    ///
    /// # Errors
    /// Another number of scores than there are anchor queries, or such that are not finite.
    pub fn add_item(&mut self, anchor_query_scores: &[f64]) -> Result<usize, AnncurError> {
        if anchor_query_scores.len() != self.inverse.ncols() {
            return Err(AnncurError::AnchorScores {
                found: anchor_query_scores.len(),
                expected: self.inverse.ncols(),
            });
        }
        let number = self.len();
        if let Some(query) = anchor_query_scores.iter().position(|s| !s.is_finite()) {
            return Err(AnncurError::NotFinite {
                query,
                item: number,
                value: anchor_query_scores[query],
            });
        }
        for row in self.inverse.row_iter() {
            let pairs = row.iter().zip(anchor_query_scores);
            self.embeddings
                .push(pairs.map(|(u, s)| u * s).sum::<f64>() as f32);
        }
        Ok(number)
    }

    fn check(&self, anchor_scores: &[f64]) -> Result<(), AnncurError> {
        match anchor_scores.len() == self.anchors.len() {
            true => Ok(()),
            false => Err(AnncurError::AnchorScores {
                found: anchor_scores.len(),
                expected: self.anchors.len(),
            }),
        }
    }
}

/// Estimated scores of all items from anchors that belong to one query, without embeddings.
pub(super) fn estimate(
    table: &ScoreTable,
    anchors: &[usize],
    anchor_scores: &[f64],
    regularization: Regularization,
    intercept: bool,
) -> Result<Vec<f64>, AnncurError> {
    let (inverse, intercept) = inverse(table, anchors, regularization, intercept)?;
    let mut scores = anchor_scores.to_vec();
    if intercept != 0.0 {
        scores.push(intercept);
    }
    let mut estimates = vec![0.0; table.columns()];
    for query in 0..table.rows() {
        let column = inverse.col(query);
        let weight: f64 = column.iter().zip(&scores).map(|(u, c)| u * c).sum();
        let row = table.row(query).iter();
        estimates
            .iter_mut()
            .zip(row)
            .for_each(|(estimate, score)| *estimate += weight * score);
    }
    Ok(estimates)
}

/// `W⁺`, and the constant of the intercept, which is as large as the scores are.
fn inverse(
    table: &ScoreTable,
    anchors: &[usize],
    regularization: Regularization,
    intercept: bool,
) -> Result<(Mat<f64>, f64), AnncurError> {
    let values = || (0..table.rows()).flat_map(|i| anchors.iter().map(move |j| table.row(i)[*j]));
    let constant = match intercept {
        false => 0.0,
        true => {
            let squares: f64 = values().map(|v| v * v).sum();
            let size = (squares / (table.rows() * anchors.len()) as f64).sqrt();
            if size > 0.0 { size } else { 1.0 }
        }
    };
    let width = anchors.len() + usize::from(intercept);
    let w = Mat::from_fn(table.rows(), width, |i, j| match anchors.get(j) {
        Some(anchor) => table.row(i)[*anchor],
        None => constant,
    });
    Ok((pseudo_inverse(&w, regularization)?, constant))
}

fn check_anchors(anchors: &[usize], table: &ScoreTable) -> Result<(), AnncurError> {
    let wrong = |problem: String| Err(AnncurError::Option(problem));
    if anchors.is_empty() || table.rows() == 0 {
        return wrong("a decomposition needs at least one anchor query and one anchor item".into());
    }
    if let Some(anchor) = anchors.iter().find(|anchor| **anchor >= table.columns()) {
        return wrong(format!(
            "the anchor {anchor} is not among {} items",
            table.columns()
        ));
    }
    let mut sorted = anchors.to_vec();
    sorted.sort_unstable();
    match sorted.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => wrong(format!("the anchor {} is there twice", pair[0])),
        None => Ok(()),
    }
}
