//! Sets of images as data of a run: classes and parts, and the colours that a model reads.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use frugal_core::data::{Dataset, Example, Format};
use frugal_core::encode::{Encoded, Target, Tokenized};
use frugal_media::{Content, ImageExample, ImageSet, Limits, Part as SetPart, Processor};
use frugal_models::load::ModelFiles;
use frugal_nn::HeadConfig;
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::held_out::{hold_out, hold_out_for};
use super::{DataConfig, RunError, TuneConfig};

/// Images with their classes, none of which is read yet: records whose texts are the places of the
/// images.
pub(super) struct Found {
    /// The records.
    pub dataset: Dataset,
    contents: HashMap<String, Content>,
}

/// Images as a model reads them.
pub(super) struct ReadImages {
    /// Where they came from.
    pub source: String,
    /// SHA-256 of the colours and classes.
    pub sha256: String,
    /// Examples.
    pub encoded: Encoded,
}

impl Found {
    fn new(source: &str, images: Vec<ImageExample>) -> Result<Self, RunError> {
        let mut contents = HashMap::new();
        let mut examples = Vec::with_capacity(images.len());
        for image in images {
            let place = image.content.place();
            let Some(label) = image.label else {
                return Err(RunError::Invalid(format!(
                    "{place}: the image has no class, which training and evaluation need"
                )));
            };
            contents.insert(place.clone(), image.content);
            examples.push(Example::Classification {
                text: place,
                text_pair: None,
                label,
            });
        }
        let source = PathBuf::from(source);
        let dataset = Dataset {
            lines: (1..=examples.len()).collect(),
            format: Format::Classification,
            starts: vec![(0, source.clone())],
            source,
            // Of what the model reads, once it was read.
            sha256: String::new(),
            rows: examples.len(),
            outputs: Vec::new(),
            examples,
        };
        Ok(Self { dataset, contents })
    }

    /// The classes in the order of their names.
    pub(super) fn labels(&self) -> Vec<String> {
        self.dataset.labels()
    }

    /// So many, of each class as many; all for 0. The images of a class lie one behind another, so that
    /// the first would be of one class.
    fn cut(mut self, rows: usize, seed: u64) -> Result<Self, RunError> {
        if rows > 0 && rows < self.dataset.len() {
            let share = rows as f64 / self.dataset.len() as f64;
            self.dataset = self.dataset.split(&[share], seed)?.swap_remove(0);
        }
        Ok(self)
    }

    /// The same images in two parts.
    fn divided(self, parts: [Dataset; 2]) -> [Self; 2] {
        parts.map(|dataset| Self {
            dataset,
            contents: self.contents.clone(),
        })
    }

    /// The images as the model reads them.
    ///
    /// # Errors
    /// Images that cannot be read, and classes that the head does not know.
    pub(super) fn read(
        &self,
        files: &ModelFiles,
        head: &HeadConfig,
    ) -> Result<ReadImages, RunError> {
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
            let content = self.contents.get(text);
            let content = content.ok_or_else(|| RunError::Invalid(format!("{text}: no image")))?;
            let mut tokens = colors(content, &processor, files)?;
            tokens.labels = Target::Class(class);
            Ok(tokens)
        };
        let found: Vec<Result<Tokenized, RunError>> =
            self.dataset.examples.par_iter().map(read).collect();
        let examples = found.into_iter().collect::<Result<Vec<_>, _>>()?;
        let mut sha256 = Sha256::new();
        for example in &examples {
            let colors = example.input_ids.iter().flat_map(|c| c.to_le_bytes());
            sha256.update(colors.collect::<Vec<u8>>());
            if let Target::Class(class) = example.labels {
                sha256.update((class as u64).to_le_bytes());
            }
        }
        let digest = sha256.finalize();
        let sha256 = digest.iter().map(|byte| format!("{byte:02x}")).collect();
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
        Ok(ReadImages {
            source: self.dataset.source.display().to_string(),
            sha256,
            encoded,
        })
    }
}

/// How the model's images are prepared.
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
    let picture = processor
        .prepare(&content.read(Limits::default())?)
        .map_err(|reason| RunError::Invalid(format!("{}: {reason}", content.place())))?;
    if let Some(image) = files.info().image
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

