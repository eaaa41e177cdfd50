#![no_main]

use frugal_formats::onnx::Onnx;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(onnx) = Onnx::parse(bytes, "fuzz") else { return };
    for weight in onnx.weights() {
        if let Ok(values) = onnx.values(weight) {
            assert_eq!(values.len(), weight.shape.iter().product::<usize>());
        }
    }
});
