//! Adapts a model that knows nothing of this library: a plain Burn network that reads handwritten
//! digits learns to read them lying on their side, while its own weights stay as they are.
//!
//! `cargo run --release --example any_burn_model -- DIGITS.csv [METHOD] [key=value ...]`, with
//! lines of 64 grey values from 0 to 16 and the digit: `optdigits.tra` of the UCI repository, or
//! `digits.csv` in scikit-learn (there compressed).

#![allow(clippy::print_stdout, reason = "its output is the point")]

use std::error::Error;

use burn::module::Module;
use burn::nn::loss::CrossEntropyLossConfig;
use burn::nn::{Linear, LinearConfig};
use burn::prelude::*;
use burn::tensor::activation::relu;
use burn_optim::{AdamConfig, GradientsParams};
use frugal::adapt::reparameterize::Adapted;
use frugal::adapt::{Settings, registry};
use serde_json::Value;

const SIDE: usize = 8;
const HIDDEN: usize = 64;

/// Nothing in it is special.
#[derive(Module, Debug)]
struct Mlp {
    first: Linear,
    second: Linear,
    output: Linear,
}

impl Mlp {
    fn new(device: &Device) -> Self {
        Self {
            first: LinearConfig::new(SIDE * SIDE, HIDDEN).init(device),
            second: LinearConfig::new(HIDDEN, HIDDEN).init(device),
            output: LinearConfig::new(HIDDEN, 10).init(device),
        }
    }

    fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        let x = relu(self.first.forward(x));
        self.output.forward(relu(self.second.forward(x)))
    }
}

struct Digits {
    pixels: Vec<f32>,
    labels: Vec<i64>,
}

impl Digits {
    fn read(path: &str) -> Result<Self, Box<dyn Error>> {
        let (mut pixels, mut labels) = (Vec::new(), Vec::new());
        for (line, text) in std::fs::read_to_string(path)?.lines().enumerate() {
            let numbers: Vec<f32> = text
                .split(',')
                .map(|n| n.trim().parse())
                .collect::<Result<_, _>>()
                .unwrap_or_default();
            // scikit-learn's file starts with a line about the file.
            let (Some((label, image)), true) =
                (numbers.split_last(), numbers.len() == SIDE * SIDE + 1)
            else {
                if line == 0 {
                    continue;
                }
                return Err(format!(
                    "{path}: line {}: expected {} grey values and the digit",
                    line + 1,
                    SIDE * SIDE
                )
                .into());
            };
            pixels.extend(image.iter().map(|p| p / 16.0));
            labels.push(*label as i64);
        }
        Ok(Self { pixels, labels })
    }

    /// The same pictures, turned by a quarter.
    fn turned(&self) -> Self {
        let turn = |image: &[f32]| {
            (0..SIDE * SIDE)
                .map(|i| image[i % SIDE * SIDE + SIDE - 1 - i / SIDE])
                .collect::<Vec<f32>>()
        };
        Self {
            pixels: self.pixels.chunks(SIDE * SIDE).flat_map(turn).collect(),
            labels: self.labels.clone(),
        }
    }

    fn split(self) -> (Self, Self) {
        let at = self.labels.len() * 2 / 3;
        let part = |pixels: &[f32], labels: &[i64]| Self {
            pixels: pixels.to_vec(),
            labels: labels.to_vec(),
        };
        let train = part(&self.pixels[..at * SIDE * SIDE], &self.labels[..at]);
        (
            train,
            part(&self.pixels[at * SIDE * SIDE..], &self.labels[at..]),
        )
    }

    fn batch(&self, rows: std::ops::Range<usize>, device: &Device) -> (Tensor<2>, Tensor<1, Int>) {
        let pixels = &self.pixels[rows.start * SIDE * SIDE..rows.end * SIDE * SIDE];
        let x = Tensor::from_data(
            TensorData::new(pixels.to_vec(), [rows.len(), SIDE * SIDE]),
            device,
        );
        (
            x,
            Tensor::from_data(TensorData::from(&self.labels[rows]), device),
        )
    }

    /// The share of right answers.
    fn accuracy(&self, forward: impl Fn(Tensor<2>) -> Tensor<2>) -> f64 {
        let (x, labels) = self.batch(0..self.labels.len(), &Device::flex());
        let right = forward(x)
            .argmax(1)
            .flatten::<1>(0, 1)
            .equal(labels)
            .int()
            .sum()
            .into_scalar::<i64>();
        right as f64 / self.labels.len() as f64
    }

    /// Trains by Burn's Adam; `forward` says how the module computes.
    fn train<M: Module>(
        &self,
        mut module: M,
        epochs: usize,
        lr: f64,
        forward: impl Fn(&M, Tensor<2>) -> Tensor<2>,
    ) -> M {
        let device = Device::flex().autodiff();
        let (mut optimizer, cross_entropy) = (
            AdamConfig::new().init(),
            CrossEntropyLossConfig::new().init(&device),
        );
        for _ in 0..epochs {
            for start in (0..self.labels.len()).step_by(32) {
                let (x, labels) = self.batch(start..(start + 32).min(self.labels.len()), &device);
                let loss = cross_entropy.forward(forward(&module, x), labels);
                let gradients = GradientsParams::from_grads(loss.backward(), &module);
                module = optimizer.step(lr, module, gradients);
            }
        }
        module
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments
        .next()
        .ok_or("give the path of a file of digits, then perhaps a method and its settings")?;
    let method = registry::find(&arguments.next().unwrap_or_else(|| "lora".into()))?;
    let setting = |text: String| -> Result<(String, Value), Box<dyn Error>> {
        let (key, value) = text
            .split_once('=')
            .ok_or_else(|| format!("`{text}`: expected key=value"))?;
        Ok((
            key.into(),
            serde_json::from_str(value).unwrap_or_else(|_| Value::String(value.into())),
        ))
    };
    let settings: Settings = arguments.map(setting).collect::<Result<_, _>>()?;

    let device = Device::flex().autodiff();
    device.seed(1);
    let (train, test) = Digits::read(&path)?.split();
    let (train_turned, test_turned) = (train.turned(), test.turned());
    let model = train.train(Mlp::new(&device), 20, 2e-3, |model, x| model.forward(x));
    let plain = model.valid();
    println!(
        "the model, upright: {:.3}; turned: {:.3}",
        test.accuracy(|x| plain.forward(x)),
        test_turned.accuracy(|x| plain.forward(x))
    );

    let adapted = Adapted::new(model, method, &settings, 1)?;
    println!(
        "{}: {} trained parameters beside {}",
        method.name,
        adapted.num_trainable(),
        plain.num_params()
    );
    let adapted = train_turned.train(adapted, 20, 4.0 * method.default_lr, |adapted, x| {
        adapted.with(|model| model.forward(x))
    });
    let valid = adapted.valid();
    println!(
        "adapted, turned: {:.3}",
        test_turned.accuracy(|x| valid.with(|model| model.forward(x)))
    );
    let merged = valid.merge();
    println!(
        "merged into a plain model, turned: {:.3}",
        test_turned.accuracy(|x| merged.forward(x))
    );
    Ok(())
}
