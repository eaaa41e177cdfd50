use std::path::PathBuf;

use super::*;
use crate::decode::{Limits, decode_file};

fn fixture(name: &str) -> PathBuf {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/media");
    PathBuf::from(folder).join(name)
}

fn picture(name: &str) -> Picture {
    decode_file(&fixture(name), Limits::default()).unwrap()
}

#[test]
fn every_filter_gives_the_pixels_of_pillow() {
    let source = picture("source.png");
    let filters = [
        "nearest", "lanczos", "bilinear", "bicubic", "box", "hamming",
    ];
    for (number, name) in (0u8..).zip(filters) {
        let filter = Resample::try_from(number).unwrap();
        for (width, height) in [(20, 16), (80, 90), (53, 11), (7, 37)] {
            let made = resize(&source, width, height, filter);
            let expected = picture(&format!("resize-{name}-{width}x{height}.png"));
            assert_eq!(made.rgb(), expected.rgb(), "{name} {width}x{height}");
        }
    }
}

#[test]
fn processors_give_what_transformers_gives() {
    let text = std::fs::read_to_string(fixture("processors.json")).unwrap();
    let all: Value = serde_json::from_str(&text).unwrap();
    let source = picture("source.png");
    for (name, expected) in all["processors"].as_object().unwrap() {
        let processor = Processor::from_json(&expected["keys"], name).unwrap();
        let made = processor.prepare(&source).unwrap();
        assert_eq!(made, picture(&format!("processor-{name}.png")), "{name}");
        assert_eq!(processor.to_json(), expected["keys"]);
        let scale = processor.scale();
        let last = made.rgb().len() - 3;
        for (key, at) in [("first", 0), ("last", last)] {
            for c in 0..3 {
                let value = f32::from(made.rgb()[at + c]) * scale[c][0] + scale[c][1];
                let wanted = expected[key][c].as_f64().unwrap() as f32;
                assert!(
                    (value - wanted).abs() < 1e-6,
                    "{name} {key} {c}: {value} {wanted}"
                );
            }
        }
        if let Some([height, width]) = processor.output() {
            assert_eq!([made.height(), made.width()], [height, width], "{name}");
        }
    }
}

#[test]
fn keys_that_change_the_image_are_honoured_or_refused() {
    let read = |raw: Value| Processor::from_json(&raw, "p.json").map_err(|e| e.to_string());
    let size = |raw: Value| read(raw).unwrap().size;
    let exact = |height, width| Some(Size::Exact { height, width });
    assert_eq!(size(json!({"size": 32})), exact(32, 32));
    assert_eq!(
        size(json!({"size": 32, "default_to_square": false})),
        Some(Size::ShortestEdge(32))
    );
    assert_eq!(size(json!({"do_resize": false, "size": 32})), None);
    assert_eq!(size(json!({})), exact(224, 224));
    // Neutral values of what is not read are no obstacle.
    read(json!({"do_pad": false, "crop_pct": null})).unwrap();
    for (raw, key) in [
        (json!({"do_pad": true}), "do_pad"),
        (json!({"crop_pct": 0.9}), "crop_pct"),
        (json!({"resample": 7}), "resample"),
        (json!({"size": {"longest_edge": 3}}), "size"),
        (json!({"size": {"height": 0, "width": 3}}), "size"),
        (json!({"size": 1u64 << 40}), "size"),
        (json!({"do_center_crop": true}), "crop_size"),
        (
            json!({"do_center_crop": true, "crop_size": {"shortest_edge": 3}}),
            "crop_size",
        ),
        (json!({"do_rescale": "yes"}), "do_rescale"),
        (json!({"rescale_factor": "x"}), "rescale_factor"),
        (json!({"image_mean": [0.5, 0.5]}), "image_mean"),
        (json!({"image_std": [0.5, 0.0, 0.5]}), "image_std"),
    ] {
        let error = read(raw).unwrap_err();
        assert!(error.starts_with(&format!("p.json: `{key}`: ")), "{error}");
    }
    assert!(read(json!([1])).is_err());
}

#[test]
fn a_new_processor_is_what_its_file_says() {
    let new = Processor::new(32, 48);
    assert_eq!(Processor::from_json(&new.to_json(), "new").unwrap(), new);
}

/// The longer side of an image of one row took all memory before it was cropped.
#[test]
fn the_longer_side_was_without_bound() {
    let keys = serde_json::json!({"do_resize": true, "size": {"shortest_edge": 32}});
    let processor = Processor::from_json(&keys, "preprocessor_config.json").unwrap();
    let line = |len: usize| Picture::new(len, 1, vec![0; 3 * len]).unwrap();
    assert_eq!(processor.prepare(&line(512)).unwrap().width(), 1 << 14);
    let error = processor.prepare(&line(513)).unwrap_err();
    assert!(
        error.contains("513 x 1") && error.contains("16416"),
        "{error}"
    );
}
