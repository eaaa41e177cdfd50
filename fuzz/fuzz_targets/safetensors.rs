#![no_main]

use libfuzzer_sys::fuzz_target;
use safetensors::SafeTensors;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(file) = SafeTensors::deserialize(bytes) {
        for (_, view) in file.tensors() {
            let elements: usize = view.shape().iter().product();
            assert_eq!(view.data().len() * 8, elements * view.dtype().bitsize());
        }
    }
});
