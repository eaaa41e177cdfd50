//! Packed files, several files, lines of any length, files without an ending.

use std::io::Write;
use std::path::PathBuf;

use super::*;

const ROWS: &str = "{\"text\": \"a\", \"label\": \"x\"}\n{\"text\": \"b\", \"label\": \"y\"}\n";

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    ::zstd::stream::encode_all(bytes, 19).unwrap()
}

fn load_bytes(name: &str, bytes: &[u8]) -> Result<Dataset, DataError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    load(&path, &LoadOptions::default())
}

#[test]
fn packed_files_are_read_whatever_they_are_called() {
    let plain = load_bytes("a.jsonl", ROWS.as_bytes()).unwrap();
    for (name, bytes) in [
        ("a.jsonl.gz", gzip(ROWS.as_bytes())),
        ("a.jsonl.zst", zstd(ROWS.as_bytes())),
        ("a.jsonl", gzip(ROWS.as_bytes())),
        ("a", zstd(ROWS.as_bytes())),
        ("a.csv.gz", gzip(b"text,label\na,x\nb,y\n")),
        ("a.TSV.GZ", gzip(b"text\tlabel\na\tx\nb\ty\n")),
    ] {
        let data = load_bytes(name, &bytes).unwrap();
        assert_eq!(
            (data.examples, data.format),
            (plain.examples.clone(), plain.format),
            "{name}"
        );
    }
    // Two packed parts behind each other are one file, as of gzip's own tools.
    let two = [gzip(ROWS.as_bytes()), gzip(ROWS.as_bytes())].concat();
    assert_eq!(load_bytes("a.jsonl.gz", &two).unwrap().len(), 4);
    let mut cut = gzip(ROWS.as_bytes());
    cut.truncate(cut.len() - 9);
    let error = load_bytes("a.jsonl.gz", &cut).unwrap_err().to_string();
    assert!(error.contains("a.jsonl.gz: cannot read"), "{error}");
}

#[test]
fn a_file_that_unpacks_to_gigabytes_is_refused_early() {
    // One line, and many: 256 MiB of each in some hundred kilobytes.
    for (name, bytes) in [
        ("bomb.jsonl.gz", gzip(&vec![b' '; 256 << 20])),
        ("bomb.txt.zst", zstd(&vec![b'\n'; 256 << 20])),
        ("bomb.csv.gz", gzip(&b"a,b\n".repeat(64 << 20))),
    ] {
        assert!(bytes.len() < 1 << 20);
        let error = load_bytes(name, &bytes).unwrap_err().to_string();
        assert!(
            error.contains(name) && error.contains("unpack the file first"),
            "{error}"
        );
    }
}

#[test]
fn one_text_of_a_small_packed_file_does_not_fill_the_memory() {
    // Random enough to stay below what packing well may gain, in one line or one document.
    let words: String = (0..1 << 16)
        .map(|i| format!("{} ", i * 7919 % 65_521))
        .collect();
    let line = words.repeat(1 + (PACKED_TEXT / words.len()));
    let document = line.replace(' ', "\n");
    for (name, bytes) in [
        ("line.txt.gz", gzip_fast(line.as_bytes())),
        (
            "document.txt.gz",
            gzip_fast((document.clone() + "\n\nend").as_bytes()),
        ),
        (
            "line.jsonl.gz",
            gzip_fast(format!("{{\"text\": \"{line}\"}}").as_bytes()),
        ),
        (
            "cell.json.gz",
            gzip_fast(format!("[{{\"text\": \"{line}\"}}]").as_bytes()),
        ),
    ] {
        let error = load_bytes(name, &bytes).unwrap_err().to_string();
        assert!(
            error.contains(name) && error.contains("more than 32 MiB"),
            "{error}"
        );
    }
    // The same without packing is what it is.
    let data = load_bytes("document.txt", (document + "\n\nend").as_bytes()).unwrap();
    assert_eq!(data.len(), 2);
}

const PACKED_TEXT: usize = 32 << 20;

