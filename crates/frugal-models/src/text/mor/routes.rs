//! A routed stack: which tokens take which steps, and what becomes of them.

use burn::prelude::*;
use frugal_nn::state::DecodeState;
use frugal_nn::{
    BlockState, ModelError, Param, ParamChange, Pass, Rows, SequenceLayout, SiteKind, to_vec,
};

use super::active::Active;
use super::keys_values::Shared;
use super::router::{DepthRouter, best, chosen_loss, highest};
use super::settings::{Balancing, ExpertSpec, RouterSpec, Routing, Sampling, TokenSpec};
use super::sharing::Plan;
use super::stack::{At, Stack};
use crate::architecture::ModelConfig;
use crate::blocks::sites::Sites;
use crate::weights::WeightLoader;

/// Routers of a stack.
pub(super) enum Routes {
    /// One for each step; of `aux_router` a second one each, that chooses where the model is used.
    Expert {
        spec: ExpertSpec,
        routers: Vec<DepthRouter>,
        predictors: Vec<DepthRouter>,
    },
    /// One, and of `loss_free` a bias on its choice, `[1, steps]`.
    Token {
        spec: TokenSpec,
        router: DepthRouter,
        bias: Option<Param>,
    },
}

const BIAS: &str = "model.router_bias";

fn router_path(step: usize) -> String {
    format!("model.mor_router.{step}")
}

fn predictor_path(step: usize) -> String {
    format!("model.mlp_router.{step}")
}

impl Routes {
    /// Sites of the routers.
    pub fn sites(sites: &mut Sites, c: &ModelConfig, spec: &RouterSpec, plan: &Plan) {
        let steps = plan.recursions();
        match spec {
            RouterSpec::Expert(spec) => {
                let kind = spec.common.router_type;
                for step in 0..steps {
                    DepthRouter::sites(sites, c, kind, &router_path(step), 1);
                }
                if spec.sampling == Sampling::AuxRouter {
                    for step in 0..steps {
                        DepthRouter::sites(sites, c, kind, &predictor_path(step), 1);
                    }
                }
            }
            RouterSpec::Token(spec) => {
                DepthRouter::sites(sites, c, spec.common.router_type, &router_path(0), steps);
                if spec.balancing == Balancing::LossFree {
                    sites
                        .add(BIAS.into(), SiteKind::Param, None, [1, steps], false)
                        .is_vector = true;
                }
            }
        }
    }

    /// Whether this is the path of the bias, which begins at 0.
    pub fn is_bias(path: &str) -> bool {
        path == BIAS
    }

    /// Takes the weights from `loader`.
    ///
    /// # Errors
    /// Whatever reading a tensor gives.
    pub fn load(
        loader: &mut WeightLoader<'_>,
        spec: &RouterSpec,
        plan: &Plan,
    ) -> Result<Self, ModelError> {
        Ok(match spec {
            RouterSpec::Expert(spec) => {
                let (kind, temperature) = (spec.common.router_type, spec.common.router_temperature);
                let mut all = |path: fn(usize) -> String, temperature: f64| {
                    (0..plan.recursions())
                        .map(|step| DepthRouter::load(loader, kind, &path(step), temperature))
                        .collect::<Result<Vec<_>, _>>()
                };
                Self::Expert {
                    routers: all(router_path, temperature)?,
                    // The official code gives it the input as it is.
                    predictors: match spec.sampling {
                        Sampling::AuxRouter => all(predictor_path, 1.0)?,
                        Sampling::AuxLoss => Vec::new(),
                    },
                    spec: spec.clone(),
                }
            }
            RouterSpec::Token(spec) => {
                let (kind, temperature) = (spec.common.router_type, spec.common.router_temperature);
                Self::Token {
                    router: DepthRouter::load(loader, kind, &router_path(0), temperature)?,
                    bias: match spec.balancing {
                        Balancing::LossFree => Some(loader.param(BIAS)?),
                        Balancing::Loss => None,
                    },
                    spec: *spec,
                }
            }
        })
    }

