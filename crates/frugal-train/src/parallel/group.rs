//! Training over a [`Collective`]: whose rows, whose parameters and optimizer state, and what all agree on.

use std::collections::BTreeMap;

use frugal_core::events::current_rss_bytes;
use frugal_nn::Parameter;
use serde::Serialize;

use super::codec::{Reader, Writer};
use super::collective::Collective;
use super::error::ParallelError;
use super::layout::Layout;
use crate::optim::{Optimizer, SavedState, SavedTensor, StateTensor};

/// The processes of a run.
pub struct Group {
    pub(super) collective: Box<dyn Collective>,
    pub(super) layout: Layout,
    /// Where each trainable parameter is; empty where every rank has all and updates all.
    pub(super) places: BTreeMap<String, Place>,
    /// Most that was resident during a step, in bytes.
    resident: u64,
}

/// Who computes with a parameter, and who updates it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Ranks that compute with it, ascending.
    pub(super) holders: Vec<usize>,
    /// The one that updates it; all holders do where there is none.
    pub(super) owner: Option<usize>,
}

impl Place {
    /// The rank whose values count.
    pub(super) fn source(&self) -> usize {
        self.owner.unwrap_or(self.holders[0])
    }
}

/// What the processes of a run did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ParallelReport {
    /// Replicas.
    pub data: usize,
    /// Stages of the pipeline.
    pub pipeline: usize,
    /// Stage of ZeRO.
    pub zero: u8,
    /// Bytes of trainable parameters that each rank keeps between steps.
    pub parameter_bytes: Vec<u64>,
    /// Bytes of gradients that each rank has when it updates.
    pub gradient_bytes: Vec<u64>,
    /// Bytes of optimizer state on each rank.
    pub optimizer_bytes: Vec<u64>,
    /// Most resident memory of each process between the parts of a step, in bytes; 0 where the system
    /// does not say.
    pub resident_bytes: Vec<u64>,
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
    /// Processes that have found each other, and what they do.
    ///
    /// # Errors
    /// A layout whose parts do not go together, or of another number of processes.
    pub fn new(
        collective: impl Collective + 'static,
        layout: Layout,
    ) -> Result<Self, ParallelError> {
        layout.check()?;
        if layout.world() != collective.world() {
            let reason = format!(
                "{} processes have come, and {} replicas of {} stages are {}",
                collective.world(),
                layout.data,
                layout.pipeline,
                layout.world()
            );
            return Err(ParallelError::Join { reason });
        }
        Ok(Self {
            collective: Box::new(collective),
            layout,
            places: BTreeMap::new(),
            resident: 0,
        })
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

    /// How the run is divided.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Notes how much memory is resident now.
    pub(crate) fn note_memory(&mut self) {
        self.resident = self.resident.max(current_rss_bytes().unwrap_or(0));
    }

    /// Tells the others why the run ends.
    pub fn abort(&mut self, reason: &str) {
        self.collective.abort(reason);
    }

    /// What was done. Bytes are counted from names and shapes, but for the memory of the processes, which
    /// all tell each other.
    ///
    /// # Errors
    /// A rank that is lost.
    pub fn report(
        &mut self,
        parameters: &[&Parameter],
        optimizer: &dyn Optimizer,
    ) -> Result<ParallelReport, ParallelError> {
        let (world, zero) = (self.world(), self.layout.zero);
        let none = || vec![0; world];
        let [mut kept, mut gradients, mut states] = [none(), none(), none()];
        for parameter in parameters.iter().filter(|p| p.is_trainable()) {
            let state = optimizer.state_bytes(parameter.name(), parameter.shape());
            let size = 4 * parameter.len() as u64;
            let place = self.places.get(parameter.name());
            for rank in 0..world {
                let holds = place.is_none_or(|place| place.holders.contains(&rank));
                let updates = holds && place.is_none_or(|p| p.owner.is_none_or(|o| o == rank));
                kept[rank] += if updates || holds && zero < 3 {
                    size
                } else {
                    0
                };
                gradients[rank] += if updates || holds && zero < 2 {
                    size
                } else {
                    0
                };
                states[rank] += if updates { state } else { 0 };
            }
        }
        let own = self.resident.to_le_bytes();
        let said = self.collective.all_gather(&own, 8, "reporting memory")?;
        let resident = said.iter().map(|bytes| match bytes.first_chunk::<8>() {
            Some(bytes) => u64::from_le_bytes(*bytes),
            None => 0,
        });
        Ok(ParallelReport {
            data: self.layout.data,
            pipeline: self.layout.pipeline,
            zero,
            parameter_bytes: kept,
            gradient_bytes: gradients,
            optimizer_bytes: states,
            resident_bytes: resident.collect(),
            bytes_sent: self.collective.bytes_sent(),
        })
    }

    /// Gives each parameter its place: `stages` says which stages of the pipeline compute with it. Of the
    /// ranks of these, with ZeRO one owns it: the largest first, each to the rank that has least.
    pub(crate) fn assign(
        &mut self,
        parameters: &[&Parameter],
        stages: impl Fn(&str) -> Vec<usize>,
    ) {
        let layout = self.layout;
        if !layout.is_divided() {
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
            let of = stages(name);
            let holders: Vec<usize> = (0..self.world())
                .filter(|rank| of.contains(&layout.stage(*rank)))
                .collect();
            let least = holders.iter().copied().min_by_key(|&r| (load[r], r));
            let owner = least.filter(|_| layout.zero > 0);
            if let Some(owner) = owner {
                load[owner] += size;
            }
            let place = Place { holders, owner };
            self.places.insert(name.to_owned(), place);
        }
    }

    /// Whether this rank updates a parameter.
    pub(crate) fn owns(&self, name: &str) -> bool {
        let rank = self.rank();
        self.places.get(name).is_none_or(|place| match place.owner {
            Some(owner) => owner == rank,
            None => place.holders.contains(&rank),
        })
    }

    /// Whether this rank has a parameter between steps.
    pub(crate) fn keeps(&self, name: &str) -> bool {
        let rank = self.rank();
        let held = |place: &Place| place.holders.contains(&rank);
        self.owns(name) || self.layout.zero < 3 && self.places.get(name).is_some_and(held)
    }

    /// The part of the rows of a micro-batch that this rank computes, about as many tokens as the
    /// others; it may be empty.
    pub(crate) fn share<'r>(&self, rows: &'r [u32], tokens: impl Fn(u32) -> usize) -> &'r [u32] {
        let replica = self.layout.replica(self.rank());
        cut(rows, tokens, self.layout.data, replica)
    }

    /// The parts of these rows of this rank's replica that go through the stages one behind another,
    /// about as many tokens each; none is empty.
    pub(crate) fn micro_batches<'r>(
        &self,
        rows: &'r [u32],
        tokens: impl Fn(u32) -> usize,
    ) -> Vec<&'r [u32]> {
        let parts = self.layout.micro_batches;
        let all = (0..parts).map(|part| cut(rows, &tokens, parts, part));
        all.filter(|rows| !rows.is_empty()).collect()
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

    /// The whole state of the optimizer on rank 0; on others, and without sharding, nothing.
    pub(crate) fn gather_state(
        &mut self,
        own: &[(String, StateTensor<'_>)],
        parameters: &[(String, usize)],
    ) -> Result<SavedState, ParallelError> {
        const DOING: &str = "gathering optimizer states";
        if !self.layout.is_divided() {
            return Ok(SavedState::new());
        }
        let rank = self.rank();
        let counts = |(key, _): &&(String, StateTensor<'_>)| {
            let place = self.place_of(key);
            place.is_none_or(|place| place.source() == rank)
        };
        let own: Vec<_> = own.iter().filter(counts).cloned().collect();
        let mut writer = Writer::default();
        writer.state(&own);
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
        let rank = self.rank();
        let is_own = |key: &str| {
            let place = self.place_of(key);
            place.is_none_or(|place| match place.owner {
                Some(owner) => owner == rank,
                None => place.holders.contains(&rank),
            })
        };
        state.into_iter().filter(|(key, _)| is_own(key)).collect()
    }

    /// The place of the parameter that a tensor of the optimizer's state belongs to.
    fn place_of(&self, key: &str) -> Option<&Place> {
        // The longest name that a key ends with: `layers.0.w` and not `w`.
        let ends = |(name, _): &(&String, &Place)| {
            let before = key.strip_suffix(name.as_str());
            before.is_some_and(|before| before.is_empty() || before.ends_with('.'))
        };
        let found = self.places.iter().filter(ends);
        found
            .max_by_key(|(name, _)| name.len())
            .map(|(_, place)| place)
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

    pub(super) fn wrong(&self, rank: usize, doing: &'static str) -> ParallelError {
        self.damaged(rank, doing, "too little".into())
    }

    pub(super) fn damaged(&self, rank: usize, doing: &'static str, found: String) -> ParallelError {
        ParallelError::Protocol {
            rank,
            doing,
            expected: format!("what rank {} has", self.rank()),
            found,
        }
    }
}

/// The part of rows that belongs to `index` of `parts`.
fn cut(rows: &[u32], tokens: impl Fn(u32) -> usize, parts: usize, index: usize) -> &[u32] {
    let total: usize = rows.iter().map(|&row| tokens(row)).sum();
    // A row belongs to the part of the tokens in which its middle lies.
    let mut before = 0;
    let of: Vec<usize> = rows
        .iter()
        .map(|&row| {
            let middle = 2 * before + tokens(row);
            before += tokens(row);
            (middle * parts / (2 * total).max(1)).min(parts - 1)
        })
        .collect();
    let start = of.partition_point(|&part| part < index);
    let end = of.partition_point(|&part| part <= index);
    &rows[start..end]
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
