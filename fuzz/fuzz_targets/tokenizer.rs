#![no_main]

use frugal_core::tokenizer::TextTokenizer;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|json: &str| {
    if let Ok(tokenizer) = TextTokenizer::from_json(json, "{}")
        && let Ok(ids) = tokenizer.encode("the film 🦀 is good\n", true)
    {
        let _ = tokenizer.decode(&ids, false);
    }
});
