//! Gradients and parameters between the ranks that compute with them and those that update them.

use std::collections::BTreeMap;

use frugal_nn::{GradientSum, Parameter};

use super::collective::{Collective, floats, part, to_bytes};
use super::error::ParallelError;
use super::group::{Group, Place};
use super::part::Part;

/// Values of gradients that travel at once.
const BUCKET: usize = 1 << 22;

/// Name and number of values.
type Sized = (String, usize);

impl Group {
    /// Sums losses and gradients over the ranks: the gradient of a parameter that any rank has one
    /// of, on all ranks that compute with it. Returns the loss.
    pub(crate) fn sum_gradients(
        &mut self,
        loss: f64,
        parameters: &[Sized],
        gradients: &mut GradientSum,
    ) -> Result<f64, ParallelError> {
        const DOING: &str = "summing gradients";
        let (total, wanted) = self.wanted(loss, parameters, gradients, DOING)?;
        for (holders, wanted) in self.by_holders(wanted) {
            let Some(mut part) = Part::of(self.collective.as_mut(), &holders) else {
                continue;
            };
            for bucket in buckets(&wanted) {
                let mut flat = taken(bucket, gradients);
                part.all_reduce(&mut flat, DOING)?;
                let mut flat = flat.as_slice();
                for (name, len) in bucket {
                    let (values, others) = flat.split_at(*len);
                    gradients.insert(name, values.to_vec());
                    flat = others;
                }
            }
        }
        Ok(total)
    }

    /// Sums losses and gradients over the ranks (ZeRO stage 2): the sum of a gradient is added to what
    /// the owner of its parameter has in `kept`, and no other rank has it any more. Each value is summed
    /// in the same order as by [`Group::sum_gradients`]. Returns the loss.
    pub(crate) fn reduce_gradients(
        &mut self,
        loss: f64,
        parameters: &[Sized],
        gradients: &mut GradientSum,
        kept: &mut GradientSum,
    ) -> Result<f64, ParallelError> {
        const DOING: &str = "reducing gradients";
        let (total, wanted) = self.wanted(loss, parameters, gradients, DOING)?;
        for bucket in buckets(&wanted) {
            let mut flat = taken(bucket, gradients);
            let summed = self.collective.reduce_scatter(&mut flat, DOING)?;
            // Where each parameter is in the bucket, and who wants it.
            let mut start = 0;
            let places: Vec<(usize, usize, usize)> = bucket
                .iter()
                .map(|(name, len)| {
                    start += len;
                    let owner = self.places.get(name).map_or(0, Place::source);
                    (start - len, start, owner)
                })
                .collect();
            let (n, rank, len) = (self.world(), self.rank(), flat.len());
            // What the parts that `from` has summed hold of the parameters of `to`.
            let pieces = |from: usize, to: usize| {
                let has = part(len, n, (from + 1) % n);
                let of = places.iter().filter(move |(_, _, owner)| *owner == to);
                of.map(move |(start, end, _)| {
                    let (start, end) = ((*start).max(has.start), (*end).min(has.end));
                    start..end.max(start)
                })
            };
            debug_assert_eq!(summed, part(len, n, (rank + 1) % n));
            for step in 1..n {
                let (to, from) = ((rank + step) % n, (rank + n - step) % n);
                let outgoing = pieces(rank, to).flat_map(|range| to_bytes(&flat[range]));
                let outgoing: Vec<u8> = outgoing.collect();
                let size: usize = pieces(from, rank).map(|range| range.len()).sum();
                let mut incoming = vec![0; 4 * size];
                self.collective
                    .exchange(to, &outgoing, from, &mut incoming, DOING)?;
                let mut values = floats(&incoming);
                for range in pieces(from, rank) {
                    for (value, new) in flat[range].iter_mut().zip(&mut values) {
                        *value = new;
                    }
                }
            }
            for ((name, _), (start, end, owner)) in bucket.iter().zip(&places) {
                if *owner == rank {
                    let values = &flat[*start..*end];
                    match kept.get_mut(name) {
                        Some(sum) => sum.iter_mut().zip(values).for_each(|(s, g)| *s += g),
                        None => kept.insert(name, values.to_vec()),
                    }
                }
            }
        }
        Ok(total)
    }

    /// The sum of the losses, and which parameters any rank has a gradient of.
    fn wanted(
        &mut self,
        loss: f64,
        parameters: &[Sized],
        gradients: &GradientSum,
        doing: &'static str,
    ) -> Result<(f64, Vec<Sized>), ParallelError> {
        let mut message = loss.to_le_bytes().to_vec();
        let has = parameters.iter();
        message.extend(has.map(|(name, _)| u8::from(gradients.gradient(name).is_some())));
        let most = message.len() as u64;
        let all = self.collective.all_gather(&message, most, doing)?;
        let mut total = 0.0;
        for (rank, said) in all.iter().enumerate() {
            let Some((loss, flags)) = said.split_first_chunk::<8>() else {
                return Err(self.wrong(rank, doing));
            };
            if flags.len() != parameters.len() {
                return Err(self.wrong(rank, doing));
            }
            total += f64::from_le_bytes(*loss);
        }
        let wanted = parameters.iter().enumerate().filter(|(i, _)| {
            let mut flags = all.iter().filter_map(|said| said.get(8 + i));
            flags.any(|flag| *flag == 1)
        });
        Ok((
            total,
            wanted.map(|(_, parameter)| parameter.clone()).collect(),
        ))
    }

