#![no_main]

use frugal_formats::gguf::{Gguf, NameMap, hf_config, tokenizer};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(gguf) = Gguf::parse(bytes, "fuzz") else { return };
    for info in gguf.tensors() {
        assert_eq!(gguf.tensor_f32(bytes, &info.name).map(|values| values.len()), Ok(info.len()));
    }
    if let Ok(config) = hf_config(&gguf, bytes) {
        let map = NameMap::from_config(&config).expect("a config from a file is one of its family");
        gguf.tensors().iter().for_each(|info| drop(map.to_hf(&info.name)));
    }
    drop(tokenizer(&gguf));
});