    /// Every tensor of the routers.
    pub fn params(&self) -> Box<dyn Iterator<Item = &Param> + '_> {
        match self {
            Self::Expert {
                routers,
                predictors,
                ..
            } => Box::new(routers.iter().chain(predictors).flat_map(DepthRouter::maps)),
            Self::Token { router, bias, .. } => Box::new(router.maps().iter().chain(bias)),
        }
    }

    /// Runs all steps.
    pub fn run(
        &self,
        stack: &Stack,
        state: &mut BlockState,
        pass: &mut dyn Pass,
        cache: Option<&mut DecodeState>,
        shared: &mut Shared,
    ) {
        let stack = Steps { stack, state };
        let hidden_states = match self {
            Self::Expert {
                spec,
                routers,
                predictors,
            } => expert_choice(&stack, spec, [routers, predictors], pass, cache, shared),
            Self::Token { spec, router, bias } => {
                token_choice(&stack, spec, router, bias.as_ref(), pass, cache, shared)
            }
        };
        state.hidden_states = hidden_states;
    }
}

/// The shared layers, as the steps run them.
struct Steps<'a> {
    stack: &'a Stack,
    state: &'a BlockState,
}

impl Steps<'_> {
    /// The layers of a step over the rows of `active`, `[active, d_model]` to the same. `all`
    /// `[tokens, d_model]` has their rows in it; it is what goes through where a pass must see the
    /// rows of all tokens.
    #[allow(clippy::too_many_arguments, reason = "what every layer is given")]
    fn step(
        &self,
        step: usize,
        active: &Active,
        own: Tensor<2>,
        all: impl FnOnce() -> Tensor<2>,
        pass: &mut dyn Pass,
        mut cache: Option<&mut DecodeState>,
        shared: &mut Shared,
    ) -> Tensor<2> {
        let layers = self.stack.spec().plan.steps()[step].clone();
        let whole = pass.needs_token_rows() && !active.is_all();
        let angles = &self.state.rotary[0];
        let (mut x, rotary) = match whole {
            true => (all(), angles.clone()),
            false => (own, active.rotary(angles)),
        };
        for layer in layers {
            // A layer may have been left out before.
            let active = active.clone().with_past(layer, cache.as_deref());
            let at = At {
                active: &active,
                whole,
                rotary: rotary.clone(),
            };
            let cache = cache.as_deref_mut();
            x = self.stack.layer(layer, &at, x, pass, cache, shared);
        }
        if whole { active.select(x) } else { x }
    }
}

fn places(chosen: &[bool]) -> Vec<usize> {
    (0..chosen.len()).filter(|&i| chosen[i]).collect()
}

/// Rows `[rows, d]` at these places, all of them where these are all.
fn at_places(x: Tensor<2>, places: &[usize]) -> Tensor<2> {
    if places.len() == x.dims()[0] {
        return x;
    }
    frugal_nn::select_rows(x, places)
}

/// `Hᵗ ← Hᵗ + g(θᵣ·Hᵗ) f(H)ᵗ` for the tokens that step `r` takes of those that the step before took.
fn expert_choice(
    steps: &Steps<'_>,
    spec: &ExpertSpec,
    [routers, predictors]: [&[DepthRouter]; 2],
    pass: &mut dyn Pass,
    mut cache: Option<&mut DecodeState>,
    shared: &mut Shared,
) -> Tensor<2> {
    let batch = &steps.state.layout;
    let lengths = batch.lengths();
    let trains = pass.trains_model();
    let top_k = trains || spec.inference_routing == Routing::TopK;
    let least = (spec.router_threshold / (1.0 - spec.router_threshold)).ln() as f32;
    let mut hidden = steps.state.hidden_states.clone();
    let mut active = Active::all(batch);
    for (step, router) in routers.iter().enumerate() {
        let x = active.select(hidden.clone());
        let logits = router.logits(x.clone(), &active, pass);
        let predictor = predictors.get(step);
        let chosen: Vec<bool> = if top_k {
            let scores = to_vec(logits.clone().inner());
            let capacity =
                |of: usize| spec.capacity(step, routers.len(), lengths[active.sequences[of]]);
            highest(&scores, &active.layout.cu_seqlens, capacity)
        } else if step == 0 && spec.begins_with_all() {
            vec![true; active.rows.len()]
        } else {
            let scores = match predictor {
                Some(predictor) => predictor.logits(x.clone(), &active, pass),
                None => logits.clone(),
            };
            let scores = to_vec(scores.inner());
            scores.into_iter().map(|score| score >= least).collect()
        };
        if trains {
            let of_choice = match predictor {
                Some(predictor) => predictor.logits(x.clone().detach(), &active, pass),
                None => logits.clone(),
            };
            if spec.common.aux_loss > 0.0 {
                pass.model_loss(chosen_loss(&of_choice, &chosen) * spec.common.aux_loss);
            }
            if let Some(term) = spec.common.z_loss(&logits) {
                pass.model_loss(term);
            }
        }
        let taken = places(&chosen);
        active = active.keep(&taken, batch);
        if active.is_empty() {
            break;
        }
        let own = at_places(x, &taken);
        let all = hidden.clone();
        let cache = cache.as_deref_mut();
        let change = steps.step(step, &active, own, || all, pass, cache, shared);
        let values = spec.common.values(at_places(logits, &taken));
        hidden = active.add(hidden, spec.common.gate(change, values));
    }
    hidden
}