    /// Parameters by the ranks that compute with them, in the same order on all.
    fn by_holders(&self, parameters: Vec<Sized>) -> BTreeMap<Vec<usize>, Vec<Sized>> {
        let mut by_holders: BTreeMap<Vec<usize>, Vec<Sized>> = BTreeMap::new();
        for parameter in parameters {
            let place = self.places.get(&parameter.0);
            let holders = place.map_or_else(|| (0..self.world()).collect(), |p| p.holders.clone());
            by_holders.entry(holders).or_default().push(parameter);
        }
        by_holders
    }

    /// The squares of the norms of all gradients by name, of which each rank gives those that it has.
    pub(crate) fn all_squares(
        &mut self,
        own: Vec<(String, f64)>,
        parameters: &[Sized],
    ) -> Result<Vec<(String, f64)>, ParallelError> {
        const DOING: &str = "summing the norms of gradients";
        if self.layout.zero < 2 && self.layout.pipeline == 1 {
            return Ok(own);
        }
        let index: BTreeMap<&str, u32> = (0..)
            .zip(parameters)
            .map(|(i, p)| (p.0.as_str(), i))
            .collect();
        let mut message = Vec::new();
        for (name, square) in &own {
            if let Some(index) = index.get(name.as_str()) {
                message.extend(index.to_le_bytes());
                message.extend(square.to_le_bytes());
            }
        }
        let most = 12 * parameters.len() as u64;
        let all = self.collective.all_gather(&message, most, DOING)?;
        let mut squares = BTreeMap::new();
        for (rank, said) in all.iter().enumerate() {
            let (pairs, _) = said.as_chunks::<12>();
            for pair in pairs {
                let [a, b, c, d, square @ ..] = pair;
                let index = u32::from_le_bytes([*a, *b, *c, *d]);
                let Some((name, _)) = parameters.get(index as usize) else {
                    return Err(self.damaged(rank, DOING, format!("parameter {index}")));
                };
                // What several ranks have is the same on each, and counts once.
                squares.insert(name.clone(), f64::from_le_bytes(*square));
            }
        }
        Ok(squares.into_iter().collect())
    }

    /// The sum of what each rank says.
    pub(crate) fn sum(&mut self, own: f64, doing: &'static str) -> Result<f64, ParallelError> {
        let all = self.collective.all_gather(&own.to_le_bytes(), 8, doing)?;
        let mut sum = 0.0;
        for (rank, said) in all.iter().enumerate() {
            let Some(value) = said.first_chunk::<8>() else {
                return Err(self.wrong(rank, doing));
            };
            sum += f64::from_le_bytes(*value);
        }
        Ok(sum)
    }

    /// Hands parameters of those that have updated them to all that compute with them.
    pub(crate) fn gather_parameters(
        &mut self,
        parameters: Vec<&mut Parameter>,
    ) -> Result<(), ParallelError> {
        if self.layout.zero == 0 {
            return Ok(());
        }
        let mut by_holders: BTreeMap<Vec<usize>, Vec<&mut Parameter>> = BTreeMap::new();
        for parameter in parameters.into_iter().filter(|p| p.is_trainable()) {
            if let Some(place) = self.places.get(parameter.name()) {
                let of = by_holders.entry(place.holders.clone()).or_default();
                of.push(parameter);
            }
        }
        for (holders, parameters) in by_holders {
            self.gather_among(&holders, parameters)?;
        }
        Ok(())
    }

    /// Hands these parameters to all ranks, whoever has them.
    pub(crate) fn gather_everywhere(
        &mut self,
        mut parameters: Vec<&mut Parameter>,
    ) -> Result<(), ParallelError> {
        parameters.retain(|p| self.places.contains_key(p.name()));
        let all: Vec<usize> = (0..self.world()).collect();
        self.gather_among(&all, parameters)
    }

    fn gather_among(
        &mut self,
        ranks: &[usize],
        parameters: Vec<&mut Parameter>,
    ) -> Result<(), ParallelError> {
        const DOING: &str = "gathering parameters";
        let rank = self.rank();
        let sources: Vec<usize> = parameters
            .iter()
            .map(|p| self.places.get(p.name()).map_or(0, Place::source))
            .collect();
        let own = parameters.iter().zip(&sources);
        let own = own.filter(|(_, source)| **source == rank);
        let own: Vec<u8> = own.flat_map(|(p, _)| to_bytes(&p.to_vec())).collect();
        let most: usize = parameters.iter().map(|p| 4 * p.len()).sum();
        let Some(mut part) = Part::of(self.collective.as_mut(), ranks) else {
            return Ok(());
        };
        let all = part.all_gather(&own, most as u64, DOING)?;
        self.take_values(ranks, &all, parameters, &sources, DOING)
    }