fn gzip_fast(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn a_file_without_an_ending_is_told_by_its_first_bytes() {
    for (content, format) in [
        (ROWS, Format::Classification),
        ("[{\"text\": \"a\"}]", Format::Text),
        ("label\ttext\nx\ta\n", Format::Classification),
        ("text,label\na,x\n", Format::Classification),
        ("just some words, and more\n", Format::Text),
    ] {
        assert_eq!(
            load_bytes("train", content.as_bytes()).unwrap().format,
            format,
            "{content}"
        );
    }
    // Names of a cache end in hashes.
    assert_eq!(
        load_bytes("train.0f3a9c", ROWS.as_bytes()).unwrap().len(),
        2
    );
    // One object after another in a .json file is common.
    assert_eq!(load_bytes("a.json", ROWS.as_bytes()).unwrap().len(), 2);
}

#[test]
fn several_files_are_one_data_set_whose_errors_name_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    std::fs::write(at("part-1.jsonl"), ROWS).unwrap();
    std::fs::write(at("part-2.jsonl"), ROWS).unwrap();
    let options = LoadOptions::default();
    let data = load_all(&[at("part-*.jsonl")], &options).unwrap();
    assert_eq!(
        (data.len(), data.rows, data.lines.as_slice()),
        (4, 4, [1, 2, 1, 2].as_slice())
    );
    assert_eq!(data.file_of(1), PathBuf::from(at("part-1.jsonl")));
    assert_eq!(data.file_of(2), PathBuf::from(at("part-2.jsonl")));
    let listed = load_all(&[at("part-1.jsonl"), at("part-2.jsonl")], &options).unwrap();
    assert_eq!(data, listed);
    assert_ne!(
        data.sha256,
        load(Path::new(&at("part-1.jsonl")), &options)
            .unwrap()
            .sha256
    );
    // Parts of the data still know their files.
    let [rest, held]: [Dataset; 2] = data.split(&[0.5, 0.5], 0).unwrap().try_into().unwrap();
    for part in [&rest, &held] {
        for i in 0..part.len() {
            let place = data.examples.iter().zip(&data.lines).enumerate();
            let mut same = place.filter(|(j, (e, l))| {
                **e == part.examples[i]
                    && **l == part.lines[i]
                    && data.file_of(*j) == part.file_of(i)
            });
            assert!(same.next().is_some());
        }
    }
    let error = load_all(&[at("none-*.jsonl")], &options)
        .unwrap_err()
        .to_string();
    assert!(error.contains("none-*.jsonl: no file matches"), "{error}");
    std::fs::write(at("other.jsonl"), "{\"text\": \"a\"}").unwrap();
    let error = load_all(&[at("part-1.jsonl"), at("other.jsonl")], &options)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("other.jsonl: holds text data") && error.contains("classification"),
        "{error}"
    );
}

#[test]
fn labels_that_differ_only_in_space_are_not_two_classes() {
    let error = read("a.csv", "text,label\na,x\nb, x\n")
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("a.csv:3: the label \" x\" differs from \"x\""),
        "{error}"
    );
}

#[test]
fn a_score_is_not_taken_for_as_many_classes() {
    let rows = |n: usize| {
        (0..n).fold("text,label\n".to_owned(), |t, i| {
            t + &format!("a{i},{}\n", i as f64 / 8.0)
        })
    };
    let error = read("a.csv", &rows(64)).unwrap_err().to_string();
    assert!(
        error.contains("64 different numbers") && error.contains("`--problem-type regression`"),
        "{error}"
    );
    // Half stars are classes.
    assert_eq!(read("a.csv", &rows(9)).unwrap().labels().len(), 9);
    let error = read("a.jsonl", "{\"text\": \"a\", \"label\": [\"x\", \"y\"]}")
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("`--problem-type multi_label_classification`"),
        "{error}"
    );
}

#[test]
fn a_misspelled_column_is_answered_with_the_names_of_the_file() {
    let options: LoadOptions =
        toml::from_str("columns = { text = 'reveiw', label = 'stars' }").unwrap();
    let error = parse(Path::new("a.csv"), b"review,stars\ngood,5\n", &options)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("no column \"reveiw\" (did you mean \"review\"?)")
            && error.contains("review, stars"),
        "{error}"
    );
    let error = read("a.csv", "Text,Label\na,x\nb,y\n")
        .unwrap_err()
        .to_string();
    assert!(error.contains("Text"), "{error}");
    let error = read("a.jsonl", "{\"Text\": \"a\", \"Label\": 1}")
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("classification data") && error.contains("text=Text"),
        "{error}"
    );
    let error = read("a.csv", "text;label\na;x\nb;y\n")
        .unwrap_err()
        .to_string();
    assert!(error.contains("separated by ';'"), "{error}");
}

