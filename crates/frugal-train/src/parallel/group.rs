//! Data-parallel training over a [`Collective`]: whose rows, whose optimizer state, and the sums.

use std::collections::BTreeMap;

use frugal_nn::{GradientSum, Parameter};
use serde::Serialize;

use super::codec::{Reader, Writer};
use super::collective::{Collective, floats, to_bytes};
use super::error::ParallelError;
use crate::optim::{Optimizer, SavedState, SavedTensor, StateTensor};

/// Values of gradients that travel at once.
const BUCKET: usize = 1 << 22;

/// The processes of a data-parallel run.
pub struct Group {
    collective: Box<dyn Collective>,
    /// Whether each rank keeps the optimizer state of its own parameters only (ZeRO stage 1).
    shards_optimizer: bool,
    /// Whose parameter each is; empty without sharding.
    owners: BTreeMap<String, usize>,
}

/// What a data-parallel run did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ParallelReport {
    /// Processes.
    pub data: usize,
    /// Stage of ZeRO.
    pub zero: u8,
    /// Bytes of optimizer state on each rank.
    pub optimizer_bytes: Vec<u64>,
    /// Bytes that rank 0 sent.
    pub bytes_sent: u64,
}

/// What rank 0 gives to all at the start of a run.
pub(crate) struct Start {
    /// Where the run stands, as JSON.
    pub(crate) state: Vec<u8>,
    /// Step of the newest checkpoint.
    pub(crate) saved: Option<u64>,
    pub(crate) parameters: Vec<Vec<f32>>,
    pub(crate) optimizer: SavedState,
    pub(crate) adapter: BTreeMap<String, Vec<f32>>,
}

impl Group {
    /// Data parallelism over processes that have found each other, with ZeRO stage 0 or 1.
    pub fn new(collective: impl Collective + 'static, shards_optimizer: bool) -> Self {
        Self {
            collective: Box::new(collective),
            shards_optimizer,
            owners: BTreeMap::new(),
        }
    }

    /// Who this process is.
    pub fn rank(&self) -> usize {
        self.collective.rank()
    }

    /// Number of processes.
    pub fn world(&self) -> usize {
        self.collective.world()
    }

    /// Bytes that this process sent.
    pub fn bytes_sent(&self) -> u64 {
        self.collective.bytes_sent()
    }

    /// Whether optimizer states are sharded.
    pub fn shards_optimizer(&self) -> bool {
        self.shards_optimizer
    }

    /// Tells the others why the run ends.
    pub fn abort(&mut self, reason: &str) {
        self.collective.abort(reason);
    }

    /// What was done; the bytes of the optimizer are counted from names and shapes.
    pub fn report(&self, parameters: &[&Parameter], optimizer: &dyn Optimizer) -> ParallelReport {
        let mut optimizer_bytes = vec![0; self.world()];
        for parameter in parameters.iter().filter(|p| p.is_trainable()) {
            let bytes = optimizer.state_bytes(parameter.name(), parameter.shape());
            for (rank, sum) in optimizer_bytes.iter_mut().enumerate() {
                let owner = self.owners.get(parameter.name());
                if owner.is_none_or(|owner| *owner == rank) {
                    *sum += bytes;
                }
            }
        }
        ParallelReport {
            data: self.world(),
            zero: u8::from(self.shards_optimizer),
            optimizer_bytes,
            bytes_sent: self.collective.bytes_sent(),
        }
    }