/// That nothing is set that texts alone are read by.
///
/// # Errors
/// Such a setting, with the flag that gives it.
pub(super) fn check_settings(data: &DataConfig, model: &str) -> Result<(), RunError> {
    const FLAGS: [(&str, &str); 3] = [
        ("data.max_length", "--max-length"),
        ("data.truncate", "--truncate"),
        ("data.columns", "--column"),
    ];
    let Some((key, _)) = data.of_text().into_iter().find(|(_, given)| *given) else {
        return Ok(());
    };
    let flag = FLAGS.iter().find(|(of, _)| *of == key);
    let flag = flag.map_or_else(String::new, |(_, flag)| format!(" (`{flag}`)"));
    Err(RunError::Invalid(format!(
        "`{key}`{flag} has a part in models of text alone, and `{model}` reads images: leave it out"
    )))
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
    let end = path.extension().unwrap_or_default().to_string_lossy();
    let end = end.to_lowercase();
    let tables = ["csv", "tsv", "tab", "json", "jsonl", "ndjson", "parquet"];
    let is_table = tables.contains(&end.as_str());
    if path.is_file() && !is_table && end != "tar" {
        return Ok(vec![ImageExample {
            content: Content::File(path.to_owned()),
            label: None,
        }]);
    }
    let images: Vec<ImageExample> = ImageSet::open(path)?
        .parts
        .into_values()
        .flatten()
        .collect();
    let has_path = |image: &ImageExample| matches!(image.content, Content::File(_));
    if images.iter().all(has_path) {
        return Ok(images);
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
    match set.parts.len() {
        1 => Ok(set.parts.into_values().flatten().collect()),
        _ => Err(RunError::Invalid(format!(
            "{path}: the set has parts, but none for {wanted:?}"
        ))),
    }
}

/// The images of a set that are measured: its test part, else its validation part, else all of it.
///
/// # Errors
/// What is no set of images, or has images without a class.
pub(super) fn to_measure(config: &DataConfig) -> Result<Found, RunError> {
    let mut set = ImageSet::open(Path::new(&config.train))?;
    let wanted = [SetPart::Test, SetPart::Validation];
    let part = wanted.into_iter().find_map(|part| set.parts.remove(&part));
    let images = part.unwrap_or_else(|| set.parts.into_values().flatten().collect());
    Found::new(&config.train, images)?.cut(config.max_eval_rows, 0)
}

/// The images to learn from, to choose by and to report on.
///
/// # Errors
/// What is no set of images, images without a class, too few of them.
pub(super) fn parts(config: &TuneConfig) -> Result<[Option<Found>; 3], RunError> {
    let data = &config.data;
    let mut set = ImageSet::open(Path::new(&data.train))?;
    let (own_validation, own_test) = (
        set.parts.remove(&SetPart::Validation),
        set.parts.remove(&SetPart::Test),
    );
    let Some(train) = set.parts.remove(&SetPart::Train) else {
        return Ok([None, None, None]);
    };
    let mut train = Found::new(&data.train, train)?;
    let seed = data.split_seed.unwrap_or(config.seed);
    let other = |given: &Option<String>, own: Option<Vec<ImageExample>>, part: SetPart| {
        let (path, images) = match (given, own) {
            (Some(path), _) => (path, of_part(path, part)?),
            (None, Some(own)) => (&data.train, own),
            (None, None) => return Ok::<_, RunError>(None),
        };
        let found = Found::new(path, images)?;
        Ok(Some(found.cut(data.max_eval_rows, seed)?))
    };
    let mut test = other(&data.test, own_test, SetPart::Test)?;
    let mut validation = other(&data.validation, own_validation, SetPart::Validation)?;
    if test.is_none() && data.test_share > 0.0 {
        let help = "test images as `data.test`, or another `data.test_share`";
        let parts = hold_out_for("the test", &train.dataset, data.test_share, seed, help)?;
        let [rest, held_out] = train.divided(parts);
        (train, test) = (rest, Some(held_out.cut(data.max_eval_rows, seed)?));
    }
    train = train.cut(data.max_train_rows, seed)?;
    if validation.is_none() && data.validation_share > 0.0 {
        let help = "validation images with `--eval-data`, or another `data.validation_share` (0 for no validation)";
        let parts = hold_out(&train.dataset, data.validation_share, seed, help)?;
        let [rest, held_out] = train.divided(parts);
        (train, validation) = (rest, Some(held_out.cut(data.max_eval_rows, seed)?));
    }
    Ok([Some(train), validation, test])
}
