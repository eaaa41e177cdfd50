//! Numbers of the paper and of the published training logs; logits against PyTorch
//! (`scripts/golden/vision.py`).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::prelude::*;
use frugal_nn::{Backbone, Input, ModelError, NoAdapter, to_vec};
use safetensors::SafeTensors;
use serde_json::{Value, json};

use crate::load::{SafetensorsSource, read_json};
use crate::{ModelConfig, build, random_weights};

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../fixtures/vision")
        .join(name)
}

fn floats(name: &str) -> BTreeMap<String, (Vec<usize>, Vec<f32>)> {
    let bytes = std::fs::read(folder(name).join("golden.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut found = BTreeMap::new();
    for (name, view) in file.tensors() {
        if view.dtype() == safetensors::Dtype::F32 {
            let data = view.data().chunks_exact(4);
            let values = data.map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
            found.insert(name, (view.shape().to_vec(), values.collect()));
        }
    }
    found
}

fn model(name: &str, changes: &Value) -> Result<Arc<dyn Backbone>, ModelError> {
    let mut raw = read_json(&folder(name).join("config.json")).unwrap();
    let changes = changes.as_object().unwrap().clone();
    raw.as_object_mut().unwrap().extend(changes);
    let config = ModelConfig::from_json(raw, name)?;
    let source = SafetensorsSource::open(&folder(name)).unwrap();
    build(config, &source, &Device::flex())
}

/// Logits `[images, labels]` of the images of a fixture with the classifier in its file.
fn logits(name: &str, backbone: &dyn Backbone) -> Vec<f32> {
    let golden = floats(name);
    let (shape, pixels) = &golden["pixels"];
    let [images, height, width, _] = shape[..] else {
        panic!("images have four dimensions")
    };
    let rows = TensorData::new(pixels.clone(), [images * height * width, 3]);
    let rows = Tensor::<2>::from_data(rows, &Device::flex());
    let input = Input::rows(rows, [height, width], &vec![height * width; images]);
    let source = SafetensorsSource::open(&folder(name)).unwrap();
    let weight = |name: &str, shape: &[usize]| crate::read_values(&source, name, shape).unwrap();
    let hidden = backbone.forward(&input, &mut NoAdapter, None).unwrap();
    let d = hidden.dims()[1];
    let (weight, bias) = (
        weight("classifier.weight", &[5, d]),
        weight("classifier.bias", &[5]),
    );
    let hidden = to_vec(hidden);
    let per_image = hidden.len() / d / images;
    let mut found = Vec::new();
    for image in hidden.chunks_exact(per_image * d) {
        let pooled: Vec<f32> = match name {
            "vit" => image[..d].to_vec(),
            _ => (0..d)
                .map(|c| image.iter().skip(c).step_by(d).sum::<f32>() / per_image as f32)
                .collect(),
        };
        for (row, bias) in weight.chunks_exact(d).zip(&bias) {
            found.push(bias + row.iter().zip(&pooled).map(|(a, b)| a * b).sum::<f32>());
        }
    }
    found
}

fn compare(name: &str) {
    let found = logits(name, model(name, &json!({})).unwrap().as_ref());
    let expected = &floats(name)["logits"].1;
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        assert!(
            (found - expected).abs() < 2e-4,
            "{name}: {found} for {expected}"
        );
    }
}

#[test]
fn logits_of_vit_are_those_of_transformers() {
    compare("vit");
}

#[test]
fn logits_are_those_of_the_formulas() {
    for name in [
        "efficientvmamba",
        "efficientvmamba-separate",
        "efficientvmamba-conv",
        "efficientvmamba-scan",
        "vmamba",
    ] {
        compare(name);
    }
}

fn config(embed_dim: usize, depths: [usize; 4]) -> ModelConfig {
    let raw = json!({"model_type": "efficientvmamba", "embed_dim": embed_dim, "depths": depths});
    ModelConfig::from_json(raw, "config.json").unwrap()
}

/// Of the backbone and a head of 1000 classes.
fn parameters(embed_dim: usize, depths: [usize; 4]) -> usize {
    let config = config(embed_dim, depths);
    config.sites().num_parameters() + 1000 * (config.hidden_size + 1)
}

/// Those of the published training logs, but for the last, which the table of the paper gives as that
/// of the small model.
#[test]
fn models_have_the_parameters_of_the_published_logs() {
    assert_eq!(parameters(48, [2, 2, 4, 2]), 6_493_660);
    assert_eq!(parameters(64, [2, 2, 4, 2]), 11_273_688);
    assert_eq!(parameters(96, [2, 2, 9, 2]), 33_717_136);
    assert_eq!(parameters(96, [2, 2, 4, 2]), 24_757_456);
}

#[test]
fn blocks_have_the_parameters_that_the_formulas_give() {
    let sites = config(48, [2, 2, 4, 2]).sites();
    let of = |path: &str| {
        let own = sites.iter().filter(|(_, site)| {
            let inside = site.path.strip_prefix(path);
            inside.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        });
        own.map(|(_, site)| site.num_parameters()).sum::<usize>()
    };
    let block = |stage: usize| format!("backbone.stages.{stage}.blocks.1");
    let part = |name: &str| of(&format!("{}.{name}", block(0)));
    assert_eq!(
        [part("ss2d"), part("gate"), part("conv"), part("norm")],
        [36_480, 726, 2_928, 96]
    );
    assert_eq!(
        [0, 1, 2, 3].map(|s| of(&block(s))),
        [40_230, 118_476, 453_600, 1_791_936]
    );
    assert_eq!(of("backbone.stages.1.downsample"), 18_816);
}

/// What a pixel says reaches the scans of its own sub-grid alone.
#[test]
fn sub_grids_are_scanned_by_themselves() {
    use crate::blocks::scan2d::{Scan2d, ScanSizes};
    use crate::blocks::sub_grids::ScanPattern;
    use crate::weights::{LoadOptions, WeightLoader};

    let device = Device::flex();
    let config = config(16, [1, 1, 1, 1]);
    let (source, sites) = (random_weights(&config, 5, &device), config.sites());
    let options = LoadOptions::default();
    let mut loader = WeightLoader::new(&source, &config.info(), &sites, &device, options).unwrap();
    let grid @ [height, width] = [5, 6];
    let outputs = |pattern: ScanPattern, loader: &mut WeightLoader<'_>| {
        let sizes = ScanSizes {
            width: 16,
            inner: 32,
            state: 16,
            rank: 1,
            pattern,
            eps: 1e-5,
        };
        let scan = Scan2d::load(loader, "backbone.stages.0.blocks.0.ss2d", sizes).unwrap();
        // The first pixel is the first of the first sub-grid.
        [0.0f32, 3.0].map(|first| {
            let mut values: Vec<f32> = (0..height * width * 32)
                .map(|i| ((i * i % 17) as f32 - 8.0) / 8.0)
                .collect();
            values[..32].iter_mut().for_each(|v| *v += first);
            let x = TensorData::new(values, [height * width, 32]);
            to_vec(scan.scans(Tensor::from_data(x, &device), grid, &mut NoAdapter))
        })
    };
    let changed = |[before, after]: &[Vec<f32>; 2], pixel: usize| {
        let own = pixel * 32..(pixel + 1) * 32;
        before[own.clone()] != after[own]
    };
    let atrous = outputs(ScanPattern::Atrous, &mut loader);
    let cross = outputs(ScanPattern::Cross, &mut loader);
    for (row, column) in (0..height).flat_map(|r| (0..width).map(move |c| (r, c))) {
        let pixel = row * width + column;
        let own = row % 2 == 0 && column % 2 == 0;
        assert_eq!(changed(&atrous, pixel), own, "{row}, {column}");
        assert!(changed(&cross, pixel), "{row}, {column}");
    }
}

