//! Adapters that start from data: the first steps of a run look at what each layer reads, or at the
//! gradient of its weight, and nothing moves meanwhile; then the adapter is set to what follows.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use burn::prelude::*;
use frugal_nn::{
    AdaptError, Adapter, BuildContext, Embedding, GradientSum, Linear, LinearChange, LowRank,
    MergedLinear, Mode, Operation, Parameter, Pass, Rows, SequenceLayout, StepContext, to_vec,
};
use serde_json::{Map, Value};

use crate::support::residual::{Factors, Residual};
use crate::support::sparse::{Place, Places};
use crate::target::Targets;

/// Steps that look at data, where the settings do not say otherwise; never more than a quarter of a
/// run.
pub(crate) const STEPS: u64 = 16;

/// What a start looks at.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Look {
    /// Gradients of the weights.
    Gradients,
    /// Rows that the layers read.
    Inputs,
    /// The same, those of each sequence divided by the largest element among them.
    ScaledInputs,
}

/// What was seen of one layer.
#[derive(Clone, Default)]
pub(crate) struct Seen {
    /// Sum of the gradients of the weight `[d_out, d_in]`, or of the products `x xᵀ [d_in, d_in]` of rows.
    pub products: Vec<f32>,
    /// Sum of the rows, `[d_in]`.
    pub sum: Vec<f32>,
    /// Number of rows.
    pub rows: f32,
    /// Number of steps, or of sequences where each is scaled by itself.
    pub count: f32,
}

/// What was seen of one layer, and which layer reads the same.
#[derive(Clone, Default)]
struct Record {
    seen: Seen,
    /// An earlier layer with the same inputs, whose record this one shares.
    same_as: Option<usize>,
    begun: bool,
}

/// What starts, and how.
pub(crate) trait DataStart: Send + Sync {
    /// The adapter.
    type Adapter: Adapter;

    /// What it starts from.
    const LOOK: Look;

    /// Sets the adapter's first values from what was seen of each place.
    fn start(&self, adapter: &mut Self::Adapter, places: &[Place], seen: &[Seen]);

    /// Fields of `adapter_config.json` that tell of the start.
    fn fields(&self) -> Map<String, Value> {
        Map::new()
    }

    /// What a resumed run needs of the start.
    fn state(&self, adapter: &Self::Adapter, places: &[Place]) -> BTreeMap<String, Vec<f32>>;

    /// Takes back what [`DataStart::state`] gave.
    ///
    /// # Errors
    /// What is missing or has another size.
    fn restore(
        &self,
        adapter: &mut Self::Adapter,
        places: &[Place],
        state: &BTreeMap<String, Vec<f32>>,
    ) -> Result<(), String>;
}

/// [`DataStart::state`] of adapters whose weights lose what they start from.
pub(crate) fn residual_state(adapter: &Residual, places: &[Place]) -> BTreeMap<String, Vec<f32>> {
    let factors = |place: &Place| {
        let Factors { a, b } = adapter.start(place.site)?;
        let key = |letter| format!("start_{letter}.{}", place.path);
        Some([(key('a'), a), (key('b'), b)])
    };
    places.iter().filter_map(factors).flatten().collect()
}

/// [`DataStart::restore`] of the same.
///
/// # Errors
/// What is missing or has another size.
pub(crate) fn restore_residual(
    adapter: &mut Residual,
    places: &[Place],
    state: &BTreeMap<String, Vec<f32>>,
) -> Result<(), String> {
    for place in places {
        let Some(Factors { a, b }) = adapter.start(place.site) else {
            continue;
        };
        let get = |letter: char, len: usize| {
            let key = format!("start_{letter}.{}", place.path);
            let found = state.get(&key).filter(|values| values.len() == len);
            found
                .cloned()
                .ok_or_else(|| format!("`{key}` is missing or has another size"))
        };
        let (a, b) = (get('a', a.len())?, get('b', b.len())?);
        adapter.begin(place.site, Factors { a, b });
    }
    Ok(())
}