    /// Gives each parameter an owner: the largest first, each to the rank that has least.
    pub(crate) fn assign(&mut self, parameters: &[&Parameter]) {
        if !self.shards_optimizer {
            return;
        }
        let mut sorted: Vec<(usize, &str)> = parameters
            .iter()
            .filter(|p| p.is_trainable())
            .map(|p| (p.len(), p.name()))
            .collect();
        sorted.sort_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(b.1)));
        let mut load = vec![0; self.world()];
        for (size, name) in sorted {
            let least = (0..load.len()).min_by_key(|&rank| (load[rank], rank));
            let rank = least.unwrap_or(0);
            load[rank] += size;
            self.owners.insert(name.to_owned(), rank);
        }
    }

    /// Whether this rank updates a parameter.
    pub(crate) fn owns(&self, name: &str) -> bool {
        let owner = self.owners.get(name);
        owner.is_none_or(|owner| *owner == self.rank())
    }

    /// The part of the rows of a micro-batch that this rank computes, about as many tokens as the
    /// others; it may be empty.
    pub(crate) fn share<'r>(&self, rows: &'r [u32], tokens: impl Fn(u32) -> usize) -> &'r [u32] {
        let total: usize = rows.iter().map(|&row| tokens(row)).sum();
        let (world, rank) = (self.world(), self.rank());
        // A row belongs to the rank in whose part of the tokens its middle lies.
        let mut before = 0;
        let of: Vec<usize> = rows
            .iter()
            .map(|&row| {
                let middle = 2 * before + tokens(row);
                before += tokens(row);
                (middle * world / (2 * total).max(1)).min(world - 1)
            })
            .collect();
        let start = of.partition_point(|&owner| owner < rank);
        let end = of.partition_point(|&owner| owner <= rank);
        &rows[start..end]
    }

    /// Whether any rank says so.
    pub(crate) fn any(&mut self, flag: bool, doing: &'static str) -> Result<bool, ParallelError> {
        let all = self.collective.all_gather(&[u8::from(flag)], 1, doing)?;
        Ok(all.iter().any(|flag| flag.first() == Some(&1)))
    }

    /// That all ranks say the same as rank 0.
    pub(crate) fn agree(&mut self, on: &[u8], what: &'static str) -> Result<(), ParallelError> {
        let all = self.collective.all_gather(on, 1 << 16, what)?;
        match all.iter().position(|said| *said != all[0]) {
            Some(rank) => Err(ParallelError::Differs { rank, what }),
            None => Ok(()),
        }
    }

    /// Sums losses and gradients over the ranks: the gradient of a parameter that any rank has one
    /// of. Returns the loss.
    pub(crate) fn sum_gradients(
        &mut self,
        loss: f64,
        parameters: &[(String, usize)],
        gradients: &mut GradientSum,
    ) -> Result<f64, ParallelError> {
        const DOING: &str = "summing gradients";
        let mut message = loss.to_le_bytes().to_vec();
        let has = parameters.iter();
        message.extend(has.map(|(name, _)| u8::from(gradients.gradient(name).is_some())));
        let most = message.len() as u64;
        let all = self.collective.all_gather(&message, most, DOING)?;
        let mut total = 0.0;
        for (rank, said) in all.iter().enumerate() {
            let Some((loss, flags)) = said.split_first_chunk::<8>() else {
                return Err(self.wrong(rank, DOING));
            };
            if flags.len() != parameters.len() {
                return Err(self.wrong(rank, DOING));
            }
            total += f64::from_le_bytes(*loss);
        }
        let wanted = parameters.iter().enumerate().filter(|(i, _)| {
            let mut flags = all.iter().filter_map(|said| said.get(8 + i));
            flags.any(|flag| *flag == 1)
        });
        let wanted: Vec<&(String, usize)> = wanted.map(|(_, parameter)| parameter).collect();
        let mut rest = wanted.as_slice();
        while !rest.is_empty() {
            let mut size = 0;
            let fits = |(_, len): &&(String, usize)| {
                size += len;
                size <= BUCKET
            };
            let count = rest.iter().copied().take_while(fits).count().max(1);
            let (bucket, later) = rest.split_at(count);
            rest = later;
            let mut flat = Vec::with_capacity(bucket.iter().map(|(_, len)| len).sum());
            for (name, len) in bucket {
                match gradients.remove(name) {
                    Some(values) => flat.extend(values),
                    None => flat.extend(std::iter::repeat_n(0.0, *len)),
                }
            }
            self.collective.all_reduce(&mut flat, DOING)?;
            let mut flat = flat.as_slice();
            for (name, len) in bucket {
                let (values, others) = flat.split_at(*len);
                gradients.insert(name, values.to_vec());
                flat = others;
            }
        }
        Ok(total)
    }

    /// Hands the parameters that each rank has updated to all others.
    pub(crate) fn gather_parameters(
        &mut self,
        mut parameters: Vec<&mut Parameter>,
    ) -> Result<(), ParallelError> {
        const DOING: &str = "gathering parameters";
        if !self.shards_optimizer {
            return Ok(());
        }
        parameters.retain(|p| p.is_trainable());
        let rank = self.rank();
        let owner = |p: &Parameter, owners: &BTreeMap<String, usize>| {
            owners.get(p.name()).copied().unwrap_or_default()
        };
        let mut own = Vec::new();
        for parameter in parameters.iter() {
            if owner(parameter, &self.owners) == rank {
                own.extend(to_bytes(&parameter.to_vec()));
            }
        }
        let most: usize = parameters.iter().map(|p| 4 * p.len()).sum();
        let all = self.collective.all_gather(&own, most as u64, DOING)?;
        let mut at = vec![0; all.len()];
        for parameter in parameters {
            let from = owner(parameter, &self.owners);
            let start = at[from];
            at[from] += 4 * parameter.len();
            if from == rank {
                continue;
            }
            let Some(bytes) = all[from].get(start..at[from]) else {
                return Err(self.wrong(from, DOING));
            };
            parameter.set(floats(bytes).collect());
        }
        Ok(())
    }

    /// The whole state of the optimizer on rank 0; on others, and without sharding, nothing.
    pub(crate) fn gather_state(
        &mut self,
        own: &[(String, StateTensor<'_>)],
        parameters: &[(String, usize)],
    ) -> Result<SavedState, ParallelError> {
        const DOING: &str = "gathering optimizer states";
        if !self.shards_optimizer {
            return Ok(SavedState::new());
        }
        let mut writer = Writer::default();
        writer.state(own);
        let most = state_limit(parameters);
        let all = self.collective.gather(0, writer.0, most, DOING)?;
        let mut state = SavedState::new();
        for (rank, bytes) in all.iter().enumerate().skip(1) {
            let found = Reader(bytes).state();
            let found = found.map_err(|reason| self.damaged(rank, DOING, reason))?;
            state.extend(found);
        }
        Ok(state)
    }

    /// The part of an optimizer's state that is of this rank's parameters, and what is of none.
    pub(crate) fn own_state(&self, state: SavedState) -> SavedState {
        let is_own = |key: &str| {
            // The longest name that a key ends with: `layers.0.w` and not `w`.
            let ends = |(name, _): &(&String, &usize)| {
                let before = key.strip_suffix(name.as_str());
                before.is_some_and(|before| before.is_empty() || before.ends_with('.'))
            };
            let owner = self
                .owners
                .iter()
                .filter(ends)
                .max_by_key(|(name, _)| name.len());
            owner.is_none_or(|(_, owner)| *owner == self.rank())
        };
        state.into_iter().filter(|(key, _)| is_own(key)).collect()
    }

    /// What rank 0 starts with, for all.
    pub(crate) fn start(
        &mut self,
        own: impl FnOnce() -> Result<StartOf, String>,
        parameters: &[(String, usize)],
    ) -> Result<Option<Start>, ParallelError> {
        const DOING: &str = "starting";
        let mut writer = Writer::default();
        if self.rank() == 0 {
            let given = own().map_err(|reason| ParallelError::Join { reason })?;
            writer.bytes(&given.state);
            writer.number(given.saved.map_or(u64::MAX, |step| step));
            writer.number(given.parameters.len() as u64);
            given
                .parameters
                .iter()
                .for_each(|values| writer.floats(values));
            writer.0.extend(given.optimizer);
            writer.number(given.adapter.len() as u64);
            for (name, values) in &given.adapter {
                writer.bytes(name.as_bytes());
                writer.floats(values);
            }
        }
        let most = state_limit(parameters);
        let bytes = self.collective.broadcast(0, writer.0, most, DOING)?;
        if self.rank() == 0 {
            return Ok(None);
        }
        let mut reader = Reader(&bytes);
        let mut read = || -> Result<Start, String> {
            let state = reader.bytes()?.to_vec();
            let saved = reader.number()?;
            let mut values = Vec::new();
            for (i, (name, len)) in (0..reader.number()?).zip(parameters) {
                let found = reader.floats()?;
                if found.len() != *len {
                    return Err(format!("`{name}`, the {i}th, has {} values", found.len()));
                }
                values.push(found);
            }
            if values.len() != parameters.len() {
                return Err(format!("{} parameters", values.len()));
            }
            let optimizer = reader.state()?;
            let mut adapter = BTreeMap::new();
            for _ in 0..reader.number()? {
                let name = reader.text()?;
                adapter.insert(name, reader.floats()?);
            }
            Ok(Start {
                state,
                saved: (saved != u64::MAX).then_some(saved),
                parameters: values,
                optimizer,
                adapter,
            })
        };
        let found = read();
        found
            .map(Some)
            .map_err(|reason| self.damaged(0, DOING, reason))
    }

    /// The metrics that rank 0 measured; none if it was asked to stop.
    pub(crate) fn metrics(
        &mut self,
        own: Option<&BTreeMap<String, f64>>,
    ) -> Result<Option<BTreeMap<String, f64>>, ParallelError> {
        const DOING: &str = "waiting for an evaluation";
        let mut writer = Writer::default();
        if let Some(metrics) = own {
            for (name, value) in metrics {
                writer.bytes(name.as_bytes());
                writer.bytes(&value.to_le_bytes());
            }
        }
        let bytes = self.collective.broadcast(0, writer.0, 1 << 16, DOING)?;
        let mut reader = Reader(&bytes);
        let mut found = BTreeMap::new();
        while !reader.0.is_empty() {
            let mut read = || -> Result<(String, f64), String> {
                let name = reader.text()?;
                let value = reader.bytes()?.try_into();
                let value = value.map_err(|_| format!("`{name}` is not one number"))?;
                Ok((name, f64::from_le_bytes(value)))
            };
            let (name, value) = read().map_err(|reason| self.damaged(0, DOING, reason))?;
            found.insert(name, value);
        }
        Ok((!found.is_empty()).then_some(found))
    }

    fn wrong(&self, rank: usize, doing: &'static str) -> ParallelError {
        self.damaged(rank, doing, "too little".into())
    }

    fn damaged(&self, rank: usize, doing: &'static str, found: String) -> ParallelError {
        ParallelError::Protocol {
            rank,
            doing,
            expected: format!("what rank {} has", self.rank()),
            found,
        }
    }
}

/// What rank 0 gives, the optimizer's state as bytes already.
pub(crate) struct StartOf {
    pub(crate) state: Vec<u8>,
    pub(crate) saved: Option<u64>,
    pub(crate) parameters: Vec<Vec<f32>>,
    pub(crate) optimizer: Vec<u8>,
    pub(crate) adapter: BTreeMap<String, Vec<f32>>,
}

/// An optimizer's state as bytes.
pub(crate) fn state_bytes(state: &[(String, StateTensor<'_>)]) -> Vec<u8> {
    let mut writer = Writer::default();
    writer.state(state);
    writer.0
}

/// Optimizers keep a few numbers for each parameter; nothing has more than this.
fn state_limit(parameters: &[(String, usize)]) -> u64 {
    let values: u64 = parameters.iter().map(|(_, len)| *len as u64).sum();
    let names: u64 = parameters.iter().map(|(name, _)| name.len() as u64).sum();
    (1 << 24) + 32 * (values + names)
}

/// The state of an optimizer, read at once.
pub(crate) fn owned(state: &[(String, StateTensor<'_>)]) -> Result<SavedState, String> {
    Reader(&state_bytes(state)).state()
}

/// Own and received parts of a state as one.
pub(crate) fn joined<'s>(
    own: Vec<(String, StateTensor<'s>)>,
    received: &'s SavedState,
) -> Vec<(String, StateTensor<'s>)> {
    let mut all: BTreeMap<String, StateTensor<'s>> = own.into_iter().collect();
    for (name, tensor) in received {
        let tensor: &'s SavedTensor = tensor;
        all.entry(name.clone())
            .or_insert_with(|| super::codec::stored(tensor));
    }
    all.into_iter().collect()
}
