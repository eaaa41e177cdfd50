//! Sets of images as data of a run: classes and parts, and the colours that a model reads.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use frugal_core::data::{Dataset, Example, Format};
use frugal_core::encode::{Encoded, Target, Tokenized};
use frugal_media::{Content, ImageExample, ImageSet, Limits, Part as SetPart, Processor};
use frugal_models::load::{Lookup, ModelFiles};
use frugal_nn::HeadConfig;
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::prepare::{Part, Prepared, hold_out, hold_out_for};
use super::{DataConfig, RunError, TuneConfig};

/// Images that are known by the places that errors and predictions call them.
#[derive(Default)]
pub(super) struct Images(HashMap<String, Content>);

impl Images {
    /// These images as records, whose texts are their places.
    fn dataset(&mut self, source: &str, images: Vec<ImageExample>) -> Result<Dataset, RunError> {
        let mut examples = Vec::with_capacity(images.len());
        for image in images {
            let place = image.content.place();
            let Some(label) = image.label else {
                return Err(RunError::Invalid(format!(
                    "{place}: the image has no class, which training and evaluation need"
                )));
            };
            self.0.insert(place.clone(), image.content);
            examples.push(Example::Classification {
                text: place,
                text_pair: None,
                label,
            });
        }
        let source = PathBuf::from(source);
        Ok(Dataset {
            lines: (1..=examples.len()).collect(),
            format: Format::Classification,
            starts: vec![(0, source.clone())],
            source,
            // Of what the model reads, once it was read.
            sha256: String::new(),
            rows: examples.len(),
            outputs: Vec::new(),
            examples,
        })
    }

    /// The images of a data set as the model reads them.
    ///
    /// # Errors
    /// Images that cannot be read, and classes that the head does not know.
    pub(super) fn encode(
        &self,
        name: &'static str,
        dataset: &Dataset,
        files: &ModelFiles,
        head: &HeadConfig,
    ) -> Result<Part, RunError> {
        let processor = processor(files)?;
        let read = |example: &Example| {
            let Example::Classification { text, label, .. } = example else {
                return Err(RunError::Invalid("a record is no image".into()));
            };
            let class = head.labels.iter().position(|known| known == label);
            let class = class.ok_or_else(|| {
                RunError::Invalid(format!(
                    "{text}: class {label:?} is not one of {}",
                    head.labels.join(", ")
                ))
            })?;
            let content = self.0.get(text);
            let content = content.ok_or_else(|| RunError::Invalid(format!("{text}: no image")))?;
            let mut tokens = colors(content, &processor, files)?;
            tokens.labels = Target::Class(class);
            Ok(tokens)
        };
        let found: Vec<Result<Tokenized, RunError>> =
            dataset.examples.par_iter().map(read).collect();
        let examples = found.into_iter().collect::<Result<Vec<_>, _>>()?;
        let mut sha256 = Sha256::new();
        for example in &examples {
            let bytes: Vec<u8> = example.input_ids.iter().flat_map(|c| c.to_le_bytes()).collect();
            sha256.update(bytes);
            if let Target::Class(class) = example.labels {
                sha256.update((class as u64).to_le_bytes());
            }
        }
        let sha256: String = sha256
            .finalize()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let encoded = Encoded {
            rows: (0..examples.len()).collect(),
            truncated: 0,
            cut_words: 0,
            dropped: 0,
            total_tokens: examples.iter().map(Tokenized::len).sum(),
            trained_tokens: examples.len(),
            longest: examples.iter().map(Tokenized::len).max().unwrap_or(0),
            examples,
        };
        Ok(Part {
            name,
            source: dataset.source.display().to_string(),
            sha256,
            encoded,
        })
    }
}

/// How the model's images are prepared.
///
/// # Errors
/// A model that reads text, and one whose processor is not understood.
fn processor(files: &ModelFiles) -> Result<Processor, RunError> {
    files.config().image_processor()?.ok_or_else(|| {
        RunError::Invalid(format!(
            "`{}`: `{}` models read text, not images",
            files.name(),
            files.config().model_type()
        ))
    })
}

fn colors(
    content: &Content,
    processor: &Processor,
    files: &ModelFiles,
) -> Result<Tokenized, RunError> {
    let picture = processor.prepare(&content.read(Limits::default())?);
    let wanted = files.info().image;
    if let Some(image) = wanted
        && (picture.height(), picture.width()) != (image.height, image.width)
    {
        return Err(RunError::Invalid(format!(
            "{}: the image is of {} x {} pixels once it is prepared, and the model reads {} x {}: let `preprocessor_config.json` resize or crop to that",
            content.place(),
            picture.height(),
            picture.width(),
            image.height,
            image.width
        )));
    }
    Ok(Tokenized {
        input_ids: picture.colors(),
        token_type_ids: Vec::new(),
        labels: Target::Class(0),
    })
}

/// The colours of an image file, for a prediction.
///
/// # Errors
/// An image that cannot be read or has another size.
pub(super) fn encode_place(path: &str, files: &ModelFiles) -> Result<Tokenized, RunError> {
    colors(&Content::File(path.into()), &processor(files)?, files)
}

