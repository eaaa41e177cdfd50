//! From an image to rows of a model's width: what all architectures that read images share.

use burn::prelude::*;
use frugal_media::Processor;
use frugal_nn::{Content, ImageInput, Input, Linear, ModelError, Pass, Rows};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use crate::architecture::ModelConfig;
use crate::blocks::checks::check_layout;
use crate::keys::bad;

/// Under which a folder's `preprocessor_config.json` stands among the keys of its model.
pub const PREPROCESSOR: &str = "preprocessor_config";

/// Most pixels of an image along a side.
const LARGEST: u64 = 4096;

/// Colours of 8 bits a channel.
pub(crate) const COLORS: usize = 1 << 24;

/// `[height, width]` of images or patches; one number where both are the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Sides(pub [usize; 2]);

impl<'de> Deserialize<'de> for Sides {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        let side = |value: &Value| {
            let side = value.as_u64().filter(|n| (1..=LARGEST).contains(n));
            side.map(|n| n as usize)
        };
        let sides = match &value {
            Value::Array(list) => match list.as_slice() {
                [height, width] => side(height).zip(side(width)),
                _ => None,
            },
            one => side(one).zip(side(one)),
        };
        sides.map(|(h, w)| Self([h, w])).ok_or_else(|| {
            serde::de::Error::custom(format!(
                "expected a length from 1 to {LARGEST} or [height, width], found {value}"
            ))
        })
    }
}

/// The images of a model and their patches.
#[derive(Clone, Debug)]
pub struct Pixels {
    /// Size of the images.
    pub image: ImageInput,
    /// Rows and columns of a patch.
    pub patch: [usize; 2],
    /// Factor and offset of each channel of a colour of 0 to 255.
    scale: [[f32; 2]; 3],
}

impl Pixels {
    /// Images and patches of these sizes, scaled as the model's `preprocessor_config.json` says.
    ///
    /// # Errors
    /// Patches larger than the image, other channels than three, a `preprocessor_config.json` that is
    /// not understood or gives images of another size.
    pub(crate) fn read(
        raw: &Value,
        image: Sides,
        patch: Sides,
        num_channels: usize,
        source: &str,
    ) -> Result<Self, ModelError> {
        if num_channels != 3 {
            let reason = format!("{num_channels} given, but images have 3 channels here");
            return Err(bad(source, "num_channels", reason));
        }
        let ([height, width], patch) = (image.0, patch.0);
        if patch[0] > height || patch[1] > width {
            let reason = format!("{patch:?} is larger than the image of {height} x {width}");
            return Err(bad(source, "patch_size", reason));
        }
        let image = ImageInput { height, width };
        let scale = processor(raw, image, source)?.scale();
        Ok(Self {
            image,
            patch,
            scale,
        })
    }

    /// Rows and columns of patches; what is left of the image at the lower and right edges is not read.
    pub(crate) fn grid(&self) -> [usize; 2] {
        [
            self.image.height / self.patch[0],
            self.image.width / self.patch[1],
        ]
    }

    /// Width of a patch as a row.
    pub(crate) fn patch_width(&self) -> usize {
        3 * self.patch[0] * self.patch[1]
    }

    /// The patches of the input's images as rows `[images * patches, 3 * height * width]`, channel by
    /// channel as a convolution's weight has them.
    ///
    /// # Errors
    /// Content that is no image, or images of another size.
    pub(crate) fn patches(
        &self,
        config: &ModelConfig,
        input: &Input<'_>,
        device: &Device,
    ) -> Result<Tensor<2>, ModelError> {
        check_layout(input)?;
        let ImageInput { height, width } = self.image;
        let refuse = |reason: String| ModelError::Content {
            model_type: config.model_type(),
            reason,
        };
        let pixels = self.image.pixels();
        if let Some(length) = input.layout.lengths().into_iter().find(|n| *n != pixels) {
            return Err(refuse(format!(
                "an image has {length} pixels, where the model reads {height} x {width} = {pixels}"
            )));
        }
        let values = match &input.content {
            Content::Tokens(colors) => {
                if let Some(at) = colors.iter().position(|color| *color as usize >= COLORS) {
                    return Err(ModelError::TokenId {
                        id: colors[at],
                        position: at,
                        vocab_size: COLORS,
                    });
                }
                return Ok(self.of_colors(colors, device));
            }
            Content::Rows { rows, grid } => {
                if rows.dims()[1] != 3 || *grid != [height, width] {
                    return Err(refuse(format!(
                        "the rows are {} wide on a grid of {grid:?}, where the model reads the 3 channels of {height} x {width} pixels",
                        rows.dims()[1]
                    )));
                }
                rows.clone()
            }
            Content::Embeddings(_) => {
                return Err(refuse("it reads images, not embeddings of tokens".into()));
            }
        };
        let ([down, across], [rows, columns]) = (self.patch, self.grid());
        let images = input.layout.sequences();
        Ok(values
            .reshape([images, height, width, 3])
            .narrow(1, 0, rows * down)
            .narrow(2, 0, columns * across)
            .reshape([images, rows, down, columns, across, 3])
            .permute([0, 1, 3, 5, 2, 4])
            .reshape([images * rows * columns, self.patch_width()]))
    }

