//! Methods on models that are not ours: any Burn [`Module`], through Burn's own
//! [`Reparameterizer`].
//!
//! Burn computes with `param.val()`, and a reparameterization decides what that is. Here it is the
//! weight that a method makes of the frozen one, with the method's parameters in the gradient
//! graph, so that Burn's optimisers train them:
//!
//! ```
//! use burn::nn::{Linear, LinearConfig};
//! use burn::prelude::*;
//! use frugal::adapt::{registry, reparameterize::Adapted};
//!
//! let device = Device::flex().autodiff();
//! let model: Linear = LinearConfig::new(8, 4).init(&device);
//! let settings = serde_json::json!({"r": 2}).as_object().cloned().unwrap_or_default();
//! let adapted = Adapted::new(model, registry::find("lora")?, &settings, 1)?;
//! let loss = adapted.with(|model| model.forward(Tensor::<2>::ones([3, 8], &device)).sum());
//! let gradients = loss.backward();
//! # let _ = gradients;
//! # Ok::<(), frugal::adapt::AdaptError>(())
//! ```
//!
//! What a pass costs: one product of each adapted weight with the identity, or for methods that say
//! what they add ([`Pass::linear_change`]) only that, and a gradient of the size of the weight.
//! Our own backbones need neither; this is for models that we do not know.

use std::fmt::{self, Debug, Formatter};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use burn::module::{Module, ModuleVisitor, Param, Reparameterization, Reparameterizer};
use burn::prelude::*;
use frugal_nn::{
    AdaptError, Adapter, Backbone, BackboneInfo, BlockState, BuildContext, DecodeState, Frozen,
    Input, Linear, LinearChange, LowRankChange, Mode, ModelError, Parameter, Pass, SiteId,
    SiteInfo, SiteKind, SiteTable, Weight, named_rng, standard_normal, to_vec,
};

use crate::method::Method;
use crate::settings::Settings;

/// A module whose [`Linear`](burn::nn::Linear) layers a method adapts.
///
/// It is a module itself: optimisers, records, `valid` and `train` work as on any other. All of the
/// model's own parameters are frozen; those of the method are trained. Paths of layers are those of
/// the module's fields, for example `blocks.0.gate`.
#[derive(Module, Debug)]
pub struct Adapted<M: Module> {
    model: M,
    /// What is trained, each flat, in the adapter's order.
    parameters: Vec<Param<Tensor<1>>>,
    #[module(skip)]
    link: Arc<Link>,
}

/// What the reparameterized weights share.
struct Link {
    adapter: Mutex<Box<dyn Adapter>>,
    /// Held for a pass: the adapter has one set of values at a time.
    turn: Mutex<()>,
    seed: u64,
    passes: AtomicU64,
    mode: Mutex<Mode>,
}

