//! Whole runs on the tiny models of the fixtures.

mod eight_bits;
mod fork;
mod images;
mod learning;
mod memory_optimizers;
mod minicpm;
mod objectives;
mod optimizers;
mod preference;
mod pretraining_memory;
mod resume;
mod several;
mod text_losses;
mod untracked;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use burn::prelude::*;
use frugal_adapt::methods::full::{Full, FullConfig};
use frugal_adapt::methods::low_rank::lora::{Lora, LoraConfig};
use frugal_kernels::IGNORE_INDEX;
use frugal_models::load::{SafetensorsSource, read_json};
use frugal_models::{ModelConfig, build};
use frugal_nn::{
    AdaptError, Adapter, Backbone, BuildContext, GradientSum, Head, HeadConfig, Linear, Mode,
    Parameter, Pass, Pooling, SequenceLayout, StepContext,
};
use serde_json::{Map, Value};

use super::*;

fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../fixtures")
        .join(path)
}

fn backbone(name: &str) -> Arc<dyn Backbone> {
    let folder = fixture("models").join(name);
    let config =
        ModelConfig::from_json(read_json(&folder.join("config.json")).unwrap(), name).unwrap();
    build(
        config,
        &SafetensorsSource::open(&folder).unwrap(),
        &Device::flex(),
    )
    .unwrap()
}

fn context(backbone: &dyn Backbone) -> BuildContext<'_> {
    BuildContext {
        info: backbone.info(),
        sites: backbone.sites(),
        backbone: Some(backbone),
        device: Device::flex(),
        seed: 7,
        tokenize: None,
    }
}

fn lora(backbone: &dyn Backbone, lora_dropout: f64) -> Box<dyn Adapter> {
    Box::new(
        Lora::new(
            LoraConfig {
                lora_dropout,
                ..LoraConfig::default()
            },
            &context(backbone),
        )
        .unwrap(),
    )
}

fn full(backbone: &dyn Backbone) -> Box<dyn Adapter> {
    Box::new(Full::new(FullConfig::default(), &context(backbone)).unwrap())
}

fn head(backbone: &dyn Backbone, labels: usize) -> Head {
    let config = HeadConfig {
        labels: (0..labels).map(|i| i.to_string()).collect(),
        pooling: Pooling::default_for(backbone.info()),
        problem_type: Default::default(),
    };
    Head::new(config, backbone.info(), &Device::flex(), 7)
}

/// Next-token examples that count in steps of 3; the first position is not a target.
fn counting(lengths: &[usize]) -> Vec<Tokenized> {
    let example = |(j, &n): (usize, &usize)| {
        let input_ids: Vec<u32> = (0..n).map(|i| ((3 * i + 7 * j + 1) % 64) as u32).collect();
        let next = |i: usize| {
            if i == 0 || i + 1 == n {
                IGNORE_INDEX
            } else {
                input_ids[i + 1] as i32
            }
        };
        Tokenized {
            labels: Target::Tokens((0..n).map(next).collect()),
            token_type_ids: vec![],
            input_ids,
        }
    };
    lengths.iter().enumerate().map(example).collect()
}

/// Sequences whose class is whether they contain token 9.
fn containing_nine(count: usize) -> Vec<Tokenized> {
    let example = |j: usize| {
        let mut input_ids: Vec<u32> = (0..4 + j % 5)
            .map(|i| ((5 * i + 11 * j) % 50 + 12) as u32)
            .collect();
        if j % 2 == 1 {
            let at = j % input_ids.len();
            input_ids[at] = 9;
        }
        Tokenized {
            input_ids,
            token_type_ids: vec![],
            labels: Target::Class(j % 2),
        }
    };
    (0..count).map(example).collect()
}

/// One run and the events that it gave.
struct Setup<'a> {
    backbone: &'a dyn Backbone,
    adapter: Box<dyn Adapter>,
    head: Option<Head>,
    config: TrainConfig,
    train: &'a [Tokenized],
    validation: Option<&'a [Tokenized]>,
    folder: Option<&'a Path>,
    resume: bool,
    stop: Arc<AtomicBool>,
    /// Sets `stop` as soon as this step is logged.
    stop_at: Option<u64>,
    events: Vec<Event>,
}

impl<'a> Setup<'a> {
    fn new(
        backbone: &'a dyn Backbone,
        adapter: Box<dyn Adapter>,
        train: &'a [Tokenized],
        config: TrainConfig,
    ) -> Self {
        Self {
            backbone,
            adapter,
            head: None,
            config,
            train,
            validation: None,
            folder: None,
            resume: false,
            stop: Arc::default(),
            stop_at: None,
            events: Vec::new(),
        }
    }

    fn run(&mut self) -> Result<TrainSummary, TrainError> {
        crate::train(TrainRun {
            backbone: self.backbone,
            adapter: self.adapter.as_mut(),
            head: self.head.as_mut(),
            train: self.train,
            validation: self.validation,
            config: &self.config,
            folder: self.folder,
            resume: self.resume,
            stop: &self.stop,
            observer: &mut |event: &Event| {
                if matches!(event, Event::Step { step, .. } if Some(*step) == self.stop_at) {
                    self.stop.store(true, Ordering::Relaxed);
                }
                self.events.push(event.clone());
            },
        })
    }