/// The images of a folder or table, or one image, with what is said of them: for predictions.
///
/// # Errors
/// What is none of these, and images that have no path of their own.
pub(super) fn listed(path: &Path) -> Result<Vec<ImageExample>, RunError> {
    let is_table = path.extension().is_some_and(|end| {
        let end = end.to_string_lossy().to_lowercase();
        ["csv", "tsv", "tab", "json", "jsonl", "ndjson", "parquet"].contains(&end.as_str())
    });
    let is_tar = path.extension().is_some_and(|end| end.eq_ignore_ascii_case("tar"));
    if path.is_file() && !is_table && !is_tar {
        return Ok(vec![ImageExample {
            content: Content::File(path.to_owned()),
            label: None,
        }]);
    }
    if path.is_dir() && !path.join("data_batch_1.bin").exists() {
        let all = ImageSet::open(path).map(|set| set.parts.into_values().flatten().collect());
        return Ok(all?);
    }
    if is_table {
        return Ok(ImageSet::open(path)?.parts.into_values().flatten().collect());
    }
    Err(RunError::Invalid(format!(
        "{}: give an image, a table of images or a folder with a folder for each class",
        path.display()
    )))
}

/// A part of a set, or all of a set without parts.
fn of_part(path: &str, wanted: SetPart) -> Result<Vec<ImageExample>, RunError> {
    let mut set = ImageSet::open(Path::new(path))?;
    if let Some(images) = set.parts.remove(&wanted) {
        return Ok(images);
    }
    let all = std::mem::take(&mut set.parts);
    match all.len() {
        1 => Ok(all.into_values().flatten().collect()),
        _ => Err(RunError::Invalid(format!(
            "{path}: the set has parts, but none for {wanted:?}"
        ))),
    }
}

/// The images of a set that are measured: its test part, else its validation part, else all of it.
///
/// # Errors
/// What is no set of images, or has images without a class.
pub(super) fn to_measure(config: &DataConfig) -> Result<(Images, Dataset), RunError> {
    let path = &config.train;
    let set = ImageSet::open(Path::new(path))?;
    let wanted = [SetPart::Test, SetPart::Validation];
    let part = wanted.into_iter().find(|part| set.parts.contains_key(part));
    let found = match part.and_then(|part| set.parts.get(&part).cloned()) {
        Some(found) => found,
        None => set.parts.into_values().flatten().collect(),
    };
    let mut images = Images::default();
    let dataset = images.dataset(path, found)?;
    let dataset = match config.max_eval_rows {
        0 => dataset,
        rows => dataset.take(rows),
    };
    Ok((images, dataset))
}

/// Finds the parts of the data and reads them.
///
/// # Errors
/// What is no set of images, images that cannot be read, fewer than two classes.
pub(super) fn prepare(
    config: &TuneConfig,
    files: ModelFiles,
    start: Option<HeadConfig>,
    _lookup: &Lookup,
) -> Result<Prepared, RunError> {
    processor(&files)?;
    let data = &config.data;
    let mut set = ImageSet::open(Path::new(&data.train))?;
    let (own_validation, own_test) = (
        set.parts.remove(&SetPart::Validation),
        set.parts.remove(&SetPart::Test),
    );
    let train = set.parts.remove(&SetPart::Train).ok_or_else(|| {
        RunError::Invalid(format!("{}: the set has no part to learn from", data.train))
    })?;
    let mut images = Images::default();
    let cut = |d: Dataset, rows: usize| if rows == 0 { d } else { d.take(rows) };
    let mut train = images.dataset(&data.train, train)?;
    let mut other = |given: &Option<String>, own: Option<Vec<ImageExample>>, part: SetPart| {
        let (path, found) = match (given, own) {
            (Some(path), _) => (path, of_part(path, part)?),
            (None, Some(own)) => (&data.train, own),
            (None, None) => return Ok::<_, RunError>(None),
        };
        let dataset = images.dataset(path, found)?;
        Ok(Some(cut(dataset, data.max_eval_rows)))
    };
    let mut test = other(&data.test, own_test, SetPart::Test)?;
    let mut validation = other(&data.validation, own_validation, SetPart::Validation)?;
    let seed = data.split_seed.unwrap_or(config.seed);
    if test.is_none() && data.test_share > 0.0 {
        let help = "test images as `data.test`, or another `data.test_share`";
        let [rest, held_out] = hold_out_for("the test", &train, data.test_share, seed, help)?;
        (train, test) = (rest, Some(cut(held_out, data.max_eval_rows)));
    }
    // A cut part has images of every class: those of a class lie one behind another.
    if data.max_train_rows > 0 && data.max_train_rows < train.len() {
        let share = data.max_train_rows as f64 / train.len() as f64;
        train = train.split(&[share], seed)?.swap_remove(0);
    }
    if validation.is_none() && data.validation_share > 0.0 {
        let help = "validation images with `--eval-data`, or another `data.validation_share` (0 for no validation)";
        let [rest, held_out] = hold_out(&train, data.validation_share, seed, help)?;
        (train, validation) = (rest, Some(cut(held_out, data.max_eval_rows)));
    }
    let labels = train.labels();
    let head = match start {
        Some(head) => head,
        None if labels.len() < 2 => {
            return Err(RunError::Labels {
                path: train.source,
                found: labels,
            });
        }
        None => HeadConfig {
            labels,
            pooling: config
                .pooling
                .unwrap_or(frugal_nn::Pooling::default_for(files.info())),
            problem_type: config.problem(),
        },
    };
    let part = |name: &'static str, dataset: Option<&Dataset>| {
        dataset
            .map(|dataset| images.encode(name, dataset, &files, &head))
            .transpose()
    };
    let (validation, test) = (
        part("validation", validation.as_ref())?,
        part("test", test.as_ref())?,
    );
    let train = images.encode("train", &train, &files, &head)?;
    Ok(Prepared {
        max_length: files.config().max_sequence(),
        files,
        train,
        validation,
        test,
        head: Some(head),
    })
}