impl Debug for Link {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "Link({})", lock(&self.adapter).method())
    }
}

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<M: Module> Adapted<M> {
    /// Puts a method on the linear layers of `model` that `settings` select.
    ///
    /// # Errors
    /// Bad settings, no matching layer, a model without linear layers, a method that acts elsewhere
    /// than in weights or needs the trainer.
    pub fn new(
        model: M,
        method: &'static Method,
        settings: &Settings,
        seed: u64,
    ) -> Result<Self, AdaptError> {
        let unsupported = |reason: String| AdaptError::Unsupported {
            method: method.name,
            action: "adapt this module",
            reason,
        };
        if !method.capabilities.merge {
            return Err(unsupported(
                "it changes more than weights; use it on a backbone of this library".into(),
            ));
        }
        let mut found = Layers::default();
        model.visit(&mut found);
        let Some(device) = found.device else {
            return Err(unsupported(
                "it has no `burn::nn::Linear` layer with a weight in single precision".into(),
            ));
        };
        let base = Base::new(found.sites, found.maps, &device.clone().inner())?;
        let context = BuildContext {
            info: &base.info,
            sites: &base.sites,
            backbone: Some(&base),
            device: base.device.clone(),
            seed,
            tokenize: None,
        };
        let mut adapter = method.make(settings, &context)?;
        if adapter.needs_trainer() {
            return Err(unsupported(
                "its training takes more than gradients; use it on a backbone of this library"
                    .into(),
            ));
        }
        let places = places(adapter.as_mut(), &base, seed)?;
        if places.iter().all(|place| !place.weight && !place.bias) {
            return Err(unsupported(
                "with these settings it leaves all linear layers alone".into(),
            ));
        }
        let parameter = |p: &Parameter| {
            Param::from_tensor(Tensor::<1>::from_data(
                TensorData::from(p.to_vec().as_slice()),
                &device,
            ))
        };
        let parameters = adapter
            .parameters()
            .into_iter()
            .filter(|p| p.is_trainable())
            .map(parameter)
            .collect();
        let link = Arc::new(Link {
            adapter: Mutex::new(adapter),
            turn: Mutex::new(()),
            seed,
            passes: AtomicU64::new(0),
            mode: Mutex::new(Mode::Eval),
        });
        let attach = Attach {
            link: link.clone(),
            sites: base.sites.clone(),
            places,
        };
        Ok(Self {
            model: model.apply_reparameterization(attach),
            parameters,
            link,
        })
    }

    /// Runs a pass of the model with the parameters as they are now: `run` is the only place where
    /// the model's outputs are those of the method. Passes of copies of one adapted model wait for
    /// each other; `run` must not start another.
    pub fn with<R>(&self, run: impl FnOnce(&M) -> R) -> R {
        let _turn = lock(&self.link.turn);
        self.bind();
        run(&self.model)
    }

    /// The model with the method's weights in place of its own, and nothing else.
    pub fn merge(self) -> M {
        let link = self.link.clone();
        let _turn = lock(&link.turn);
        self.bind();
        *lock(&link.mode) = Mode::Eval;
        self.model.materialize()
    }

    /// Number of trained elements.
    pub fn num_trainable(&self) -> usize {
        self.parameters
            .iter()
            .map(|p| p.shape().num_elements())
            .sum()
    }

    /// Names of the trained tensors, as adapter files call them, in the order of the module's
    /// parameters.
    pub fn names(&self) -> Vec<String> {
        lock(&self.link.adapter)
            .parameters()
            .into_iter()
            .filter(|p| p.is_trainable())
            .map(|p| p.name().to_owned())
            .collect()
    }

    /// Gives the adapter the values of this copy.
    fn bind(&self) {
        let mut adapter = lock(&self.link.adapter);
        let mut train = false;
        for (parameter, value) in adapter
            .parameters_mut()
            .into_iter()
            .filter(|p| p.is_trainable())
            .zip(&self.parameters)
        {
            let value = value.val();
            train |= value.is_autodiff();
            parameter.bind(value);
        }
        let pass = self.link.passes.fetch_add(1, Ordering::Relaxed);
        *lock(&self.link.mode) = if train {
            Mode::Train {
                seed: self.link.seed.wrapping_add(pass),
            }
        } else {
            Mode::Eval
        };
    }
}

/// What a method changes of one layer.
#[derive(Clone, Copy, Default)]
struct Place {
    weight: bool,
    bias: bool,
}

