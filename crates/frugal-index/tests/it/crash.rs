//! Writers that are killed, or whose disk is full.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use frugal_index::{Document, Encoder, Encoding, HnswOptions, Index, Metric, Query, Settings};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Says to the child process where the index is.
const FOLDER: &str = "FRUGAL_TEST_CRASH_FOLDER";
/// Documents of one commit.
const BATCH: u64 = 20;
/// Commits after which a document is deleted.
const LIFE: u64 = 3;
const DIMENSION: usize = 16;

fn settings() -> Settings {
    Settings {
        encoder: Some(Encoder {
            model: "test".into(),
            fingerprint: "test".into(),
            dimension: DIMENSION,
            metric: Metric::Ip,
            encoding: Encoding::F32,
        }),
        hnsw: Some(HnswOptions {
            min_rows: 10,
            ..HnswOptions::default()
        }),
        ..Settings::default()
    }
}

fn vector(seed: u64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..DIMENSION).map(|_| rng.random_range(0.1..1.0)).collect()
}

/// The commit that the index says it is at.
fn commit_of(index: &Index) -> u64 {
    match index.document("counter").unwrap() {
        Some(document) => document.text.rsplit(' ').next().unwrap().parse().unwrap(),
        None => 0,
    }
}

/// One commit: new documents, one that changes, and old ones that go.
fn commit(folder: &Path, n: u64) -> Result<(), frugal_index::IndexError> {
    let mut writer = Index::open(folder)?.writer()?;
    for i in 0..BATCH {
        let document = Document::new(format!("{n}-{i}"), format!("wing number {i} of {n}"));
        writer.add(&document, Some(&vector(n * BATCH + i)))?;
    }
    let counter = Document::new("counter", format!("commit {n}"));
    writer.update(&counter, Some(&vector(n)))?;
    if n > LIFE {
        for i in 0..BATCH {
            writer.delete(&format!("{}-{i}", n - LIFE))?;
        }
    }
    match n % 4 {
        0 => writer.compact(),
        _ => writer.commit(),
    }
}

/// Not a test of its own: the process that the others start. It commits until it is ended, and says
/// which commits stand.
#[test]
#[ignore = "is started by the tests that end it"]
#[allow(clippy::print_stdout)]
fn writer_process() {
    let Some(folder) = std::env::var_os(FOLDER) else {
        return;
    };
    let folder = Path::new(&folder);
    if Index::open(folder).is_err() {
        Index::create(folder, settings()).unwrap();
    }
    let first = commit_of(&Index::open(folder).unwrap()) + 1;
    for n in first.. {
        match commit(folder, n) {
            Ok(()) => println!("\ncommitted {n}"),
            Err(error) => {
                println!("\nfailed {error}");
                return;
            }
        }
        std::io::stdout().flush().unwrap();
    }
}

fn start(folder: &Path, mut command: Command) -> Child {
    command
        .env(FOLDER, folder)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn arguments(command: &mut Command) {
    command.args([
        "--exact",
        "crash::writer_process",
        "--ignored",
        "--nocapture",
        "--test-threads=1",
    ]);
}

/// Last commit that a process said stands, and its failure if it had one.
fn said(child: &mut Child) -> (u64, Option<String>) {
    let (mut last, mut failure) = (0, None);
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        if let Some(n) = line.strip_prefix("committed ") {
            last = n.parse().unwrap();
        } else if let Some(error) = line.strip_prefix("failed ") {
            failure = Some(error.to_owned());
        }
    }
    (last, failure)
}

/// The index holds exactly what its last commit left: nothing lost, nothing twice.
fn assert_whole(folder: &Path, at_least: u64) -> u64 {
    let index = Index::open(folder).unwrap();
    index.check().unwrap();
    let n = commit_of(&index);
    // It may have ended between the commit and saying so.
    assert!(n == at_least || n == at_least + 1, "{n} {at_least}");
    let living: Vec<String> = (n.saturating_sub(LIFE) + 1..=n)
        .flat_map(|commit| (0..BATCH).map(move |i| format!("{commit}-{i}")))
        .collect();
    assert_eq!(index.len(), living.len() + usize::from(n > 0));
    for id in &living {
        assert!(index.contains(id).unwrap(), "{id}");
    }
    for query in [Query::text("wing"), Query::vector(vector(3))] {
        let is_text = query.text.is_some();
        let found = index.search(&query.top_k(10_000)).unwrap();
        let mut ids: Vec<&str> = found.iter().map(|f| f.id.as_str()).collect();
        ids.sort_unstable();
        ids.dedup();
        let counter = usize::from(n > 0 && !is_text);
        assert_eq!(
            (found.len(), ids.len()),
            (living.len() + counter, living.len() + counter)
        );
    }
    n
}

#[test]
fn after_kill_at_ten_random_moments_the_last_commit_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("idx");
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let mut last = 0;
    for round in 0..10 {
        let mut command = Command::new(std::env::current_exe().unwrap());
        arguments(&mut command);
        let mut child = start(&folder, command);
        // The first one may end while the index is created.
        let most = if round == 0 { 30 } else { 1500 };
        std::thread::sleep(Duration::from_millis(rng.random_range(10..most)));
        child.kill().unwrap();
        child.wait().unwrap();
        let (committed, failure) = said(&mut child);
        assert_eq!(failure, None);
        last = last.max(committed);
        if folder.join("manifest.jsonl").exists() {
            last = assert_whole(&folder, last);
        }
    }
    assert!(last > 10, "only {last} commits: the test does not test");
    // Nothing of the killed ones stays once the next writer is done.
    commit(&folder, last + 1).unwrap();
    let vectors = std::fs::read_dir(&folder).unwrap().flatten();
    let vectors = vectors.filter(|file| file.file_name().to_string_lossy().starts_with("vectors-"));
    let names: Vec<_> = vectors.map(|file| file.file_name()).collect();
    assert!(names.len() <= 8, "{names:?}");
    assert!(
        names
            .iter()
            .any(|name| name.to_string_lossy().ends_with(".hnsw"))
    );
}

#[test]
fn a_full_disk_fails_the_commit_and_keeps_the_one_before() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("idx");
    for n in 1..=5 {
        if n == 1 {
            Index::create(&folder, settings()).unwrap();
        }
        commit(&folder, n).unwrap();
    }
    // No file may grow beyond 2 KiB; writing on fails as it does on a full disk.
    let mut command = Command::new("sh");
    command.args(["-c", "trap '' XFSZ; ulimit -f 4; exec \"$0\" \"$@\""]);
    command.arg(std::env::current_exe().unwrap());
    arguments(&mut command);
    let mut child = start(&folder, command);
    let (committed, failure) = said(&mut child);
    child.wait().unwrap();
    assert_eq!(committed, 0);
    let failure = failure.unwrap();
    assert!(failure.contains("File too large"), "{failure}");
    assert_eq!(assert_whole(&folder, 5), 5);
    commit(&folder, 6).unwrap();
    assert_eq!(assert_whole(&folder, 6), 6);
}
