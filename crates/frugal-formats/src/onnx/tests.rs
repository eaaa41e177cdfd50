use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;

use super::*;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../fixtures/onnx")
        .join(name)
}

fn bytes(name: &str) -> Vec<u8> {
    std::fs::read(fixture(name)).unwrap()
}

type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

fn floats(bytes: &[u8]) -> Vec<f32> {
    let (numbers, []) = bytes.as_chunks::<4>() else {
        panic!("{} bytes", bytes.len())
    };
    numbers.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

/// Weights by PyTorch and onnx's reference evaluator.
fn golden(file: &str) -> Tensors {
    let bytes = bytes("golden.safetensors");
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let of_file = tensors.iter().filter_map(|(key, tensor)| {
        let name = key.strip_prefix(file)?.strip_prefix('/')?;
        let value = (tensor.shape().to_vec(), floats(tensor.data()));
        Some((name.to_owned(), value))
    });
    of_file.collect()
}

fn read(name: &str) -> (Tensors, Vec<String>) {
    let bytes = bytes(&format!("{name}.onnx"));
    let onnx = Onnx::parse(&bytes, name).unwrap();
    let of_weight = |weight: &Weight| {
        let values = onnx.values(weight).unwrap();
        (weight.name.clone(), (weight.shape.clone(), values))
    };
    let tensors = onnx.weights().map(of_weight).collect();
    (tensors, onnx.left_out().to_vec())
}

fn assert_same(name: &str, found: &Tensors) {
    let expected = golden(name);
    let names = |tensors: &Tensors| tensors.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(found), names(&expected), "{name}");
    for (key, (shape, values)) in &expected {
        let (found_shape, found) = &found[key];
        assert_eq!(found_shape, shape, "{name}: {key}");
        let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(found), bits(values), "{name}: {key}");
    }
}

#[test]
fn weights_of_both_exporters_are_those_of_the_module() {
    for name in ["torchscript", "dynamo"] {
        let (found, left_out) = read(name);
        assert_same(name, &found);
        assert_eq!(left_out, [""; 0], "{name}");
    }
}

#[test]
fn dynamically_quantized_weights_are_dequantized_as_the_reference_does() {
    for name in ["int8", "int8-channel"] {
        let (found, left_out) = read(name);
        assert_same(name, &found);
        assert_eq!(left_out, [""; 0], "{name}");
        let bytes = bytes(&format!("{name}.onnx"));
        let onnx = Onnx::parse(&bytes, name).unwrap();
        let in_codes = onnx.weights().filter(|weight| weight.is_quantized).count();
        // Three tables, twelve layers, pooler and classifier.
        assert_eq!(in_codes, 17, "{name}");
    }
}

#[test]
fn scales_along_any_dimension_and_codes_of_any_width_are_read() {
    assert_same("dequantize", &read("dequantize").0);
}

#[test]
fn numbers_of_every_type_are_read_from_bytes_and_from_fields() {
    let (found, left_out) = read("types");
    assert_same("types", &found);
    assert_eq!(left_out, ["onnx::Lost_7"]);
}

#[test]
fn what_cannot_be_read_is_refused_by_name() {
    let cases = [
        ("external", "tensor w: its numbers are in another file"),
        ("short", "take 24 bytes, it has 23"),
        ("long", "take 24 bytes, it has 25"),
        ("few-fields", "which is 6 elements; it has 2"),
        ("twice-held", "numbers as bytes and as fields"),
        ("negative", "no tensor has the dimensions [-2, -3]"),
        ("huge", "no tensor has the dimensions"),
        ("many-elements", "than the file can hold"),
        ("complex", "no weights"),
        ("code-range", "tensor w_quantized: 200 is no INT8"),
        ("segment", "in segments"),
        ("two-of-a-name", "two weights are called w"),
        ("nameless", "it has no name"),
        (
            "scales",
            "scales of shape [2] and zero points of shape [] along dimension 1",
        ),
        ("infinite-scale", "one of its scales is inf"),
        ("axis", "scales of shape [2]"),
        ("zero-type", "z is of another type than w_quantized"),
        ("blocks", "scales of blocks are not read"),
        ("no-scale", "(MatMulInteger): nothing behind it"),
        ("computed-zero", "is computed, not stored"),
        ("alpha", "`alpha` and `beta`"),
        (
            "fused",
            "(com.microsoft.FusedMatMul): an operation of an optimizer reads the weight w",
        ),
        ("aliases", "than the file can hold"),
        ("sparse", "sparse weights are not read"),
        ("no-weights", "no weights in it"),
        ("no-graph", "not an ONNX model"),
    ];
    for (name, says) in cases {
        let bytes = bytes(&format!("bad/{name}.onnx"));
        let error = match Onnx::parse(&bytes, "m.onnx") {
            Err(error) => error,
            Ok(onnx) => match onnx.weights().try_for_each(|w| onnx.values(w).map(drop)) {
                Err(error) => error,
                Ok(()) => panic!("{name} was read"),
            },
        };
        let text = error.to_string();
        assert!(
            text.starts_with("m.onnx: ") && text.contains(says),
            "{name}: {text}"
        );
    }
    assert_eq!(
        cases.len(),
        std::fs::read_dir(fixture("bad")).unwrap().count(),
        "every file is tried"
    );
}