/// What the adapter changes of each layer. Methods start where they change nothing, so their
/// parameters are moved for this question.
fn places(adapter: &mut dyn Adapter, base: &Base, seed: u64) -> Result<Vec<Place>, AdaptError> {
    let mut rng = named_rng(seed, "which parts a method changes");
    let before: Vec<Vec<f32>> = adapter
        .parameters()
        .into_iter()
        .map(Parameter::to_vec)
        .collect();
    for parameter in adapter
        .parameters_mut()
        .into_iter()
        .filter(|p| p.is_trainable())
    {
        let moved = parameter
            .to_vec()
            .iter()
            .map(|v| v + 0.1 * standard_normal(&mut rng))
            .collect();
        parameter.set(moved);
    }
    let mut places = Vec::with_capacity(base.maps.len());
    for map in &base.maps {
        let Some(merged) = adapter.merged_linear(map)? else {
            places.push(Place::default());
            continue;
        };
        let differs = |a: Vec<f32>, b: Vec<f32>| a != b;
        let bias = match (map.bias.clone(), merged.bias) {
            (None, None) => false,
            (Some(old), Some(new)) => differs(to_vec(old), to_vec(new)),
            _ => {
                let reason = format!(
                    "it adds a bias, and `{}` has none: leave that layer out",
                    base.sites.info(map.site).path
                );
                return Err(AdaptError::Unsupported {
                    method: adapter.method(),
                    action: "adapt this module",
                    reason,
                });
            }
        };
        places.push(Place {
            weight: differs(to_vec(map.weight.dense()), to_vec(merged.weight)),
            bias,
        });
    }
    adapter
        .parameters_mut()
        .into_iter()
        .zip(before)
        .for_each(|(parameter, values)| parameter.set(values));
    Ok(places)
}

/// Freezes every parameter and ties those that the method changes to the adapter.
struct Attach {
    link: Arc<Link>,
    sites: Arc<SiteTable>,
    places: Vec<Place>,
}

impl Reparameterizer for Attach {
    type Reparam = Through;

    fn reparameterize<const D: usize>(
        &mut self,
        path: &str,
        param: Param<Tensor<D>>,
    ) -> (Param<Tensor<D>>, Option<Through>) {
        let (layer, name) = path.rsplit_once('.').unwrap_or(("", path));
        let through = self.sites.find(layer).filter(|site| {
            let place = self.places[site.index()];
            (name == "weight" && D == 2 && place.weight) || (name == "bias" && D == 1 && place.bias)
        });
        let through = through.map(|site| Through {
            link: self.link.clone(),
            site,
            d_in: self.sites.info(site).d_in,
        });
        (param.set_require_grad(false), through)
    }
}

/// A weight `[d_in, d_out]` or bias `[d_out]` as Burn keeps it, and where it belongs in the
/// adapter.
#[derive(Module, Debug)]
struct Through {
    #[module(skip)]
    link: Arc<Link>,
    #[module(skip)]
    site: SiteId,
    #[module(skip)]
    d_in: usize,
}

impl Reparameterization for Through {
    const NAME: &'static str = "frugal";

    fn apply<const D: usize>(&self, base: Tensor<D>) -> Tensor<D> {
        let (dims, base) = (base.dims(), base.without_autodiff());
        let adapter = lock(&self.link.adapter);
        let mut pass = adapter.pass(*lock(&self.link.mode));
        if D == 1 {
            // At an input of zero a layer gives its bias, whatever its weight is.
            let (d_out, device) = (dims[0], base.device());
            let weight = Weight::Dense(Tensor::ones([d_out, self.d_in], &device));
            let map = Linear {
                site: self.site,
                weight,
                bias: Some(base.reshape([d_out])),
            };
            return pass
                .linear(&map, Tensor::zeros([1, self.d_in], &device))
                .reshape(dims);
        }
        let weight = base.reshape([self.d_in, dims[D - 1]]).transpose();
        let map = Linear {
            site: self.site,
            weight: Weight::Dense(weight),
            bias: None,
        };
        let weight = match pass.linear_change(&map) {
            LinearChange::LowRank(LowRankChange { a, b, scale }) => {
                (map.weight.dense() + b.matmul(a) * scale).transpose()
            }
            LinearChange::Weight(weight) => weight.transpose(),
            LinearChange::None | LinearChange::Opaque => {
                transposed_weight(pass.as_mut(), &map, self.d_in)
            }
        };
        weight.reshape(dims)
    }
}

/// The transposed weight `[d_in, d_out]` of what a pass makes of a map: its values on the identity.
fn transposed_weight(pass: &mut dyn Pass, map: &Linear, d_in: usize) -> Tensor<2> {
    let device = map.weight.dense().device();
    // The last row is the offset that some methods add.
    let inputs = Tensor::cat(
        vec![
            Tensor::<2>::eye(d_in, &device),
            Tensor::zeros([1, d_in], &device),
        ],
        0,
    );
    let y = pass.linear(map, inputs);
    y.clone().slice(0..d_in) - y.slice(d_in..d_in + 1)
}