    fn of_colors(&self, colors: &[u32], device: &Device) -> Tensor<2> {
        let ([down, across], [rows, columns]) = (self.patch, self.grid());
        let count = colors.len() / self.image.pixels() * rows * columns;
        let mut values = Vec::with_capacity(count * self.patch_width());
        for image in colors.chunks_exact(self.image.pixels()) {
            for (row, column) in (0..rows).flat_map(|r| (0..columns).map(move |c| (r, c))) {
                for (channel, [factor, offset]) in self.scale.iter().enumerate() {
                    for line in row * down..(row + 1) * down {
                        let start = line * self.image.width + column * across;
                        let own = &image[start..start + across];
                        let value = |color: &u32| {
                            let [_, rgb @ ..] = color.to_be_bytes();
                            f32::from(rgb[channel]) * factor + offset
                        };
                        values.extend(own.iter().map(value));
                    }
                }
            }
        }
        Tensor::from_data(TensorData::new(values, [count, self.patch_width()]), device)
    }
}

/// The processor that prepares images for a model with these keys.
fn processor(raw: &Value, image: ImageInput, source: &str) -> Result<Processor, ModelError> {
    let ImageInput { height, width } = image;
    let Some(keys) = raw.get(PREPROCESSOR) else {
        return Ok(Processor::new(height, width));
    };
    let refuse = |reason: String| bad(source, PREPROCESSOR, reason);
    let processor = Processor::from_json(keys, frugal_media::PROCESSOR_FILE)
        .map_err(|error| refuse(error.to_string()))?;
    match processor.output() {
        Some(size) if size != [height, width] => Err(refuse(format!(
            "it gives images of {size:?}, where `image_size` is [{height}, {width}]"
        ))),
        _ => Ok(processor),
    }
}

impl ModelConfig {
    /// How images are prepared for this model; `None` for models that read text.
    ///
    /// # Errors
    /// A `preprocessor_config.json` that is not understood or gives images of another size.
    pub fn image_processor(&self) -> Result<Option<Processor>, ModelError> {
        let image = self.architecture.image();
        let made = image.map(|image| processor(&self.raw, image, &self.source));
        made.transpose()
    }
}

/// Refuses passes that put something in front of sequences or tell them apart by rows of the input:
/// patches are another number of rows than pixels, and lie on a grid.
pub(crate) fn check_pass(config: &ModelConfig, pass: &mut dyn Pass) -> Result<(), ModelError> {
    let refuse = |reason: &str| {
        Err(ModelError::Method {
            model_type: config.model_type(),
            reason: reason.into(),
        })
    };
    if pass.prefix_length() > 0 {
        return refuse(
            "keys and values cannot be put in front of an image: use a method that changes weights",
        );
    }
    if pass.needs_token_rows() {
        return refuse(
            "adapters cannot be chosen by image within a batch: run the images of each adapter in a batch of their own",
        );
    }
    Ok(())
}

/// What a convolution over windows that do not overlap gives of rows of patches.
pub(crate) fn embed(projection: &Linear, patches: Tensor<2>, pass: &mut dyn Pass) -> Tensor<2> {
    pass.linear_rows(projection, patches, Rows::Chosen)
}
