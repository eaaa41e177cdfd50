//! Parts that are missing, renamed or of different models.

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::{
    GgmlType, Gguf, GgufError, Parts, TensorSpec, Value, files_of, hf_config, model_name,
    part_paths, write,
};

fn fixture(number: usize) -> PathBuf {
    let folder = format!("{}/../../fixtures/gguf/split", env!("CARGO_MANIFEST_DIR"));
    Path::new(&folder).join(format!("mistral-{number:05}-of-00003.gguf"))
}

/// Reads the model of which `path` is a file, as the loader does.
fn open(path: &Path) -> Result<(Gguf, Parts<Vec<u8>>), GgufError> {
    let read = |path: &Path| {
        let bytes = fs::read(path).unwrap();
        Gguf::parse(&bytes, &path.display().to_string()).map(|gguf| (gguf, bytes))
    };
    let (head, bytes) = read(path)?;
    let Some(paths) = part_paths(&head, path)? else {
        return Ok((head, Parts(vec![bytes])));
    };
    let parts: Result<Vec<_>, _> = paths.iter().map(|path| read(path)).collect();
    let (headers, bytes) = parts?.into_iter().unzip();
    Ok((Gguf::join(headers)?, Parts(bytes)))
}

#[test]
fn the_parts_that_python_wrote_are_one_model() {
    for number in 1..=3 {
        let (gguf, parts) = open(&fixture(number)).unwrap();
        assert_eq!(gguf.tensors().len(), 21);
        let config = hf_config(&gguf, &parts).unwrap();
        assert_eq!(config["tie_word_embeddings"], false);
        assert_eq!(gguf.tensor("output.weight").unwrap().part, 2);
        assert_eq!(
            gguf.tensor_f32(&parts, "output.weight").unwrap().len(),
            64 * 32
        );
        assert_eq!(gguf.source(), fixture(1).display().to_string());
        assert!(
            gguf.metadata()
                .iter()
                .all(|(k, _)| !k.starts_with("split."))
        );
    }
    let all = [1, 2, 3].map(fixture);
    assert_eq!(files_of(&all[1]), all);
    assert_eq!(model_name(&all[2]), "mistral");
    assert_eq!(model_name(Path::new("a/b.Q4_0.gguf")), "b.Q4_0");
    assert_eq!(files_of(Path::new("b.gguf")), [Path::new("b.gguf")]);
}

#[test]
fn a_part_alone_is_no_tied_model() {
    let bytes = fs::read(fixture(1)).unwrap();
    let gguf = Gguf::parse(&bytes, "part").unwrap();
    let text = hf_config(&gguf, &bytes).unwrap_err().to_string();
    assert!(text.contains("part 1 of a model in 3 files"), "{text}");
}

/// Two parts with one tensor each; `change` has the metadata and the name of the tensor of part
/// 1 or 2.
fn two(change: impl Fn(usize, &mut Vec<(String, Value)>, &mut String)) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for number in 1..=2 {
        let mut metadata: Vec<(String, Value)> = vec![
            ("split.no".into(), (number as u32 - 1).into()),
            ("split.count".into(), 2_u32.into()),
            ("split.tensors.count".into(), 2_i32.into()),
        ];
        let mut tensor = format!("t{number}");
        change(number, &mut metadata, &mut tensor);
        let spec = TensorSpec {
            name: tensor,
            shape: vec![4],
            ggml_type: GgmlType::F32,
        };
        let path = folder.path().join(format!("m-{number:05}-of-00002.gguf"));
        write(&path, &metadata, &[spec], |_| Ok(vec![1.0; 4])).unwrap();
    }
    folder
}

fn refusal(folder: &TempDir, name: &str) -> String {
    open(&folder.path().join(name)).unwrap_err().to_string()
}

fn set(metadata: &mut Vec<(String, Value)>, key: &str, value: Option<Value>) {
    metadata.retain(|(k, _)| k != key);
    metadata.extend(value.map(|value| (key.to_owned(), value)));
}

