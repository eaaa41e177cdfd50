//! Methods on a plain Burn module: outputs, gradients and training by Burn's optimiser.

use burn::module::{Module, ModuleVisitor, Param};
use burn::nn::{Linear, LinearConfig};
use burn::prelude::*;
use burn_optim::{AdamConfig, GradientsParams};
use frugal::adapt::registry::{METHODS, find};
use frugal::adapt::reparameterize::Adapted;
use frugal::adapt::{AdaptError, to_vec};
use frugal::adapt::{Method, Settings};
use serde_json::json;

use crate::method_settings::settings;
use crate::support::{device, max_difference};

const D: usize = 16;

#[derive(Module, Debug)]
struct Mlp {
    layers: Vec<Linear>,
}

impl Mlp {
    fn new(device: &Device) -> Self {
        let layer = |seed: usize| {
            let mut linear = LinearConfig::new(D, D).init(device);
            linear.weight = Param::from_tensor(wave(seed, D, device));
            linear.bias = Some(Param::from_tensor(wave(seed + 7, 1, device).reshape([D])));
            linear
        };
        Self {
            layers: vec![layer(1), layer(2)],
        }
    }

    fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        self.layers[1].forward(self.layers[0].forward(x).tanh())
    }
}

/// `[rows, D]` of numbers without a pattern.
fn wave(seed: usize, rows: usize, device: &Device) -> Tensor<2> {
    let values: Vec<f32> = (0..rows * D)
        .map(|i| ((i * i + 31 * seed) as f32 * 0.7 + i as f32).sin() * 0.3)
        .collect();
    Tensor::from_data(TensorData::new(values, [rows, D]), device)
}

fn target() -> Tensor<2> {
    wave(40, 5, &device()) * 3.0
}

fn loss(model: &Mlp) -> Tensor<1> {
    let autodiff = model.layers[0].weight.val().is_autodiff();
    let x = wave(30, 5, &device());
    let y = model.forward(if autodiff { Tensor::from_inner(x) } else { x });
    let target = if autodiff {
        Tensor::from_inner(target())
    } else {
        target()
    };
    (y - target).powi_scalar(2).mean()
}

fn value(loss: Tensor<1>) -> f32 {
    loss.inner().into_scalar()
}

/// Without dropout, and on layers that have no names of transformers.
fn settings_here(method: &Method) -> Settings {
    let mut settings = settings(method);
    let own = match method.name {
        "beft" => json!({"target_modules": "all-linear"}),
        // Else every pass of training draws a rank.
        "dylora" => json!({"r": 4, "min_rank": 4}),
        "ia3" => json!({"target_modules": ["0", "1"], "feedforward_modules": ["1"]}),
        "mos" => json!({"lora_dropout": 0.0}),
        // A hundredth of these layers is one number.
        "supertuning" => json!({"sparsity": 0.5}),
        "svfit" => json!({"target_modules": "all-linear"}),
        _ => json!({}),
    };
    settings.extend(own.as_object().unwrap().clone());
    settings
}

fn adapted(method: &'static Method, settings: &Settings) -> Result<Adapted<Mlp>, AdaptError> {
    Adapted::new(Mlp::new(&device().autodiff()), method, settings, 3)
}

/// Some steps of Burn's Adam.
fn train(mut model: Adapted<Mlp>, lr: f64, steps: usize) -> Adapted<Mlp> {
    let mut optimizer = AdamConfig::new().init();
    for _ in 0..steps {
        let gradients = GradientsParams::from_grads(model.with(loss).backward(), &model);
        model = optimizer.step(lr, model, gradients);
    }
    model
}

/// Every number of a module's parameters.
#[derive(Default)]
struct Values(Vec<f32>);

impl ModuleVisitor for Values {
    fn visit_float<const R: usize>(&mut self, param: &Param<Tensor<R>>) {
        self.0.extend(to_vec(param.base().inner()));
    }
}

fn values(module: &impl Module) -> Vec<f32> {
    let mut all = Values::default();
    module.visit(&mut all);
    all.0
}

