//! Few entries of a model's own weights: which, how much is added to them, and the form that files
//! keep.

use std::collections::BTreeMap;

use burn::prelude::*;
use burn::tensor::IndexingUpdateOp;
use frugal_nn::{
    AdaptError, Adapter, BuildContext, Linear, LinearChange, Mode, Parameter, Pass, SiteId,
    SiteKind,
};
use serde_json::{Map, Value, json};

use crate::target::Targets;

/// A targeted layer.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub site: SiteId,
    pub path: String,
    pub d_in: usize,
    pub d_out: usize,
}

impl Place {
    /// Number of entries.
    pub fn len(&self) -> usize {
        self.d_in * self.d_out
    }
}

/// The linear layers that `targets` selects.
fn places(
    method: &'static str,
    targets: &Targets,
    context: &BuildContext<'_>,
) -> Result<Vec<Place>, AdaptError> {
    let chosen = targets.select(context.sites)?;
    let place = |site: SiteId| {
        let info = context.sites.info(site);
        if info.kind == SiteKind::Embedding {
            let reason = format!("`{}` is a table of rows, not a linear layer", info.path);
            return Err(AdaptError::Config {
                method,
                field: "target_modules",
                reason,
            });
        }
        Ok(Place {
            site,
            path: info.path.clone(),
            d_in: info.d_in,
            d_out: info.d_out,
        })
    };
    chosen.into_iter().map(place).collect()
}

/// The layers in which entries are chosen.
#[derive(Clone)]
pub(crate) struct Places {
    pub list: Vec<Place>,
    /// Index into `list` by site.
    by_site: Vec<Option<usize>>,
}

impl Places {
    /// The linear layers that `targets` selects.
    pub fn new(
        method: &'static str,
        targets: &Targets,
        context: &BuildContext<'_>,
    ) -> Result<Self, AdaptError> {
        let list = places(method, targets, context)?;
        let mut by_site = vec![None; context.sites.len()];
        for (index, place) in list.iter().enumerate() {
            by_site[place.site.index()] = Some(index);
        }
        Ok(Self { list, by_site })
    }

    /// Index into `list` of the layer at this site.
    pub fn index(&self, site: SiteId) -> Option<usize> {
        *self.by_site.get(site.index())?
    }
}

/// How many entries a share of all layers' entries is: at least one.
pub(crate) fn budget(places: &[Place], density: f64) -> usize {
    let all: usize = places.iter().map(Place::len).sum();
    ((all as f64 * density) as usize).clamp(1, all.max(1))
}

/// The `count` entries with the highest scores over all layers, as sorted indices into each layer; of
/// equals the first.
pub(crate) fn top(scores: &[Vec<f32>], count: usize) -> Vec<Vec<u32>> {
    let mut all: Vec<f32> = scores.concat();
    let count = count.min(all.len());
    if count == 0 {
        return vec![Vec::new(); scores.len()];
    }
    let (_, threshold, _) = all.select_nth_unstable_by(count - 1, |a, b| b.total_cmp(a));
    let threshold = *threshold;
    let above: usize = scores
        .iter()
        .flatten()
        .filter(|s| s.total_cmp(&threshold).is_gt())
        .count();
    let mut equals_left = count - above;
    let mut pick = |score: &f32| match score.total_cmp(&threshold) {
        std::cmp::Ordering::Greater => true,
        std::cmp::Ordering::Equal if equals_left > 0 => {
            equals_left -= 1;
            true
        }
        _ => false,
    };
    scores
        .iter()
        .map(|map| {
            (0..map.len() as u32)
                .filter(|&i| pick(&map[i as usize]))
                .collect()
        })
        .collect()
}

/// A fixed number of entries, chosen while training, and what is added to each.
pub(crate) struct SparseDelta {
    /// `[count]`, in the order of the layers and of the entries in each.
    pub values: Parameter,
    /// Sorted indices into each layer, once they are chosen.
    pub entries: Option<Vec<Vec<u32>>>,
}

impl SparseDelta {
    pub fn new(count: usize, device: &Device) -> Self {
        Self {
            values: Parameter::new("sparse_delta.values", &[count], vec![0.0; count], device),
            entries: None,
        }
    }

    /// What is added to map number `index`; `None` before the choice and where no entry is chosen.
    pub fn delta(&self, index: usize, place: &Place, mode: Mode) -> Option<Tensor<2>> {
        let entries = self.entries.as_ref()?;
        let start: usize = entries[..index].iter().map(Vec::len).sum();
        let here = &entries[index];
        let values = self.values.get::<1>(mode).slice(start..start + here.len());
        (!here.is_empty()).then(|| {
            scatter(
                here.iter().map(|&i| i as usize),
                values,
                place.d_out,
                place.d_in,
            )
        })
    }

    /// The choice as numbers: which layer, row and column, for each entry.
    pub fn state(&self, places: &[Place]) -> Option<Vec<f32>> {
        let triple = |(index, i): (usize, u32)| {
            let d_in = places[index].d_in;
            [
                index as f32,
                (i as usize / d_in) as f32,
                (i as usize % d_in) as f32,
            ]
        };
        let entries = self.entries.as_ref()?;
        Some(
            entries
                .iter()
                .enumerate()
                .flat_map(|(index, map)| map.iter().map(move |&i| (index, i)))
                .flat_map(triple)
                .collect(),
        )
    }