/// An adapter that starts from data.
pub(crate) struct FromData<S: DataStart> {
    adapter: S::Adapter,
    start: S,
    places: Places,
    steps: u64,
    /// While looking.
    looking: Option<Looking>,
    device: Device,
}

struct Looking {
    /// A dense change of every weight, which stays zero and whose gradient is that of the weight.
    probes: Vec<Parameter>,
    records: Vec<Record>,
    /// Of the step that is computed.
    pending: Mutex<Vec<Record>>,
}

impl<S: DataStart> FromData<S> {
    /// `adapter`, which changes nothing yet; with 0 `steps` it has its values already, from a file.
    pub fn new(
        method: &'static str,
        adapter: S::Adapter,
        start: S,
        targets: &Targets,
        steps: u64,
        context: &BuildContext<'_>,
    ) -> Result<Self, AdaptError> {
        let places = Places::new(method, targets, context)?;
        let mut all = Self {
            adapter,
            start,
            places,
            steps,
            looking: None,
            device: context.device.clone(),
        };
        if steps > 0 {
            all.look();
        }
        Ok(all)
    }

    fn look(&mut self) {
        let probe = |place: &Place| {
            let name = format!("{}.weight_probe", place.path);
            let values = vec![0.0; place.len()];
            Parameter::new(name, &[place.d_out, place.d_in], values, &self.device)
        };
        let list = &self.places.list;
        let probes = match S::LOOK {
            Look::Gradients => list.iter().map(probe).collect(),
            Look::Inputs | Look::ScaledInputs => Vec::new(),
        };
        self.looking = Some(Looking {
            probes,
            records: vec![Record::default(); list.len()],
            pending: Mutex::new(vec![Record::default(); list.len()]),
        });
    }
}

fn lock(pending: &Mutex<Vec<Record>>) -> MutexGuard<'_, Vec<Record>> {
    pending.lock().unwrap_or_else(PoisonError::into_inner)
}

fn add(sum: &mut Vec<f32>, values: &[f32]) {
    sum.resize(values.len(), 0.0);
    sum.iter_mut().zip(values).for_each(|(s, v)| *s += v);
}

impl Seen {
    fn add(&mut self, other: &Self) {
        add(&mut self.products, &other.products);
        add(&mut self.sum, &other.sum);
        self.rows += other.rows;
        self.count += other.count;
    }

    /// Adds rows `[n, d_in]`, as they are or divided by their largest element.
    fn look_at(&mut self, x: Tensor<2>, scaled: bool) {
        let rows = x.dims()[0];
        if rows == 0 {
            return;
        }
        let x = if scaled {
            let largest: f32 = x.clone().max().abs().into_scalar();
            x / largest.max(f32::MIN_POSITIVE)
        } else {
            x
        };
        add(&mut self.sum, &to_vec(x.clone().sum_dim(0)));
        add(&mut self.products, &to_vec(x.clone().transpose().matmul(x)));
        self.rows += rows as f32;
        self.count += 1.0;
    }
}

/// A training pass while looking: the base's, whose layers are looked at.
struct LookingPass<'a> {
    looking: &'a Looking,
    places: &'a Places,
    look: Look,
    mode: Mode,
    bounds: Vec<usize>,
    /// What the last place read, and which it was.
    last: Option<(usize, Tensor<2>)>,
}