#[test]
fn methods_that_change_weights_train_on_any_module() {
    let usable: Vec<&Method> = METHODS
        .iter()
        .filter(|m| adapted(m, &settings_here(m)).is_ok())
        .copied()
        .collect();
    let names: Vec<&str> = usable.iter().map(|m| m.name).collect();
    // Whatever can be merged, but for what a trainer tells about its steps, and what acts on norms
    // or tables.
    let others = [
        "adalora",
        "corda",
        "diff-pruning",
        "eva",
        "fish-mask",
        "id3",
        "increlora",
        "ln-tuning",
        "lora-fa",
        "lora-ga",
        "lora-plus",
        "monteclora",
        "pela",
        "poly",
        "pst",
        "pvera",
        "stable-rps",
        "trainable-tokens",
        "velora",
    ];
    let expected: Vec<&str> = METHODS
        .iter()
        .filter(|m| m.capabilities.merge && !others.contains(&m.name))
        .map(|m| m.name)
        .collect();
    assert_eq!(names, expected);
    let base = values(&Mlp::new(&device()));
    for method in METHODS.iter().filter(|m| names.contains(&m.name)) {
        let before = adapted(method, &settings_here(method)).unwrap();
        let first = value(before.with(loss));
        let plain = value(loss(&Mlp::new(&device())));
        if method.capabilities.identity_at_init {
            assert!(
                (first - plain).abs() < 1e-5,
                "{}: {first} instead of {plain}",
                method.name
            );
        }
        let after = train(before, 0.02, 30);
        let last = value(after.with(loss));
        assert!(last < 0.95 * first, "{}: {first} to {last}", method.name);
        // The model's own numbers come first.
        assert_eq!(values(&after)[..base.len()], base, "{}", method.name);

        let valid = after.valid();
        assert!(
            (value(valid.with(loss)) - last).abs() < 1e-4,
            "{}",
            method.name
        );
        let outputs = to_vec(valid.with(|m| m.forward(wave(30, 5, &device()))));
        let merged = valid.merge();
        assert!(
            merged.layers[0].weight.base().dims() == [D, D] && merged.num_params() == base.len()
        );
        let difference = max_difference(&outputs, &to_vec(merged.forward(wave(30, 5, &device()))));
        assert!(difference < 1e-5, "{}: {difference}", method.name);
    }
}

#[test]
fn lora_is_the_plain_formula() {
    let model = train(
        adapted(find("lora").unwrap(), &settings_here(find("lora").unwrap())).unwrap(),
        0.02,
        3,
    );
    let names = model.names();
    assert_eq!(
        names[..2],
        ["layers.0.lora_A.weight", "layers.0.lora_B.weight"]
    );
    let all = values(&model);
    let base = 2 * (D * D + D);
    let (r, scale) = (8, 16.0 / 8.0);
    let at = |i: usize| all[base + i * r * D..base + (i + 1) * r * D].to_vec();
    let tracked = |values: Vec<f32>, dims: [usize; 2]| {
        Tensor::<2>::from_data(TensorData::new(values, dims), &device().autodiff()).require_grad()
    };
    let factors: Vec<[Tensor<2>; 2]> = (0..2)
        .map(|i| [tracked(at(2 * i), [r, D]), tracked(at(2 * i + 1), [D, r])])
        .collect();
    let plain = Mlp::new(&device());
    let map = |x: Tensor<2>, i: usize| {
        let [a, b] = factors[i].clone();
        let weight = plain.layers[i].weight.val();
        let bias = plain.layers[i]
            .bias
            .as_ref()
            .unwrap()
            .val()
            .unsqueeze::<2>();
        x.clone().matmul(Tensor::from_inner(weight))
            + x.matmul(a.transpose()).matmul(b.transpose()) * scale
            + Tensor::from_inner(bias)
    };
    let y = map(map(Tensor::from_inner(wave(30, 5, &device())), 0).tanh(), 1);
    let expected = (y - Tensor::from_inner(target())).powi_scalar(2).mean();
    let found = model.with(loss);
    assert!((value(found.clone()) - value(expected.clone())).abs() < 1e-6);

    let gradients = GradientsParams::from_grads(found.backward(), &model);
    let plain = expected.backward();
    let mut ids = Ids::default();
    model.visit(&mut ids);
    for (i, factor) in factors.iter().flatten().enumerate() {
        let found = gradients.get::<1>(ids.0[4 + i]).unwrap();
        let difference = max_difference(&to_vec(found), &to_vec(factor.grad(&plain).unwrap()));
        assert!(difference < 1e-6, "{}: {difference}", names[i]);
    }
    // Only the four factors have gradients.
    assert_eq!(gradients.len(), 4);
}

