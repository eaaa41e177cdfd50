//! Damaged and lying parts of split models, and damaged K-quants: an error or a result, never a
//! panic, and memory within a small multiple of the files.
//!
//! One test in a binary of its own, since the allocator counts what the whole process holds.

mod damage;

use std::cell::Cell;
use std::fs;
use std::path::{Path, PathBuf};

use frugal_formats::gguf::{
    GgmlType, Gguf, GgufError, Parts, dequantize, files_of, hf_config, part_paths, quantize,
    unpack_codes,
};
use peak_alloc::PeakAlloc;
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::RngSeed;

use damage::{Damage, damage};

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

const CASES: u32 = 300;
/// Peak per byte of all parts; the factor covers their own bytes and 4-bit blocks as `f32`.
const MULTIPLE: usize = 24;
/// For error texts and paths.
const SLACK: usize = 64 << 10;

fn fixture(name: &str) -> Vec<u8> {
    fs::read(format!(
        "{}/../../fixtures/gguf/{name}",
        env!("CARGO_MANIFEST_DIR")
    ))
    .unwrap()
}

fn part(folder: &Path, number: usize) -> PathBuf {
    folder.join(format!("mistral-{number:05}-of-00003.gguf"))
}

/// Reads every tensor of the model of which `path` is a file.
fn read_model(path: &Path) -> Result<usize, GgufError> {
    let read = |path: &Path| {
        let bytes = fs::read(path).unwrap();
        Gguf::parse(&bytes, "damaged").map(|gguf| (gguf, bytes))
    };
    let (head, bytes) = read(path)?;
    let (gguf, parts) = match part_paths(&head, path)? {
        None => (head, Parts(vec![bytes])),
        Some(paths) => {
            let all: Result<Vec<_>, _> = paths.iter().map(|path| read(path)).collect();
            let (headers, bytes) = all?.into_iter().unzip();
            (Gguf::join(headers)?, Parts(bytes))
        }
    };
    for info in gguf.tensors() {
        assert_eq!(gguf.tensor_f32(&parts, &info.name)?.len(), info.len());
    }
    let _ = hf_config(&gguf, &parts);
    Ok(gguf.tensors().len())
}

/// Runs `work` and holds its peak against the limit.
fn measured<T>(bytes: usize, work: impl FnOnce() -> T) -> T {
    let before = MEMORY.current_usage();
    MEMORY.reset_peak_usage();
    let result = work();
    let peak = MEMORY.peak_usage().saturating_sub(before);
    assert!(
        peak <= MULTIPLE * bytes + SLACK,
        "{bytes} bytes took {peak}"
    );
    result
}

fn split_sets() {
    let whole: Vec<Vec<u8>> = (1..=3)
        .map(|n| fixture(&format!("split/mistral-{n:05}-of-00003.gguf")))
        .collect();
    let folder = tempfile::tempdir().unwrap();
    let (accepted, refused) = (Cell::new(0), Cell::new(0));
    let strategy = (
        1_usize..=3,
        proptest::collection::vec((0_usize..3, any::<bool>(), damage()), 0..4),
        // A part that is missing, or another's.
        proptest::option::weighted(0.2, (0_usize..3, proptest::option::of(0_usize..3))),
    );
    proptest!(config(), |((named, damages, moved) in strategy)| {
        let mut parts: Vec<Option<Vec<u8>>> = whole.iter().cloned().map(Some).collect();
        if let Some((part, other)) = moved {
            parts[part] = other.map(|other| whole[other].clone());
        }
        for (part, header, damage) in &damages {
            let Some(bytes) = &mut parts[*part] else { continue };
            harm(bytes, *header, damage);
        }
        let mut total = 0;
        for (bytes, number) in parts.iter().zip(1..) {
            let path = part(folder.path(), number);
            match bytes {
                Some(bytes) => fs::write(&path, bytes).unwrap(),
                None => drop(fs::remove_file(&path)),
            }
            total += bytes.as_ref().map_or(0, Vec::len);
        }
        let path = part(folder.path(), named);
        if path.exists() {
            let found = measured(total, || read_model(&path));
            // What is read is never less than the model.
            match found {
                Ok(tensors) => { assert_eq!(tensors, 21); accepted.set(accepted.get() + 1) }
                Err(_) => refused.set(refused.get() + 1),
            }
        }
        assert!(files_of(&path).len() <= 3);
    });
    assert!(
        accepted.get() > 50 && refused.get() > 50,
        "{} accepted, {} refused",
        accepted.get(),
        refused.get()
    );
}

/// Half of the damage goes to the header, which is most of the first kilobyte.
fn harm(bytes: &mut Vec<u8>, header: bool, damage: &Damage) {
    let rest = if header && bytes.len() > 1024 {
        bytes.split_off(1024)
    } else {
        Vec::new()
    };
    damage.apply(bytes);
    bytes.extend(rest);
}

fn k_quant_files() {
    let whole = fixture("k-quants.gguf");
    let accepted = Cell::new(0);
    let strategy = proptest::collection::vec((any::<bool>(), damage()), 1..4);
    proptest!(config(), |(damages in strategy)| {
        let mut bytes = whole.clone();
        for (header, damage) in &damages {
            harm(&mut bytes, *header, damage);
        }
        let Ok(gguf) = Gguf::parse(&bytes, "damaged") else { return Ok(()) };
        for info in gguf.tensors() {
            let stored = gguf.tensor_bytes(&bytes, &info.name).unwrap();
            let values = measured(bytes.len(), || gguf.tensor_f32(&bytes, &info.name).unwrap());
            let Some(layout) = info.ggml_type.code_layout() else { continue };
            let mut codes = vec![0; values.len()];
            let groups = values.len() / layout.group;
            let (mut scales, mut minima) = (vec![0.0; groups], vec![0.0; groups]);
            unpack_codes(info.ggml_type, stored, &mut codes, &mut scales, &mut minima);
        }
        accepted.set(accepted.get() + 1);
    });
    assert!(accepted.get() > 50, "{accepted:?}");
}

/// Any 256 numbers are written so that they can be read, or refused.
fn any_values() {
    let numbers = prop_oneof![
        4 => any::<f32>(),
        4 => -1.0_f32..1.0,
        1 => Just(0.0),
        1 => any::<u32>().prop_map(f32::from_bits),
    ];
    let written = Cell::new(0);
    let strategy = (proptest::collection::vec(numbers, 256), any::<Index>());
    proptest!(config(), |((values, scale) in strategy)| {
        let scale = 2_f32.powi(-(scale.index(160) as i32));
        let values: Vec<f32> = values.iter().map(|v| v * scale).collect();
        for ggml_type in [GgmlType::Q5_0, GgmlType::Q5_1, GgmlType::Q4_K, GgmlType::Q5_K, GgmlType::Q6_K] {
            if let Ok(bytes) = quantize(ggml_type, &values) {
                written.set(written.get() + 1);
                let read = dequantize(ggml_type, &bytes);
                assert!(read.iter().all(|v| v.is_finite()), "{ggml_type}");
            }
        }
    });
    assert!(written.get() > 300, "{written:?}");
}

fn config() -> ProptestConfig {
    ProptestConfig {
        cases: CASES,
        rng_seed: RngSeed::Fixed(0),
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

#[test]
fn damaged_parts_and_blocks_neither_panic_nor_fill_the_memory() {
    split_sets();
    k_quant_files();
    any_values();
}
