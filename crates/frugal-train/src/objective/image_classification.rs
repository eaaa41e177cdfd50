//! Telling which one of several classes an image has, with random changes of the images that are
//! learnt from.

use burn::prelude::*;
use frugal_nn::{ImageInput, Mode, ModelError, named_rng};
use rand::Rng;
use serde::{Deserialize, Serialize};

use super::Objective;
use super::batch::{Forward, ModelParts};
use super::classification::{Classification, ClassificationConfig};
use super::label_weights::LabelWeights;
use super::meter::{Meter, Metric};
use crate::Tokenized;

/// Settings of [`ImageClassification`]; images are left as they are by default.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ImageClassificationConfig {
    /// As of [`ClassificationConfig`].
    pub class_weights: Option<LabelWeights>,
    /// Whether left and right are exchanged in half of the images.
    pub horizontal_flip: bool,
    /// By how many pixels an image is moved at most in each direction, with black behind it (He et
    /// al., *Deep Residual Learning*, arXiv 1512.03385, section 4.2: 4 on CIFAR-10).
    pub crop_padding: usize,
}

/// Cross-entropy of the classes of a head on a model that reads images.
#[derive(Clone, Debug, Default)]
pub struct ImageClassification {
    classes: Classification,
    horizontal_flip: bool,
    crop_padding: usize,
}

impl ImageClassification {
    /// With these settings.
    pub fn new(config: ImageClassificationConfig, label_smoothing: f64) -> Self {
        let class_weights = config.class_weights;
        Self {
            classes: Classification::new(ClassificationConfig { class_weights }, label_smoothing),
            horizontal_flip: config.horizontal_flip,
            crop_padding: config.crop_padding,
        }
    }

    /// The image as it is learnt from this time.
    fn changed(&self, example: &Tokenized, image: ImageInput, rng: &mut impl Rng) -> Tokenized {
        let mut changed = example.clone();
        let padding = self.crop_padding as i64;
        let mut shift = || match padding {
            0 => 0,
            padding => rng.random_range(-padding..=padding),
        };
        let (down, right) = (shift(), shift());
        let mirrored = self.horizontal_flip && rng.random_bool(0.5);
        let (height, width) = (image.height as i64, image.width as i64);
        for (i, color) in changed.input_ids.iter_mut().enumerate() {
            let (row, column) = (i as i64 / width, i as i64 % width);
            let column = if mirrored { width - 1 - column } else { column };
            let (row, column) = (row + down, column + right);
            let inside = (0..height).contains(&row) && (0..width).contains(&column);
            *color = match inside {
                true => example.input_ids[(row * width + column) as usize],
                false => 0,
            };
        }
        changed
    }
}

impl Objective for ImageClassification {
    fn name(&self) -> &'static str {
        "image_classification"
    }

    fn check_model(&self, model: ModelParts<'_>) -> Result<(), String> {
        if model.backbone.info().image.is_none() {
            return Err("image classification needs a model that reads images".into());
        }
        self.classes.check_model(model)
    }

    fn check_example(&self, model: ModelParts<'_>, example: &Tokenized) -> Result<(), String> {
        let pixels = model.backbone.info().image.map_or(0, ImageInput::pixels);
        let found = example.input_ids.len();
        if found != pixels {
            return Err(format!("{found} pixels, but the model reads {pixels}"));
        }
        self.classes.check_example(model, example)
    }

    fn fit(&mut self, model: ModelParts<'_>, train: &[Tokenized]) -> Result<(), String> {
        self.classes.fit(model, train)
    }

    fn num_targets(&self, model: ModelParts<'_>, example: &Tokenized) -> f64 {
        self.classes.num_targets(model, example)
    }

    fn loss(
        &self,
        examples: &[&Tokenized],
        forward: &mut Forward<'_>,
    ) -> Result<Tensor<1>, ModelError> {
        let image = forward.model.backbone.info().image;
        let plain = !self.horizontal_flip && self.crop_padding == 0;
        let (Mode::Train { seed }, Some(image), false) = (forward.mode, image, plain) else {
            return self.classes.loss(examples, forward);
        };
        let mut rng = named_rng(seed, "images");
        let of = |example: &&Tokenized| self.changed(example, image, &mut rng);
        let changed: Vec<Tokenized> = examples.iter().map(of).collect();
        let changed: Vec<&Tokenized> = changed.iter().collect();
        self.classes.loss(&changed, forward)
    }

    fn metrics(&self) -> &'static [Metric] {
        self.classes.metrics()
    }

    fn meter<'a>(&'a self, model: ModelParts<'a>) -> Box<dyn Meter + 'a> {
        self.classes.meter(model)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Target;

    #[test]
    fn images_are_moved_and_mirrored_by_whole_pixels() {
        let image = ImageInput {
            height: 2,
            width: 3,
        };
        let example = Tokenized {
            input_ids: (1..=6).collect(),
            token_type_ids: vec![],
            labels: Target::Class(0),
        };
        let objective = ImageClassification {
            horizontal_flip: true,
            crop_padding: 1,
            ..ImageClassification::default()
        };
        // Every image of two mirrors at nine places, black where nothing was.
        let mut expected = std::collections::BTreeSet::new();
        for (down, right) in (-1i64..=1).flat_map(|d| (-1i64..=1).map(move |r| (d, r))) {
            for mirrored in [false, true] {
                let pixel = |i: i64| {
                    let (row, column) = (i / 3, if mirrored { 2 - i % 3 } else { i % 3 });
                    match (row + down, column + right) {
                        (row @ 0..=1, column @ 0..=2) => (row * 3 + column + 1) as u32,
                        _ => 0,
                    }
                };
                expected.insert((0..6).map(pixel).collect::<Vec<u32>>());
            }
        }
        let mut rng = named_rng(3, "test");
        let found: std::collections::BTreeSet<Vec<u32>> = (0..500)
            .map(|_| objective.changed(&example, image, &mut rng).input_ids)
            .collect();
        assert_eq!(found, expected);
        let plain = ImageClassification::default();
        assert_eq!(plain.changed(&example, image, &mut rng), example);
    }
}
