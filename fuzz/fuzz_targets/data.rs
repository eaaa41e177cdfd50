#![no_main]

use std::path::Path;

use frugal_core::data::{LoadOptions, parse};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    for name in ["a", "a.jsonl", "a.json", "a.csv", "a.tsv", "a.txt"] {
        let _ = parse(Path::new(name), bytes, &LoadOptions::default());
    }
});
