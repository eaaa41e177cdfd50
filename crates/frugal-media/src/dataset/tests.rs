use std::path::PathBuf;

use super::*;
use crate::decode::Limits;

fn touch(root: &Path, names: &[&str]) {
    let image = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../fixtures/media/source.png"
    );
    for name in names {
        let path = root.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::copy(image, path).unwrap();
    }
}

/// Part, class and last part of the place.
fn listed(set: &ImageSet) -> Vec<(Part, String, String)> {
    let all = set
        .parts
        .iter()
        .flat_map(|(part, all)| all.iter().map(move |e| (*part, e)));
    all.map(|(part, e)| {
        let place = e.content.place();
        let name = place.rsplit('/').next().unwrap().to_owned();
        (part, e.label.clone().unwrap_or_default(), name)
    })
    .collect()
}

fn row(part: Part, label: &str, name: &str) -> (Part, String, String) {
    (part, label.into(), name.into())
}

#[test]
fn folders_are_classes_and_parts_where_all_are_called_so() {
    let root = tempfile::tempdir().unwrap();
    touch(
        root.path(),
        &[
            "cat/b.png",
            "cat/a.PNG",
            "cat/deep/c.jpeg",
            "dog/x.png",
            "dog/notes.txt",
            ".hidden/x.png",
        ],
    );
    let set = ImageSet::open(root.path()).unwrap();
    let t = Part::Train;
    assert_eq!(
        listed(&set),
        [
            row(t, "cat", "a.PNG"),
            row(t, "cat", "b.png"),
            row(t, "cat", "c.jpeg"),
            row(t, "dog", "x.png")
        ]
    );
    assert_eq!(set.labels(), ["cat", "dog"]);
    assert_eq!(
        set.parts[&t][0]
            .content
            .read(Limits::default())
            .unwrap()
            .width(),
        53
    );

    let root = tempfile::tempdir().unwrap();
    touch(
        root.path(),
        &["train/cat/a.png", "val/dog/b.png", "test/cat/c.png"],
    );
    let found = listed(&ImageSet::open(root.path()).unwrap());
    assert_eq!(
        found,
        [
            row(t, "cat", "a.png"),
            row(Part::Validation, "dog", "b.png"),
            row(Part::Test, "cat", "c.png")
        ]
    );
    let empty = tempfile::tempdir().unwrap();
    let error = ImageSet::open(empty.path()).unwrap_err().to_string();
    assert!(error.contains("a folder for each class"), "{error}");
}

#[test]
fn an_archive_is_read_in_place() {
    let root = tempfile::tempdir().unwrap();
    touch(
        root.path(),
        &[
            "all/train/cat/a.png",
            "all/train/dog/b.png",
            "all/test/cat/c.png",
        ],
    );
    let path = root.path().join("set.tar");
    let mut tar = tar::Builder::new(std::fs::File::create(&path).unwrap());
    tar.append_dir_all("all", root.path().join("all")).unwrap();
    tar.into_inner().unwrap();
    let set = ImageSet::open(&path).unwrap();
    let t = Part::Train;
    assert_eq!(
        listed(&set),
        [
            row(t, "cat", "a.png"),
            row(t, "dog", "b.png"),
            row(Part::Test, "cat", "c.png")
        ]
    );
    let image = set.parts[&Part::Test][0]
        .content
        .read(Limits::default())
        .unwrap();
    assert_eq!((image.width(), image.height()), (53, 37));
    // Cut off in the middle.
    let bytes = std::fs::read(&path).unwrap();
    let cut = root.path().join("cut.tar");
    std::fs::write(&cut, &bytes[..bytes.len() / 2]).unwrap();
    assert!(ImageSet::open(&cut).is_err());
}

