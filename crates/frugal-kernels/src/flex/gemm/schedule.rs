//! How the tiles of a product are dealt out to tasks.

use std::ops::Range;

/// The most panels of columns that a task copies.
const TASK_PANELS: usize = 4;
/// How the tiles of a product are dealt out: each task has some panels of rows and at most
/// [`TASK_PANELS`] panels of columns.
#[derive(Clone, Copy)]
pub(in crate::flex) struct Cut {
    panels: [usize; 2],
    per_task: [usize; 2],
}

impl Cut {
    /// The cut that is done first, if every thread takes the next task when it has none: a task
    /// costs its tiles, the copies of its columns, as much as some tiles each, and the way of the
    /// rows into the cache.
    pub(in crate::flex) fn of(row_panels: usize, col_panels: usize, threads: usize) -> Self {
        const COPY: usize = 8;
        const QUARTER: usize = 4;
        let cost = |[rows, cols]: [usize; 2]| {
            let tasks = row_panels.div_ceil(rows) * col_panels.div_ceil(cols);
            tasks.div_ceil(threads) * (QUARTER * cols * (rows + COPY) + rows)
        };
        let parts = row_panels.div_ceil(TASK_PANELS).min(2 * threads);
        let candidates = (1..=parts).flat_map(|parts| {
            (1..=TASK_PANELS.min(col_panels))
                .rev()
                .map(move |cols| [row_panels.div_ceil(parts), cols])
        });
        let per_task = candidates
            .min_by_key(|&per_task| cost(per_task))
            .unwrap_or([1, 1]);
        Self {
            panels: [row_panels, col_panels],
            per_task,
        }
    }

    pub(in crate::flex) fn tasks(self) -> usize {
        self.panels[0].div_ceil(self.per_task[0]) * self.panels[1].div_ceil(self.per_task[1])
    }

    /// The panels of rows and of columns of a task.
    pub(in crate::flex) fn part(self, task: usize) -> (Range<usize>, Range<usize>) {
        let cols = self.panels[1].div_ceil(self.per_task[1]);
        let range = |axis: usize, i: usize| {
            let start = i * self.per_task[axis];
            start..(start + self.per_task[axis]).min(self.panels[axis])
        };
        (range(0, task / cols), range(1, task % cols))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tile_is_dealt_out_once() {
        for threads in [1, 2, 3, 16, 100] {
            for [rows, cols] in [[1, 1], [3, 50], [86, 18], [86, 48], [700, 1]] {
                let cut = Cut::of(rows, cols, threads);
                let mut dealt = vec![0; rows * cols];
                for task in 0..cut.tasks() {
                    let (my_rows, my_cols) = cut.part(task);
                    assert!(
                        my_cols.len() <= TASK_PANELS && !my_rows.is_empty() && !my_cols.is_empty()
                    );
                    my_rows.for_each(|row| {
                        my_cols.clone().for_each(|col| dealt[row * cols + col] += 1)
                    });
                }
                assert!(
                    dealt.iter().all(|&times| times == 1),
                    "{threads} threads, {rows} x {cols} panels"
                );
            }
        }
    }
}