#[derive(Default)]
struct Ids(Vec<burn::module::ParamId>);

impl ModuleVisitor for Ids {
    fn visit_float<const R: usize>(&mut self, param: &Param<Tensor<R>>) {
        self.0.push(param.id);
    }
}

/// Adds `step` to one number of one trained tensor.
struct Nudge {
    tensor: usize,
    element: usize,
    step: f32,
    seen: usize,
}

impl burn::module::ModuleMapper for Nudge {
    fn map_float<const R: usize>(&mut self, param: Param<Tensor<R>>) -> Param<Tensor<R>> {
        let here = self.seen == self.tensor;
        self.seen += 1;
        if !here {
            return param;
        }
        let (element, step) = (self.element, self.step);
        param.map(|tensor| {
            let (dims, device) = (tensor.dims(), tensor.device());
            let mut values = to_vec(tensor.inner());
            values[element] += step;
            Tensor::from_data(TensorData::new(values, dims), &device).require_grad()
        })
    }
}

#[test]
fn gradients_are_those_of_finite_differences() {
    // What two layers share (`mos`, `vblora`) counts once, with the sum over its uses.
    for name in [
        "lora",
        "loha",
        "lokr",
        "oft",
        "fourierft",
        "mos",
        "vblora",
        "vera",
        "ia3",
        "ssf",
    ] {
        let method = find(name).unwrap();
        let model = train(adapted(method, &settings_here(method)).unwrap(), 0.02, 3);
        let gradients = GradientsParams::from_grads(model.with(loss).backward(), &model);
        let mut ids = Ids::default();
        model.visit(&mut ids);
        let tensors = model.names().len();
        let first = ids.0.len() - tensors;
        let mut worst = (0.0f32, 0.0f32);
        for tensor in 0..tensors {
            let gradient = to_vec(gradients.get::<1>(ids.0[first + tensor]).unwrap());
            let element = (0..gradient.len())
                .max_by(|&a, &b| gradient[a].abs().total_cmp(&gradient[b].abs()))
                .unwrap();
            let nudged = |step: f32| {
                let model = model.clone().map(&mut Nudge {
                    tensor: first + tensor,
                    element,
                    step,
                    seen: 0,
                });
                value(model.with(loss))
            };
            let step = 2e-3;
            let numeric = (nudged(step) - nudged(-step)) / (2.0 * step);
            worst = (
                worst.0.max((numeric - gradient[element]).abs()),
                worst.1.max(gradient[element].abs()),
            );
        }
        assert!(
            worst.1 > 1e-3 && worst.0 < 0.02 * worst.1,
            "{name}: {worst:?}"
        );
    }
}

#[test]
fn what_weights_cannot_hold_is_refused_with_a_reason() {
    let message = |name: &str| {
        adapted(find(name).unwrap(), &settings_here(find(name).unwrap()))
            .err()
            .unwrap()
            .to_string()
    };
    assert!(
        message("prompt-tuning").contains("more than weights"),
        "{}",
        message("prompt-tuning")
    );
    assert!(
        message("pst").contains("more than gradients"),
        "{}",
        message("pst")
    );
    assert!(
        message("lora-plus").contains("more than gradients"),
        "{}",
        message("lora-plus")
    );
    let settings = json!({"target_modules": ["layers.2"]})
        .as_object()
        .cloned()
        .unwrap();
    let message = adapted(find("lora").unwrap(), &settings)
        .err()
        .unwrap()
        .to_string();
    assert!(message.contains("matched nothing"), "{message}");
}
