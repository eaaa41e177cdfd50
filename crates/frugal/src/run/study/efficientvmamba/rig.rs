//! Images in memory, training and measuring models on them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use burn::prelude::Device;
use frugal_adapt::methods::full::{Full, FullConfig};
use frugal_core::encode::{Target, Tokenized};
use frugal_media::{ImageExample, ImageSet, Limits, Part as SetPart, Processor};
use frugal_models::{build, random_weights};
use frugal_nn::{Adapter, Backbone, BuildContext, Head, HeadConfig, Pooling, ProblemType};
use frugal_train::objective::ImageClassification;
use frugal_train::{
    Event, ModelParts, Named, Scheduler, StopReason, TrainConfig, TrainError, TrainRun,
    evaluate_observed, train,
};
use rayon::prelude::*;
use serde_json::json;

use super::arms::Arm;
use super::size::Size;
use crate::run::study::{StudyError, StudyRequest};

/// The images, and how long is learnt from them.
pub(super) struct Rig<'a> {
    request: &'a StudyRequest<'a>,
    size: &'a Size,
    labels: Vec<String>,
    training: Vec<Tokenized>,
    /// What rates are picked by, and what is reported.
    held_out: [Vec<Tokenized>; 2],
    device: Device,
}

/// Which part of what is held out.
#[derive(Clone, Copy)]
pub(super) enum Part {
    Tuning,
    Test,
}

/// A model after its training.
pub(super) struct Trained {
    backbone: Arc<dyn Backbone>,
    adapter: Full,
    head: Head,
    pub seconds_per_step: f64,
    pub parameters: usize,
}

fn failed<E>(arm: &str) -> impl Fn(E) -> StudyError
where
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    move |error| StudyError::arm(arm, error)
}

impl<'a> Rig<'a> {
    /// Reads the images; which part is which does not depend on the seed of a run: the first of each
    /// class pick rates.
    pub(super) fn new(request: &'a StudyRequest<'a>, size: &'a Size) -> Result<Self, StudyError> {
        let path = request.data("cifar10/cifar10-subset.tar")?;
        let failed = || failed("the images");
        let set = ImageSet::open(&path).map_err(failed())?;
        let labels = set.labels();
        let of = |part: SetPart| set.parts.get(&part).cloned().unwrap_or_default();
        let processor = Processor::new(size.image, size.image);
        let read = |image: &ImageExample| {
            let picture = image.content.read(Limits::default()).map_err(failed())?;
            let label = image.label.as_ref();
            let class = labels.iter().position(|known| Some(known) == label);
            Ok(Tokenized {
                input_ids: processor
                    .prepare(&picture)
                    .map_err(|reason| StudyError::Data {
                        path: path.clone(),
                        reason,
                    })?
                    .colors(),
                token_type_ids: Vec::new(),
                labels: Target::Class(class.unwrap_or_default()),
            })
        };
        // Those of each class from this one on, so many.
        let chosen = |part: SetPart, from: usize, count: usize| -> Result<Vec<_>, StudyError> {
            let mut seen = BTreeMap::new();
            let images: Vec<ImageExample> = of(part)
                .into_iter()
                .filter(|image| {
                    let nth = seen.entry(image.label.clone()).or_insert(0usize);
                    *nth += 1;
                    *nth > from && (count == 0 || *nth <= from + count)
                })
                .collect();
            images.par_iter().map(read).collect()
        };
        let [training, test] = size.images;
        Ok(Self {
            request,
            size,
            training: chosen(SetPart::Train, size.tuning, training)?,
            held_out: [
                chosen(SetPart::Train, 0, size.tuning)?,
                chosen(SetPart::Test, 0, test)?,
            ],
            labels,
            device: Device::flex(),
        })
    }

    /// Images to learn from, to pick rates by, to report on.
    pub(super) fn counts(&self) -> [usize; 3] {
        let [tuning, test] = self.held_out.each_ref().map(Vec::len);
        [self.training.len(), tuning, test]
    }

    /// A new model trained; nothing where the loss or a gradient was not finite.
    pub(super) fn trained(
        &self,
        arm: &Arm,
        rate: f64,
        seed: u64,
    ) -> Result<Option<Trained>, StudyError> {
        self.request.check()?;
        let name = arm.name;
        let weights = random_weights(&arm.config, seed, &self.device);
        let backbone = build(arm.config.clone(), &weights, &self.device).map_err(failed(name))?;
        let context = BuildContext {
            info: backbone.info(),
            sites: backbone.sites(),
            backbone: Some(backbone.as_ref()),
            device: self.device.clone(),
            seed,
            tokenize: None,
        };
        let mut adapter = Full::new(FullConfig {}, &context).map_err(failed(name))?;
        let config = HeadConfig {
            labels: self.labels.clone(),
            pooling: Pooling::default_for(backbone.info()),
            problem_type: ProblemType::SingleLabel,
        };
        let mut head = Head::new(config, backbone.info(), &self.device, seed);
        let pixels = self.size.image * self.size.image;
        let settings = json!({"horizontal_flip": true, "crop_padding": self.size.crop_padding});
        let config = TrainConfig {
            lr: rate,
            max_steps: self.size.steps,
            batch_size: self.size.batch_size,
            max_tokens: self.size.batch_size * pixels,
            packing: false,
            group_by_length: false,
            weight_decay: 0.05,
            lr_scheduler_type: Scheduler::Cosine,
            warmup_ratio: 0.1,
            min_lr_ratio: 0.01,
            load_best_model_at_end: false,
            logging_steps: self.size.steps,
            objective: Named {
                name: "image_classification".into(),
                settings: settings.as_object().cloned().unwrap_or_default(),
            },
            seed,
            ..TrainConfig::default()
        };
        let started = Instant::now();
        let ending = train(TrainRun {
            backbone: backbone.as_ref(),
            adapter: &mut adapter,
            head: Some(&mut head),
            train: &self.training,
            validation: None,
            config: &config,
            folder: None,
            resume: false,
            stop: self.request.stop,
            observer: &mut |_: &Event| {},
        });
        match ending {
            Err(TrainError::NonFinite { .. }) => return Ok(None),
            Err(error) => return Err(StudyError::arm(name, error)),
            Ok(summary) if summary.ending == StopReason::Interrupted => {
                return Err(StudyError::Stopped);
            }
            Ok(_) => {}
        }
        let of_head: usize = head.parameters().iter().map(|p| p.len()).sum();
        Ok(Some(Trained {
            seconds_per_step: started.elapsed().as_secs_f64() / self.size.steps as f64,
            parameters: backbone.sites().num_parameters() + of_head,
            backbone,
            adapter,
            head,
        }))
    }

    /// Measures of a model on a part.
    pub(super) fn measured(
        &self,
        arm: &str,
        trained: &Trained,
        part: Part,
    ) -> Result<BTreeMap<String, f64>, StudyError> {
        let pixels = self.size.image * self.size.image;
        let found = evaluate_observed(
            ModelParts::new(trained.backbone.as_ref(), Some(&trained.head)),
            Some(&trained.adapter as &dyn Adapter),
            &ImageClassification::default(),
            &self.held_out[part as usize],
            256 * pixels,
            self.request.stop,
            &mut |_, _| {},
        );
        match found {
            Ok(Some(evaluation)) => Ok(evaluation.metrics),
            Ok(None) => Err(StudyError::Stopped),
            Err(error) => Err(StudyError::arm(arm, error)),
        }
    }
}