/// The linear layers of a module.
#[derive(Default)]
struct Layers {
    /// Names on the way to the present place, with the types that they are in.
    way: Vec<(String, String)>,
    sites: Vec<SiteInfo>,
    maps: Vec<(Tensor<2>, Option<Tensor<1>>)>,
    /// Where the parameters are.
    device: Option<Device>,
}

impl ModuleVisitor for Layers {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.way.push((name.into(), container_type.into()));
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.way.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let Some(((name, container), above)) = self.way.split_last() else {
            return;
        };
        if container != "Struct:Linear" {
            return;
        }
        let components: Vec<&str> = above.iter().map(|(name, _)| name.as_str()).collect();
        let path = components.join(".");
        let value = param.val();
        let (dims, device) = (value.dims(), value.device());
        let value = value.without_autodiff();
        if name == "weight" && D == 2 && value.dtype() == burn::tensor::DType::F32 {
            let (d_in, d_out) = (dims[0], dims[D - 1]);
            let layer = components.iter().find_map(|c| c.parse().ok());
            let size = [d_in, d_out];
            self.sites
                .push(SiteInfo::new(path, SiteKind::Linear, layer, size, false));
            self.maps
                .push((value.reshape([d_in, d_out]).transpose(), None));
            self.device.get_or_insert(device);
        } else if let (Some(site), Some(map)) = (self.sites.last_mut(), self.maps.last_mut())
            && name == "bias"
            && D == 1
            && site.path == path
        {
            site.has_bias = true;
            map.1 = Some(value.reshape([dims[0]]));
        }
    }
}

/// The module's linear layers as methods see a backbone.
struct Base {
    info: BackboneInfo,
    sites: Arc<SiteTable>,
    device: Device,
    maps: Vec<Linear>,
}

impl Base {
    fn new(
        sites: Vec<SiteInfo>,
        maps: Vec<(Tensor<2>, Option<Tensor<1>>)>,
        device: &Device,
    ) -> Result<Self, AdaptError> {
        let blocks = sites
            .iter()
            .filter_map(|s| s.layer)
            .max()
            .map_or(1, |last| last + 1);
        let info = BackboneInfo {
            model_type: "Burn module",
            hidden_size: sites[0].d_in,
            num_hidden_layers: blocks,
            ..BackboneInfo::default()
        };
        let map = |(i, (weight, bias)): (usize, (Tensor<2>, Option<Tensor<1>>))| Linear {
            site: SiteId(i as u32),
            weight: Weight::Dense(weight),
            bias,
        };
        Ok(Self {
            info,
            sites: Arc::new(SiteTable::of(sites)),
            device: device.clone(),
            maps: maps.into_iter().enumerate().map(map).collect(),
        })
    }
}

impl Backbone for Base {
    fn info(&self) -> &BackboneInfo {
        &self.info
    }

    fn sites(&self) -> &Arc<SiteTable> {
        &self.sites
    }

    fn device(&self) -> &Device {
        &self.device
    }

    fn stem(&self, _input: &Input<'_>, _pass: &mut dyn Pass) -> Result<BlockState, ModelError> {
        let reason = "only its owner knows how it computes; run it through `Adapted::with`".into();
        Err(ModelError::Method {
            model_type: "Burn module",
            reason,
        })
    }

    fn blocks(
        &self,
        _range: std::ops::Range<usize>,
        state: BlockState,
        _pass: &mut dyn Pass,
        _cache: Option<&mut DecodeState>,
    ) -> Result<BlockState, ModelError> {
        Ok(state)
    }

    fn readout(&self, state: BlockState, _pass: &mut dyn Pass) -> Tensor<2> {
        state.hidden_states
    }

    fn visit_weights(&self, visit: &mut dyn FnMut(Frozen<'_>)) {
        self.maps.iter().for_each(|map| visit(Frozen::Linear(map)));
    }
}