    /// Brings these parameters to rank 0, whoever has them.
    pub(crate) fn gather_at_first(
        &mut self,
        mut parameters: Vec<&mut Parameter>,
    ) -> Result<(), ParallelError> {
        const DOING: &str = "gathering parameters at rank 0";
        parameters.retain(|p| self.places.contains_key(p.name()));
        let rank = self.rank();
        let sources: Vec<usize> = parameters
            .iter()
            .map(|p| self.places.get(p.name()).map_or(0, Place::source))
            .collect();
        let own = parameters.iter().zip(&sources);
        let own = own.filter(|(_, source)| rank > 0 && **source == rank);
        let own: Vec<u8> = own.flat_map(|(p, _)| to_bytes(&p.to_vec())).collect();
        let most: usize = parameters.iter().map(|p| 4 * p.len()).sum();
        let all = self.collective.gather(0, own, most as u64, DOING)?;
        if rank > 0 {
            return Ok(());
        }
        let ranks: Vec<usize> = (0..self.world()).collect();
        self.take_values(&ranks, &all, parameters, &sources, DOING)
    }

    /// Puts what others gave in place.
    fn take_values(
        &self,
        ranks: &[usize],
        all: &[Vec<u8>],
        parameters: Vec<&mut Parameter>,
        sources: &[usize],
        doing: &'static str,
    ) -> Result<(), ParallelError> {
        let mut at = vec![0; all.len()];
        for (parameter, source) in parameters.into_iter().zip(sources) {
            if *source == self.rank() {
                continue;
            }
            let Some(index) = ranks.iter().position(|rank| rank == source) else {
                return Err(self.wrong(*source, doing));
            };
            let start = at[index];
            at[index] += 4 * parameter.len();
            let Some(bytes) = all[index].get(start..at[index]) else {
                return Err(self.wrong(*source, doing));
            };
            parameter.set(floats(bytes).collect());
        }
        Ok(())
    }

    /// That all ranks that keep the same parameters have the same bits. `hash` is of those of the named
    /// ones; `more` is what all have beside them.
    pub(crate) fn agree_on_parameters(
        &mut self,
        parameters: &[Sized],
        more: &[u8],
        mut hash: impl FnMut(&[Sized]) -> Vec<u8>,
    ) -> Result<(), ParallelError> {
        const WHAT: &str = "parameters after a step";
        self.agree(more, WHAT)?;
        let is_shared =
            |(name, _): &&Sized| self.layout.zero < 3 || !self.places.contains_key(name);
        let shared = parameters.iter().filter(is_shared).cloned().collect();
        for (holders, parameters) in self.by_holders(shared) {
            let own = match holders.contains(&self.rank()) {
                true => hash(&parameters),
                false => continue,
            };
            let Some(mut part) = Part::of(self.collective.as_mut(), &holders) else {
                continue;
            };
            let all = part.all_gather(&own, 1 << 16, WHAT)?;
            if let Some(at) = all.iter().position(|said| *said != all[0]) {
                let rank = holders[at];
                return Err(ParallelError::Differs { rank, what: WHAT });
            }
        }
        Ok(())
    }

    /// Sends bytes to one rank of a pipeline while at most `most` are received from another, or does one
    /// of the two.
    pub(crate) fn pass_on(
        &mut self,
        to: Option<(usize, &[u8])>,
        from: Option<usize>,
        most: u64,
        doing: &'static str,
    ) -> Result<Option<Vec<u8>>, ParallelError> {
        match (to, from) {
            (Some((to, bytes)), Some(from)) => {
                let received = self.collective.exchange_any(to, bytes, from, most, doing)?;
                Ok(Some(received))
            }
            (Some((to, bytes)), None) => self.collective.send(to, bytes, doing).map(|()| None),
            (None, Some(from)) => self.collective.receive(from, most, doing).map(Some),
            (None, None) => Ok(None),
        }
    }
}

/// Parameters that travel together.
fn buckets(mut rest: &[Sized]) -> Vec<&[Sized]> {
    let mut all = Vec::new();
    while !rest.is_empty() {
        let mut size = 0;
        let fits = |(_, len): &&Sized| {
            size += len;
            size <= BUCKET
        };
        let count = rest.iter().take_while(fits).count().max(1);
        let (bucket, later) = rest.split_at(count);
        all.push(bucket);
        rest = later;
    }
    all
}

/// Takes the gradients of a bucket out; zeros where there is none.
fn taken(bucket: &[Sized], gradients: &mut GradientSum) -> Vec<f32> {
    let mut flat = Vec::with_capacity(bucket.iter().map(|(_, len)| len).sum());
    for (name, len) in bucket {
        match gradients.remove(name) {
            Some(values) => flat.extend(values),
            None => flat.extend(std::iter::repeat_n(0.0, *len)),
        }
    }
    flat
}
