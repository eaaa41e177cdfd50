//! Against llama.cpp's own quantizer (`scripts/golden/gguf_k_quants.py`).

use serde_json::Value as Json;

use super::{FileType, GgmlType, Gguf, TensorsOf, dequantize, quantize};

fn fixture(name: &str) -> Vec<u8> {
    let path = format!("{}/../../fixtures/gguf/{name}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read(path).unwrap()
}

/// Root mean square error.
fn rmse(values: &[f32], ggml_type: GgmlType, bytes: &[u8]) -> f64 {
    let squares = values
        .iter()
        .zip(dequantize(ggml_type, bytes))
        .map(|(v, r)| (f64::from(*v) - f64::from(r)).powi(2));
    (squares.sum::<f64>() / values.len() as f64).sqrt()
}

#[test]
fn k_quants_are_as_near_as_those_of_llama_cpp() {
    let bytes = fixture("k-quants.gguf");
    let gguf = Gguf::parse(&bytes, "k-quants.gguf").unwrap();
    let mut compared = 0;
    let (mut blocks, mut equal) = (0, 0);
    for info in gguf.tensors().iter().filter(|t| !t.name.contains('.')) {
        let values = gguf.tensor_f32(&bytes, &info.name).unwrap();
        for ggml_type in [GgmlType::Q4_K, GgmlType::Q5_K, GgmlType::Q6_K] {
            let name = format!("{}.{}", info.name, ggml_type.to_string().to_lowercase());
            let theirs = gguf.tensor_bytes(&bytes, &name).unwrap();
            let ours = quantize(ggml_type, &values).unwrap();
            assert_eq!(ours.len(), theirs.len(), "{name}");
            let size = ggml_type.block_bytes();
            let pairs = ours.chunks(size).zip(theirs.chunks(size));
            blocks += pairs.len();
            equal += pairs.filter(|(ours, theirs)| ours == theirs).count();
            let found = rmse(&values, ggml_type, &ours);
            let expected = rmse(&values, ggml_type, theirs);
            assert!(
                found <= 1.03 * expected,
                "{name}: RMSE {found:e}, llama.cpp's is {expected:e}"
            );
            compared += 1;
        }
    }
    assert_eq!(compared, 8 * 3);
    println!("{equal} of {blocks} blocks are the same bytes");
}

#[test]
fn every_tensor_gets_the_type_that_llama_cpp_gives_it() {
    let fixture: Json = serde_json::from_slice(&fixture("file-types.json")).unwrap();
    let file_types = [
        ("q4_k_m", FileType::Q4_K_M),
        ("q5_k_m", FileType::Q5_K_M),
        ("q6_k", GgmlType::Q6_K.into()),
    ];
    let mut compared = 0;
    for (model, golden) in fixture["models"].as_object().unwrap() {
        let tensors = TensorsOf {
            layers: golden["layers"].as_u64().unwrap() as usize,
            has_output: !golden["tied"].as_bool().unwrap(),
        };
        for (name, file_type) in file_types {
            for (tensor, expected) in golden["types"][name].as_object().unwrap() {
                let shape: Vec<usize> =
                    serde_json::from_value(golden["shapes"][tensor].clone()).unwrap();
                let found = file_type.tensor_type(tensor, &shape, &tensors).to_string();
                assert_eq!(found, *expected, "{model}, {name}: {tensor} {shape:?}");
                compared += 1;
            }
        }
    }
    assert!(compared > 900, "{compared}");
}

#[test]
fn values_that_a_type_cannot_hold_are_refused() {
    let types = [
        GgmlType::Q4_0,
        GgmlType::Q5_1,
        GgmlType::Q8_0,
        GgmlType::Q4_K,
        GgmlType::Q5_K,
        GgmlType::Q6_K,
    ];
    for ggml_type in types {
        for (value, says) in [
            (f32::NAN, "not finite"),
            (f32::INFINITY, "not finite"),
            (f32::MAX, "too large"),
            (-3e38, "too large"),
        ] {
            let mut values = vec![0.5; 256];
            values[77] = value;
            let text = quantize(ggml_type, &values).unwrap_err().to_string();
            assert!(text.contains(says), "{ggml_type}, {value}: {text}");
        }
        // The smallest and the largest that all can hold.
        for value in [0.0, f32::MIN_POSITIVE, 1e-42, 65504.0] {
            let values = vec![value; 256];
            let read = dequantize(ggml_type, &quantize(ggml_type, &values).unwrap());
            assert!(
                read.iter()
                    .all(|r| (r - value).abs() <= 0.01 * value + 1e-6),
                "{ggml_type}, {value}: {}",
                read[0]
            );
        }
    }
    assert!(quantize(GgmlType::F16, &[65520.0]).is_err());
    assert!(quantize(GgmlType::F16, &[f32::INFINITY]).is_ok());
    assert!(quantize(GgmlType::Q4_K, &[0.0; 255]).is_err());
}