impl LookingPass<'_> {
    fn record(&mut self, index: usize, x: &Tensor<2>, rows: Rows) {
        let x = x.clone().inner();
        let mut pending = lock(&self.looking.pending);
        let known = self.looking.records[index].begun || pending[index].begun;
        let same_as = match known {
            true => self.looking.records[index]
                .same_as
                .or(pending[index].same_as),
            false => self.last.as_ref().and_then(|(first, other)| {
                let equal = other.dims() == x.dims() && to_vec(other.clone()) == to_vec(x.clone());
                equal.then_some(*first)
            }),
        };
        let record = &mut pending[index];
        (record.begun, record.same_as) = (true, same_as);
        if same_as.is_some() {
            return;
        }
        let scaled = self.look == Look::ScaledInputs;
        match rows {
            Rows::Tokens if scaled && self.bounds.last() == Some(&x.dims()[0]) => {
                for bounds in self.bounds.windows(2) {
                    let part = x.clone().slice(bounds[0]..bounds[1]);
                    record.seen.look_at(part, true);
                }
            }
            _ => record.seen.look_at(x.clone(), scaled),
        }
        self.last = Some((index, x));
    }
}

impl Pass for LookingPass<'_> {
    fn embed(&mut self, hidden_states: Tensor<2>, layout: &mut SequenceLayout) -> Tensor<2> {
        self.bounds = layout.cu_seqlens.to_vec();
        hidden_states
    }

    fn embedding(&mut self, base: &Embedding, ids: &[u32]) -> Tensor<2> {
        base.forward(ids)
    }

    fn linear(&mut self, base: &Linear, x: Tensor<2>) -> Tensor<2> {
        self.linear_rows(base, x, Rows::Tokens)
    }

    fn linear_rows(&mut self, base: &Linear, x: Tensor<2>, rows: Rows) -> Tensor<2> {
        let Some(index) = self.places.index(base.site) else {
            return base.forward(x);
        };
        if let Some(probe) = self.looking.probes.get(index) {
            let weight = base.weight.dense() + probe.get::<2>(self.mode);
            return frugal_kernels::linear(x, weight, base.bias.clone());
        }
        self.record(index, &x, rows);
        base.forward(x)
    }

    fn linear_change(&mut self, base: &Linear) -> LinearChange {
        LinearChange::opaque_if(self.places.index(base.site).is_some())
    }
}