/// Reads all that can be read of damaged bytes.
fn try_all(bytes: &[u8]) {
    if let Ok(onnx) = Onnx::parse(bytes, "damaged") {
        for weight in onnx.weights() {
            if let Ok(values) = onnx.values(weight) {
                assert_eq!(values.len(), weight.shape.iter().product::<usize>());
            }
        }
    }
}

#[test]
fn a_file_that_is_cut_off_is_refused_or_has_what_it_says() {
    for name in ["types.onnx", "dequantize.onnx"] {
        let bytes = bytes(name);
        // The graph is one field, of which a part is none; the version of the operators follows.
        let version = 0x42;
        let end_of_graph = bytes.iter().rposition(|byte| *byte == version).unwrap();
        for end in 0..bytes.len() {
            let read = Onnx::parse(&bytes[..end], "cut").is_ok();
            assert!(!read || end >= end_of_graph, "{name} cut at {end}");
            try_all(&bytes[..end]);
        }
    }
    let bytes = bytes("int8-channel.onnx");
    for end in (0..bytes.len()).step_by(97) {
        try_all(&bytes[..end]);
    }
}

#[test]
fn changed_bytes_cost_no_more_than_the_file() {
    for name in ["types.onnx", "dequantize.onnx", "bad/code-range.onnx"] {
        let mut bytes = bytes(name);
        for at in 0..bytes.len() {
            let before = bytes[at];
            for changed in [
                0,
                1,
                0x7f,
                0x80,
                0xff,
                before ^ 1,
                before ^ 8,
                before ^ 0x20,
            ] {
                bytes[at] = changed;
                try_all(&bytes);
            }
            bytes[at] = before;
        }
    }
}

#[test]
fn a_length_beyond_the_file_is_refused_before_anything_is_made() {
    // A graph of 2^62 bytes, and a tensor in one that says so.
    let length = [0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x40];
    let mut file = vec![0x3a];
    file.extend(length);
    let error = Onnx::parse(&file, "m").unwrap_err().to_string();
    assert!(
        error.contains("4611686018427387904 bytes follow, 0 do"),
        "{error}"
    );
    let mut file = vec![0x3a, 10, 0x2a];
    file.extend(&length[..]);
    let error = Onnx::parse(&file, "m").unwrap_err().to_string();
    assert!(error.contains("bytes follow, 0 do"), "{error}");
    // A number that never ends.
    let error = Onnx::parse(&[0xff; 12], "m").unwrap_err().to_string();
    assert!(error.contains("more than 64 bits"), "{error}");
}

#[test]
fn more_nodes_than_a_model_has_are_refused() {
    // Nodes without anything take two bytes each.
    let mut graph = [0x0a, 0].repeat((1 << 18) + 1);
    let mut length = graph.len();
    let mut file = vec![0x3a];
    while length >= 0x80 {
        file.push((length & 0x7f) as u8 | 0x80);
        length >>= 7;
    }
    file.push(length as u8);
    file.append(&mut graph);
    let error = Onnx::parse(&file, "m").unwrap_err().to_string();
    assert!(error.contains("more than 262144 nodes"), "{error}");
}

#[test]
fn a_converted_file_has_the_numbers_of_the_original() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("model.safetensors");
    let converted = to_safetensors(&fixture("int8.onnx"), &out).unwrap();
    assert_eq!((converted.weights, converted.dequantized), (41, 17));
    let bytes = std::fs::read(&out).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let read = file.iter().map(|(name, tensor)| {
        let value = (tensor.shape().to_vec(), floats(tensor.data()));
        (name.to_owned(), value)
    });
    assert_same("int8", &read.collect());
    let error = to_safetensors(&fixture("bad/short.onnx"), &folder.path().join("no")).unwrap_err();
    assert!(
        error.to_string().contains("short.onnx: tensor w: "),
        "{error}"
    );
    assert_eq!(
        std::fs::read_dir(folder.path()).unwrap().count(),
        1,
        "nothing is left of it"
    );
}