/// The last step of each token, by the router's values `[tokens, choices]`.
fn depths(
    batch: &SequenceLayout,
    values: &[f32],
    choices: usize,
    bias: Option<&Param>,
    pass: &mut dyn Pass,
) -> Vec<usize> {
    let Some(bias) = bias else {
        return best(values, None, choices);
    };
    let by_sequence = matches!(pass.param_change(bias), ParamChange::BySequence);
    let mut of = |rows: Rows| to_vec(pass.param(bias, rows).inner());
    if !by_sequence {
        return best(values, Some(&of(Rows::Tokens)), choices);
    }
    let ranges = batch.cu_seqlens.windows(2).enumerate();
    let each = ranges.flat_map(|(sequence, range)| {
        let own = &values[range[0] * choices..range[1] * choices];
        best(own, Some(&of(Rows::OfSequence(sequence))), choices)
    });
    each.collect()
}

/// `Hᵗ ← Hᵗ + p_{t,i} fⁱ(H)ᵗ`, where `i` is the number of steps that the token takes.
fn token_choice(
    steps: &Steps<'_>,
    spec: &TokenSpec,
    router: &DepthRouter,
    bias: Option<&Param>,
    pass: &mut dyn Pass,
    mut cache: Option<&mut DecodeState>,
    shared: &mut Shared,
) -> Tensor<2> {
    let (batch, plan) = (&steps.state.layout, &steps.stack.spec().plan);
    let choices = plan.recursions();
    let hidden = steps.state.hidden_states.clone();
    let mut active = Active::all(batch);
    let logits = router.logits(hidden.clone(), &active, pass);
    let values = spec.common.values(logits.clone());
    let depth = depths(batch, &to_vec(values.clone().inner()), choices, bias, pass);
    if pass.trains_model() {
        let mut load = vec![0; choices];
        depth.iter().for_each(|&last| load[last] += 1);
        match bias {
            Some(bias) => pass.balance(bias, &load, spec.bias_update_rate),
            None => {
                let layer = plan.shared().start;
                pass.router(layer, &values, &depth, spec.common.aux_loss);
            }
        }
        if let Some(term) = spec.common.z_loss(&logits) {
            pass.model_loss(term);
        }
    }
    let tokens = depth.len();
    let index: Vec<i64> = depth.iter().map(|&last| last as i64).collect();
    let index = TensorData::new(index, [tokens, 1]);
    let device = values.device().inner();
    let values = values.gather(1, Tensor::<2, Int>::from_data(index, &device));

    // What goes on is passed from step to step; who is done is put back in order at the end.
    let (mut x, mut finished, mut order) = (hidden.clone(), Vec::new(), Vec::new());
    for step in 0..choices {
        if active.is_empty() {
            break;
        }
        let own = x.clone();
        let (base, among) = (hidden.clone(), active.clone());
        let all = move || among.put(base, x);
        let output = steps.step(step, &active, own, all, pass, cache.as_deref_mut(), shared);
        let done: Vec<bool> = active.rows.iter().map(|&row| depth[row] == step).collect();
        let stays: Vec<usize> = places(&done.iter().map(|done| !done).collect::<Vec<_>>());
        let done = places(&done);
        if !done.is_empty() {
            order.extend(done.iter().map(|&place| active.rows[place]));
            finished.push(at_places(output.clone(), &done));
        }
        active = active.keep(&stays, batch);
        x = if stays.is_empty() {
            output
        } else {
            at_places(output, &stays)
        };
    }
    let mut place = vec![0; tokens];
    order
        .iter()
        .enumerate()
        .for_each(|(i, &row)| place[row] = i);
    let change = frugal_nn::select_rows(Tensor::cat(finished, 0), &place);
    frugal_kernels::add(hidden, spec.common.gate(change, values))
}
