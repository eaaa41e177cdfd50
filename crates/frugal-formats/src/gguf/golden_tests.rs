//! Against files written by the `gguf` Python package (`scripts/golden/gguf_blocks.py`).

use super::{Array, GgmlType, Gguf, Value, quantize};

fn load(name: &str) -> (Vec<u8>, Gguf) {
    let path = format!("{}/../../fixtures/gguf/{name}", env!("CARGO_MANIFEST_DIR"));
    let bytes = std::fs::read(&path).unwrap();
    let gguf = Gguf::parse(&bytes, name).unwrap();
    (bytes, gguf)
}

#[test]
fn every_type_decodes_bit_for_bit() {
    let (bytes, gguf) = load("blocks.gguf");
    let mut seen = 0;
    for info in gguf.tensors().iter().filter(|t| !t.name.ends_with(".f32")) {
        let expected = gguf
            .tensor_f32(&bytes, &format!("{}.f32", info.name))
            .unwrap();
        let found = gguf.tensor_f32(&bytes, &info.name).unwrap();
        assert_eq!(found.len(), expected.len(), "{}", info.name);
        assert_eq!(
            info.shape(),
            gguf.tensor(&format!("{}.f32", info.name)).unwrap().shape()
        );
        for (i, (f, e)) in found.iter().zip(&expected).enumerate() {
            // 0 * inf gives a NaN whose sign bit depends on the processor.
            assert!(
                f.to_bits() == e.to_bits() || f.is_nan() && e.is_nan(),
                "{} [{i}]: {f:e}, expected {e:e}",
                info.name
            );
        }
        assert!(expected.iter().filter(|e| e.is_finite()).count() > expected.len() / 2);
        seen += 1;
    }
    assert_eq!(seen, 10);
}

#[test]
fn every_value_type_is_read() {
    let (_, gguf) = load("blocks.gguf");
    let expected = [
        ("v.u8", Value::U8(255)),
        ("v.i8", Value::I8(-128)),
        ("v.u16", Value::U16(65535)),
        ("v.i16", Value::I16(-32768)),
        ("v.u32", Value::U32(u32::MAX)),
        ("v.i32", Value::I32(i32::MIN)),
        ("v.f32", Value::F32(1e-5)),
        ("v.bool", Value::Bool(true)),
        ("v.string", Value::String("grüße, 世界".into())),
        (
            "v.strings",
            Value::Array(Array::String(vec!["a".into(), String::new(), "▁b".into()])),
        ),
        ("v.ints", Value::Array(Array::I32(vec![1, -2, 3]))),
        ("v.floats", Value::Array(Array::F32(vec![0.5, -1e4]))),
        ("v.bools", Value::Array(Array::Bool(vec![true, false]))),
        ("v.u64", Value::U64(u64::MAX)),
        ("v.i64", Value::I64(i64::MIN)),
        ("v.f64", Value::F64(0.1)),
        (
            "v.nested",
            Value::Array(Array::Array(vec![
                Array::I32(vec![1, 2]),
                Array::I32(vec![3]),
            ])),
        ),
    ];
    for (key, value) in expected {
        assert_eq!(gguf.get(key), Some(&value), "{key}");
    }
    assert_eq!(gguf.get("v.f32").unwrap().as_f64(), Some(1e-5));
}

#[test]
fn quantising_gives_the_reference_bytes() {
    let (bytes, gguf) = load("quantize.gguf");
    let values = gguf.tensor_f32(&bytes, "values").unwrap();
    for ggml_type in [
        GgmlType::F16,
        GgmlType::BF16,
        GgmlType::Q8_0,
        GgmlType::Q4_0,
        GgmlType::Q4_1,
        GgmlType::Q5_0,
        GgmlType::Q5_1,
    ] {
        let name = ggml_type.to_string().to_lowercase();
        let expected = gguf.tensor_bytes(&bytes, &name).unwrap();
        let found = quantize(ggml_type, &values).unwrap();
        let wrong: Vec<_> = found
            .chunks(ggml_type.block_bytes())
            .zip(expected.chunks(ggml_type.block_bytes()))
            .enumerate()
            .filter(|(_, (f, e))| f != e)
            .collect();
        assert!(
            wrong.is_empty() && found.len() == expected.len(),
            "{ggml_type}: {} blocks differ, first {:?}",
            wrong.len(),
            wrong.first()
        );
    }
    assert!(quantize(GgmlType::Q8_0, &values[..33]).is_err());
}
