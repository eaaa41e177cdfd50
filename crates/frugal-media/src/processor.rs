//! How an image is prepared for a model: `preprocessor_config.json`, as the image processors of
//! Hugging Face read it.

use serde_json::{Map, Value, json};

use crate::error::MediaError;
use crate::picture::Picture;
use crate::resize::{Resample, resize};

/// What the file is called in a model folder.
pub const PROCESSOR_FILE: &str = "preprocessor_config.json";

/// Largest side that an image is brought to.
const LARGEST: u64 = 1 << 14;

/// The size that an image is brought to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// This many rows and columns, whatever the sides were.
    Exact {
        /// Rows.
        height: usize,
        /// Columns.
        width: usize,
    },
    /// The shorter side gets this length, the other follows.
    ShortestEdge(usize),
}

/// How an image is prepared: resized, cropped about its centre, rescaled and normalised, each where
/// it is asked for and in this order.
#[derive(Clone, Debug, PartialEq)]
pub struct Processor {
    /// The new size (`do_resize`, `size`).
    pub size: Option<Size>,
    /// The filter of resizing (`resample`).
    pub resample: Resample,
    /// Rows and columns that are cut out about the centre (`do_center_crop`, `crop_size`); where the
    /// image is smaller it gets a black edge.
    pub crop: Option<[usize; 2]>,
    /// Factor on values of 0 to 255 (`do_rescale`, `rescale_factor`); 1 without.
    pub rescale: f64,
    /// Mean that is subtracted from each channel, and standard deviation that it is divided by
    /// (`do_normalize`, `image_mean`, `image_std`).
    pub normalize: Option<[[f64; 3]; 2]>,
    /// The file as read, with all its keys.
    raw: Map<String, Value>,
}

/// Keys that do not change what comes out here.
const WITHOUT_EFFECT: &[&str] = &[
    // Images always become RGB.
    "do_convert_rgb",
    "image_processor_type",
    "feature_extractor_type",
    "processor_class",
    "default_to_square",
    "data_format",
    "input_data_format",
    "return_tensors",
    "device",
    "disable_grouping",
    "image_seq_length",
    "_valid_processor_keys",
    "auto_map",
];

const READ: &[&str] = &[
    "do_resize",
    "size",
    "resample",
    "do_center_crop",
    "crop_size",
    "do_rescale",
    "rescale_factor",
    "do_normalize",
    "image_mean",
    "image_std",
];

impl Processor {
    /// Images of this size, resized with the default filter, values to -1 to 1, as `ViTImageProcessor` has it
    /// by default.
    pub fn new(height: usize, width: usize) -> Self {
        let raw = json!({
            "image_processor_type": "ViTImageProcessor",
            "do_resize": true, "size": {"height": height, "width": width}, "resample": 2,
            "do_rescale": true, "rescale_factor": 1.0 / 255.0,
            "do_normalize": true, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
        });
        Self {
            size: Some(Size::Exact { height, width }),
            resample: Resample::Bilinear,
            crop: None,
            rescale: 1.0 / 255.0,
            normalize: Some([[0.5; 3]; 2]),
            raw: raw.as_object().cloned().unwrap_or_default(),
        }
    }

    /// Reads a `preprocessor_config.json`; `source` names it in errors. What the file leaves out is as
    /// `ViTImageProcessor` has it.
    ///
    /// # Errors
    /// [`MediaError::Processor`] for keys that would change the image and are not read here, and for
    /// values of another kind.
    pub fn from_json(raw: &Value, source: &str) -> Result<Self, MediaError> {
        let bad = |key: &str, reason: String| MediaError::Processor {
            source_name: source.into(),
            key: key.into(),
            reason,
        };
        let Some(keys) = raw.as_object() else {
            return Err(bad("", "the file is no table of keys".into()));
        };
        let off = |value: &Value| value.is_null() || *value == false;
        let known = |key: &str| READ.contains(&key) || WITHOUT_EFFECT.contains(&key);
        if let Some((key, value)) = keys.iter().find(|(k, v)| !known(k) && !off(v)) {
            return Err(bad(
                key,
                format!(
                    "{value} is not supported: it changes the image in a way that is not known here"
                ),
            ));
        }
        let given = |key: &str| keys.get(key).filter(|value| !value.is_null());
        let on = |key: &str, default: bool| match given(key) {
            None => Ok(default),
            Some(Value::Bool(on)) => Ok(*on),
            Some(other) => Err(bad(
                key,
                format!("{other} given, but it must be true or false"),
            )),
        };
        let square = on("default_to_square", true)?;
        let size = match on("do_resize", true)? {
            false => None,
            true => Some(match given("size") {
                None => Size::Exact {
                    height: 224,
                    width: 224,
                },
                Some(value) => size(value, square).map_err(|reason| bad("size", reason))?,
            }),
        };
        let resample = match given("resample") {
            None => Resample::Bilinear,
            Some(value) => {
                let number = value.as_u64().and_then(|n| u8::try_from(n).ok());
                let number = number.ok_or_else(|| format!("{value} is no filter"));
                number
                    .and_then(Resample::try_from)
                    .map_err(|reason| bad("resample", reason))?
            }
        };
        let crop = match on("do_center_crop", false)? {
            false => None,
            true => match given("crop_size").map(size_of_crop) {
                Some(found) => Some(found.map_err(|reason| bad("crop_size", reason))?),
                None => return Err(bad("crop_size", "the key is missing".into())),
            },
        };
        let rescale = match (on("do_rescale", true)?, given("rescale_factor")) {
            (false, _) => 1.0,
            (true, None) => 1.0 / 255.0,
            (true, Some(value)) => match value.as_f64() {
                Some(factor) if factor.is_finite() => factor,
                _ => return Err(bad("rescale_factor", format!("{value} is no number"))),
            },
        };
        let normalize = match on("do_normalize", true)? {
            false => None,
            true => {
                let channels = |key: &str| match given(key) {
                    None => Ok([0.5; 3]),
                    Some(value) => three(value).map_err(|reason| bad(key, reason)),
                };
                let (mean, std) = (channels("image_mean")?, channels("image_std")?);
                if std.iter().any(|v| *v <= 0.0) {
                    return Err(bad("image_std", format!("{std:?} must be above 0")));
                }
                Some([mean, std])
            }
        };
        Ok(Self {
            size,
            resample,
            crop,
            rescale,
            normalize,
            raw: keys.clone(),
        })
    }