    /// The reverse of [`SparseDelta::state`].
    pub fn restore(&mut self, state: Option<&Vec<f32>>, places: &[Place]) -> Result<(), String> {
        let Some(state) = state else {
            self.entries = None;
            return Ok(());
        };
        if state.len() != 3 * self.values.len() {
            return Err(format!(
                "`entries` has {} numbers instead of {}",
                state.len(),
                3 * self.values.len()
            ));
        }
        let mut entries = vec![Vec::new(); places.len()];
        for triple in state.chunks(3) {
            let [index, row, column] = [0, 1, 2].map(|i| triple[i] as usize);
            let place = places
                .get(index)
                .filter(|p| row < p.d_out && column < p.d_in);
            let place =
                place.ok_or_else(|| "`entries` names a place outside the model".to_owned())?;
            entries[index].push((row * place.d_in + column) as u32);
        }
        self.entries = Some(entries);
        Ok(())
    }

    /// The form that files keep.
    pub fn finished(
        &self,
        method: &'static str,
        config: Map<String, Value>,
        places: &[Place],
    ) -> SparseFile {
        let nothing = vec![Vec::new(); places.len()];
        let entries = self.entries.as_ref().unwrap_or(&nothing);
        let values = self.values.to_vec();
        let device = self.values.get::<1>(Mode::Eval).device();
        let mut start = 0;
        let mut maps = Vec::new();
        for (place, entries) in places
            .iter()
            .zip(entries)
            .filter(|(_, entries)| !entries.is_empty())
        {
            let numbers = |f: fn(usize, usize) -> usize| {
                entries
                    .iter()
                    .map(move |&i| f(i as usize, place.d_in) as f32)
            };
            let indices = numbers(|i, d| i / d).chain(numbers(|i, d| i % d)).collect();
            let kept = values[start..start + entries.len()].to_vec();
            start += entries.len();
            maps.push(MapEntries::new(place, indices, kept, &device));
        }
        SparseFile {
            method,
            config,
            maps,
        }
    }
}

/// `values` at flat positions of a matrix that is zero elsewhere.
pub(crate) fn scatter(
    positions: impl Iterator<Item = usize>,
    values: Tensor<1>,
    d_out: usize,
    d_in: usize,
) -> Tensor<2> {
    let positions: Vec<i64> = positions.map(|i| i as i64).collect();
    let positions = Tensor::<1, Int>::from_data(
        TensorData::from(positions.as_slice()),
        &values.device().inner(),
    );
    let zeros = Tensor::<1>::zeros([d_out * d_in], &values.device());
    zeros
        .select_assign(0, positions, values, IndexingUpdateOp::Add)
        .reshape([d_out, d_in])
}

/// Changed entries of one layer.
struct MapEntries {
    place: Place,
    /// Rows, then columns: `[2, n]`, whole numbers.
    indices: Parameter,
    /// `[n]`.
    values: Parameter,
}

impl MapEntries {
    fn new(place: &Place, indices: Vec<f32>, values: Vec<f32>, device: &Device) -> Self {
        let n = values.len();
        Self {
            indices: Parameter::frozen(
                format!("{}.sparse_indices", place.path),
                &[2, n],
                indices,
                device,
            )
            .indices_below(&[place.d_out, place.d_in]),
            values: Parameter::new(
                format!("{}.sparse_values", place.path),
                &[n],
                values,
                device,
            ),
            place: place.clone(),
        }
    }

    fn delta(&self, mode: Mode) -> Tensor<2> {
        let indices = self.indices.to_vec();
        let (rows, columns) = indices.split_at(self.values.len());
        let Place { d_in, d_out, .. } = self.place;
        let flat = rows
            .iter()
            .zip(columns)
            .map(|(&row, &column)| row as usize * d_in + column as usize);
        scatter(flat, self.values.get::<1>(mode), d_out, d_in)
    }
}

/// Changed entries as files keep them: indices and values for each layer that has any.
pub(crate) struct SparseFile {
    method: &'static str,
    config: Map<String, Value>,
    maps: Vec<MapEntries>,
}

impl SparseFile {
    /// With room for the numbers of entries that `nnz` gives by path.
    pub fn new(
        method: &'static str,
        config: Map<String, Value>,
        places: &[Place],
        nnz: &BTreeMap<String, usize>,
        context: &BuildContext<'_>,
    ) -> Result<Self, AdaptError> {
        let bad = |reason: String| AdaptError::Config {
            method,
            field: "nnz",
            reason,
        };
        // Bare base models leave a prefix out of their paths.
        let means = |path: &str, place: &Place| {
            place.path == *path || place.path.ends_with(&format!(".{path}"))
        };
        if let Some(path) = nnz
            .keys()
            .find(|path| !places.iter().any(|place| means(path, place)))
        {
            return Err(bad(format!("the model has no targeted layer `{path}`")));
        }
        let mut maps = Vec::new();
        for place in places {
            let Some((path, &n)) = nnz.iter().find(|(path, _)| means(path, place)) else {
                continue;
            };
            if n > place.len() {
                return Err(bad(format!(
                    "`{path}` has {} entries, not {n}",
                    place.len()
                )));
            }
            maps.push(MapEntries::new(
                place,
                vec![0.0; 2 * n],
                vec![0.0; n],
                &context.device,
            ));
        }
        Ok(Self {
            method,
            config,
            maps,
        })
    }