    fn losses(&self) -> Vec<f64> {
        self.events
            .iter()
            .filter_map(|e| {
                if let Event::Step { loss, .. } = e {
                    Some(*loss)
                } else {
                    None
                }
            })
            .collect()
    }

    /// Steps and losses of the evaluations.
    fn evaluations(&self) -> Vec<(u64, f64)> {
        self.events
            .iter()
            .filter_map(|e| {
                if let Event::Evaluated { step, metrics, .. } = e {
                    Some((*step, metrics["loss"]))
                } else {
                    None
                }
            })
            .collect()
    }

    /// The bits of all trained values.
    fn bits(&self) -> Vec<u32> {
        let head = self.head.iter().flat_map(|h| h.parameters());
        self.adapter
            .parameters()
            .into_iter()
            .chain(head)
            .flat_map(|p| p.to_vec())
            .map(f32::to_bits)
            .collect()
    }
}

/// What happens at the chosen forward pass of [`Tripwire`].
enum Trip {
    Stop(Arc<AtomicBool>),
    Poison,
}

/// An adapter that does something at one of its training passes.
struct Tripwire {
    inner: Box<dyn Adapter>,
    at: usize,
    calls: AtomicUsize,
    trip: Trip,
}

impl Tripwire {
    fn boxed(inner: Box<dyn Adapter>, at: usize, trip: Trip) -> Box<dyn Adapter> {
        Box::new(Self {
            inner,
            at,
            calls: AtomicUsize::new(0),
            trip,
        })
    }
}

/// An adapter that pulls its parameters to 0 and notes when its hooks are called.
struct Hooked {
    inner: Box<dyn Adapter>,
    calls: Arc<Mutex<Vec<(&'static str, u64)>>>,
}

impl Adapter for Hooked {
    fn method(&self) -> &'static str {
        self.inner.method()
    }

    fn parameters(&self) -> Vec<&Parameter> {
        self.inner.parameters()
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        self.inner.parameters_mut()
    }

    fn pass(&self, mode: Mode) -> Box<dyn Pass + '_> {
        Box::new(Penalised {
            inner: self.inner.pass(mode),
            adapter: self.inner.as_ref(),
        })
    }

    fn peft_config(&self) -> Map<String, Value> {
        self.inner.peft_config()
    }

    fn weight_delta(&self, base: &Linear) -> Result<Option<Tensor<2>>, AdaptError> {
        self.inner.weight_delta(base)
    }

    fn supports_mixed_batch(&self) -> bool {
        self.inner.supports_mixed_batch()
    }

    fn state(&self) -> BTreeMap<String, Vec<f32>> {
        BTreeMap::from([(
            "calls".into(),
            vec![self.calls.lock().unwrap().len() as f32],
        )])
    }

    fn restore(&mut self, state: &BTreeMap<String, Vec<f32>>) -> Result<(), String> {
        let calls = state.get("calls").ok_or("no `calls`")?[0] as usize;
        self.calls.lock().unwrap().resize(calls, ("restored", 0));
        Ok(())
    }

    fn before_step(&mut self, context: &StepContext, gradients: &mut GradientSum) {
        assert!(
            self.inner
                .parameters()
                .iter()
                .all(|p| gradients.get(p.name()).is_some_and(|g| g.len() == p.len()))
        );
        self.calls.lock().unwrap().push(("before", context.step));
    }

    fn after_step(&mut self, context: &StepContext) {
        self.calls.lock().unwrap().push(("after", context.step));
    }
}

/// The inner pass, with the sum of squares of all parameters as a penalty.
struct Penalised<'a> {
    inner: Box<dyn Pass + 'a>,
    adapter: &'a dyn Adapter,
}

impl Pass for Penalised<'_> {
    fn linear(&mut self, base: &Linear, x: Tensor<2>) -> Tensor<2> {
        self.inner.linear(base, x)
    }

    fn auxiliary_loss(&mut self) -> Option<Tensor<1>> {
        let square = |p: &Parameter| p.get::<2>(Mode::Train { seed: 0 }).powi_scalar(2).sum();
        self.adapter
            .parameters()
            .into_iter()
            .map(square)
            .reduce(|a, b| a + b)
    }
}

struct Poison;

impl Pass for Poison {
    fn embed(&mut self, hidden_states: Tensor<2>, _layout: &mut SequenceLayout) -> Tensor<2> {
        hidden_states * f32::NAN
    }
}

impl Adapter for Tripwire {
    fn method(&self) -> &'static str {
        self.inner.method()
    }

    fn parameters(&self) -> Vec<&Parameter> {
        self.inner.parameters()
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        self.inner.parameters_mut()
    }

    fn pass(&self, mode: Mode) -> Box<dyn Pass + '_> {
        if mode.is_train() && self.calls.fetch_add(1, Ordering::Relaxed) == self.at {
            match &self.trip {
                Trip::Stop(stop) => stop.store(true, Ordering::Relaxed),
                Trip::Poison => return Box::new(Poison),
            }
        }
        self.inner.pass(mode)
    }

    fn peft_config(&self) -> Map<String, Value> {
        self.inner.peft_config()
    }

    fn weight_delta(&self, base: &Linear) -> Result<Option<Tensor<2>>, AdaptError> {
        self.inner.weight_delta(base)
    }

    fn supports_mixed_batch(&self) -> bool {
        self.inner.supports_mixed_batch()
    }
}