#[test]
fn what_does_not_fit_is_refused_by_its_key() {
    for (changes, key) in [
        (json!({"block_types": ["evss"]}), "block_types"),
        (
            json!({"use_scan": false, "use_conv_branch": false}),
            "use_conv_branch",
        ),
        (json!({"embed_dim": 20}), "embed_dim"),
        (json!({"embed_dim": 1 << 30}), "depths"),
        (json!({"depths": [], "block_types": []}), "depths"),
        (json!({"drop_path_rate": 1.0}), "drop_path_rate"),
        (json!({"num_channels": 1}), "num_channels"),
        (json!({"patch_size": 30}), "patch_size"),
        (json!({"image_size": 100_000}), "image_size"),
        (json!({"image_size": [3, 4, 5]}), "image_size"),
        (json!({"scan_pattern": "spiral"}), "scan_pattern"),
        (
            json!({"preprocessor_config": {"size": 7}}),
            "preprocessor_config",
        ),
        (
            json!({"preprocessor_config": {"do_pad": true}}),
            "preprocessor_config",
        ),
    ] {
        let error = model("efficientvmamba", &changes)
            .err()
            .unwrap()
            .to_string();
        assert!(error.contains(&format!("`{key}`")), "{changes}: {error}");
    }
    let backbone = model("efficientvmamba", &json!({})).unwrap();
    let stem = |input: &Input<'_>| {
        let error = backbone.forward(input, &mut NoAdapter, None).err().unwrap();
        error.to_string()
    };
    let error = stem(&Input::new(&[7; 100], &[100]));
    assert!(
        error.contains("100 pixels") && error.contains("14 x 22"),
        "{error}"
    );
    let error = stem(&Input::new(&[1 << 24; 308], &[308]));
    assert!(error.contains("16777216"), "{error}");
}

/// An image as colours is the image as values that the processor gives.
#[test]
fn colours_are_scaled_as_the_processor_says() {
    let changes = json!({"preprocessor_config": {"do_resize": false, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.4, 0.25]}});
    for name in ["efficientvmamba", "vit"] {
        let backbone = model(name, &changes).unwrap();
        let image = backbone.info().image.unwrap();
        let colors: Vec<u32> = (0..2 * image.pixels() as u32)
            .map(|i| (i * 7919) % (1 << 24))
            .collect();
        let values = colors.iter().flat_map(|color| {
            let channel = |shift: u32| (color >> shift & 255) as f32 / 255.0;
            [
                (channel(16) - 0.1) / 0.5,
                (channel(8) - 0.2) / 0.4,
                (channel(0) - 0.3) / 0.25,
            ]
        });
        let values = TensorData::new(values.collect::<Vec<f32>>(), [colors.len(), 3]);
        let rows = Tensor::<2>::from_data(values, &Device::flex());
        let lengths = [image.pixels(); 2];
        let run =
            |input: &Input<'_>| to_vec(backbone.forward(input, &mut NoAdapter, None).unwrap());
        let by_color = run(&Input::new(&colors, &lengths));
        let by_value = run(&Input::rows(rows, [image.height, image.width], &lengths));
        let pairs = by_color.iter().zip(&by_value);
        let most = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(most < 1e-4, "{name}: {most}");
    }
}
