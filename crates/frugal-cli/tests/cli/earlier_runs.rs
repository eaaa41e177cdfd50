//! Run folders that earlier versions of the program wrote: they resume, and adapters load.

use std::fs;
use std::path::Path;

use crate::support::{fixture, folder, frugal_in};

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// All numbers of an adapter file that follow its header.
fn values(file: &Path) -> Vec<f32> {
    let bytes = fs::read(file).unwrap();
    let header = usize::try_from(u64::from_le_bytes(bytes[..8].try_into().unwrap())).unwrap();
    let data = &bytes[8 + header..];
    data.as_chunks::<4>()
        .0
        .iter()
        .map(|b| f32::from_le_bytes(*b))
        .collect()
}

/// The fixture's whole runs were never interrupted. Their bits hold on processors with the same
/// vector instructions; elsewhere sums run in another order.
#[test]
fn an_interrupted_run_of_an_earlier_version_ends_as_its_whole_run_did() {
    for method in ["lora", "adalora"] {
        let folder = folder();
        let run = folder.path().join("run");
        copy(&fixture(&format!("runs/{method}/interrupted")), &run);
        frugal_in(folder.path(), &["tune", "--resume", "run", "--quiet"]).ok();
        let found = values(&run.join("adapter_model.safetensors"));
        let expected =
            values(&fixture(&format!("runs/{method}/finished")).join("adapter_model.safetensors"));
        assert_eq!(found.len(), expected.len(), "{method}");
        let worst = found
            .iter()
            .zip(&expected)
            .map(|(a, b)| (a - b).abs())
            .fold(0.0, f32::max);
        assert!(worst < 2e-4, "{method}: {worst}");
    }
}

/// The losses are those that the version which wrote the adapters gave.
#[test]
fn an_adapter_of_an_earlier_version_scores_as_it_did_then() {
    for (method, loss) in [("lora", 0.419_934_32), ("adalora", 0.447_781_46)] {
        let folder = folder();
        copy(
            &fixture(&format!("runs/{method}/finished")),
            &folder.path().join("run"),
        );
        let words = "eval --adapter run --data sms-spam --json --quiet";
        let found = frugal_in(folder.path(), &words.split(' ').collect::<Vec<_>>());
        let found = found.ok().json()["metrics"]["loss"].as_f64().unwrap();
        assert!((found - loss).abs() < 1e-4, "{method}: {found}");
    }
}
