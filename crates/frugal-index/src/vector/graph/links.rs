//! Who is linked with whom.

/// A level that no vector of 2³² reaches.
const MAX_LEVEL: u32 = 64;

/// Links of all rows on all levels. A list is its length and room for the most links there can be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Links {
    m: usize,
    pub(super) entry: u32,
    levels: Vec<u32>,
    /// Lists of the lowest level.
    base: Vec<u32>,
    /// Lists of the levels above, row behind row.
    upper: Vec<u32>,
    /// Where those of a row begin.
    starts: Vec<usize>,
}

impl Links {
    pub(super) fn new(m: usize, levels: Vec<u32>) -> Self {
        let mut starts = Vec::with_capacity(levels.len());
        let mut end = 0;
        for level in &levels {
            starts.push(end);
            end += *level as usize * (1 + m);
        }
        Self {
            m,
            entry: 0,
            base: vec![0; levels.len() * (1 + 2 * m)],
            upper: vec![0; end],
            starts,
            levels,
        }
    }

    pub(super) fn level(&self, row: u32) -> u32 {
        self.levels[row as usize]
    }

    pub(super) fn rows(&self) -> usize {
        self.levels.len()
    }

    /// The most links of a row on a level.
    pub(super) fn most(&self, level: u32) -> usize {
        if level == 0 { 2 * self.m } else { self.m }
    }

    fn range(&self, row: u32, level: u32) -> std::ops::Range<usize> {
        let size = 1 + self.most(level);
        let start = match level {
            0 => row as usize * size,
            _ => self.starts[row as usize] + (level as usize - 1) * size,
        };
        start..start + size
    }

    pub(super) fn of(&self, row: u32, level: u32) -> &[u32] {
        let range = self.range(row, level);
        let list = if level == 0 {
            &self.base[range]
        } else {
            &self.upper[range]
        };
        &list[1..=list[0] as usize]
    }

    pub(super) fn set(&mut self, row: u32, level: u32, links: &[u32]) {
        let range = self.range(row, level);
        let list = if level == 0 {
            &mut self.base[range]
        } else {
            &mut self.upper[range]
        };
        list[0] = links.len() as u32;
        list[1..=links.len()].copy_from_slice(links);
    }

    /// Entry, levels, lists.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let numbers = [self.entry].into_iter().chain(self.levels.iter().copied());
        let numbers = numbers.chain(self.base.iter().copied());
        let numbers = numbers.chain(self.upper.iter().copied());
        numbers.flat_map(u32::to_le_bytes).collect()
    }

    /// Reads what [`Links::bytes`] wrote, and checks all that a walk relies on before memory is
    /// taken.
    pub(super) fn read(bytes: &[u8], rows: usize, m: usize) -> Result<Self, &'static str> {
        const SIZES: &str = "the links hold impossible sizes";
        let number = |bytes: &[u8]| u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        if rows == 0 || !bytes.len().is_multiple_of(4) || bytes.len() / 4 < 1 + rows {
            return Err(SIZES);
        }
        let mut numbers = bytes.chunks_exact(4).map(number);
        let entry = numbers.next().unwrap_or(u32::MAX);
        let levels: Vec<u32> = numbers.by_ref().take(rows).collect();
        if levels.iter().any(|level| *level > MAX_LEVEL) {
            return Err(SIZES);
        }
        let above: usize = levels.iter().map(|level| *level as usize).sum();
        if bytes.len() / 4 != 1 + rows + rows * (1 + 2 * m) + above * (1 + m) {
            return Err(SIZES);
        }
        let mut links = Self::new(m, levels);
        links
            .base
            .iter_mut()
            .for_each(|v| *v = numbers.next().unwrap_or(0));
        links
            .upper
            .iter_mut()
            .for_each(|v| *v = numbers.next().unwrap_or(0));
        links.entry = entry;
        match links.hold() {
            true => Ok(links),
            false => Err("a link leads nowhere"),
        }
    }

    fn hold(&self) -> bool {
        let list_holds = |row: u32, level: u32| {
            let range = self.range(row, level);
            let list = if level == 0 {
                &self.base[range]
            } else {
                &self.upper[range]
            };
            let fits = |link: &u32| {
                (*link as usize) < self.rows() && self.level(*link) >= level && *link != row
            };
            list[0] as usize <= self.most(level) && self.of(row, level).iter().all(fits)
        };
        (self.entry as usize) < self.rows()
            && (0..self.rows() as u32)
                .all(|row| (0..=self.level(row)).all(|level| list_holds(row, level)))
    }
}