    fn at(&self, site: SiteId) -> Option<&MapEntries> {
        self.maps.iter().find(|map| map.place.site == site)
    }
}

/// A method that adds something to weights of linear layers.
pub(crate) trait AddsToWeights {
    /// What is added to a layer, `[d_out, d_in]`.
    fn delta(&self, base: &Linear, mode: Mode) -> Option<Tensor<2>>;

    /// Whether the method ever changes this layer.
    fn acts_on(&self, base: &Linear) -> bool;

    /// Added to the training loss, `[1]`.
    fn penalty(&self, _mode: Mode) -> Option<Tensor<1>> {
        None
    }
}

/// One forward pass of such a method.
pub(crate) struct DeltaPass<'a, A> {
    pub adapter: &'a A,
    pub mode: Mode,
}

impl<A: AddsToWeights> Pass for DeltaPass<'_, A> {
    fn linear_change(&mut self, base: &Linear) -> LinearChange {
        match self.adapter.delta(base, self.mode) {
            None => LinearChange::None,
            Some(delta) => LinearChange::Weight(base.weight.dense() + delta),
        }
    }

    fn auxiliary_loss(&mut self) -> Option<Tensor<1>> {
        self.adapter.penalty(self.mode)
    }
}

impl AddsToWeights for SparseFile {
    fn delta(&self, base: &Linear, mode: Mode) -> Option<Tensor<2>> {
        self.at(base.site).map(|map| map.delta(mode))
    }

    fn acts_on(&self, base: &Linear) -> bool {
        self.at(base.site).is_some()
    }
}

impl Adapter for SparseFile {
    fn method(&self) -> &'static str {
        self.method
    }

    fn parameters(&self) -> Vec<&Parameter> {
        self.maps
            .iter()
            .flat_map(|map| [&map.values, &map.indices])
            .collect()
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        self.maps
            .iter_mut()
            .flat_map(|map| [&mut map.values, &mut map.indices])
            .collect()
    }

    fn pass(&self, mode: Mode) -> Box<dyn Pass + '_> {
        Box::new(DeltaPass {
            adapter: self,
            mode,
        })
    }

    fn peft_config(&self) -> Map<String, Value> {
        let mut config = self.config.clone();
        let nnz: Map<String, Value> = self
            .maps
            .iter()
            .map(|map| (map.place.path.clone(), json!(map.values.len())))
            .collect();
        config.insert("nnz".into(), nnz.into());
        config
    }

    fn weight_delta(&self, base: &Linear) -> Result<Option<Tensor<2>>, AdaptError> {
        Ok(self.at(base.site).map(|map| map.delta(Mode::Eval)))
    }

    fn materializes_weight(&self, base: &Linear) -> bool {
        self.acts_on(base)
    }

    fn supports_mixed_batch(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_scores_over_all_maps_are_chosen() {
        let scores = [vec![0.1, 5.0, 0.0, 2.0], vec![3.0, 2.0, -1.0]];
        assert_eq!(top(&scores, 2), [vec![1], vec![0]]);
        // Two entries score 2; there is room for one.
        assert_eq!(top(&scores, 3), [vec![1, 3], vec![0]]);
        assert_eq!(top(&scores, 100), [vec![0, 1, 2, 3], vec![0, 1, 2]]);
        assert_eq!(top(&[vec![0.0; 3]], 2), [vec![0, 1]]);
    }

    #[test]
    fn values_are_added_where_they_belong() {
        let device = Device::default();
        let place = |d_out, d_in| Place {
            site: SiteId(0),
            path: "m".into(),
            d_in,
            d_out,
        };
        let places = [place(2, 3), place(2, 2)];
        let mut sparse = SparseDelta::new(3, &device);
        sparse.entries = Some(vec![vec![1, 5], vec![2]]);
        sparse.values.set(vec![7.0, 8.0, 9.0]);
        let dense = |i: usize| frugal_nn::to_vec(sparse.delta(i, &places[i], Mode::Eval).unwrap());
        assert_eq!(dense(0), [0.0, 7.0, 0.0, 0.0, 0.0, 8.0]);
        assert_eq!(dense(1), [0.0, 0.0, 9.0, 0.0]);
        let state = sparse.state(&places).unwrap();
        assert_eq!(state, [0.0, 0.0, 1.0, 0.0, 1.0, 2.0, 1.0, 1.0, 0.0]);
        let mut again = SparseDelta::new(3, &device);
        again.restore(Some(&state), &places).unwrap();
        assert_eq!(again.entries, sparse.entries);
        assert!(again.restore(Some(&vec![0.0; 3]), &places).is_err());
    }
}