#[test]
fn parts_that_contradict_each_other_are_refused_by_name() {
    let (first, second) = ("m-00001-of-00002.gguf", "m-00002-of-00002.gguf");
    assert!(open(&two(|_, _, _| {}).path().join(second)).is_ok());
    type Change = fn(usize, &mut Vec<(String, Value)>, &mut String);
    let cases: [(Change, &str, &str); 12] = [
        (
            |n, m, _| {
                if n == 2 {
                    set(m, "split.no", Some(0_u32.into()))
                }
            },
            second,
            "split.no: 0, but",
        ),
        (
            |n, m, _| {
                if n == 1 {
                    set(m, "split.no", Some(1_u32.into()))
                }
            },
            first,
            "split.no: 1, but",
        ),
        (
            |n, m, _| {
                if n == 2 {
                    set(m, "split.no", None)
                }
            },
            second,
            "split.no: missing",
        ),
        (
            |n, m, _| {
                if n == 2 {
                    set(m, "split.count", None)
                }
            },
            second,
            "split.count: missing",
        ),
        (
            |n, m, _| {
                if n == 2 {
                    set(m, "split.count", Some(3_u32.into()))
                }
            },
            second,
            "split.count: 3, but",
        ),
        (
            |n, m, _| {
                if n == 1 {
                    set(m, "split.count", Some((-1_i32).into()))
                }
            },
            first,
            "no number of parts",
        ),
        (
            |_, m, _| set(m, "split.tensors.count", Some(3_i32.into())),
            first,
            "split.tensors.count: 3, but the 2 parts have 2",
        ),
        (
            |_, m, _| set(m, "split.tensors.count", None),
            first,
            "split.tensors.count: missing",
        ),
        (
            |n, m, _| {
                if n == 2 {
                    set(m, "split.tensors.count", Some(9_i32.into()))
                }
            },
            second,
            "different models",
        ),
        (
            |_, m, _| set(m, "split.tensors.count", Some("two".into())),
            first,
            "not a count",
        ),
        (
            |_, _, t| *t = "t".into(),
            second,
            "tensor t is in an earlier part too",
        ),
        (
            |n, m, _| {
                set(
                    m,
                    "general.name",
                    Some(if n == 1 { "a" } else { "b" }.into()),
                )
            },
            second,
            "general.name: differs",
        ),
    ];
    for (change, file, says) in cases {
        let folder = two(change);
        let text = refusal(&folder, first);
        assert!(
            text.contains(says) && text.contains(file),
            "{text}\nshould say: {says}, {file}"
        );
    }
}

#[test]
fn a_missing_part_is_named() {
    let folder = two(|_, _, _| {});
    fs::remove_file(folder.path().join("m-00001-of-00002.gguf")).unwrap();
    let text = refusal(&folder, "m-00002-of-00002.gguf");
    assert!(text.contains("m-00001-of-00002.gguf` is missing"), "{text}");
}

#[test]
fn a_name_that_contradicts_the_file_is_refused() {
    let folder = two(|_, _, _| {});
    let rename = |from: &str, to: &str| {
        fs::copy(folder.path().join(from), folder.path().join(to)).unwrap();
    };
    rename("m-00001-of-00002.gguf", "model.gguf");
    let text = refusal(&folder, "model.gguf");
    assert!(
        text.contains("one of 2 parts") && text.contains("-00001-of-00002.gguf"),
        "{text}"
    );
    rename("m-00001-of-00002.gguf", "m-00001-of-00003.gguf");
    let text = refusal(&folder, "m-00001-of-00003.gguf");
    assert!(
        text.contains("part 1 of 3") && text.contains("says 2"),
        "{text}"
    );
    let one = two(|_, m, _| m.clear());
    let text = refusal(&one, "m-00001-of-00002.gguf");
    assert!(text.contains("`split.count` says 1"), "{text}");
}