#[test]
fn a_table_names_paths_classes_and_parts() {
    let root = tempfile::tempdir().unwrap();
    touch(root.path(), &["x/a.png", "x/b.png"]);
    let table = root.path().join("set.csv");
    std::fs::write(
        &table,
        "file_name,label,split\nx/a.png,cat,train\nx/b.png,3,test\n",
    )
    .unwrap();
    let set = ImageSet::open(&table).unwrap();
    assert_eq!(
        listed(&set),
        [
            row(Part::Train, "cat", "a.png"),
            row(Part::Test, "3", "b.png")
        ]
    );
    assert!(
        set.parts[&Part::Test][0]
            .content
            .read(Limits::default())
            .is_ok()
    );
    for (text, says) in [
        ("text,label\nhi,cat\n", "record 1: there is no path"),
        ("image,split\nx/a.png,other\n", "`split` must be train"),
    ] {
        std::fs::write(&table, text).unwrap();
        let error = ImageSet::open(&table).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
    let lines = root.path().join("set.jsonl");
    std::fs::write(
        &lines,
        "{\"image\": \"x/a.png\", \"label\": 7}\n{\"image\": \"gone.png\"}\n",
    )
    .unwrap();
    let set = ImageSet::open(&lines).unwrap();
    let labels: Vec<_> = set.parts[&Part::Train]
        .iter()
        .map(|e| e.label.clone())
        .collect();
    assert_eq!(labels, [Some("7".to_owned()), None]);
    let error = set.parts[&Part::Train][1]
        .content
        .read(Limits::default())
        .unwrap_err()
        .to_string();
    assert!(error.contains("gone.png"), "{error}");
}

#[test]
fn the_binary_version_of_cifar_is_read_by_channels() {
    let root = tempfile::tempdir().unwrap();
    let mut bytes = vec![1u8];
    bytes.extend((0..3072u32).map(|i| (i / 1024 * 100 + i % 7) as u8));
    std::fs::write(root.path().join("data_batch_1.bin"), &bytes).unwrap();
    bytes[0] = 0;
    std::fs::write(root.path().join("test_batch.bin"), &bytes).unwrap();
    std::fs::write(
        root.path().join("batches.meta.txt"),
        "airplane\nautomobile\n\n",
    )
    .unwrap();
    let set = ImageSet::open(root.path()).unwrap();
    assert_eq!(
        set.parts[&Part::Train][0].label.as_deref(),
        Some("automobile")
    );
    assert_eq!(set.parts[&Part::Test][0].label.as_deref(), Some("airplane"));
    let image = set.parts[&Part::Train][0]
        .content
        .read(Limits::default())
        .unwrap();
    // The pixel behind 33 others: 33 % 7 of each channel.
    assert_eq!(
        image.rgb()[99..102],
        [
            5,
            100 + ((1024 + 33) % 7) as u8,
            200 + ((2048 + 33) % 7) as u8
        ]
    );
    bytes.truncate(3000);
    std::fs::write(root.path().join("data_batch_1.bin"), &bytes).unwrap();
    let error = ImageSet::open(root.path()).unwrap_err().to_string();
    assert!(error.contains("no whole number of records"), "{error}");
    bytes.resize(3073, 0);
    bytes[0] = 9;
    std::fs::write(root.path().join("data_batch_1.bin"), &bytes).unwrap();
    let error = ImageSet::open(root.path()).unwrap_err().to_string();
    assert!(error.contains("class 9"), "{error}");
}

/// The subset of CIFAR-10 that other tests read, where it is.
#[test]
fn the_subset_of_cifar_has_a_thousand_of_each_class() {
    let data = std::env::var_os("FRUGAL_DATA").map(PathBuf::from);
    let Some(path) = data
        .map(|d| d.join("cifar10/cifar10-subset.tar"))
        .filter(|p| p.exists())
    else {
        return;
    };
    let set = ImageSet::open(&path).unwrap();
    assert_eq!(set.labels().len(), 10);
    let sizes: Vec<_> = set
        .parts
        .iter()
        .map(|(part, all)| (*part, all.len()))
        .collect();
    assert_eq!(sizes, [(Part::Train, 10_000), (Part::Test, 2_000)]);
    let image = set.parts[&Part::Test][1234]
        .content
        .read(Limits::default())
        .unwrap();
    assert_eq!((image.width(), image.height()), (32, 32));
}

/// One folder that is no part made classes of the parts, `train` and `test`.
#[test]
fn a_folder_beside_the_parts_was_taken_for_a_class() {
    let root = tempfile::tempdir().unwrap();
    let names = ["train/cat/a.png", "train/dog/b.png", "test/cat/c.png"];
    touch(root.path(), &names);
    std::fs::create_dir(root.path().join("docs")).unwrap();
    let error = ImageSet::open(root.path()).unwrap_err().to_string();
    assert!(error.contains("`docs`"), "{error}");
    std::fs::remove_dir(root.path().join("docs")).unwrap();
    assert_eq!(ImageSet::open(root.path()).unwrap().parts.len(), 2);
}

/// Opening a pipe waits for one who writes.
#[cfg(unix)]
#[test]
fn a_pipe_was_waited_for() {
    let root = tempfile::tempdir().unwrap();
    let pipe = root.path().join("a.png");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status();
    assert!(made.unwrap().success());
    let error = crate::decode::decode_file(&pipe, Limits::default()).unwrap_err();
    assert!(error.to_string().contains("no file"), "{error}");
}

/// Images were counted once for each link that led to their folder, in the class of the link.
#[cfg(unix)]
#[test]
fn links_multiplied_images() {
    use std::os::unix::fs::symlink;
    let refused = |link: &str, target: &str, says: &[&str]| {
        let root = tempfile::tempdir().unwrap();
        let names = ["train/cat/a.png", "train/dog/deep/b.png", "test/cat/c.png"];
        touch(root.path(), &names);
        symlink(target, root.path().join(link)).unwrap();
        let error = ImageSet::open(root.path()).unwrap_err().to_string();
        assert!(
            says.iter().all(|says| error.contains(says)),
            "{link}: {error}"
        );
    };
    // From one class to another, to a folder in one, to another part, and a whole part.
    refused(
        "train/cat/more",
        "../dog",
        &["train/cat/more", "train/dog`", "one folder"],
    );
    refused(
        "train/cat/more",
        "../dog/deep",
        &["train/cat/more", "train/dog/deep"],
    );
    refused("train/zebra", "../test/cat", &["train/zebra", "test/cat"]);
    refused("val", "train", &["/val`", "/train`"]);
    // Back up, and beyond the set.
    refused("train/cat/up", "../..", &["train/cat/up", "one folder"]);
    refused("train/cat/up", "/", &["train/cat/up", "holds the set"]);
    // Single images.
    refused(
        "test/cat/d.png",
        "../../train/cat/a.png",
        &["test/cat/d.png", "train/cat/a.png", "one file"],
    );
}

/// Sets that are picked from a pool by links are read, each image once.
#[cfg(unix)]
#[test]
fn links_to_what_is_not_in_the_set_are_followed() {
    use std::os::unix::fs::symlink;
    let (pool, root) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    touch(pool.path(), &["x/a.png", "y/b.png"]);
    std::fs::create_dir(root.path().join("cat")).unwrap();
    symlink(pool.path().join("x/a.png"), root.path().join("cat/a.png")).unwrap();
    symlink(pool.path().join("y"), root.path().join("dog")).unwrap();
    let t = Part::Train;
    assert_eq!(
        listed(&ImageSet::open(root.path()).unwrap()),
        [row(t, "cat", "a.png"), row(t, "dog", "b.png")]
    );
}

#[test]
fn an_empty_label_was_a_class() {
    let root = tempfile::tempdir().unwrap();
    let table = root.path().join("set.csv");
    for blank in ["", "  "] {
        std::fs::write(&table, format!("image,label\na.png,cat\nb.png,{blank}\n")).unwrap();
        let error = ImageSet::open(&table).unwrap_err().to_string();
        assert!(
            error.contains("set.csv: record 2: `label` is empty"),
            "{error}"
        );
    }
}

/// Entries of this name and kind, each of one byte where it is a file.
fn packed(path: &Path, entries: &[(&str, tar::EntryType)]) {
    let mut tar = tar::Builder::new(std::fs::File::create(path).unwrap());
    for (name, kind) in entries {
        let mut header = tar::Header::new_gnu();
        header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(*kind);
        let bytes: &[u8] = if kind.is_file() { b"x" } else { b"" };
        if !kind.is_file() {
            header.set_link_name("cat/a.png").unwrap();
        }
        header.set_size(bytes.len() as u64);
        header.set_cksum();
        tar.append(&header, bytes).unwrap();
    }
    tar.into_inner().unwrap();
}

/// They were left out, or counted twice, without a word.
#[test]
fn entries_of_archives_that_unpacking_makes_other_images_of_were_left_out() {
    use tar::EntryType::{Directory, Link, Regular, Symlink};
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("set.tar");
    let refused = |name: &str, kind: tar::EntryType, says: &str| {
        packed(
            &path,
            &[("cat/a.png", Regular), ("dog/b.png", Regular), (name, kind)],
        );
        let error = ImageSet::open(&path).unwrap_err().to_string();
        assert!(
            error.contains("set.tar") && error.contains(name) && error.contains(says),
            "{name}: {error}"
        );
    };
    refused("cat/a.png", Regular, "twice");
    refused("dog/../c.png", Regular, "`..`");
    refused("dog/c.png", Symlink, "is a link");
    refused("zebra", Symlink, "is a link");
    refused("dog/c.png", Link, "is a link");
    refused("dog/c.png", tar::EntryType::Fifo, "no plain file");
    packed(&path, &[("./cat/a.png", Regular), ("cat/a.png", Regular)]);
    let error = ImageSet::open(&path).unwrap_err().to_string();
    assert!(error.contains("`cat/a.png` is in it twice"), "{error}");
    // What is no image, and what hides, as in folders.
    let harmless = [
        ("cat/a.png", Regular),
        ("cat", Directory),
        ("cat/notes.txt", Regular),
        ("cat/._a.png", Regular),
    ];
    packed(&path, &harmless);
    assert_eq!(listed(&ImageSet::open(&path).unwrap()).len(), 1);
}
