//! Scores of queries and items, and who makes them.

use super::error::AnncurError;

/// A cross-encoder over numbered queries and items.
pub trait PairScorer {
    /// Scores of one query with some items, in their order; higher is better.
    ///
    /// # Errors
    /// Whatever keeps it from scoring.
    fn score(
        &mut self,
        query: usize,
        items: &[usize],
    ) -> Result<Vec<f32>, Box<dyn std::error::Error + Send + Sync>>;
}

/// A scorer whose calls are counted, one for each pair, and whose scores are checked.
#[derive(Debug)]
pub struct Counted<S> {
    scorer: S,
    calls: usize,
}

impl<S: PairScorer> Counted<S> {
    /// Nothing is counted yet.
    pub fn new(scorer: S) -> Self {
        Self { scorer, calls: 0 }
    }

    /// Pairs that were scored.
    pub fn calls(&self) -> usize {
        self.calls
    }

    /// Scores of one query with some items.
    ///
    /// # Errors
    /// A scorer that fails, gives too few scores or some that are not finite.
    pub fn score(&mut self, query: usize, items: &[usize]) -> Result<Vec<f64>, AnncurError> {
        if items.is_empty() {
            return Ok(Vec::new());
        }
        let scores = self.scorer.score(query, items);
        let scores = scores.map_err(|source| AnncurError::Scorer { query, source })?;
        if scores.len() != items.len() {
            return Err(AnncurError::Count {
                query,
                asked: items.len(),
                given: scores.len(),
            });
        }
        self.calls += items.len();
        let checked = scores.into_iter().zip(items).map(|(score, item)| {
            let value = f64::from(score);
            let problem = AnncurError::NotFinite {
                query,
                item: *item,
                value,
            };
            value.is_finite().then_some(value).ok_or(problem)
        });
        checked.collect()
    }
}

/// Scores of some queries with all items: one row for each query.
#[derive(Clone, Debug, PartialEq)]
pub struct ScoreTable {
    rows: usize,
    columns: usize,
    values: Vec<f64>,
}

impl ScoreTable {
    /// A table of values that lie row behind row.
    ///
    /// # Errors
    /// Another number of values, values that are not finite.
    pub fn new(rows: usize, columns: usize, values: Vec<f64>) -> Result<Self, AnncurError> {
        if rows.checked_mul(columns) != Some(values.len()) {
            return Err(AnncurError::Shape {
                rows,
                columns,
                found: values.len(),
            });
        }
        if let Some(at) = values.iter().position(|value| !value.is_finite()) {
            return Err(AnncurError::NotFinite {
                query: at / columns,
                item: at % columns,
                value: values[at],
            });
        }
        Ok(Self {
            rows,
            columns,
            values,
        })
    }

    /// Scores every query with every item: `queries.len() * items` calls.
    ///
    /// # Errors
    /// As [`Counted::score`].
    pub fn score<S: PairScorer>(
        scorer: &mut Counted<S>,
        queries: &[usize],
        items: usize,
    ) -> Result<Self, AnncurError> {
        let all: Vec<usize> = (0..items).collect();
        let mut values = Vec::new();
        for query in queries {
            values.extend(scorer.score(*query, &all)?);
        }
        Self::new(queries.len(), items, values)
    }

    /// Number of queries.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of items.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Scores of one query. The row is one that there is.
    pub fn row(&self, row: usize) -> &[f64] {
        &self.values[row * self.columns..(row + 1) * self.columns]
    }

    /// The table of some rows.
    pub fn select(&self, rows: &[usize]) -> Self {
        Self {
            rows: rows.len(),
            columns: self.columns,
            values: rows
                .iter()
                .flat_map(|row| self.row(*row))
                .copied()
                .collect(),
        }
    }
}

/// A table stands for a scorer where everything was scored before.
impl PairScorer for &ScoreTable {
    fn score(
        &mut self,
        query: usize,
        items: &[usize],
    ) -> Result<Vec<f32>, Box<dyn std::error::Error + Send + Sync>> {
        if query >= self.rows || items.iter().any(|item| *item >= self.columns) {
            return Err(format!(
                "the table has {} rows and {} columns",
                self.rows, self.columns
            )
            .into());
        }
        let row = self.row(query);
        Ok(items.iter().map(|item| row[*item] as f32).collect())
    }
}