#[test]
fn texts_are_read_without_labels_and_line_by_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.csv");
    std::fs::write(&path, "review\ngood\nbad\n").unwrap();
    // The mapping of the run that had labels.
    let options: LoadOptions =
        toml::from_str("columns = { text = 'review', label = 'stars' }").unwrap();
    let mut found = Vec::new();
    texts(&path, &options, &mut |record| {
        found.push((record.line, record.text, record.label));
        found.len() < 2
    })
    .unwrap();
    assert_eq!(
        found,
        [(2, "good".to_owned(), None), (3, "bad".to_owned(), None)]
    );
}

/// Written by `scripts/golden/parquet.py` with pyarrow.
#[test]
fn parquet_files_hold_what_pyarrow_wrote() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/parquet");
    for name in [
        "snappy.parquet",
        "zstd.parquet",
        "gzip.parquet",
        "plain.parquet",
    ] {
        let data = load(&folder.join(name), &LoadOptions::default()).unwrap();
        let expected = load(
            &folder.join("classification.jsonl"),
            &LoadOptions::default(),
        )
        .unwrap();
        assert_eq!(
            (data.format, data.examples),
            (expected.format, expected.examples),
            "{name}"
        );
    }
    let data = load(&folder.join("messages.parquet"), &LoadOptions::default()).unwrap();
    let expected = load(&folder.join("messages.jsonl"), &LoadOptions::default()).unwrap();
    assert_eq!(data.examples, expected.examples);
}

#[test]
fn a_compression_that_is_not_supported_is_not_called_damage() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/parquet");
    for (name, codec) in [("brotli", "BROTLI"), ("lz4", "LZ4")] {
        let path = folder.join(format!("{name}.parquet"));
        let error = load(&path, &LoadOptions::default())
            .unwrap_err()
            .to_string();
        assert!(
            error.contains(codec) && error.contains("snappy, gzip and zstd"),
            "{error}"
        );
        assert!(!error.contains("not a Parquet file"), "{error}");
    }
}

#[test]
fn a_damaged_parquet_file_is_an_error() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/parquet");
    let whole = std::fs::read(folder.join("snappy.parquet")).unwrap();
    for at in (0..whole.len()).step_by(7) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x55;
        let _ = load_bytes("a.parquet", &bytes);
        let _ = load_bytes("a.parquet", &whole[..at]);
    }
    let error = load_bytes("a.parquet", &whole[..whole.len() / 2])
        .unwrap_err()
        .to_string();
    assert!(error.contains("a.parquet: not a Parquet file"), "{error}");
}

#[test]
fn bytes_of_another_encoding_are_not_taken_for_text() {
    // UTF-16 without its mark, and a table with a stray byte.
    let wide: Vec<u8> = "text,label\na,x\n".bytes().flat_map(|b| [b, 0]).collect();
    for (name, bytes, line) in [
        ("a.csv", wide.as_slice(), 1),
        ("a.tsv", b"text\tlabel\na\0b\tx\n", 2),
        ("a.txt", b"one\ntwo\0\n", 2),
    ] {
        let error = load_bytes(name, bytes).unwrap_err().to_string();
        let said = format!("{name}:{line}: there is a byte 0");
        assert!(error.contains(&said), "{error}");
    }
}

#[test]
fn of_a_key_that_comes_twice_neither_value_is_taken() {
    for (name, text) in [
        (
            "a.jsonl",
            "{\"text\": \"a\", \"label\": \"x\", \"label\": \"y\"}\n",
        ),
        (
            "a.json",
            "[{\"text\": \"a\", \"label\": \"x\", \"label\": \"y\"}]",
        ),
    ] {
        let error = load_bytes(name, text.as_bytes()).unwrap_err().to_string();
        assert!(error.contains(&format!("{name}:1")), "{error}");
        assert!(error.contains("the key \"label\" comes twice"), "{error}");
    }
    // Values of every kind come through as they are.
    let rows = "{\"text\": \"a\", \"label\": 1, \"x\": [1, -2, 0.5, null, {\"y\": true}]}\n";
    assert_eq!(load_bytes("a.jsonl", rows.as_bytes()).unwrap().len(), 1);
}

#[test]
fn a_web_address_is_not_called_a_missing_file() {
    let path = PathBuf::from("https://example.org/a.csv");
    let error = load(&path, &LoadOptions::default())
        .unwrap_err()
        .to_string();
    assert!(error.contains("is a web address"), "{error}");
}