impl<S: DataStart> Adapter for FromData<S> {
    fn method(&self) -> &'static str {
        self.adapter.method()
    }

    fn parameters(&self) -> Vec<&Parameter> {
        self.adapter.parameters()
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        self.adapter.parameters_mut()
    }

    fn probes(&self) -> Vec<&Parameter> {
        self.looking.iter().flat_map(|l| &l.probes).collect()
    }

    fn is_complete(&self) -> bool {
        self.looking.is_none()
    }

    fn pass(&self, mode: Mode) -> Box<dyn Pass + '_> {
        match &self.looking {
            Some(looking) if mode.is_train() => Box::new(LookingPass {
                looking,
                places: &self.places,
                look: S::LOOK,
                mode,
                bounds: Vec::new(),
                last: None,
            }),
            _ => self.adapter.pass(mode),
        }
    }

    fn before_step(&mut self, context: &StepContext, gradients: &mut GradientSum) {
        let Some(looking) = &mut self.looking else {
            return self.adapter.before_step(context, gradients);
        };
        let pending = std::mem::take(&mut *lock(&looking.pending));
        *lock(&looking.pending) = vec![Record::default(); pending.len()];
        for (record, new) in looking.records.iter_mut().zip(&pending) {
            record.seen.add(&new.seen);
            if new.begun && !record.begun {
                (record.begun, record.same_as) = (true, new.same_as);
            }
        }
        for (probe, record) in looking.probes.iter().zip(&mut looking.records) {
            let gradient = gradients.remove(probe.name());
            let products = gradient.unwrap_or_else(|| vec![0.0; probe.len()]);
            record.seen.add(&Seen {
                products,
                count: 1.0,
                ..Seen::default()
            });
        }
        for parameter in self.adapter.parameters() {
            gradients.remove(parameter.name());
        }
        let last = self.steps.min(context.total_steps / 4).max(1);
        if context.step + 1 >= last {
            let records = std::mem::take(&mut looking.records);
            self.looking = None;
            let of = |record: &Record| match record.same_as {
                Some(other) => records[other].seen.clone(),
                None => record.seen.clone(),
            };
            let seen: Vec<Seen> = records.iter().map(of).collect();
            self.start
                .start(&mut self.adapter, &self.places.list, &seen);
        }
    }

    fn after_step(&mut self, context: &StepContext) {
        self.adapter.after_step(context);
    }

    fn state(&self) -> BTreeMap<String, Vec<f32>> {
        let Some(looking) = &self.looking else {
            return self.start.state(&self.adapter, &self.places.list);
        };
        let mut state = BTreeMap::new();
        for (place, record) in self.places.list.iter().zip(&looking.records) {
            let Seen {
                products,
                sum,
                rows,
                count,
            } = &record.seen;
            let same_as = record.same_as.map_or(-1.0, |other| other as f32);
            let path = &place.path;
            let numbers = vec![*rows, *count, same_as, f32::from(u8::from(record.begun))];
            state.insert(format!("looking.{path}"), numbers);
            state.insert(format!("products.{path}"), products.clone());
            state.insert(format!("sum.{path}"), sum.clone());
        }
        state
    }

    fn restore(&mut self, state: &BTreeMap<String, Vec<f32>>) -> Result<(), String> {
        if !state.keys().any(|key| key.starts_with("looking.")) {
            if self.steps > 0 {
                self.looking = None;
                let (adapter, places) = (&mut self.adapter, &self.places.list);
                self.start.restore(adapter, places, state)?;
            }
            return Ok(());
        }
        self.look();
        let Some(looking) = &mut self.looking else {
            return Ok(());
        };
        let count = self.places.list.len();
        for (place, record) in self.places.list.iter().zip(&mut looking.records) {
            let get = |what: &str, sizes: &[usize]| {
                let key = format!("{what}.{}", place.path);
                let found = state.get(&key).filter(|v| sizes.contains(&v.len()));
                found
                    .cloned()
                    .ok_or_else(|| format!("`{key}` is missing or has another size"))
            };
            let size = match S::LOOK {
                Look::Gradients => place.len(),
                Look::Inputs | Look::ScaledInputs => place.d_in * place.d_in,
            };
            let numbers = get("looking", &[4])?;
            let same_as = (numbers[2] >= 0.0).then_some(numbers[2] as usize);
            if same_as.is_some_and(|other| other >= count) {
                return Err(format!("`looking.{}` names no layer", place.path));
            }
            *record = Record {
                seen: Seen {
                    products: get("products", &[0, size])?,
                    sum: get("sum", &[0, place.d_in])?,
                    rows: numbers[0],
                    count: numbers[1],
                },
                same_as,
                begun: numbers[3] != 0.0,
            };
        }
        Ok(())
    }

    fn to_inference(&self) -> Option<Box<dyn Adapter>> {
        self.adapter.to_inference()
    }

    fn peft_config(&self) -> Map<String, Value> {
        let mut config = self.adapter.peft_config();
        config.extend(self.start.fields());
        config
    }

    fn weight_delta(&self, base: &Linear) -> Result<Option<Tensor<2>>, AdaptError> {
        self.adapter.weight_delta(base)
    }

    fn merged_linear(&self, base: &Linear) -> Result<Option<MergedLinear>, AdaptError> {
        self.adapter.merged_linear(base)
    }

    fn unmerged_linear(&self, merged: &Linear) -> Result<Option<MergedLinear>, AdaptError> {
        self.adapter.unmerged_linear(merged)
    }

    fn low_rank_factors(&self) -> Option<Vec<LowRank<'_>>> {
        self.adapter.low_rank_factors()
    }

    fn refuses(&self, operation: Operation) -> Option<String> {
        self.adapter.refuses(operation)
    }

    fn supports_mixed_batch(&self) -> bool {
        self.adapter.supports_mixed_batch()
    }
}
