//! Some of the processes of a run as a group of their own.

use super::collective::Collective;
use super::error::ParallelError;

/// These ranks of a larger group, numbered from 0 in the order in which they are given. Errors name the
/// ranks of the larger group.
pub(super) struct Part<'a> {
    inner: &'a mut dyn Collective,
    ranks: &'a [usize],
    rank: usize,
}

impl<'a> Part<'a> {
    /// None if this process is none of them.
    pub(super) fn of(inner: &'a mut dyn Collective, ranks: &'a [usize]) -> Option<Self> {
        let rank = ranks.iter().position(|rank| *rank == inner.rank())?;
        Some(Self { inner, ranks, rank })
    }
}

impl Collective for Part<'_> {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world(&self) -> usize {
        self.ranks.len()
    }

    fn exchange(
        &mut self,
        to: usize,
        bytes: &[u8],
        from: usize,
        into: &mut [u8],
        doing: &'static str,
    ) -> Result<(), ParallelError> {
        let [to, from] = [self.ranks[to], self.ranks[from]];
        self.inner.exchange(to, bytes, from, into, doing)
    }

    fn exchange_any(
        &mut self,
        to: usize,
        bytes: &[u8],
        from: usize,
        most: u64,
        doing: &'static str,
    ) -> Result<Vec<u8>, ParallelError> {
        let [to, from] = [self.ranks[to], self.ranks[from]];
        self.inner.exchange_any(to, bytes, from, most, doing)
    }

    fn send(&mut self, to: usize, bytes: &[u8], doing: &'static str) -> Result<(), ParallelError> {
        self.inner.send(self.ranks[to], bytes, doing)
    }

    fn receive(
        &mut self,
        from: usize,
        most: u64,
        doing: &'static str,
    ) -> Result<Vec<u8>, ParallelError> {
        self.inner.receive(self.ranks[from], most, doing)
    }

    fn bytes_sent(&self) -> u64 {
        self.inner.bytes_sent()
    }

    fn abort(&mut self, reason: &str) {
        self.inner.abort(reason);
    }
}