    /// The keys as read, for writing.
    pub fn to_json(&self) -> Value {
        Value::Object(self.raw.clone())
    }

    /// Rows and columns of all images that it gives; `None` where they follow the image.
    pub fn output(&self) -> Option<[usize; 2]> {
        match (self.crop, self.size) {
            (Some(crop), _) => Some(crop),
            (None, Some(Size::Exact { height, width })) => Some([height, width]),
            _ => None,
        }
    }

    /// The image resized and cropped, still of 8 bits, as the reference has it before it rescales.
    ///
    /// # Errors
    /// An image so long that its resized form would be beyond the limit of sizes.
    pub fn prepare(&self, picture: &Picture) -> Result<Picture, String> {
        let sized = match self.size {
            None => picture.clone(),
            Some(Size::Exact { height, width }) => resize(picture, width, height, self.resample),
            Some(Size::ShortestEdge(edge)) => {
                let (width, height) = (picture.width(), picture.height());
                // The longer side is cut to whole pixels.
                let long = |long: usize, short: usize| (edge * long / short).max(1);
                let (width, height) = match width <= height {
                    true => (edge, long(height, width)),
                    false => (long(width, height), edge),
                };
                if width.max(height) as u64 > LARGEST {
                    return Err(format!(
                        "{} x {} pixels become {width} x {height} where the shorter side is {edge}, and {LARGEST} is the most",
                        picture.width(),
                        picture.height()
                    ));
                }
                resize(picture, width, height, self.resample)
            }
        };
        let Some([height, width]) = self.crop else {
            return Ok(sized);
        };
        // Where the image is smaller, it is put into the middle with the odd pixel in front.
        let start = |from: usize, to: usize| match from >= to {
            true => ((from - to) / 2) as i64,
            false => -((to - from).div_ceil(2) as i64),
        };
        let (x, y) = (start(sized.width(), width), start(sized.height(), height));
        Ok(sized.window(x, y, width, height))
    }

    /// Factor and offset of each channel, by which a value of 0 to 255 becomes what the model reads.
    pub fn scale(&self) -> [[f32; 2]; 3] {
        let [mean, std] = self.normalize.unwrap_or([[0.0; 3], [1.0; 3]]);
        std::array::from_fn(|c| [(self.rescale / std[c]) as f32, (-mean[c] / std[c]) as f32])
    }
}

fn length(value: &Value) -> Result<usize, String> {
    match value.as_u64() {
        Some(n) if (1..=LARGEST).contains(&n) => Ok(n as usize),
        _ => Err(format!("{value} given, but it must be 1 to {LARGEST}")),
    }
}

fn size(value: &Value, square: bool) -> Result<Size, String> {
    let exact = |[height, width]: [usize; 2]| Size::Exact { height, width };
    let Some(keys) = value.as_object() else {
        let edge = length(value)?;
        return Ok(match square {
            true => exact([edge; 2]),
            false => Size::ShortestEdge(edge),
        });
    };
    match keys
        .iter()
        .map(|(k, v)| (k.as_str(), v))
        .collect::<Vec<_>>()[..]
    {
        [("shortest_edge", edge)] => Ok(Size::ShortestEdge(length(edge)?)),
        [("height", h), ("width", w)] | [("width", w), ("height", h)] => {
            Ok(exact([length(h)?, length(w)?]))
        }
        _ => Err(format!(
            "{value} given, but it must have `height` and `width`, or `shortest_edge`"
        )),
    }
}

fn size_of_crop(value: &Value) -> Result<[usize; 2], String> {
    match size(value, true)? {
        Size::Exact { height, width } => Ok([height, width]),
        Size::ShortestEdge(_) => Err(format!(
            "{value} given, but it must have `height` and `width`"
        )),
    }
}

fn three(value: &Value) -> Result<[f64; 3], String> {
    if let Some(all) = value.as_f64() {
        return Ok([all; 3]);
    }
    let numbers = value.as_array().into_iter().flatten();
    let numbers: Vec<f64> = numbers.filter_map(Value::as_f64).collect();
    let found: Option<[f64; 3]> = numbers.try_into().ok();
    found
        .filter(|all| all.iter().all(|v| v.is_finite()))
        .ok_or_else(|| format!("{value} given, but images have three channels"))
}

#[cfg(test)]
mod tests;
