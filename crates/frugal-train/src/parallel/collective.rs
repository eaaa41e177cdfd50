//! What the processes of a run do together. Every result is the same on every rank and does not
//! depend on what arrives first.

use std::ops::Range;

use super::error::ParallelError;

/// Messages between the ranks of a run, and what is built of them. All ranks call the same
/// operations in the same order.
pub trait Collective: Send {
    /// Who this process is, from 0.
    fn rank(&self) -> usize;

    /// Number of processes.
    fn world(&self) -> usize;

    /// Sends bytes to one rank while exactly `into.len()` are received from another. The two may be
    /// one.
    ///
    /// # Errors
    /// A rank that is lost, or sends something else.
    fn exchange(
        &mut self,
        to: usize,
        bytes: &[u8],
        from: usize,
        into: &mut [u8],
        doing: &'static str,
    ) -> Result<(), ParallelError>;

    /// Sends bytes to one rank while at most `most` are received from another.
    ///
    /// # Errors
    /// A rank that is lost, or sends something else.
    fn exchange_any(
        &mut self,
        to: usize,
        bytes: &[u8],
        from: usize,
        most: u64,
        doing: &'static str,
    ) -> Result<Vec<u8>, ParallelError>;

    /// Sends bytes to a rank.
    ///
    /// # Errors
    /// A rank that is lost.
    fn send(&mut self, to: usize, bytes: &[u8], doing: &'static str) -> Result<(), ParallelError>;

    /// Receives at most `most` bytes of a rank.
    ///
    /// # Errors
    /// A rank that is lost, or sends something else.
    fn receive(
        &mut self,
        from: usize,
        most: u64,
        doing: &'static str,
    ) -> Result<Vec<u8>, ParallelError>;

    /// Bytes of data that this rank has sent.
    fn bytes_sent(&self) -> u64;

    /// Tells all others that the run ends, and why. Nothing can be sent afterwards.
    fn abort(&mut self, reason: &str);

    /// The sum of everybody's values, in a ring: each rank sends `2(N−1)/N` of them. A part of the
    /// values is always summed in the same order of ranks, so the result is the same everywhere, bit
    /// for bit.
    ///
    /// # Errors
    /// A rank that is lost, or has another number of values.
    fn all_reduce(&mut self, values: &mut [f32], doing: &'static str) -> Result<(), ParallelError> {
        let own = self.reduce_scatter(values, doing)?;
        let (n, r) = (self.world(), self.rank());
        debug_assert_eq!(own, part(values.len(), n, (r + 1) % n));
        let mut incoming = Vec::new();
        for step in 0..n - 1 {
            let out = part(values.len(), n, (r + 1 + n - step) % n);
            let into = part(values.len(), n, (r + n - step) % n);
            let outgoing = to_bytes(&values[out]);
            incoming.resize(4 * into.len(), 0);
            self.exchange(
                (r + 1) % n,
                &outgoing,
                (r + n - 1) % n,
                &mut incoming,
                doing,
            )?;
            for (value, bytes) in values[into].iter_mut().zip(floats(&incoming)) {
                *value = bytes;
            }
        }
        Ok(())
    }

    /// The first half of [`Collective::all_reduce`]: afterwards the returned range holds the sum of
    /// everybody's values, and the rest is in between. Ranges of different ranks do not overlap.
    ///
    /// # Errors
    /// A rank that is lost, or has another number of values.
    fn reduce_scatter(
        &mut self,
        values: &mut [f32],
        doing: &'static str,
    ) -> Result<Range<usize>, ParallelError> {
        let (n, r) = (self.world(), self.rank());
        let mut incoming = Vec::new();
        for step in 0..n - 1 {
            let out = part(values.len(), n, (r + n - step) % n);
            let into = part(values.len(), n, (r + 2 * n - step - 1) % n);
            let outgoing = to_bytes(&values[out]);
            incoming.resize(4 * into.len(), 0);
            self.exchange(
                (r + 1) % n,
                &outgoing,
                (r + n - 1) % n,
                &mut incoming,
                doing,
            )?;
            for (value, sum) in values[into].iter_mut().zip(floats(&incoming)) {
                *value += sum;
            }
        }
        Ok(part(values.len(), n, (r + 1) % n))
    }

    /// What every rank gives, in the order of ranks; at most `most` bytes each.
    ///
    /// # Errors
    /// A rank that is lost, or gives more.
    fn all_gather(
        &mut self,
        own: &[u8],
        most: u64,
        doing: &'static str,
    ) -> Result<Vec<Vec<u8>>, ParallelError> {
        let (n, r) = (self.world(), self.rank());
        let mut all = vec![Vec::new(); n];
        for step in 1..n {
            let (to, from) = ((r + step) % n, (r + n - step) % n);
            all[from] = self.exchange_any(to, own, from, most, doing)?;
        }
        all[r] = own.to_vec();
        Ok(all)
    }

    /// What rank `root` gives, at most `most` bytes; what others give is left aside.
    ///
    /// # Errors
    /// A rank that is lost, or a root that gives more.
    fn broadcast(
        &mut self,
        root: usize,
        own: Vec<u8>,
        most: u64,
        doing: &'static str,
    ) -> Result<Vec<u8>, ParallelError> {
        if self.rank() != root {
            return self.receive(root, most, doing);
        }
        for to in (0..self.world()).filter(|&to| to != root) {
            self.send(to, &own, doing)?;
        }
        Ok(own)
    }

    /// What every rank gives, on rank `root`, in the order of ranks; nothing on the others.
    ///
    /// # Errors
    /// A rank that is lost, or gives more.
    fn gather(
        &mut self,
        root: usize,
        own: Vec<u8>,
        most: u64,
        doing: &'static str,
    ) -> Result<Vec<Vec<u8>>, ParallelError> {
        if self.rank() != root {
            self.send(root, &own, doing)?;
            return Ok(Vec::new());
        }
        let mut all = Vec::with_capacity(self.world());
        for from in 0..self.world() {
            all.push(if from == root {
                own.clone()
            } else {
                self.receive(from, most, doing)?
            });
        }
        Ok(all)
    }
}

/// The part of `len` values that belongs to `index` of `parts`; parts differ by one at most.
pub(super) fn part(len: usize, parts: usize, index: usize) -> Range<usize> {
    let (whole, rest) = (len / parts, len % parts);
    let start = index * whole + index.min(rest);
    start..start + whole + usize::from(index < rest)
}

/// Values as bytes, little-endian.
pub(super) fn to_bytes(values: &[f32]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect()
}

/// Bytes as values; a rest of fewer than four is left aside.
pub(super) fn floats(bytes: &[u8]) -> impl Iterator<Item = f32> + '_ {
    let (whole, _) = bytes.as_chunks::<4>();
    whole.iter().map(|b| f32::from_le_bytes(*b))
}
